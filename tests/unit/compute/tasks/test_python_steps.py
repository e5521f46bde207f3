"""What functions are given, what they may give, and that it ends up in columns unharmed."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import polars as pl
import pytest

from onefold.compute.frames.values_as_text import safe_repr
from onefold.compute.plan.nodes import FlatMap, Map, MapBatches, Node, Select
from onefold.compute.tasks.failures import LocatedError, RecordError, failure_of
from onefold.compute.tasks.pipeline import Pipeline, raise_letter
from onefold.compute.tasks.python_steps import ASYNC_IN_FLIGHT_MAX, Values, is_async, records_of, seeded
from onefold.errors import InvalidValue

NODE = Node()
FRAME = pl.DataFrame({"a": [1, 2, 3], "b": ["x", None, "z"]})


def run(*steps: Any, frame: pl.DataFrame = FRAME) -> Any:
    rows = Pipeline(steps, lambda _: pl.DataFrame()).run(frame)
    return rows.to_frame() if isinstance(rows, Values) else rows


def tracked(*steps: Any, frame: pl.DataFrame = FRAME) -> list[Any]:
    letters: list[Any] = []
    parts = Pipeline(steps, lambda _: pl.DataFrame()).run_tracked(
        frame, 0, str, lambda letter, kind: letters.append((letter.location, kind)), lambda lo, hi: None
    )
    return [*parts, letters]


def test_records_are_dicts_of_plain_values() -> None:
    frame = FRAME.with_columns(t=dt.datetime(2024, 1, 1), l=pl.lit([1, 2]), s=pl.struct(x="a"))
    first = records_of(frame)[0]
    assert first == {"a": 1, "b": "x", "t": dt.datetime(2024, 1, 1), "l": [1, 2], "s": {"x": 1}}
    assert records_of(pl.DataFrame(height=2)) == [{}, {}]


def test_the_next_function_gets_the_bare_value() -> None:
    seen: list[Any] = []
    out = run(Map(NODE, lambda r: (r["a"], "p")), Map(NODE, lambda v: seen.append(v) or len(v)))
    assert seen == [(1, "p"), (2, "p"), (3, "p")]  # not through a column, which could not hold it
    assert out.rows() == [(2,), (2,), (2,)]
    through = run(
        Map(NODE, lambda r: r["a"]), Select(NODE, (pl.col("value") + 1,)), Map(NODE, lambda r: r["value"])
    )
    assert through["value"].to_list() == [2, 3, 4]
    typed = run(Map(NODE, lambda r: r["a"], (("n", pl.Int8),)), Map(NODE, lambda v: v + 1))
    assert typed["value"].to_list() == [2, 3, 4]
    dicts = run(Map(NODE, lambda r: {"q": r["a"]}), Map(NODE, lambda r: r["q"]))
    assert dicts["value"].to_list() == [1, 2, 3]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([{"x": 1}, 2, 3], "a dict for some records and int"),
        ([{"x": 1}, None, {"x": 2}], "forget to return"),
        ([1, "a", 2], "mixes int, str"),
        ([1, True, 2], "mixes bool, int"),
        ([object(), 1, 2], "mixes int, object"),
        ([object()] * 3, "holds object"),
        ([[1], ["x"], []], "mixes int, str"),
        ([{1: "x"}] * 3, "column names"),
        ([{"x": 1}, {"x": "a"}, {}], "column 'x' mixes"),
        ([{"x": {1, 2}}] * 3, "holds set"),
        ([2**200] * 3, "cannot be held"),
    ],
)
def test_what_no_column_can_hold(given: list[Any], text: str) -> None:
    step = Map(NODE, lambda r: given[r["a"] - 1])
    with pytest.raises(InvalidValue, match=text):
        run(step)


def test_what_columns_can_hold() -> None:
    for given, dtype in [
        ([1, None, 2.5], pl.Float64),
        ([None, None, None], pl.Null),
        ([[1], [], None], pl.List(pl.Int64)),
        ([b"a", b"", None], pl.Binary),
        ([dt.date(2024, 1, 1)] * 3, pl.Date),
        ([[1], [2.5], [None]], pl.List(pl.Float64)),
        ([[[1]], [[2.5]], [None, []]], pl.List(pl.List(pl.Float64))),
        ([[{"x": [1]}], [{"x": [2.5]}], None], pl.List(pl.Struct({"x": pl.List(pl.Float64)}))),
        ([2**63, 1, None], pl.Int128),
    ]:
        out = run(Map(NODE, lambda r, given=given: given[r["a"] - 1]))
        assert out["value"].to_list() == given and out.schema == {"value": dtype}
    out = run(Map(NODE, lambda r: [{"p": {"x": 1}}, {"p": {"x": 2.5, "y": "z"}}, {"q": 1}][r["a"] - 1]))
    assert out.rows() == [({"x": 1.0, "y": None}, None), ({"x": 2.5, "y": "z"}, None), (None, 1)]


def test_schema_is_enforced() -> None:
    schema = (("n", pl.Int16), ("t", pl.String))
    out = run(Map(NODE, lambda r: {"t": r["b"]}, schema))
    assert out.schema == dict(schema) and out["n"].null_count() == 3
    for value, text in [
        ({"n": "x"}, "schema="),
        ({"n": 70_000}, "schema="),
        ({"m": 1}, "'m', which schema="),
        (5, "2 columns"),
    ]:
        with pytest.raises(InvalidValue, match=text):
            run(Map(NODE, lambda r, value=value: value, schema))
    batch = MapBatches(NODE, lambda frame: frame.select(n="a", t="b"), schema)
    assert run(batch).schema == dict(schema)
    with pytest.raises(InvalidValue, match="schema= names"):
        run(MapBatches(NODE, lambda frame: frame, schema))
    with pytest.raises(InvalidValue, match="does not fit"):
        run(MapBatches(NODE, lambda frame: frame.select(n="b", t="b"), schema))


@pytest.mark.parametrize("items", ["abc", b"abc", {"a": 1}, None, 5])
def test_flat_map_gives_iterables_of_rows(items: Any) -> None:
    with pytest.raises(RecordError) as caught:
        run(FlatMap(NODE, lambda r: items))
    assert isinstance(caught.value.__cause__, TypeError)
    assert run(FlatMap(NODE, lambda r: [])) is None


def test_flat_map_generators_sets_and_empty_ones() -> None:
    def generate(record: dict[str, Any]) -> Iterator[int]:
        for _ in range(record["a"] - 1):
            yield record["a"]

    assert run(FlatMap(NODE, generate))["value"].to_list() == [2, 3, 3]
    assert run(FlatMap(NODE, lambda r: (r["a"], r["a"])))["value"].to_list() == [1, 1, 2, 2, 3, 3]

    def breaks(record: dict[str, Any]) -> Iterator[int]:
        yield record["a"]
        if record["a"] == 2:
            raise ValueError
        yield record["a"]

    frame, letters = tracked(FlatMap(NODE, breaks))
    assert frame["value"].to_list() == [1, 1, 3, 3] and letters == [
        ("1", "ValueError")
    ]  # nothing of record 2


@pytest.mark.filterwarnings("ignore:coroutine")
def test_async_functions_overlap_up_to_a_bound_and_keep_the_order() -> None:
    running = most = 0
    generator = random.Random(3)

    async def wait(record: dict[str, Any]) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(generator.random() / 1000)
        running -= 1
        return int(record["a"])

    many = pl.DataFrame({"a": range(500)})
    assert run(Map(NODE, wait), frame=many)["value"].to_list() == list(range(500))
    assert 10 < most <= ASYNC_IN_FLIGHT_MAX

    async def stream(record: dict[str, Any]) -> AsyncIterator[int]:
        for i in range(record["a"]):
            await asyncio.sleep(0)
            yield i

    assert run(FlatMap(NODE, stream))["value"].to_list() == [0, 0, 1, 0, 1, 2]

    async def batch(frame: pl.DataFrame) -> pl.DataFrame:
        await asyncio.sleep(0)
        return frame.head(1)

    assert run(MapBatches(NODE, batch, batch_rows=2)).height == 2

    async def breaks(record: dict[str, Any]) -> int:
        await asyncio.sleep(0.001 * (4 - record["a"]))
        if record["a"] > 1:
            raise KeyError(record["a"])
        return 1

    with pytest.raises(RecordError):
        run(Map(NODE, breaks))
    frame, letters = tracked(Map(NODE, breaks))
    assert frame["value"].to_list() == [1] and letters == [("1", "KeyError"), ("2", "KeyError")]

    class Caller:
        async def __call__(self, record: Any) -> int:
            return 1

    assert is_async(Caller()) and is_async(functools.partial(wait)) and not is_async(len)
    with pytest.raises(InvalidValue, match="async"):
        run(Map(NODE, lambda record: wait(record)))  # noqa: PLW0108 (hides that it is async)


def test_map_batches_gets_and_gives_frames() -> None:
    sizes: list[int] = []

    def note(frame: pl.DataFrame) -> pl.DataFrame:
        sizes.append(frame.height)
        return frame

    assert run(MapBatches(NODE, note, batch_rows=2)).equals(FRAME) and sizes == [2, 1]
    for given in (None, FRAME.lazy(), FRAME["a"], [1]):
        with pytest.raises(TypeError, match="must give a polars DataFrame"):
            run(MapBatches(NODE, lambda frame, given=given: given))


def test_letters_stop_at_the_first_when_the_job_fails_anyway() -> None:
    calls: list[int] = []

    def breaks(record: dict[str, Any]) -> int:
        calls.append(record["a"])
        raise ValueError(record["a"])

    pipeline = Pipeline([Map(NODE, breaks)], lambda _: pl.DataFrame())
    with pytest.raises(LocatedError) as caught:
        list(pipeline.run_tracked(FRAME, 10, "row {}".format, raise_letter, lambda lo, hi: None))
    assert calls == [1] and caught.value.letter.location == "row 10"


def test_texts_of_failures_are_bounded_and_safe() -> None:
    class Rude:
        def __repr__(self) -> str:
            raise SystemExit

    assert "repr raises SystemExit" in safe_repr(Rude())
    assert len(safe_repr({"a": "x" * 10**7, "b": b"y" * 10**7})) <= 2000
    failure = failure_of(ValueError("x" * 10**6 + "\n\n" + "y"))
    assert len(failure.message) <= 1000 and "\n" not in failure.message and len(failure.traceback) < 30_000


def test_random_state_comes_back() -> None:
    import numpy as np

    random.seed(1)
    np.random.seed(1)
    expected = random.Random(1).random()
    with seeded(5):
        one = random.random(), float(np.random.random())
    with seeded(5):
        assert (random.random(), float(np.random.random())) == one
    assert random.random() == expected
