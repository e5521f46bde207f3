"""What keeps up with a log: takes deliveries, fetches what they left out, and looks when it is quiet."""

from __future__ import annotations

import asyncio
import threading
from typing import Final

from onefold import config
from onefold.backoff import jittered
from onefold.errors import OnefoldError, Timeout, Unavailable
from onefold.log.api import Entry
from onefold.log.jetstream import streams
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.client.subscription import Subscription
from onefold.log.jetstream.delivery_buffer import TailBuffer
from onefold.log.jetstream.fetch import Origin, entry_of, fetch
from onefold.log.jetstream.names import DIRECT_GET, LogNames

_GRACE_S: Final = 0.02
"""How long a gap may last before it is fetched: what is missing is usually on its way."""
_ASK_AGAIN_S: Final = 0.1
_TRIES: Final = 5
"""After so many fetches that brought nothing a gap is left to the reader, who asks all servers."""


class Tailer:
    """The tail of one log: thread-safe; its work runs on the link's loop. ``begin`` it, ``close`` it."""

    def __init__(self, link: Link, names: LogNames) -> None:
        self._link = link
        self._names = names
        self._origin = Origin.of(names)
        self._changed = threading.Condition()
        self._buffer = TailBuffer(config.TAIL_BUFFER_BYTES_MAX)
        self._closed = False
        self._subscription: Subscription | None = None
        self._task: asyncio.Task[None] | None = None
        self._nudge: asyncio.Event | None = None
        self._unwatch = link.on_change(self._on_change)
        self._look_due = False
        self._delivered = False

    def begin(self) -> int:
        """Subscribe and look where the log stands; return its first offset. Raises Unavailable, Timeout, SpaceError."""
        self._subscription = self._link.subscribe_raw(self._names.tail, self._on_delivery)
        return self._link.run(self._begin, 2 * config.ENGINE_REQUEST_TIMEOUT_S)

    @property
    def last(self) -> int:
        """Delivered without a gap up to here."""
        with self._changed:
            return self._buffer.last

    @property
    def kept_from(self) -> int:
        """See ``TailBuffer``."""
        with self._changed:
            return self._buffer.kept_from()

    def take(self, start: int, max_bytes: int) -> list[Entry]:
        """See ``TailBuffer``."""
        with self._changed:
            return self._buffer.take(start, max_bytes)

    def wait(self, after: int, timeout: float | None) -> int:
        """Wait until ``last > after``, the timeout or ``close``; return ``last``."""
        with self._changed:
            if self._buffer.last <= after and (timeout is None or timeout > 0):
                self._changed.wait_for(lambda: self._buffer.last > after or self._closed, timeout)
            return self._buffer.last

    def announce(self, offset: int) -> None:
        """An offset is known to exist: see that it arrives."""
        with self._changed:
            if not self._buffer.announce(offset):
                return
        self._link.post(self._wake)

    def close(self) -> None:
        """Waiters return."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._unwatch()
        if self._subscription is not None:
            self._subscription.close()
        self._link.post(self._end)

    # -- on the loop's thread

    async def _begin(self) -> int:
        """Where the log stands by what its leader and the nearest server say. One of them is enough to begin with."""
        self._nudge = asyncio.Event()
        leader = asyncio.ensure_future(self._ask_leader())
        state, newest = await asyncio.gather(leader, self._ask_newest(leader), return_exceptions=True)
        if isinstance(state, BaseException) and isinstance(newest, BaseException):
            raise newest
        for problem in (state, newest):
            if isinstance(problem, BaseException) and not isinstance(problem, (Unavailable, Timeout)):
                raise problem
        first, last = 1, 0
        if isinstance(state, streams.StreamState):
            first, last = state.first, state.last
        if isinstance(newest, int):
            last = max(last, newest)
        with self._changed:
            self._buffer.jump(last)
            self._changed.notify_all()
        self._task = asyncio.get_running_loop().create_task(self._keep())
        return first

    async def _ask_leader(self) -> streams.StreamState:
        state = await streams.stream_state(self._link, self._names.stream)
        if not state.led:  # such an answer tells of nothing
            raise Unavailable(f"{self._names.stream} has no leader now. Try again")
        return state

    async def _ask_newest(self, leader: asyncio.Future[streams.StreamState]) -> int:
        """Ask until a server answers, or the leader has: right after that was lost nobody answers for a moment."""
        while True:
            try:
                return await newest_offset(self._link, self._names)
            except Unavailable:
                if leader.done():
                    raise
            await asyncio.sleep(_ASK_AGAIN_S)

    def _on_delivery(self, _subject: bytes, _reply: bytes, data: bytes, headers: bytes | None) -> None:
        entry = entry_of(headers, data, self._origin)
        if entry is None:
            return
        self._delivered = True
        with self._changed:
            if self._buffer.offer((entry,)):
                self._changed.notify_all()
            gap = self._buffer.announced > self._buffer.last
        if gap:
            self._wake()

    def _on_change(self, connected: bool) -> None:
        if connected:
            self._look_due = True
            self._wake()

    def _wake(self) -> None:
        if self._nudge is not None:
            self._nudge.set()

    def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _keep(self) -> None:
        assert self._nudge is not None
        while not self._closed:
            pause_s = jittered(config.TAIL_LOOK_S)
            try:
                async with asyncio.timeout(pause_s):
                    await self._nudge.wait()
            except TimeoutError:
                self._look_due = not self._delivered
                self._delivered = False
            self._nudge.clear()
            if not self._look_due:
                if not self._gap():
                    continue
                await asyncio.sleep(_GRACE_S)
            try:
                await self._catch_up()
            except (Unavailable, Timeout):
                pass  # the next look, or the next connection, comes to it
            except OnefoldError:
                self._leave_to_reader()  # who meets it, and says it

    def _gap(self) -> bool:
        with self._changed:
            return self._buffer.announced > self._buffer.last

    async def _catch_up(self) -> None:
        """Fetch what is beyond ``last``, until there is nothing more. A gap that is large, or cannot be closed, is left to
        the reader."""
        empty = 0
        while self._look_due or self._gap():
            self._look_due = False
            start = self.last + 1
            batch = await fetch(self._link, self._names, start, max_bytes=config.FETCH_BYTES_MAX)
            with self._changed:
                moved = self._buffer.offer(batch.entries)
                if batch.entries:
                    self._buffer.announce(batch.entries[-1].offset + batch.pending)
                if self._buffer.announced - self._buffer.last > config.FETCH_BATCH_RECORDS:
                    moved = self._buffer.jump(self._buffer.announced)
                if moved:
                    self._changed.notify_all()
            empty = 0 if moved else empty + 1
            if empty and self._gap():
                if empty >= _TRIES:
                    self._leave_to_reader()
                    return
                await asyncio.sleep(_GRACE_S * 2**empty)

    def _leave_to_reader(self) -> None:
        with self._changed:
            if self._buffer.jump(self._buffer.announced):
                self._changed.notify_all()


async def newest_offset(link: Link, names: LogNames) -> int:
    """The highest offset that one of the servers has; 0 when it has none. Others may have more."""
    found, origin = 0, Origin.of(names)

    def each(data: bytes, block: bytes | None) -> bool:
        nonlocal found
        entry = entry_of(block, data, origin)
        found = 0 if entry is None else entry.offset
        return True

    question = b'{"last_by_subj":"%s"}' % names.both_subjects.encode()
    await link.collect(DIRECT_GET + names.stream, question, each, timeout=config.ENGINE_REQUEST_TIMEOUT_S)
    return found
