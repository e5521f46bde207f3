"""What a view shows, as data: read from a run and its table once, drawn by the display."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from onefold.display import words
from onefold.display.shown import LiveTable
from onefold.errors import InvalidArgument, OnefoldError

if TYPE_CHECKING:
    import polars as pl

    from onefold.display.shown import LiveSnapshot, LiveStatus, Progress, Run, Table, TableSnapshot

Mark = Literal["exact", "estimate", "bound", "withheld", "so far"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One value with what is known about it. ``interval`` is ready to read and empty where there is none."""

    text: str
    interval: str
    mark: Mark
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One group: its key and the values that are shown, the one sorted by first."""

    key: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class TopRows:
    """The first rows of a table at one moment.

    ``height`` is the number of groups (or rows) known at that moment, ``level`` that of the intervals.
    ``keys`` and ``values`` are column names.
    """

    keys: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    height: int = 0
    done: int = 0
    total: int = 0
    exact: bool = False
    level: float = 0.95
    seen: int = 0
    """Splits that the estimates are computed from: the finished prefix of the dispatch order."""
    live: str = ""
    """Of a live table: how far it is, in words."""

    @property
    def more(self) -> int:
        """How many rows are not shown."""
        return max(0, self.height - len(self.rows))

    def headline(self) -> str:
        """What the rows are, in one sentence."""
        if self.live:
            return self.live
        if self.exact:
            return "exact: every task is in"
        marks = {cell.mark for row in self.rows for cell in row.cells}
        if marks <= {"so far"}:
            return f"so far: {self.done} of {self.total} tasks"
        level = f"{100 * self.level:g} %"
        return f"estimates of the whole, {level} intervals, from {self.seen} of {self.total} splits"


@dataclass(frozen=True, slots=True)
class LiveProgress:
    """The progress of a live job, which has no end: ``done`` of the ``total`` records that have come are committed."""

    done: int
    total: int
    rows: int
    workers: int
    elapsed: float
    bytes: int = 0
    failed: int = 0
    retried: int = 0
    reused: int = 0
    eta: float | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a run."""

    run: str
    table: str
    state: str
    progress: Progress
    rows: TopRows | None = None
    notes: tuple[str, ...] = ()
    problem: str = ""
    """Why there are no rows, when that is worth saying."""
    live: LiveStatus | None = None
    """Of a live job."""


class Reader:
    """Reads the first rows of one table, again and again.

    The ``n`` rows with the largest ``by`` (default: the first aggregate) as they are estimated at that
    moment, with up to ``values_max`` aggregates, all as of the same finished tasks. A table without
    aggregates, or ordered by a key, gives its rows as they are so far.
    """

    def __init__(
        self, table: Table, *, by: str | None = None, n: int = 10, level: float = 0.95, values_max: int = 1
    ) -> None:
        self._table = table
        self._by = by
        self._n = n
        self._level = level
        self._values_max = max(1, values_max)
        self._shape: tuple[tuple[str, ...], tuple[str, ...]] | None = None

    def read(self) -> TopRows:
        """The rows now. Raises InvalidArgument when there is no such table or column, Unavailable for lost
        data."""
        moment = next(iter(self._table.watch(timeout=0)))
        return self.of(moment)

    def of(self, moment: TableSnapshot) -> TopRows:
        """The rows at a moment that ``Table.watch`` gave."""
        if self._shape is None:
            self._shape = tuple(self._table.key_columns), tuple(self._table.value_columns)
        keys, aggregates = self._shape
        empty = TopRows(
            keys,
            done=moment.done,
            total=moment.total,
            exact=moment.exact,
            level=self._level,
            live=_live_words(self._table, moment),
        )
        if moment.done == 0 and not moment.exact:
            return empty
        if not aggregates or (self._by is not None and self._by in keys):
            return self._plain(moment, keys, empty)
        if self._by is not None and self._by not in aggregates:
            raise InvalidArgument(
                f"table {self._table.name!r} has no column {self._by!r}; "
                f"there are: {', '.join((*keys, *aggregates))}"
            )
        first = self._by if self._by is not None else aggregates[0]
        values = (first, *(name for name in aggregates if name != first))[: self._values_max]
        frames = [moment.estimate(name, self._level) for name in values]
        if frames[0].width == 0 or frames[0].height == 0:
            return empty
        known = keys_of_estimate(frames[0], keys)
        best = self._first(frames[0], known)
        picked = [best.rows(named=True), *(_matching(frame, best, known) for frame in frames[1:])]
        rows = tuple(
            Row(tuple(words.value(parts[0][key]) for key in known), tuple(_cell(part) for part in parts))
            for parts in zip(*picked, strict=True)
        )
        seen = max((row["n"] or 0 for row in picked[0]), default=moment.done)
        return replace(empty, values=values, rows=rows, height=frames[0].height, seen=seen)

    def _first(self, frame: pl.DataFrame, known: tuple[str, ...]) -> pl.DataFrame:
        """The rows to be shown: the largest, and of windows the largest of the newest unless a column was named."""
        if self._by is None and isinstance(self._table, LiveTable) and self._table.windowed:
            ties = known[1:]
            order = [known[0], "value", *ties]
            descending = [True, True, *(False for _ in ties)]
            return frame.sort(order, descending=descending, nulls_last=True).head(self._n)
        return _sorted(frame, "value", known).head(self._n)

    def _plain(self, moment: TableSnapshot, keys: tuple[str, ...], empty: TopRows) -> TopRows:
        frame = moment.to_polars()
        if self._by is not None and self._by not in frame.columns:
            raise InvalidArgument(
                f"table {self._table.name!r} has no column {self._by!r}; "
                f"there are: {', '.join(frame.columns)}"
            )
        shown = (_sorted(frame, self._by, ()) if self._by is not None else frame).head(self._n)
        known = tuple(key for key in keys if key in frame.columns)
        values = tuple(name for name in frame.columns if name not in known)
        mark: Mark = "exact" if moment.exact else "so far"
        rows = tuple(
            Row(
                tuple(words.value(row[key]) for key in known),
                tuple(Cell(words.value(row[name]), "", mark) for name in values),
            )
            for row in shown.rows(named=True)
        )
        return replace(empty, keys=known, values=values, rows=rows, height=frame.height)


