"""What a node says: one JSON object a line on stderr, without secrets.

Every line has ``time`` (UTC), ``level``, ``event`` (a fixed word), ``node``, and what belongs to the event. What goes on for a
while is told when it begins and when it ends, not each time that it is met.
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


class JsonLog:
    """Writes events. Thread-safe. Never raises: a node does not stop because nobody reads what it says."""

    def __init__(
        self, node: str, *, stream: TextIO | None = None, env: Env = SYSTEM, secrets: Iterable[str] = ()
    ) -> None:
        """``secrets``: texts that must not appear, such as the password of the connection."""
        self._node = node
        self._stream = stream
        self._env = env
        self._secrets = tuple(sorted({secret for secret in secrets if secret}, key=len, reverse=True))
        self._lock = threading.Lock()
        self._going_on: dict[str, str] = {}

    def info(self, event: str, **fields: object) -> None:
        """Something happened."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Something that may need somebody."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Something that needs somebody."""
        self._write("error", event, fields)

    def begins(self, what: str, reason: str, *, level: Level = "warning", **fields: object) -> None:
        """A state of things holds; told when it did not before, or for another reason."""
        with self._lock:
            if self._going_on.get(what) == reason:
                return
            self._going_on[what] = reason
        self._write(level, what, {"reason": reason, **fields})

    def ends(self, what: str, **fields: object) -> None:
        """It holds no more; told when it did."""
        with self._lock:
            if self._going_on.pop(what, None) is None:
                return
        self._write("info", f"{what}_over", fields)

    @property
    def going_on(self) -> list[str]:
        """What has begun and not ended."""
        with self._lock:
            return sorted(self._going_on)

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
        line.update({name: self._plain(value) for name, value in fields.items()})
        text = json.dumps(line, ensure_ascii=False) + "\n"
        stream = self._stream if self._stream is not None else sys.stderr
        with self._lock:
            try:
                stream.write(text)
                stream.flush()
            except (OSError, ValueError):
                pass  # closed by who started this

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
