"""Calling the user's functions: ``map`` and ``flat_map`` per record, ``map_batches`` per frame, plain or
async.

A record is a dict of its row's columns. A function gives dicts (new columns) or bare values, which are kept
in the one column ``value`` and handed as they are to the function that comes next. One function does not mix
the two: which it gives is known from the first chunk on. ``None`` from ``map`` is a null among bare values
and an error among dicts (``flat_map`` drops records by giving an empty list; ``None`` from it is an error,
most often a forgotten ``return``).

Async functions run on one event loop per process, a bounded number at a time; their results come in input
order.
"""

from __future__ import annotations

import contextlib
import inspect
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from onefold.compute.code.canonical.reduce_keys import check_key
from onefold.compute.frames import values as frames
from onefold.compute.frames.named import frame_of, is_pattern
from onefold.compute.frames.schema_casts import cast_exactly
from onefold.compute.frames.values_as_text import safe_repr
from onefold.compute.plan.nodes import FlatMap, Map, MapBatches, Node
from onefold.compute.tasks.failures import RecordError
from onefold.errors import InvalidValue

if TYPE_CHECKING:
    import asyncio

    import polars as pl

ASYNC_IN_FLIGHT_MAX: Final = 64
"""How many calls of an async function run at a time in one worker."""
MAP_BATCH_ROWS: Final = 16_384
"""Rows of a chunk, and so of a ``map_batches`` batch that asks for no size."""

OnError = Callable[[int, Any, BaseException], None]
"""Called with (position, record, exception) of a record that raised; it raises, or returns to continue without
it.
"""


def seed_everything(seed: int) -> None:
    """Start ``random`` and ``numpy.random`` from the task's seed."""
    random.seed(seed)
    import numpy as np

    np.random.seed(seed & 0xFFFFFFFF)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The same for a while: the state before comes back afterwards."""
    import numpy as np

    before, numpy_before = random.getstate(), np.random.get_state()
    seed_everything(seed)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)


def records_of(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """One dict per row."""
    names = frame.columns
    if len(names) == 1:
        (name,) = names
        return [{name: value} for value in frame.to_series().to_list()]
    if not names:
        return [{} for _ in range(frame.height)]
    columns = [series.to_list() for series in frame.get_columns()]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


@dataclass(slots=True)
class Values:
    """Bare values between two functions; a frame as soon as anything else needs them."""

    items: list[Any]

    def to_frame(self) -> pl.DataFrame:
        """The column ``value``."""
        return frames.frame_of_values(self.items, None)


class RecordStep:
    """``map`` or ``flat_map``. Keeps what kind of result the function gave, so one per task."""

    def __init__(self, node: Map | FlatMap) -> None:
        self.schema = node.schema
        self._fn = node.fn
        self.is_flat = isinstance(node, FlatMap)
        self.is_async = is_async(node.fn)
        self._kind: str | None = None

    def call(self, records: Iterable[Any]) -> list[Any]:
        """What the function gives for all records, in order. Raises RecordError for the first one that
        raises.
        """
        if self.is_async:
            return self._call_async(list(records), None)[0]
        fn = self._fn
        record: Any = None
        position = 0
        given: list[Any] = []
        try:
            if not self.is_flat:
                for position, record in enumerate(records):  # noqa: B007 (named when it raises)
                    given.append(fn(record))
            else:
                for position, record in enumerate(records):  # noqa: B007
                    items = fn(record)
                    if type(items) is list:
                        given += items
                    else:
                        given.extend(check_items(items))
        except BaseException as error:
            raise RecordError(record, position) from error
        return given

    def call_each(
        self, records: Sequence[Any], on_error: OnError, on_record: Callable[[int], None]
    ) -> tuple[list[Any], list[int]]:
        """Like ``call``, record by record: what raises goes to ``on_error``; gives also each item's record
        position.
        """
        if self.is_async:
            on_record(0)
            return self._call_async(records, on_error)
        given: list[Any] = []
        positions: list[int] = []
        for position, record in enumerate(records):
            on_record(position)
            try:
                items = list(check_items(self._fn(record))) if self.is_flat else [self._fn(record)]
            except BaseException as error:
                on_error(position, record, error)
                continue
            given += items
            positions.extend([position] * len(items))
        return given, positions

    def _call_async(self, records: Sequence[Any], on_error: OnError | None) -> tuple[list[Any], list[int]]:
        results, failures = _loop().run_until_complete(
            _call_all(self._fn, records, self.is_flat, stop_at_first=on_error is None)
        )
        for position in sorted(failures):
            if on_error is None:
                raise RecordError(records[position], position) from failures[position]
            on_error(position, records[position], failures[position])
        kept = [position for position in range(len(records)) if position not in failures]
        if not self.is_flat:
            return [results[position] for position in kept], kept
        given: list[Any] = []
        positions: list[int] = []
        for position in kept:
            given += results[position]
            positions.extend([position] * len(results[position]))
        return given, positions

    def gather(self, given: list[Any]) -> pl.DataFrame | Values | None:
        """The function's results as rows; None when there are none and their columns are unknown."""
        if not given:
            self._kind = None
            return frames.frame_of_dicts([], self.schema) if self.schema is not None else None
        kinds = set(map(type, given))
        dicts = {kind for kind in kinds if issubclass(kind, dict)}
        if dicts and len(dicts) < len(kinds):
            others = ", ".join(sorted(kind.__name__ for kind in kinds - dicts))
            hint = " (did it forget to return?)" if type(None) in kinds else ""
            raise InvalidValue(
                f"{self.name} gave a dict for some records and {others} for others{hint}; "
                f"give a dict for each, or a bare value for each"
            )
        self._kind = "dicts" if dicts else "bare values"
        if dicts:
            return frames.frame_of_dicts(given, self.schema)
        if self.schema is None:
            return Values(given)
        return frames.frame_of_values(given, self.schema)

    @property
    def form(self) -> str:
        """Whether the function gave ``dicts`` or ``bare values`` at last; empty when it gave nothing."""
        return self._kind or ""

    @property
    def gives_bare(self) -> bool:
        """Whether the function gave bare values at last."""
        return self._kind == "bare values"

    @property
    def name(self) -> str:
        """What the function is called in errors."""
        return f"the function of {'flat_map' if self.is_flat else 'map'}"


