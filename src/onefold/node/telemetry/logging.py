"""The log of a node: one JSON object per line on stderr, without secrets.

Every line has ``time`` (UTC), ``level``, ``event`` (a fixed word), ``node``, and the fields of the event. A condition that
lasts is logged when it begins and when it ends, not each time that it is met. An event that was renamed has its former name in
``was`` until 1.0.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

from onefold.env import SYSTEM, Env

Level = Literal["info", "warning", "error"]
HIDDEN: Final = "***"
_TEXT_CHARS_MAX: Final = 4000
_USER_INFO: Final = re.compile(r"(?<=://)[^/\s@]+@")
_SEED: Final = re.compile(r"\bS[A-Z2-7]{50,}\b")
_NAMED: Final = re.compile(
    r"(?i)\b(password|passwd|secret|token|authorization)([\"']?\s*[=:]\s*[\"']?)(bearer\s+)?[^\s\"',;&}]+"
)
_FORMER_EVENTS: Final = {
    "answer_send_failed": "answers_not_sent",
    "archive_gap": "archive_has_a_gap",
    "divergence_check_stalled": "testimony_waits",
    "expired_by_peer": "was_expired",
    "job_workers_unavailable": "no_job_workers",
    "left_unclean": "left_without_a_word",
    "log_trim_blocked": "log_not_trimmed",
    "node_authority_unenforced": "programs_pass_for_nodes",
    "nodes_diverged": "nodes_differ",
    "recheck_failed": "cannot_look_again",
    "recheck_finished": "looked_again",
    "run_join_failed": "run_not_joined",
    "snapshot_offer_failed": "snapshot_not_offered",
}
_OVER: Final = "_over"
_STALLED: Final = "_stalled"
_NEW_EVENTS: Final = frozenset({"leaders_stalled", "decisions_stalled"})
"""Those that the previous release did not have."""


def former_event(event: str) -> str | None:
    """The name that an event had before it was renamed; None when it is the same."""
    name = event.removesuffix(_OVER)
    former = _FORMER_EVENTS.get(name)
    if former is None and name.endswith(_STALLED) and name not in _NEW_EVENTS:
        former = f"{name.removesuffix(_STALLED)}_waits"
    return None if former is None else former + event[len(name) :]


class JsonLog:
    """Writes events. Thread-safe. Never raises: a node does not stop because its log cannot be written."""

    def __init__(
        self,
        node: str,
        *,
        stream: TextIO | None = None,
        env: Env = SYSTEM,
        secrets: Iterable[str] = (),
        more: Mapping[str, str] | None = None,
    ) -> None:
        """``secrets``: texts that must not appear, such as the password of the connection. ``more``: fields of every line."""
        self._node = node
        self._more = dict(more or {})
        self._stream = stream
        self._env = env
        self._secrets = tuple(sorted({secret for secret in secrets if secret}, key=len, reverse=True))
        self._lock = threading.Lock()
        self._lasting: dict[str, str] = {}

    def about(self, **more: str) -> JsonLog:
        """Another log to the same stream whose lines have these fields too, and which has lasting conditions of its own."""
        made = JsonLog(
            self._node, stream=self._stream, env=self._env, secrets=self._secrets, more={**self._more, **more}
        )
        made._lock = self._lock  # lines stay whole
        return made

    def info(self, event: str, **fields: object) -> None:
        """Something happened."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Something that may need an operator."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Something that needs an operator."""
        self._write("error", event, fields)

    def begins(self, what: str, reason: str, *, level: Level = "warning", **fields: object) -> None:
        """A condition holds. Logged when it did not hold before, or for another reason."""
        with self._lock:
            if self._lasting.get(what) == reason:
                return
            self._lasting[what] = reason
        self._write(level, what, {"reason": reason, **fields})

    def ends(self, what: str, **fields: object) -> None:
        """The condition no longer holds. Logged when it did."""
        with self._lock:
            if self._lasting.pop(what, None) is None:
                return
        self._write("info", what + _OVER, fields)

    @property
    def lasting(self) -> list[str]:
        """The conditions that have begun and not ended."""
        with self._lock:
            return sorted(self._lasting)

    def redact(self, text: str) -> str:
        """The text without what may be a secret."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        text = _USER_INFO.sub(f"{HIDDEN}@", text)
        text = _SEED.sub(HIDDEN, text)
        return _NAMED.sub(lambda found: f"{found.group(1)}{found.group(2)}{HIDDEN}", text)

    def _write(self, level: Level, event: str, fields: Mapping[str, object]) -> None:
        stamp = datetime.fromtimestamp(self._env.wall_ms() / 1000, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {"time": stamp, "level": level, "event": event, "node": self._node}
        former = former_event(event)
        if former is not None:
            line["was"] = former
        line.update(self._more)
        line.update({name: self._plain(value) for name, value in fields.items()})
        text = json.dumps(line, ensure_ascii=False) + "\n"
        stream = self._stream if self._stream is not None else sys.stderr
        with self._lock:
            try:
                stream.write(text)
                stream.flush()
            except (OSError, ValueError):
                pass  # the process that started this one has closed it

    def _plain(self, value: object) -> object:
        match value:
            case None | bool() | int() | float():
                return value
            case list() | tuple() | set() | frozenset():
                return [self._plain(one) for one in value]
            case Mapping():
                return {str(name): self._plain(one) for name, one in value.items()}
            case BaseException():
                return self.redact(f"{type(value).__name__}: {value}")[:_TEXT_CHARS_MAX]
        return self.redact(str(value))[:_TEXT_CHARS_MAX]
