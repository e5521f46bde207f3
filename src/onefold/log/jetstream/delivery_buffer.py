"""What was delivered of a log and is waiting to be read: bounded, in order, without gaps. Pure.

Deliveries may be lost, doubled or out of order. ``last`` moves only over offsets that follow each other; what came beyond a gap
is kept aside until the gap is filled. Beyond its bound the buffer forgets the oldest records, and what is aside: they are fetched
again when they are read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from onefold.log.api import Entry

_ENTRY_BYTES = 64
"""What an entry costs beyond its bytes, roughly."""


class TailBuffer:
    """Not thread-safe: its owner has a lock."""

    def __init__(self, bytes_max: int, last: int = 0) -> None:
        self._bytes_max = bytes_max
        self._window: deque[Entry] = deque()
        self._window_bytes = 0
        self._aside: dict[int, Entry] = {}
        self._aside_bytes = 0
        self._last = last
        self._announced = last

    @property
    def last(self) -> int:
        """The end of what is known without a gap."""
        return self._last

    @property
    def announced(self) -> int:
        """The highest offset that is known to exist."""
        return self._announced

    @property
    def held_bytes(self) -> int:
        """What is kept, with an allowance for each entry."""
        return self._window_bytes + self._aside_bytes

    def offer(self, entries: Iterable[Entry]) -> bool:
        """Take what was delivered or fetched; True when ``last`` moved. Doubles are ignored."""
        before = self._last
        for entry in entries:
            offset = entry.offset
            if offset == self._last + 1:
                self._push(entry)
            elif offset > self._last:
                self._put_aside(entry)
        while self._aside and (found := self._aside.pop(self._last + 1, None)) is not None:
            self._aside_bytes -= len(found.data) + _ENTRY_BYTES
            self._push(found)
        self._announced = max(self._announced, self._last)
        return self._last > before

    def announce(self, offset: int) -> bool:
        """An offset is known to exist. True when that leaves a gap."""
        self._announced = max(self._announced, offset)
        return self._announced > self._last

    def jump(self, offset: int) -> bool:
        """Everything up to ``offset`` is known to exist and is fetched when it is read. True when ``last`` moved."""
        if offset <= self._last:
            return False
        self._clear_window()
        self._last = offset
        for known in [known for known in self._aside if known <= offset]:
            self._aside_bytes -= len(self._aside.pop(known).data) + _ENTRY_BYTES
        self.offer(())
        return True

    def take(self, start: int, max_bytes: int) -> list[Entry]:
        """Entries from ``start`` on, up to about ``max_bytes`` and at least one, if they are kept here; else none.

        Those below ``start`` are let go: they have been read.
        """
        window = self._window
        if not window or start < window[0].offset:
            return []
        while window and window[0].offset < start:
            self._window_bytes -= len(window.popleft().data) + _ENTRY_BYTES
        found: list[Entry] = []
        size = 0
        for entry in window:
            found.append(entry)
            size += len(entry.data)
            if size >= max_bytes:
                break
        return found

    def kept_from(self) -> int:
        """The lowest offset that is kept; one beyond ``last`` when none is."""
        return self._window[0].offset if self._window else self._last + 1

    def _push(self, entry: Entry) -> None:
        self._window.append(entry)
        self._window_bytes += len(entry.data) + _ENTRY_BYTES
        self._last = entry.offset
        while self._window_bytes > self._bytes_max:
            self._window_bytes -= len(self._window.popleft().data) + _ENTRY_BYTES

    def _put_aside(self, entry: Entry) -> None:
        self._announced = max(self._announced, entry.offset)
        size = len(entry.data) + _ENTRY_BYTES
        if entry.offset not in self._aside and self._aside_bytes + size <= self._bytes_max:
            self._aside[entry.offset] = entry
            self._aside_bytes += size

    def _clear_window(self) -> None:
        self._window.clear()
        self._window_bytes = 0
