"""Records that somebody asks about before they are applied here: the answer is given in the moment in which they are.

A program without a replica asks what became of its record while the record is on its way into the log. So its answer needs
neither another question nor another thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from onefold import config
from onefold.env import Env
from onefold.store.replica import Applied

Told = Callable[[Applied | None], None]
"""Called once with what became of the record; None: it was not applied here in time. Must not block or raise."""
_LOOK_S: Final = 1.0


class _Asked(NamedTuple):
    number: int
    deadline: float
    told: Told


class AwaitedRecords:
    """One for each replica. Thread-safe. It knows what this process applied, and nothing of what others did."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self._lock = threading.Lock()
        self._asked: dict[str, _Asked] = {}
        """By client: it has one record in flight."""
        self._last: dict[str, tuple[int, Applied | None]] = {}
        """The number of the last record of each client that was applied lately, and what became of it, if that is small."""
        self._is_used = False
        """Whether anybody has ever asked: until then outcomes are not kept."""
        self._looked_s = 0.0

    @property
    def any(self) -> bool:
        """Whether one is asked for."""
        return bool(self._asked)

    def ask(self, client: str, number: int, wait_s: float, told: Told) -> None:
        """Have ``told`` called when the client's record is applied here, which may be now, or after ``wait_s`` seconds."""
        now_s = self._env.boot_s()
        with self._lock:
            self._is_used = True
            ended = self._expired(now_s)
            last, found = self._last.get(client, (0, None))
            if last < number:
                before = self._asked.pop(client, None)
                if before is not None:
                    ended.append(before)
                if len(self._asked) < config.ASKS_PARKED_MAX:
                    self._asked[client] = _Asked(number, now_s + wait_s, told)
                else:
                    ended.append(_Asked(number, now_s, told))
        for one in ended:
            one.told(None)
        if last >= number:
            told(found if last == number else None)

    def applied(self, last: Mapping[str, Applied]) -> None:
        """These were applied and committed: of each client its last record. By one thread at a time."""
        with self._lock:
            for client, one in last.items():
                self._last.pop(client, None)
                self._last[client] = one.number, one if self._is_used and _is_small(one) else None
            while len(self._last) > config.AWAITED_CLIENTS_MAX:
                del self._last[next(iter(self._last))]
            if not self._asked:
                return
            came = [
                (self._asked.pop(client), one)
                for client, one in last.items()
                if client in self._asked and one.number >= self._asked[client].number
            ]
        for asked, one in came:
            asked.told(one if one.number == asked.number else None)

    def expire(self) -> None:
        """Answer those whose time is over."""
        with self._lock:
            ended = self._expired(self._env.boot_s())
        for one in ended:
            one.told(None)

    def close(self) -> None:
        """Answer all."""
        with self._lock:
            asked, self._asked = self._asked, {}
        for one in asked.values():
            one.told(None)

    def _expired(self, now_s: float) -> list[_Asked]:
        """Take out those whose time is over; looked for periodically."""
        if now_s - self._looked_s < _LOOK_S or not self._asked:
            return []
        self._looked_s = now_s
        over = [client for client, one in self._asked.items() if one.deadline <= now_s]
        return [self._asked.pop(client) for client in over]


def _is_small(applied: Applied) -> bool:
    return sum(map(len, applied.outcomes)) <= config.AWAITED_BYTES_MAX
