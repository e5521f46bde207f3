"""Live tables: results that can be read from the first finished task on.

The fold keeps references to partials and never merges them. A reader merges along a fixed binary tree over the dispatch
index, so what it gets depends on which tasks are finished and on nothing else; merged nodes are kept in a local cache.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from onefold.arguments import check_flag, check_whole, shown
from onefold.compute import arguments
from onefold.compute.blobs.store import BlobMissing
from onefold.compute.jobs import state
from onefold.compute.plan.stages import Result
from onefold.compute.plan.windows import END, START
from onefold.compute.results import estimates
from onefold.errors import InvalidArgument, InvalidValue, Unavailable

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

    from onefold.compute.results.reading import Results
    from onefold.compute.results.stored import StoredResult
    from onefold.durations import Duration


_TASKS_LOOKED_AT = 8
"""Of so many tasks the columns are looked up, where the plan does not tell them: each may have to be fetched."""


@dataclass(frozen=True)
class TableStatus:
    """How far a table's run is. ``exact``: every task is in it, so nothing in it is an estimate."""

    done: int
    total: int
    exact: bool

    @property
    def live(self) -> bool:
        """Whether it is the table of a live job that takes more commits."""
        return False

    @property
    def watermark(self) -> datetime | None:
        """Of a live job: windows that end before it (and the lateness) are closed, in UTC; None: none yet, or the job is done."""
        return None

    @property
    def late(self) -> int:
        """Events that came too late for their windows: they are in ``late()``."""
        return 0

    @property
    def lag(self) -> int:
        """Records of a live job's inputs that are not in it yet."""
        return 0


@dataclass(frozen=True)
class TableSnapshot(TableStatus):
    """A table as of one moment; what ``watch`` yields. Reading it always gives that moment's rows."""

    table: Table
    contents: Any
    """As ``table.contents()`` gave them."""

    def to_polars(self, final: bool | None = None) -> pl.DataFrame:
        """The rows as of this moment; ``final`` as for ``Table.to_polars``."""
        check_flag("final", final, or_none=True)
        return self.table.frame_of(self.contents, final)

    def estimate(self, name: str, level: float = 0.95) -> pl.DataFrame:
        """The estimate as of this moment; see ``Table.estimate``."""
        return self.table.estimate_of(self.contents, name, level)

    def __repr__(self) -> str:
        exact = " (exact)" if self.exact else ""
        return f"<TableSnapshot of {self.table.name!r}: {self.done} of {self.total} tasks{exact}>"


@dataclass(frozen=True)
class Contents:
    """Which finished tasks a reader sees: their results by dispatch index, and which of them an earlier run made."""

    run: str
    stage: int
    total: int
    results: dict[int, Result]
    reused: frozenset[int]
    finished: bool
    """Whether its run has ended."""
    offset: int

    @property
    def moment(self) -> object:
        """Equal for contents that show the same rows."""
        return self.run, len(self.results)