class PairStep(RecordStep):
    """The map function of ``map_reduce``: like ``flat_map``, but gives (key, value) pairs."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__(FlatMap(Node(), fn))

    def gather(self, given: list[Any]) -> Values | None:
        for pair in given:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise InvalidValue(
                    f"the map function of map_reduce must yield (key, value) pairs; it gave {safe_repr(pair, 200)}"
                )
            check_key(pair[0])
        return Values(given) if given else None


class BatchStep:
    """``map_batches``."""

    def __init__(self, node: MapBatches) -> None:
        self.batch_rows = node.batch_rows or MAP_BATCH_ROWS
        self._fn = node.fn
        self._schema = node.schema

    def call(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The function's frames for all batches of this one, in order."""
        return frames.concat([self._batch(batch) for batch in frame.iter_slices(self.batch_rows)])

    def _batch(self, batch: pl.DataFrame) -> pl.DataFrame:
        import polars as pl

        given = self._fn(batch)
        if inspect.isawaitable(given):
            given = _loop().run_until_complete(_awaited(given))
        if not isinstance(given, pl.DataFrame):
            hint = "; call .collect() on it" if isinstance(given, pl.LazyFrame) else ""
            raise TypeError(
                f"the function of map_batches must give a polars DataFrame; it gave {type(given).__name__}{hint}"
            )
        for name in filter(is_pattern, given.columns):
            raise InvalidValue(
                f"a column cannot be called {name!r}, which means a pattern of names; rename it"
            )
        if self._schema is None:
            return given
        names = [name for name, _ in self._schema]
        if set(given.columns) != set(names):
            raise InvalidValue(
                f"the function of map_batches gave the columns {given.columns}; schema= names {names}"
            )
        return frame_of(cast_exactly(given[name], dtype) for name, dtype in self._schema)


def check_items(items: Any) -> Iterable[Any]:
    """What ``flat_map`` may give for a record: any iterable but text, bytes, a dict or None."""
    if items is None or isinstance(items, str | bytes | dict) or not hasattr(items, "__iter__"):
        what = (
            "None (did it forget to return? an empty list gives no rows)"
            if items is None
            else type(items).__name__
        )
        raise TypeError(
            f"the function of flat_map must give a list or another iterable of rows; it gave {what}"
        )
    return items  # type: ignore[no-any-return]


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine or an async generator (also callable objects and partials)."""
    call = getattr(fn, "__call__", None)  # noqa: B004
    return any(
        test(candidate)
        for test in (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
        for candidate in (fn, call)
    )


_event_loop: asyncio.AbstractEventLoop | None = None


def _loop() -> asyncio.AbstractEventLoop:
    """This process's event loop for async functions: clients that they open stay usable from chunk to chunk."""
    global _event_loop
    import asyncio  # which takes as long as the rest of a re-run's own imports

    if _event_loop is None or _event_loop.is_closed():
        _event_loop = asyncio.new_event_loop()
    return _event_loop


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


async def _call_all(
    fn: Callable[..., Any], records: Sequence[Any], flat: bool, *, stop_at_first: bool
) -> tuple[list[Any], dict[int, BaseException]]:
    import asyncio

    results: list[Any] = [None] * len(records)
    failures: dict[int, BaseException] = {}
    todo = iter(range(len(records)))

    async def work() -> None:
        for position in todo:
            if failures and stop_at_first:
                return
            try:
                results[position] = await _call_one(fn, records[position], flat)
            except BaseException as error:
                failures[position] = error

    await asyncio.gather(*(work() for _ in range(min(ASYNC_IN_FLIGHT_MAX, len(records)))))
    return results, failures


async def _call_one(fn: Callable[..., Any], record: Any, flat: bool) -> Any:
    given = fn(record)
    if flat and hasattr(given, "__aiter__"):
        return [item async for item in given]
    if inspect.isawaitable(given):
        given = await given
    return list(check_items(given)) if flat else given


def flush_prints() -> None:
    """Let what functions printed be seen now."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue
