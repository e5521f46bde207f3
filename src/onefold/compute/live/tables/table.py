"""The table of a live job: read from the runs that commits have added, by any process, from one view.

With ``emit="final"`` a window is shown whole or not at all: its rows are there once every lane's watermark is beyond its end and
the lateness. With ``emit="update"`` also what is still open, each lane as of its last commit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from onefold.arguments import check_flag
from onefold.compute.blobs.store import BlobMissing
from onefold.compute.live.event_time import time_of
from onefold.compute.live.history import History
from onefold.compute.live.inputs.reading import Inputs
from onefold.compute.live.job.status import moment_of
from onefold.compute.live.plan import TableSink
from onefold.compute.live.tables import estimates, rows
from onefold.compute.live.tables.contents import contents_of
from onefold.compute.live.tables.keyed import KeyedRuns
from onefold.compute.results.tables import Table, TableSnapshot, TableStatus, literal
from onefold.errors import InvalidArgument, InvalidValue, OnefoldError, Unavailable
from onefold.machine.undisturbed import let_pass

if TYPE_CHECKING:
    import polars as pl

    from onefold.compute.live.client import Found
    from onefold.compute.live.job.stored import LiveJobs
    from onefold.compute.live.plan import LivePart
    from onefold.compute.live.runs.run_store import RunReader
    from onefold.compute.live.tables.contents import LiveContents
    from onefold.compute.live.tables.keyed import Frames


@dataclass(frozen=True)
class LiveTableStatus(TableStatus):
    """How far a live table is. ``done`` of ``total`` records of its inputs are committed; ``exact``: windows are closed, and
    every row that is shown is final."""

    live: bool = False
    watermark: datetime | None = None
    late: int = 0
    lag: int = 0
    rows: int = 0
    """Events that are in it."""


@dataclass(frozen=True)
class LiveTableSnapshot(TableSnapshot):
    """A live table as of one moment."""

    live: bool = False
    watermark: datetime | None = None
    late: int = 0
    lag: int = 0

    def __repr__(self) -> str:
        return f"<LiveTableSnapshot of {self.table.name!r}: {self.done} events, watermark {self.watermark}>"


class LiveTable(Table):
    """The result of a live job. Obtained from ``db.table(name)`` or ``run.result()``; every read shows the present.

    By the job's name it is the table of the present generation, also after a swap; by ``name/generation`` always the same one's.
    """

    def __init__(self, jobs: LiveJobs, name: str, reader: RunReader) -> None:
        """Programs call ``db.table``. Raises InvalidArgument when there is no such job."""
        self._jobs = jobs
        self._reader = reader
        self.name = name
        self._frames: tuple[object, pl.DataFrame] | None = None
        self._frames_lock = threading.Lock()
        self._found()

    # -- what there is ---------------------------------------------------------------------------------------

    def _found(self, *, strong: bool = True) -> Found:
        found = self._jobs.find(self.name, strong=strong)
        if found is None:
            raise InvalidArgument(
                f"there is no table {self.name!r} any more; `onefold tables` lists what there is"
            )
        return found

    def _part(self) -> LivePart:
        return self._jobs.plan_of(self._found()).parts[-1]

    def contents(  # type: ignore[override]
        self, *kinds: str, strong: bool = True, number: int = -1
    ) -> LiveContents:
        """The runs (of these kinds; default: state and result) and bundles at this moment. ``strong=False``: as far as this
        process has seen, which costs nothing on a cluster. ``number``: of the part; -1: the one whose result this is."""
        found = self._found(strong=strong)
        part = self._jobs.plan_of(found).parts[number]
        return contents_of(found, part, self._reader, kinds or ("state", "result"))

    @property
    def status(self) -> LiveTableStatus:
        """How far it is."""
        return self._status(self.contents())

    def _status(self, contents: LiveContents) -> LiveTableStatus:
        counters = contents.counters
        lag = self._lag()
        closed = contents.windowed and contents.watermark_us is not None
        final = closed and self._only_final(contents.part, None)
        return LiveTableStatus(
            counters.rows,
            counters.rows + lag,
            final or contents.part.operator is None or contents.state == "done",
            not contents.finished,
            time_of(contents.watermark_us),
            counters.late,
            lag,
            counters.rows,
        )

    def _lag(self) -> int:
        """Records of the job's inputs that its first part has not committed."""
        found = self._found(strong=False)
        parts = self._jobs.plan_of(found).parts
        inputs = Inputs(self._jobs.client, parts[0].inputs)
        return moment_of(found, parts, strong=False).lag(inputs, parts[0])

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns that name a row: the window's start, then the keys."""
        return rows.key_columns(self._part())

    @property
    def windowed(self) -> bool:
        """Whether its rows are of windows, which close."""
        return self._part().windowed

    @property
    def value_columns(self) -> tuple[str, ...]:
        """The names of the aggregates."""
        return rows.value_columns(self._part())

    @property
    def problem(self) -> str | None:
        """Why this process cannot read the table; None when nothing is known to be in the way."""
        try:
            self._part()
        except (InvalidValue, Unavailable) as error:
            let_pass(error)
            return str(error)
        return None

    def known_columns(self) -> tuple[list[str], bool]:
        """Column names as far as they are known, and whether these are all of them for certain."""
        part = self._part()
        if part.operator is None:
            return self.to_polars().columns, False
        return [*rows.shown_keys(part), *rows.value_columns(part)], True

    # -- reading ---------------------------------------------------------------------------------------------

    def to_polars(self, final: bool | None = None) -> pl.DataFrame:
        """The table as a frame, sorted by its keys. ``final=True``: closed windows only; False: also open ones, with their values
        so far; None: as the job's ``emit`` says.

        Raises:
            Unavailable: definite; the data of a run cannot be had.
        """
        check_flag("final", final, or_none=True)
        return self._steady_read(lambda contents: self.frame_of(contents, final))

    def scan(self) -> pl.LazyFrame:
        """The table as a lazy frame."""
        return self.to_polars().lazy()

    def late(self) -> pl.DataFrame:
        """Events that came too late for every window of theirs: all of their columns, ``_partition``, ``_offset``, ``_time`` and
        the reason."""
        return self._steady_read(lambda found: rows.set_aside(found, self._reader, "late"), "late")

    def dead(self) -> pl.DataFrame:
        """Records that could not be processed, with all of their columns and the reason."""
        parts = self._jobs.plan_of(self._found()).parts
        return rows.together(
            [
                self._steady_read(
                    lambda found: rows.set_aside(found, self._reader, "dead"), "dead", number=number
                )
                for number in range(len(parts))
            ]
        )

    def estimate(self, name: str, level: float = 0.95) -> pl.DataFrame:
        """What is known of the final value of each row, open windows included: the window and key columns, and
        ``value, lo, hi, level, kind, n, N, reason``.

        ``kind`` is "exact" for a closed window (``lo`` and ``hi`` are the value) and "bound" for an open one: ``lo`` of what only
        grows (counts, sums of unsigned columns, maxima, distinct values), ``hi`` of a minimum; both are null, with a ``reason``,
        of what may rise and fall. ``n``: how many commits it is from. ``N`` is null: nobody knows how many events will come.
        """
        return self._steady_read(lambda contents: self.estimate_of(contents, name, level))

    # -- by contents -----------------------------------------------------------------------------------------

    def frame_of(self, contents: Any, final: bool | None = None) -> pl.DataFrame:
        """The rows of these contents."""
        found: LiveContents = contents
        only_final = self._only_final(found.part, final)
        history = self._history(found)
        key = found.moment, only_final, None if history is None else history.moment()
        with self._frames_lock:
            if self._frames is not None and self._frames[0] == key:
                return self._frames[1].clone()
        frame = self._made(found, self._reader, history, only_final)
        with self._frames_lock:
            self._frames = (key, frame)
        return frame.clone()

    def _made(
        self, contents: LiveContents, reader: Frames, history: History | None, only_final: bool
    ) -> pl.DataFrame:
        frame = rows.table_rows(contents, reader, only_final=only_final)
        before = None if history is None else history.rows(only_whole=only_final)
        return frame if before is None else rows.with_history(before, frame, contents.part)

    def _frame_with(self, key: dict[str, Any]) -> pl.DataFrame:
        return self._steady_read(lambda contents: self._frame_of_key(contents, key))

    def _frame_of_key(self, contents: LiveContents, key: dict[str, Any]) -> pl.DataFrame:
        operator = contents.part.operator
        named = {name: key[name] for name in (() if operator is None else operator.key_names) if name in key}
        only_final = self._only_final(contents.part, None)
        history = self._history(contents)
        moment = contents.moment, only_final, None if history is None else history.moment()
        with self._frames_lock:
            is_made = self._frames is not None and self._frames[0] == moment
        if is_made or not named:
            return self.frame_of(contents)
        return self._made(contents, KeyedRuns(self._reader, contents, named, literal), history, only_final)

    def estimate_of(self, contents: Any, name: str, level: float) -> pl.DataFrame:
        """The estimate from these contents."""
        found: LiveContents = contents
        if found.part.operator is None:
            raise InvalidArgument(f"table {self.name!r} has no aggregates to estimate")
        if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
            raise InvalidArgument(f"level must be between 0 and 1, for example 0.95; got {level!r}")
        names = rows.value_columns(found.part)
        if name not in names:
            raise InvalidArgument(
                f"table {self.name!r} has no aggregate {name!r}; there are: {', '.join(names)}"
            )
        shown = estimates.estimate(found, rows.marked_rows(found, self._reader, only_final=False), name)
        history = self._history(found)
        before = None if history is None else history.estimate(name, level)
        return shown if before is None else rows.with_history(before, shown, found.part)

    def _history(self, contents: LiveContents) -> History | None:
        """What was before its seam, if it has one."""
        part = contents.part
        return None if part.history is None else History(self._jobs.results, part, contents.generation)

    def _only_final(self, part: LivePart, final: bool | None) -> bool:
        if final is not None:
            return final
        return isinstance(part.sink, TableSink) and part.sink.emit == "final"

    def _steady_read(
        self, read: Callable[[LiveContents], pl.DataFrame], *kinds: str, number: int = -1
    ) -> pl.DataFrame:
        """Read the present contents; again when compaction has replaced runs, and their blobs are gone, meanwhile."""
        contents = self.contents(*kinds, number=number)
        while True:
            try:
                return read(contents)
            except BlobMissing:
                now = self.contents(*kinds, number=number)
                if now.runs == contents.runs:
                    raise
                contents = now

    def _watch(self, timeout: float | None) -> Iterator[TableSnapshot]:
        seen: object = None
        env = self._jobs.client.env
        changed_s = env.boot_s()
        self._found()  # nothing that follows is older
        while True:
            contents = self.contents(strong=False)
            if contents.moment != seen or contents.finished:
                seen, changed_s = contents.moment, env.boot_s()
                status = self._status(contents)
                yield LiveTableSnapshot(
                    status.done,
                    status.total,
                    status.exact,
                    self,
                    contents,
                    status.live,
                    status.watermark,
                    status.late,
                    status.lag,
                )
                if contents.finished:
                    return
            left = None if timeout is None else timeout - (env.boot_s() - changed_s)
            if left is not None and left <= 0:
                return
            found = self._found(strong=False)
            found.job.client.shards[found.job.home].wait(contents.offset, left)

    def __repr__(self) -> str:
        try:
            status = self.status
        except OnefoldError as error:  # a list of tables is shown, whatever is the matter with one of them
            let_pass(error)
            return f"<LiveTable {self.name!r}: {error}>"
        return f"<LiveTable {self.name!r}: {status.rows} events, watermark {status.watermark}>"