class Table:
    """The result of a job: its finished tasks, merged when read.

    Obtained from ``db.table(name)`` or ``run.result()``. Every read shows the present state, also of a run that other
    processes are working on.
    """

    def __init__(self, results: Results, name: str) -> None:
        self._results = results
        self.name = name
        self._lock = threading.Lock()
        self._cached: tuple[tuple[Any, ...], pl.DataFrame] | None = None
        self._moments = estimates.MomentsCache()

    # -- what there is ----------------------------------------------------------------------------------------------

    def contents(self) -> Contents:
        """The finished tasks at this moment."""
        with self._results.shard.view() as view:
            run = state.last_run(view, self.name)
            if run is None:
                raise InvalidArgument(
                    f"there is no table {self.name!r} in {self._results.shard.url}; `onefold tables` lists what there is"
                )
            stage = run.result_stage
            finished = state.results(view, run.id, stage)
            return Contents(
                run=run.id,
                stage=stage,
                total=run.stages[stage].count,
                results={index: row.result for index, row in finished.items()},
                reused=frozenset(index for index, row in finished.items() if row.reused),
                finished=run.state != "running",
                offset=view.offset,
            )

    @property
    def status(self) -> TableStatus:
        """Done and total tasks of the result, and whether it is exact."""
        contents = self.contents()
        done = len(contents.results)
        return TableStatus(done, contents.total, done == contents.total)

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns of ``group_by`` (``("key",)`` for map_reduce, empty when there is no key)."""
        return self._result(self.contents()).key_columns

    @property
    def value_columns(self) -> tuple[str, ...]:
        """The names of the aggregates."""
        return self._result(self.contents()).value_columns

    @property
    def problem(self) -> str | None:
        """Why this process cannot read the table; None when nothing is known to be in the way.

        Its status can be determined all the same. Looks at the description of the result only, not at its data.
        """
        try:
            self._result(self.contents()).check_readable()
        except (InvalidValue, Unavailable) as error:
            return str(error)
        return None

    def known_columns(self) -> tuple[list[str], bool]:
        """Column names as far as they can be determined without reading rows, and whether these are all of them for certain.

        Where the plan does not tell, as after a function without ``schema=``, they are those of the first finished tasks.
        """
        contents = self.contents()
        stored = self._result(contents)
        if stored.grouped:
            return [*stored.key_columns, *stored.value_columns], True
        if stored.description.columns is not None:
            return [*stored.description.columns], True
        results = self._ordered(contents)
        looked_at = results[:_TASKS_LOOKED_AT]
        names = dict.fromkeys(name for result in looked_at for name in self._results.columns_of(result))
        return [*names], len(looked_at) == contents.total

    @property
    def columns(self) -> list[str]:
        """All column names, in order."""
        return self.to_polars().columns

    # -- reading ----------------------------------------------------------------------------------------------------

    def to_polars(self, final: bool | None = None) -> pl.DataFrame:
        """The table as a frame: of the tasks that are finished now. ``status.exact`` tells whether that is all.

        ``final``: of a live table, whether only closed windows are shown; no difference for others.
        Groups are in the order of their keys; rows of a collected dataset in none.

        Raises:
            Unavailable: definite; a finished task's data has been lost. Its run can be resumed to make it again.
        """
        check_flag("final", final, or_none=True)
        return self._steady(self.frame_of)

    def scan(self) -> pl.LazyFrame:
        """The table as a lazy frame; row tables are read from disk as they are needed."""
        contents = self.contents()
        stored = self._result(contents)
        if not stored.grouped:
            return self._results.scan_rows(self._ordered(contents), stored)
        return self._steady(self.frame_of).lazy()

    def to_arrow(self) -> pa.Table:
        """The table as a ``pyarrow.Table`` (extra ``arrow``)."""
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise InvalidArgument('to_arrow() needs pyarrow: pip install "onefold[arrow]"') from None
        return self.to_polars().to_arrow()

    def get(self, key: Any) -> dict[str, Any] | None:
        """The row of one group as a dict, or None. ``key``: the group's value, or a tuple of them when there are several; of
        windows their start, then the keys."""
        import polars as pl

        names = self.key_columns
        if not names:
            raise InvalidArgument(f"table {self.name!r} has no key columns; use to_polars()")
        values = key if isinstance(key, tuple) and len(names) > 1 else (key,)
        if names[:2] == (START, END) and len(values) == len(names) - 1:
            names = (START, *names[2:])  # a window's start says its end; of sessions of one key too
        if len(values) != len(names):
            raise InvalidArgument(
                f"the key of table {self.name!r} has {len(names)} parts {names}; got {key!r}"
            )
        frame = self._frame_with(dict(zip(names, values, strict=True)))
        if frame.width == 0:
            return None
        try:
            found = frame.filter(
                *(
                    pl.col(name).eq_missing(literal(value, frame.schema[name]))
                    for name, value in zip(names, values, strict=True)
                )
            )
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
            types = ", ".join(f"{name!r} {frame.schema[name]}" for name in names)
            instead = "".join(map(_other_zone, names, values, [frame.schema[name] for name in names]))
            raise InvalidArgument(
                f"{key!r} cannot be a key of table {self.name!r}, whose key columns are {types}{instead}"
            ) from None
        return found.row(0, named=True) if found.height else None

    def top(self, n: int = 20, by: str | None = None) -> pl.DataFrame:
        """The ``n`` rows with the largest ``by`` (default: the first aggregate), largest first; nulls last."""
        check_whole("n", n, least=0)
        frame = self.to_polars()
        if by is None:
            values = self.value_columns or tuple(frame.columns[-1:])
            by = values[0] if values else None
        if by is None:
            return frame
        if by not in frame.columns:
            raise InvalidArgument(
                f"table {self.name!r} has no column {shown(by)}; there are: {', '.join(frame.columns)}"
            )
        ties = [name for name in self.key_columns if name != by]
        return frame.sort([by, *ties], descending=[True, *(False for _ in ties)], nulls_last=True).head(n)

    def estimate(self, name: str, level: float = 0.95) -> pl.DataFrame:
        """What the finished tasks say about the whole, per group: the key columns and
        ``value, lo, hi, level, kind, n, N, reason``.

        ``kind`` is "exact" (all tasks are done: no width), "estimate" (``lo`` and ``hi`` are the interval at ``level``, or null
        with a ``reason`` where it cannot be trusted), or "bound" (min, max, distinct: one side only). ``n`` of ``N`` splits
        have been seen, counted over the contiguous prefix of the random dispatch order. See ``docs/statistics.md``.
        """
        return self._steady(lambda contents: self.estimate_of(contents, name, level))

    def _frame_with(self, key: dict[str, Any]) -> pl.DataFrame:  # noqa: ARG002
        """Rows of the table among which is that of a key (by column), if there is one."""
        return self._steady(self.frame_of)

    def _steady(self, read: Callable[[Contents], pl.DataFrame]) -> pl.DataFrame:
        """Read the present contents; again when a later run has replaced them, and removed their data, meanwhile."""
        contents = self.contents()
        while True:
            try:
                return read(contents)
            except BlobMissing:
                now = self.contents()
                if (now.run, now.results) == (contents.run, contents.results):
                    raise
                contents = now

    def __len__(self) -> int:
        return self.to_polars().height

    def watch(self, *, timeout: Duration | None = None) -> Iterator[TableSnapshot]:
        """A snapshot now and after every change, until the run ends (or nothing changes for ``timeout`` seconds).

        Raises:
            Unavailable: definite; the space cannot be read now.
        """
        return self._watch(arguments.timeout(timeout))

    def _watch(self, timeout: float | None) -> Iterator[TableSnapshot]:
        seen: object = None
        last_change = time.monotonic()
        while True:
            contents = self.contents()
            done = len(contents.results)
            if contents.moment != seen or contents.finished:
                seen, last_change = contents.moment, time.monotonic()
                yield TableSnapshot(done, contents.total, done == contents.total, self, contents)
                if contents.finished:
                    return
            left = None if timeout is None else timeout - (time.monotonic() - last_change)
            if left is not None and left <= 0:
                return
            self._results.shard.wait(contents.offset, left)

    # -- by contents ------------------------------------------------------------------------------------------------

    def late(self) -> pl.DataFrame:
        """Events that came too late for their windows. A job over data that is all there has none.

        Of a live job: the event's columns, ``_partition``, ``_offset``, ``_time`` and ``reason``.
        """
        import polars as pl

        return pl.DataFrame(schema={"reason": pl.String})

    def frame_of(self, contents: Contents, final: bool | None = None) -> pl.DataFrame:  # noqa: ARG002
        """The merged and finished rows of these tasks."""
        key = (contents.run, contents.stage, frozenset(contents.results))
        with self._lock:
            if self._cached is not None and self._cached[0] == key:
                return self._cached[1].clone()  # columns that the caller adds to it are not the table's
        stored = self._result(contents)
        if stored.grouped:
            frame = self._results.finished(
                contents.results, stored, whole=len(contents.results) == contents.total
            )
        else:
            frame = self._results.rows(self._ordered(contents), stored)
        with self._lock:
            self._cached = (key, frame)
        return frame.clone()

    def estimate_of(self, contents: Contents, name: str, level: float) -> pl.DataFrame:
        """The estimate from these tasks."""
        stored = self._result(contents)
        if not stored.grouped:
            raise InvalidArgument(f"table {self.name!r} has no aggregates to estimate")
        if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
            raise InvalidArgument(f"level must be between 0 and 1, for example 0.95; got {level!r}")
        names = stored.value_columns
        if name not in names:
            raise InvalidArgument(
                f"table {self.name!r} has no aggregate {name!r}; there are: {', '.join(names)}"
            )
        return estimates.estimate(
            contents,
            name,
            level,
            output=stored.output,
            load=self._results.partial,
            final=lambda: self.frame_of(contents),
            cache=self._moments,
        )

    def _result(self, contents: Contents) -> StoredResult:
        """What is known of the result. Raises InvalidValue, naming the table, where this process cannot read it."""
        with self._results.shard.view() as view:
            run = state.read_run(view, contents.run)
        if run is None:
            raise Unavailable(f"run {contents.run} is gone")
        try:
            stored = self._results.result_of(run.plan)
        except InvalidValue as error:
            raise InvalidValue(f"table {self.name!r} cannot be read here: {error}") from error
        return stored

    def _ordered(self, contents: Contents) -> Sequence[Result]:
        return [contents.results[index] for index in sorted(contents.results)]

    def __repr__(self) -> str:
        status = self.status
        return f"<Table {self.name!r}: {status.done} of {status.total} tasks{' (exact)' if status.exact else ''}>"

    def _repr_html_(self) -> str:
        from onefold.display import table_html

        return table_html(self)


def _other_zone(name: str, value: Any, dtype: Any) -> str:
    """What to do about a time with a zone where the column has none, and the other way round; empty: it is neither."""
    import polars as pl

    if not isinstance(value, datetime) or not isinstance(dtype, pl.Datetime):
        return ""
    if value.tzinfo is not None and dtype.time_zone is None:
        return f". Pass {name!r} naive, in UTC: {value.astimezone(UTC).replace(tzinfo=None)!r}"
    if value.tzinfo is None and dtype.time_zone is not None:
        return f". Pass {name!r} with a time zone, as its times have one: {value.replace(tzinfo=UTC)!r}"
    return ""


def literal(value: Any, dtype: Any) -> pl.Expr:
    """A key's value, compared in the column's own unit: in that of Python's times, groups would be equal that are not."""
    import polars as pl

    literal = pl.lit(value)
    if not isinstance(dtype, pl.Datetime | pl.Duration) or value is None or isinstance(value, pl.Expr):
        return literal
    found = pl.select(literal).to_series().dtype
    if isinstance(dtype, pl.Duration):
        return literal.cast(dtype) if isinstance(found, pl.Duration) else literal
    same = isinstance(found, pl.Datetime) and found.time_zone == dtype.time_zone
    return literal.cast(dtype) if same else literal
