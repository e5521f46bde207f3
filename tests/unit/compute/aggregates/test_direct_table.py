"""Groups by a whole number whose values lie close together: what the table gives is what the engine gives."""

from __future__ import annotations

import random

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from onefold import agg
from onefold.compute import aggregates
from onefold.compute.aggregates.adding import direct_table
from onefold.compute.aggregates.adding.direct_table import DirectTable

INTEGERS = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)
AGGS = (
    ("n", agg.count()),
    ("some", agg.count(pl.col("text"))),
    ("total", agg.sum("whole")),
    ("middle", agg.mean("whole")),
    ("sum", agg.sum("real")),
    ("mean", agg.mean("real")),
)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each batch that came by was taken. Batches of any size may be."""
    monkeypatch.setattr(direct_table, "ROWS_MIN", 1)
    seen: list[bool] = []
    take = DirectTable.take

    def noting(table: DirectTable, frame: pl.DataFrame) -> bool:
        was = take(table, frame)
        if frame.height:
            seen.append(was)
        return was

    monkeypatch.setattr(DirectTable, "take", noting)
    return seen


def batch(
    rng: random.Random, key: type[pl.DataType], whole: type[pl.DataType], real: type[pl.DataType]
) -> pl.DataFrame:
    rows = rng.choice((1, 7, 300))
    low = (
        rng.choice((0, 0, 40, -100, 90))
        if key in (pl.Int8, pl.Int16, pl.Int32, pl.Int64)
        else rng.choice((0, 40))
    )
    keys: list[int | None] = [min(120, low + rng.randrange(60)) for _ in range(rows)]
    if key is pl.Int64 and rng.random() < 0.2:
        keys[0] = rng.choice((None, 2**63 - 1, -(2**63)))
    values: list[int | None] = [rng.randrange(100) for _ in range(rows)]
    if rng.random() < 0.2:
        values[0] = rng.choice((None, *((2**61, -(2**62), 2**52) if whole is pl.Int64 else ())))
    reals: list[float | None] = [rng.choice((0.5, -2.0, 3.25, -0.0)) for _ in range(rows)]
    if rng.random() < 0.3:
        reals[0] = rng.choice((None, float("nan"), float("inf"), -float("inf")))
    texts = [rng.choice(("a", "b", None)) if rng.random() < 0.01 else "a" for _ in range(rows)]
    types = {"k": key, "whole": whole, "real": real, "text": pl.String}
    return pl.DataFrame({"k": keys, "whole": values, "real": reals, "text": texts}, schema=types)


def partials(
    batches: list[pl.DataFrame], aggs: tuple[tuple[str, object], ...] = AGGS
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Of the streaming engine with the table, and of the in-memory one without."""
    rows = pl.concat([frame.lazy() for frame in batches])
    by_table = aggregates.partial(rows, [pl.col("k")], aggs)  # type: ignore[arg-type]
    by_engine = aggregates.partial(rows, [pl.col("k")], aggs, engine="in-memory")  # type: ignore[arg-type]
    return by_table, by_engine


@pytest.mark.parametrize("seed", range(60))
def test_random_batches_group_as_without_the_table(seed: int, taken: list[bool]) -> None:
    rng = random.Random(seed)
    key, whole, real = rng.choice(INTEGERS), rng.choice(INTEGERS), rng.choice((pl.Float32, pl.Float64))
    batches = [batch(rng, key, whole, real) for _ in range(rng.randrange(1, 9))]
    by_table, by_engine = partials(batches)
    assert taken
    for frame in (by_table, by_engine):
        assert frame.height == frame["k"].n_unique()
    assert_frame_equal(by_table, by_engine, check_row_order=False, abs_tol=1e-9)
    final = [aggregates.final(frame, ["k"], AGGS) for frame in (by_table, by_engine)]
    assert_frame_equal(*final, abs_tol=1e-9)


