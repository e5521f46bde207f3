"""Jobs and tables, asynchronously: see ``Run``, ``LiveRun`` and ``Table``.

Plans are built as ever, since that waits for nothing; ``await db.start(plan)`` begins one. A task that waits for a run or for a
change of a table holds no thread: it looks again and again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from onefold.aio.bridge import Bridge
from onefold.arguments import check_flag
from onefold.backoff import Backoff, Deadline
from onefold.compute import arguments
from onefold.errors import InvalidArgument, Timeout
from onefold.machine.undisturbed import let_pass
from onefold.state.core.time_limits import limited_step

if TYPE_CHECKING:
    from datetime import datetime

    import polars as pl
    import pyarrow as pa

    from onefold.compute.live.job.points import Point
    from onefold.compute.live.job.status import LiveStatus
    from onefold.compute.live_runs import LiveRun
    from onefold.compute.results.tables import Table, TableSnapshot, TableStatus
    from onefold.compute.runs import Progress, Run, RunErrors
    from onefold.db import Database
    from onefold.durations import Duration

T = TypeVar("T")
_LOOK_S: Final = 0.02
_LOOK_S_MAX: Final = 0.25


class AsyncTable:
    """The table of a job, batch or live."""

    def __init__(self, bridge: Bridge, database: Database, name: str) -> None:
        """Programs call ``AsyncDatabase.table``."""
        self._bridge = bridge
        self._database = database
        self._plain: Table | None = None
        self.name = name

    def _table(self) -> Table:
        if self._plain is None:
            self._plain = self._database.table(self.name)
        return self._plain

    async def _call(self, fn: Callable[[Table], T]) -> T:
        self._bridge.check()
        return await self._bridge.call(lambda: fn(self._table()))

    async def status(self) -> TableStatus:
        """How far it is; see ``Table.status``."""
        return await self._call(lambda table: table.status)

    async def to_polars(self, final: bool | None = None) -> pl.DataFrame:
        """The table as a frame; see ``Table.to_polars``."""
        return await self._call(lambda table: table.to_polars(final))

    async def scan(self) -> pl.LazyFrame:
        """The table as a lazy frame; see ``Table.scan``."""
        return await self._call(lambda table: table.scan())

    async def to_arrow(self) -> pa.Table:
        """The table as a ``pyarrow.Table`` (extra ``arrow``); see ``Table.to_arrow``."""
        return await self._call(lambda table: table.to_arrow())

    async def get(self, key: Any) -> dict[str, Any] | None:
        """The row of one group; see ``Table.get``."""
        return await self._call(lambda table: table.get(key))

    async def top(self, n: int = 20, by: str | None = None) -> pl.DataFrame:
        """The ``n`` largest rows; see ``Table.top``."""
        return await self._call(lambda table: table.top(n, by))

    async def estimate(self, name: str, level: float = 0.95) -> pl.DataFrame:
        """What is known of the whole; see ``Table.estimate``."""
        return await self._call(lambda table: table.estimate(name, level))

    async def late(self) -> pl.DataFrame:
        """Events that came too late; see ``Table.late``."""
        return await self._call(lambda table: table.late())

    async def count(self) -> int:
        """How many rows it shows."""
        return await self._call(len)

    async def watch(self, *, timeout: Duration | None = None) -> AsyncIterator[TableSnapshot]:
        """A snapshot now and after every change, until the job ends (or nothing changes for ``timeout`` seconds)."""
        limit = arguments.timeout(timeout)
        loop = asyncio.get_running_loop()
        seen: object = None
        changed_s, backoff = loop.time(), Backoff(_LOOK_S, _LOOK_S_MAX)
        while True:
            moments = await self._call(lambda table: list(table.watch(timeout=0)))
            moment = moments[-1]
            contents = moment.contents
            if contents.moment != seen or contents.finished:
                seen, changed_s = contents.moment, loop.time()
                backoff.reset()
                yield moment
                if contents.finished:
                    return
            if limit is not None and loop.time() - changed_s >= limit:
                return
            await asyncio.sleep(backoff.pause_s())

    def __repr__(self) -> str:
        return f"<AsyncTable {self.name!r}>"


class AsyncRun:
    """A run of a job, or a live job."""

    def __init__(self, bridge: Bridge, plain: Run) -> None:
        """Programs call ``AsyncDatabase.start`` and ``open_run``."""
        self._bridge = bridge
        self.sync = plain
        """The synchronous handle of the same run."""

    @property
    def id(self) -> str:
        """Its id."""
        return self.sync.id

    @property
    def _live(self) -> LiveRun:
        from onefold.compute.live_runs import LiveRun

        if not isinstance(self.sync, LiveRun):
            raise InvalidArgument(f"run {self.id} is not of a live job")
        return self.sync

    async def _call(self, fn: Callable[..., T], *args: Any, **options: Any) -> T:
        self._bridge.check()
        return await self._bridge.call(fn, *args, **options)

    async def state(self) -> str:
        """``running``, ``done``, …; see ``Run.state`` and ``LiveRun.state``."""
        return await self._call(lambda: self.sync.state)

    async def progress(self) -> Progress:
        """Its counters; see ``Run.progress``."""
        return await self._call(self.sync.progress)

    async def watermark(self) -> datetime | None:
        """Windows that end before it are closed; see ``LiveRun.watermark``."""
        return await self._call(lambda: self._live.watermark)

    async def status(self) -> LiveStatus:
        """How a live job stands; see ``LiveRun.status``."""
        return await self._call(self._live.status)

    async def errors(self) -> RunErrors:
        """See ``Run.errors``."""
        return await self._call(self.sync.errors)

    async def dead_letters(self) -> pl.DataFrame:
        """See ``Run.dead_letters``."""
        return await self._call(self.sync.dead_letters)

    async def wait(self, timeout: Duration | None = None) -> AsyncRun:
        """Wait until it has ended; see ``Run.wait``. Raises as that."""
        await self._until(lambda: self.sync.wait(timeout=0), timeout)
        return self

    async def result(self) -> Table:
        """Its table, once it is done; of a live job at once. Raises as ``Run.result``."""
        from onefold.compute.live_runs import LiveRun

        if not isinstance(self.sync, LiveRun):
            await self.wait()
        return await self._call(self.sync.result)

    async def catch_up(self, timeout: Duration | None = None) -> AsyncRun:
        """Wait until what was in the inputs at the call is committed; see ``LiveRun.catch_up``. Raises as that."""
        deadline = Deadline.after(arguments.timeout(timeout))
        point = await self._call(self._step, self._live.point, deadline)
        await self._until(lambda: self._live.caught_up(point, timeout=0), timeout, deadline)
        return self

    async def point(self) -> Point:
        """What ``caught_up`` waits for, and ``swap``: where the inputs end now; see ``LiveRun.point``."""
        return await self._call(self._live.point)

    async def caught_up(self, point: Point, timeout: Duration | None = None) -> AsyncRun:
        """Wait until everything before a point is committed; see ``LiveRun.caught_up``. Raises as that."""
        await self._until(lambda: self._live.caught_up(point, timeout=0), timeout)
        return self

    async def stop(self, drain: bool = False, timeout: Duration | None = None) -> AsyncRun:
        """See ``LiveRun.stop``. Raises as that."""
        check_flag("drain", drain)
        if not drain:
            await self._bridge.complete(self._live.stop, False, timeout)
        else:
            await self._until(lambda: self._live.stop(drain=True, timeout=0), timeout)
        return self

    async def resume(self, workers: int | None = None) -> AsyncRun:
        """See ``Run.resume``. Raises as that."""
        self._bridge.check()
        await self._bridge.complete(self.sync.resume, workers)
        return self

    async def cancel(self) -> None:
        """See ``Run.cancel``."""
        self._bridge.check()
        await self._bridge.complete(self.sync.cancel)

    async def swap(self, force: bool = False, point: Point | None = None) -> AsyncRun:
        """See ``LiveRun.swap``. Raises as that."""
        self._bridge.check()
        await self._bridge.complete(self._live.swap, force, point)
        return self

    def _step(self, attempt: Callable[[], T], deadline: Deadline) -> T:
        """One step of a wait that ends then: without the limit of its own that it was called with."""
        from onefold.compute.live_runs import LiveRun

        if not isinstance(self.sync, LiveRun):
            return attempt()
        with limited_step(self.sync._job.client, deadline):
            return attempt()

    async def _until(
        self, attempt: Callable[[], object], timeout: Duration | None, deadline: Deadline | None = None
    ) -> None:
        """Try until it does not raise Timeout. ``deadline``: when the time is over, if that is known already."""
        limit = arguments.timeout(timeout)
        deadline = deadline or Deadline.after(limit)
        backoff = Backoff(_LOOK_S, _LOOK_S_MAX)
        while True:
            try:
                await self._call(self._step, attempt, deadline)
                return
            except Timeout as error:
                let_pass(error)
                if deadline.passed:
                    said = str(error).replace("after 0 s", f"after {limit:g} s")
                    raise Timeout(said, definite=error.definite) from None
            await asyncio.sleep(deadline.within(backoff.pause_s()))

    def __repr__(self) -> str:
        return f"<AsyncRun {self.id}>"
