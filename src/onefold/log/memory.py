"""The log in memory: for tests and simulation, and the oracle for the other engines.

It does what engines do to us, from a seed: appends that fail, appends of unknown outcome that are in the log, surface later
or never do; crashes that lose what was not synced; readers that are held back; damaged records. Without faults it is an
ordinary log that keeps nothing.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from onefold import config
from onefold.codec import crc32c
from onefold.env import SYSTEM, Env
from onefold.errors import AppendUnknown, LogCorrupt, SpaceError, TooLarge, TooOld, Unavailable
from onefold.ids import new_id
from onefold.log.api import Entry
from onefold.machine.undisturbed import Waiters


@dataclass(frozen=True)
class Faults:
    """Chances between 0 and 1."""

    refused: float = 0.0
    """An append fails definitely."""
    lost_answer: float = 0.0
    """An append succeeds, and its outcome is unknown to the caller."""
    late: float = 0.0
    """An append of unknown outcome that surfaces after later calls."""
    vanished: float = 0.0
    """An append of unknown outcome that never surfaces."""
    surfaces: float = 0.3
    """A late append surfaces at each later call with this chance."""


@dataclass
class _Stored:
    data: bytes | None
    """None: a hole."""
    engine_ms: int
    crc: int


class MemoryLog:
    """See ``onefold.log.api.Log``. Thread-safe; the same seed and calls give the same run."""

    def __init__(
        self, *, seed: int = 0, faults: Faults | None = None, env: Env = SYSTEM, syncs: bool = True
    ) -> None:
        """``syncs=False``: appends are acknowledged before they are safe, and ``crash`` loses them until ``sync``."""
        self.faults = faults or Faults()
        self.syncs = syncs
        self._env = env
        self._random = random.Random(seed)
        self._incarnation = new_id("i", env)
        self._lock = threading.RLock()
        """Of C, so that an interrupt cannot leave it locked, as it could a condition."""
        self._moved = Waiters()
        self._first = 1
        self._stored: list[_Stored] = []
        self._late: list[bytes] = []
        self._synced = 0
        self._closed = False

    # -- the contract

    @property
    def incarnation(self) -> str:
        """Made with the log."""
        return self._incarnation

    @property
    def first(self) -> int:
        return self._first

    @property
    def last(self) -> int:
        with self._lock:
            self._surface()
            return self._end()

    def append(self, data: bytes, deadline: float | None = None) -> int:  # noqa: ARG002 - it answers at once
        if len(data) > config.RECORD_BYTES_MAX:
            raise TooLarge(f"a record of {len(data)} bytes; the limit is {config.RECORD_BYTES_MAX}")
        with self._lock:
            self._check_open()
            self._surface()
            chance = self._random.random()
            for fault in ("refused", "lost_answer", "late", "vanished"):
                chance -= getattr(self.faults, fault)
                if chance < 0:
                    return self._fail(fault, data)
            return self._store(data)

    def read(self, start: int, max_bytes: int = 1 << 20) -> Sequence[Entry]:
        with self._lock:
            self._check_open()
            self._surface()
            return self._read(start, max_bytes, self._end())

    def wait(self, after: int, timeout: float | None) -> int:
        with self._lock:
            self._surface()
        self._moved.wait_for(lambda: self._end() > after or self._closed, timeout)
        return self._end()

    def trim(self, before: int) -> None:
        with self._lock:
            before = min(before, self._end() + 1)
            if before > self._first:
                del self._stored[: before - self._first]
                self._first = before

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._moved.notify()

    # -- knobs

    def surface_all(self) -> None:
        """What was late is in the log now."""
        with self._lock:
            for data in self._late:
                self._store(data)
            self._late.clear()

    def sync(self) -> None:
        """What has been appended survives a crash."""
        with self._lock:
            self._synced = self._end()

    def crash(self) -> int:
        """Lose what was late or not synced; return how many records were lost."""
        with self._lock:
            keep = (self._end() if self.syncs else max(self._synced, self._first - 1)) - self._first + 1
            lost = len(self._stored) - keep + len(self._late)
            del self._stored[keep:]
            self._late.clear()
            return lost

    def flip(self, offset: int, bit: int) -> None:
        """Damage a stored record."""
        with self._lock:
            stored = self._stored[offset - self._first]
            data = bytearray(stored.data or b"")
            data[bit // 8 % len(data)] ^= 1 << bit % 8
            stored.data = bytes(data)

    def lose(self, offset: int) -> None:
        """Make a hole, as a rotten replica has."""
        with self._lock:
            self._stored[offset - self._first].data = None

    def hold(self, upto: int) -> HeldBack:
        """A reader of this log that sees it only up to an offset, until it is let continue."""
        return HeldBack(self, upto)

    # -- inside

    def _check_open(self) -> None:
        if self._closed:
            raise SpaceError("the log in memory is closed. Open it again")

    def _end(self) -> int:
        return self._first + len(self._stored) - 1

    def _store(self, data: bytes) -> int:
        self._stored.append(_Stored(data, self._env.wall_ms(), crc32c(data)))
        self._moved.notify()
        return self._end()

    def _surface(self) -> None:
        if self._late:
            surfacing = [data for data in self._late if self._random.random() < self.faults.surfaces]
            for data in surfacing:
                self._late.remove(data)
                self._store(data)

    def _fail(self, fault: str, data: bytes) -> int:
        if fault == "refused":
            raise Unavailable("the log in memory refused an append (a fault that was asked for)")
        if fault == "lost_answer":
            self._store(data)
        elif fault == "late":
            self._late.append(data)
        raise AppendUnknown("the answer of the log in memory was lost (a fault that was asked for)")

    def _read(self, start: int, max_bytes: int, end: int) -> list[Entry]:
        if start < self._first:
            raise TooOld(
                f"offset {start} was trimmed; the oldest kept is {self._first}. Start from a snapshot"
            )
        entries: list[Entry] = []
        size = 0
        for offset in range(start, end + 1):
            stored = self._stored[offset - self._first]
            if stored.data is None:
                raise LogCorrupt(f"offset {offset} is missing")
            if crc32c(stored.data) != stored.crc:
                raise LogCorrupt(f"the record at offset {offset} is damaged")
            entries.append(Entry(offset, stored.data, stored.engine_ms))
            size += len(stored.data)
            if size >= max_bytes:
                break
        return entries


class HeldBack:
    """A log as a stale replica sees it: nothing beyond ``upto``, until ``go_on``. Appends go to the real log."""

    def __init__(self, log: MemoryLog, upto: int) -> None:
        self._log = log
        self._upto: int | None = upto

    def go_on(self, upto: int | None = None) -> None:
        """Show more; None: everything from now on."""
        self._upto = upto
        self._log._moved.notify()

    @property
    def incarnation(self) -> str:
        return self._log.incarnation

    @property
    def first(self) -> int:
        return self._log.first

    @property
    def last(self) -> int:
        return self._seen(self._log.last)

    def append(self, data: bytes, deadline: float | None = None) -> int:
        return self._log.append(data, deadline)

    def read(self, start: int, max_bytes: int = 1 << 20) -> Sequence[Entry]:
        with self._log._lock:
            return self._log._read(start, max_bytes, self._seen(self._log._end()))

    def wait(self, after: int, timeout: float | None) -> int:
        log = self._log
        log._moved.wait_for(lambda: self._seen(log._end()) > after or log._closed, timeout)
        return self._seen(log._end())

    def trim(self, before: int) -> None:
        self._log.trim(before)

    def close(self) -> None:
        """The real log stays open."""

    def _seen(self, end: int) -> int:
        return end if self._upto is None else min(end, self._upto)