@pytest.mark.parametrize("lows", [(10, 0), (2000, 3), (40, 30, 20, 0)])
@pytest.mark.parametrize("end", ["lowest", "highest"])
def test_keys_at_the_ends_of_what_integers_hold(lows: tuple[int, ...], end: str, taken: list[bool]) -> None:
    def keys(low: int) -> list[int]:
        return [-(2**63) + low + n if end == "lowest" else 2**63 - 1 - low - n for n in range(2000)]

    frames = [pl.DataFrame({"k": keys(low), "whole": 1, "real": 0.5, "text": "a"}) for low in lows]
    by_table, by_engine = partials(frames)
    assert taken
    assert all(taken)
    assert_frame_equal(by_table, by_engine.sort("k"))


def test_close_keys_are_all_taken(taken: list[bool]) -> None:
    frames = [
        pl.DataFrame({"k": range(low, low + 50), "whole": 1, "real": 0.5, "text": "a"})
        for low in (100, 0, 150, 40)
    ]
    by_table, by_engine = partials(frames)
    assert taken
    assert all(taken)
    assert_frame_equal(by_table, by_engine.sort("k"))


@pytest.mark.parametrize(
    "odd",
    [
        {"k": [None, 1, 2]},
        {"k": [0, 1, 10**12]},
        {"k": [2**63 - 1, -(2**63), 0]},
        {"whole": [1, None, 2]},
        {"whole": [2**54, 1, 1]},
        {"real": [None, 1.0, 1.0]},
        {"text": ["a", None, "a"]},
    ],
)
def test_what_does_not_fit_is_left_to_the_engine(odd: dict[str, list[object]], taken: list[bool]) -> None:
    plain = pl.DataFrame(
        {"k": [1, 2, 3], "whole": [1, 2, 3], "real": [0.5, 1.0, 2.0], "text": ["a", "b", "c"]}
    )
    other = plain.with_columns(
        pl.Series(name, values, dtype=plain.schema[name]) for name, values in odd.items()
    )
    by_table, by_engine = partials([plain, other])
    assert set(taken) == {False, True}
    assert_frame_equal(by_table, by_engine.sort("k"))


def test_sums_beyond_64_bits_are_exact(taken: list[bool]) -> None:
    large = pl.DataFrame({"k": [1, 1, 2], "whole": [2**62, 2**62, 2**62], "real": 0.5, "text": "a"})
    small = pl.DataFrame({"k": [1, 2, 3], "whole": [5, 6, 7], "real": 0.5, "text": "a"})
    aggs = (("total", agg.sum("whole")),)
    for _ in range(2):  # the second time, the sum is doubted from the beginning
        by_table, by_engine = partials([small, large], aggs)
        for frame in (by_table, by_engine):
            found = aggregates.final(frame, ["k"], aggs)
            assert found["total"].to_list() == [2**63 + 5, 2**62 + 6, 7]
    assert True in taken


def test_many_batches_do_not_wrap_around(taken: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_table, "_EXACT", 2**70)  # sums that double exactly, so nothing is rounded
    aggs = (("total", agg.sum("whole")),)
    batches = [pl.DataFrame({"k": [1], "whole": [2**61]}) for _ in range(5)]
    by_table, _ = partials(batches, aggs)
    assert aggregates.final(by_table, ["k"], aggs)["total"].to_list() == [5 * 2**61]
    assert False in taken


def test_other_aggregates_and_keys_have_no_table() -> None:
    schema = {"k": pl.Int64(), "f": pl.Float64(), "b": pl.UInt64(), "d": pl.Date()}
    count = [("n", agg.count())]
    assert direct_table.table_for(["k"], count, [[]], schema) is not None
    for keys in (["f"], ["b"], ["d"], [], ["k", "d"]):
        assert direct_table.table_for(keys, count, [[]], schema) is None
    assert direct_table.table_for(["k"], [("x", agg.max("f"))], [["f"]], schema) is None
    assert direct_table.table_for(["k"], [("x", agg.sum("b"))], [["b"]], schema) is None
    assert direct_table.table_for(["k"], [("x", agg.var("f"))], [["f"]], schema) is None