def keys_of_estimate(frame: pl.DataFrame, keys: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of an estimate that are the keys of its table. They come first, one that is called ``value`` or the like under
    another name; in live tables the end of a window is among them, and not a key."""
    first = tuple(frame.columns[: frame.columns.index("value")]) if "value" in frame.columns else ()
    return first if len(first) == len(keys) else tuple(name for name in first if name != "window_end")


def _sorted(frame: pl.DataFrame, by: str, keys: tuple[str, ...]) -> pl.DataFrame:
    ties = [key for key in keys if key != by]
    return frame.sort([by, *ties], descending=[True, *(False for _ in ties)], nulls_last=True)


def _matching(frame: pl.DataFrame, best: pl.DataFrame, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of ``frame`` with the keys of ``best``, in its order."""
    if not keys:
        return frame.head(best.height).rows(named=True)
    joined = best.select(keys).join(frame, on=list(keys), how="left", nulls_equal=True, maintain_order="left")
    return joined.rows(named=True)


def _cell(row: dict[str, Any]) -> Cell:
    value, lo, hi, kind = row["value"], row["lo"], row["hi"], row["kind"]
    if kind == "exact":
        return Cell(words.value(value), "", "exact")
    if kind == "bound":
        if lo is not None:
            return Cell(words.value(value), f"≥ {words.value(lo)}", "bound")
        return Cell(words.value(value), f"≤ {words.value(hi)}" if hi is not None else "", "bound")
    if lo is None or hi is None:
        return Cell(words.value(value), "", "withheld", row.get("reason") or "")
    if not isinstance(lo, int | float) or not isinstance(hi, int | float):
        return Cell(words.value(value), f"[{words.value(lo)}, {words.value(hi)}]", "estimate")
    return Cell(_estimated(value, lo, hi), words.interval(float(value), float(lo), float(hi)), "estimate")


def _estimated(value: Any, lo: float, hi: float) -> str:
    return words.value(float(value), (hi - lo) / 2) if isinstance(value, int | float) else words.value(value)


def _live_words(table: Table, moment: TableSnapshot) -> str:
    """How far a live table is; nothing for any other."""
    if not isinstance(table, LiveTable):
        return ""
    now = cast("LiveSnapshot", moment)
    if not now.live and now.watermark is None and now.exact:
        parts = ["exact: all windows are closed" if table.windowed else "exact"]
    elif table.windowed:
        parts = [
            "no window is closed" if now.watermark is None else f"exact up to {words.instant(now.watermark)}"
        ]
    else:
        parts = ["the events so far"]
    if now.late:
        parts.append(f"{words.count(now.late)} late, not in it")
    if now.lag:
        parts.append(f"{words.count(now.lag)} events behind")
    return ", ".join(parts)


def error_lines(run: Run, *, records_max: int = 3, traceback_lines_max: int = 12) -> tuple[str, ...]:
    """Why a run failed: message, record, place and the end of the traceback of each of its first errors."""
    try:
        errors = run.errors()
    except OnefoldError as error:
        return (str(error),)
    lines: list[str] = []
    for failure in errors[:records_max]:
        lines.append(words.visible(str(failure.message), 1000))
        if failure.location:
            lines.append(f"  at      {words.visible(str(failure.location))}")
        if failure.record is not None:
            lines.append(f"  record  {words.visible(str(failure.record))}")
        if failure.traceback:
            tail = str(failure.traceback).rstrip().splitlines()[-traceback_lines_max:]
            lines.extend(f"  │ {words.visible(line)}" for line in tail)
    if len(errors) > records_max:
        lines.append(f"… and {len(errors) - records_max} more")
    return tuple(lines)
