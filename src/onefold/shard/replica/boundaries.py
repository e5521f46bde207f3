"""Boundaries of a replica's log: calling back with the state as it was at each multiple of ``config.SNAPSHOT_EVERY_OFFSETS``.

What is called reads everything, which may take longer than the log takes to the next boundary. One more boundary waits then,
pinned like the first; of several the one whose number has the most factors of two, so that replicas that are slow at different
moments still find the same ones. The others are missed, and that is reported.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from onefold import config
from onefold.store.tables import read_head

if TYPE_CHECKING:
    import apsw

    from onefold.shard.replica.copy import OpenCopy

Boundary = Callable[[int, "apsw.Connection"], None]
"""Given an offset, and a connection whose read transaction shows just that."""
Missed = Callable[[int], None]
"""Given an offset at which nothing is called. Must not block or raise."""


class _Met(NamedTuple):
    """A boundary, and what holds the state there."""

    offset: int
    con: apsw.Connection
    held: ExitStack

    @property
    def rank(self) -> tuple[int, int]:
        number = self.offset // config.SNAPSHOT_EVERY_OFFSETS
        return number & -number, number


class Boundaries:
    """Calls for one replica, one at a time, in a thread of its own. ``at`` is called by the thread that applies."""

    def __init__(self, call: Boundary, missed: Missed | None = None) -> None:
        self._call = call
        self._missed = missed or (lambda _offset: None)
        self._lock = threading.Lock()
        self._calling = False
        self._next: _Met | None = None
        self._closed = False

    @property
    def calling(self) -> bool:
        """Whether a call runs or waits."""
        return self._calling

    def at(self, copy: OpenCopy, offset: int) -> None:
        """The copy stands at a boundary: call, now or after the call that runs. Raises as opening the file does."""
        with ExitStack() as stack:
            con = stack.enter_context(copy.file.exporting())
            con.execute("BEGIN")
            if read_head(con).applied != offset:  # another process continued already
                self._missed(offset)
                return
            met = _Met(offset, con, stack.pop_all())
        left: _Met | None = None
        with self._lock:
            if self._closed:
                left = met
            elif not self._calling:
                self._calling = True
                threading.Thread(target=self._run, args=(met,), name="onefold-boundary", daemon=True).start()
            elif self._next is None or met.rank > self._next.rank:
                left, self._next = self._next, met
            else:
                left = met
        if left is not None:
            self._leave(left)

    def close(self) -> None:
        """Call no more. A call that runs continues."""
        with self._lock:
            self._closed = True
            left, self._next = self._next, None
        if left is not None:
            self._leave(left)

    def _leave(self, left: _Met) -> None:
        left.held.close()
        self._missed(left.offset)

    def _run(self, first: _Met) -> None:
        met: _Met | None = first
        try:
            while met is not None:
                with met.held:
                    self._call(met.offset, met.con)
                with self._lock:
                    met, self._next = self._next, None
                    self._calling = met is not None
        finally:
            if met is not None:  # the call raised
                with self._lock:
                    self._calling, left, self._next = False, self._next, None
                if left is not None:
                    self._leave(left)
