"""Keys of frames are compared as Polars compares them: Python's times have no nanoseconds, and take two hours for one."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute import aggregates
from onefold.compute.code.canonical.data import data_form
from onefold.compute.frames import values as frames
from onefold.compute.plan.expressions import canonical
from onefold.compute.plan.stages import BroadcastJoin, PartialOutput, Result
from onefold.compute.results.estimates import MomentsCache, estimate
from onefold.compute.results.tables import Contents
from onefold.compute.tasks import joins

_ZONE = "America/New_York"
_FOLD = [1_730_611_800_000_000, 1_730_615_400_000_000]  # 01:30, and 01:30 again
KEYS: dict[str, pl.Series] = {
    "ns": pl.Series([1, 2, 1001]).cast(pl.Datetime("ns")),
    "time": pl.Series([1, 2, 1001]).cast(pl.Time),
    "fold": pl.Series(_FOLD).cast(pl.Datetime("us", _ZONE)),
    "duration": pl.Series([1, 2]).cast(pl.Duration("ns")),
    "struct": pl.Series([{"a": 1}, {"a": 2}]),
    "bool_and_null": pl.Series([True, False, None]),
}
AGGS = {
    "q": agg.approx_quantile("v", 0.5),
    "s": agg.sum("v"),
    "m": agg.mean("v"),
    "c": agg.count(),
    "d": agg.approx_n_unique("v"),
    "x": agg.max("v"),
}


@pytest.fixture
def db() -> Iterator[of.Database]:
    with of.connect("memory://") as db:
        yield db


def halfway(key: pl.Series, reused: frozenset[int]) -> tuple[Contents, PartialOutput, list[pl.DataFrame]]:
    """Ten of twenty splits, each with every key; the values tell the group."""
    output = PartialOutput((pl.col("k"),), tuple(AGGS.items()))
    partials = []
    for split in range(10):
        rows = pl.DataFrame([key.alias("k"), pl.Series("v", [100.0 * i + split for i in range(len(key))])])
        rows = pl.concat([rows] * 3)
        partials.append(aggregates.partial(rows.lazy(), output.keys, output.aggs))
    results = {index: Result(rows_in=index) for index in range(10)}
    return Contents("r", 0, 20, results, reused, False, 0), output, partials


@pytest.mark.moving(3)
@pytest.mark.parametrize("reused", [frozenset[int](), frozenset({0, 1, 2})])
@pytest.mark.parametrize("name", AGGS)
@pytest.mark.parametrize("kind", KEYS)
def test_estimates_keep_groups_apart(kind: str, name: str, reused: frozenset[int]) -> None:
    key = KEYS[kind]
    contents, output, partials = halfway(key, reused)

    found = estimate(
        contents, name, 0.95, output=output, load=lambda r: partials[r.rows_in],
        final=lambda: aggregates.final(_merged(partials, output), ["k"], output.aggs), cache=MomentsCache(),
    )  # fmt: skip
    assert found.schema["k"] == key.dtype
    found = found.sort("k", nulls_last=True)
    assert found["k"].equals(key.alias("k").sort(nulls_last=True), null_equal=True)
    if name in ("q", "x", "m"):
        groups = pl.DataFrame([key.alias("k"), pl.Series("at", range(len(key)))]).sort("k", nulls_last=True)
        assert [int(value // 100) for value in found["value"]] == groups["at"].to_list()


def _merged(partials: list[pl.DataFrame], output: PartialOutput) -> pl.DataFrame:
    merged = partials[0]
    for partial in partials[1:]:
        merged = aggregates.merge_pair(merged, partial, ["k"], output.aggs)
    return merged


def test_a_group_is_got_by_its_own_value(db: of.Database, tmp_path: Path) -> None:
    def table(name: str, key: pl.Series) -> of.Table:
        pl.DataFrame([key.alias("k"), pl.Series("i", range(len(key)))]).write_parquet(
            tmp_path / f"{name}.parquet"
        )
        return (
            db.read_parquet(tmp_path / f"{name}.parquet")
            .group_by("k")
            .agg(i=agg.max("i"))
            .into(name)
            .run(progress=False)
            .result()
        )

    ns = table("ns", pl.Series([1, 1000, 1001]).cast(pl.Datetime("ns")))
    epoch = dt.datetime(1970, 1, 1)
    row = ns.get(epoch + dt.timedelta(microseconds=1))
    assert row is not None and row["i"] == 1
    assert ns.get(epoch) is None
    fold = table("fold", KEYS["fold"])
    for at in (0, 1):
        row = fold.get(dt.datetime(2024, 11, 3, 1, 30, fold=at, tzinfo=ZoneInfo(_ZONE)))
        assert row is not None and row["i"] == at
    durations = table("durations", pl.Series([1, 1000]).cast(pl.Duration("ns")))
    row = durations.get(dt.timedelta(microseconds=1))
    assert row is not None and row["i"] == 1


@pytest.mark.parametrize("how", ["inner", "left"])
@pytest.mark.parametrize("units", [("ns", "us"), ("us", "ms"), ("ms", "ns")])
@pytest.mark.parametrize("kind", [pl.Datetime, pl.Duration])
def test_joined_times_of_other_units_meet_exactly(how: Any, units: tuple[Any, Any], kind: Any) -> None:
    per_second = {"ms": 10**3, "us": 10**6, "ns": 10**9}
    left, right = (per_second[unit] for unit in units)
    rows = pl.DataFrame({"k": pl.Series([left, left + 1]).cast(kind(units[0])), "l": [1, 2]})
    other = pl.DataFrame({"k": pl.Series([right]).cast(kind(units[1])), "r": [9]})
    found = joins.join(rows, other, ["k"], how)
    assert found.select("l", "r").rows() == [(1, 9)] + ([(2, None)] if how == "left" else [])


@pytest.mark.parametrize("kind", ["ns", "time", "fold", "duration"])
def test_plans_with_other_values_have_other_names(kind: str) -> None:
    series = KEYS[kind].alias("s")
    one, other = series.head(1), series.slice(1, 1)
    for make in (pl.col("k").is_in, lambda s: pl.col("k") == pl.lit(s)):
        assert canonical(make(one)) != canonical(make(other))
        assert canonical(make(one)) == canonical(make(one.clone()))
    nested = [
        frames.exact_values(pl.Series([part.to_list()], dtype=pl.List(part.dtype))) for part in (one, other)
    ]
    if kind == "fold":
        assert nested[0] != nested[1]
    assert frames.exact_values(one) != frames.exact_values(other)
    assert data_form(one) != data_form(other)


NAN = float("nan")
FEW: dict[str, list[Any]] = {
    "float": [NAN, 0.0, -0.0, 1.5, None],
    "text": ["NaN", "", None],
    "list": [[NAN], [1.0], None],
    "struct": [{"a": NAN}, {"a": 1.0}],
}


def plain(value: Any) -> Any:
    """What keys are equal by: NaN is a key like any other, and -0.0 is 0.0."""
    if isinstance(value, dict | list):
        return repr(value)
    return "nan" if isinstance(value, float) and math.isnan(value) else value


@pytest.mark.parametrize("second", [False, True], ids=["one key", "two keys"])
@pytest.mark.parametrize("how", ["inner", "left"])
@pytest.mark.parametrize("kind", FEW)
def test_a_join_finds_what_is_equal_however_few_rows_there_are(kind: str, how: Any, second: bool) -> None:
    """A join of a task is of whatever falls into its part, which may be one row."""
    on = ["k", "j"] if second else ["k"]
    values = pl.Series("k", FEW[kind])
    for left_rows in (1, 2):
        for right_rows in (1, 2):
            for places in product(range(len(values)), repeat=left_rows + right_rows):
                lefts, rights = places[:left_rows], places[left_rows:]
                left = pl.DataFrame({"k": values.gather(lefts), "j": [1] * left_rows, "a": range(left_rows)})
                right = pl.DataFrame(
                    {"k": values.gather(rights), "j": [1] * right_rows, "b": range(right_rows)}
                )
                expected = [
                    (a, b)
                    for a, x in enumerate(lefts)
                    for b in (
                        [b for b, y in enumerate(rights) if FEW[kind][x] is not None
                         and plain(FEW[kind][x]) == plain(FEW[kind][y])] or ([None] if how == "left" else [])
                    )
                ]  # fmt: skip
                found = joins.join(left, right, on, how)
                assert found.columns == [*left.columns, *([] if second else ["j_right"]), "b"]
                assert found.select("a", "b").rows() == expected, (left, right)
                step = BroadcastJoin(0, tuple(on), how)
                assert joins.broadcast(step, left.lazy(), right).collect().equals(found)
                if how == "inner":
                    step = BroadcastJoin(0, tuple(on), how, "left")
                    swapped = joins.broadcast(step, left.lazy(), right).collect()
                    assert swapped.columns == ["k", "j", "b", *(["j_right"] if not second else []), "a"]
                    assert sorted(swapped.select("a", "b").rows()) == sorted(expected)
