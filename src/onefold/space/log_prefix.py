"""The log, looked at from behind: which offset a moment was, and its first records as a log of their own.

The moment of an offset is its *fold time*, max(previous, min(engine's stamp, writer's stamp)). So a moment means the last
record whose fold time is not beyond it, however the clocks of writers went.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Protocol, runtime_checkable

from onefold.codec import CorruptRecord, decode_record
from onefold.env import Env
from onefold.errors import SpaceError
from onefold.log.api import Entry, Log

_READ_BYTES = 4 << 20


@runtime_checkable
class _TimedLog(Protocol):
    """A log that finds moments by itself, faster than by decoding its records."""

    def offset_at(self, ms: int) -> int: ...

    def time_at(self, offset: int) -> int: ...


def offset_at(log: Log, ms: int) -> int:
    """The last offset whose fold time is at most ``ms`` (``log.first - 1`` when the oldest record is later)."""
    if isinstance(log, _TimedLog):
        return log.offset_at(ms)
    found = log.first - 1
    for offset, stamp_ms in _stamps(log, log.last):
        if stamp_ms > ms:
            break
        found = offset
    return found


def time_at(log: Log, offset: int) -> int:
    """Fold time (ms) at ``offset``, as far as the kept records tell; 0 when there is none."""
    if isinstance(log, _TimedLog):
        return log.time_at(offset)
    return max((stamp_ms for _, stamp_ms in _stamps(log, offset)), default=0)


def _stamps(log: Log, last: int) -> Iterator[tuple[int, int]]:
    """Each offset with the earlier one of its stamps; 0 for a record that is refused, which moves no time."""
    start = log.first
    while start <= last:
        for entry in log.read(start, _READ_BYTES):
            start = entry.offset + 1
            if entry.offset > last:
                return
            try:
                yield entry.offset, min(entry.engine_ms, decode_record(entry.data).stamp_ms)
            except CorruptRecord:
                yield entry.offset, 0


def as_time(ms: int) -> str:
    """Milliseconds since 1970 for a message."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"{ms} ms since 1970"


class LogPrefix:
    """The first records of a log, up to an offset. See ``onefold.log.api.Log``.

    What is appended stays in memory, for this reader alone: so transactions that were decided and not yet carried out in every
    shard can be carried out in the past too, without a trace in the real log.
    """

    def __init__(self, log: Log, last: int, env: Env) -> None:
        self._log = log
        self._end = last
        self._env = env
        self._own: list[Entry] = []

    @property
    def incarnation(self) -> str:
        return self._log.incarnation

    @property
    def first(self) -> int:
        return self._log.first

    @property
    def last(self) -> int:
        return self._end + len(self._own)

    def append(self, data: bytes, deadline: float | None = None) -> int:  # noqa: ARG002
        offset = self.last + 1
        self._own.append(Entry(offset, data, self._env.wall_ms()))
        return offset

    def read(self, start: int, max_bytes: int = 1 << 20) -> Sequence[Entry]:
        if start > self._end:
            return self._own[start - self._end - 1 :]
        return [entry for entry in self._log.read(start, max_bytes) if entry.offset <= self._end]

    def wait(self, after: int, timeout: float | None) -> int:  # noqa: ARG002
        return self.last

    def trim(self, before: int) -> None:  # noqa: ARG002
        raise SpaceError("the past cannot be trimmed")

    def close(self) -> None:
        """Nothing: the log belongs to the live space."""
