"""Merging all at once gives the tree's result bit for bit, or declines."""

from __future__ import annotations

import random
import struct

import polars as pl
import pytest

from onefold import agg
from onefold.compute import aggregates
from onefold.compute.aggregates.adding import dense
from onefold.compute.aggregates.adding.dense import merge_all
from onefold.compute.results import merge

AGGS = [
    ("n", agg.count()),
    ("c", agg.count("w")),
    ("s", agg.sum("v")),
    ("t", agg.sum("w")),
    ("m", agg.mean("v")),
]


def rows(chance: random.Random, key: str, height: int) -> pl.DataFrame:
    keys = [chance.randint(-5, 12) for _ in range(height)]
    made = {
        "int": pl.Series("k", keys, dtype=pl.Int32),
        "wide": pl.Series("k", [k * 10**9 for k in keys], dtype=pl.Int64),
        "text": pl.Series("k", [None if k == 3 else f"k{k}" for k in keys], dtype=pl.String),
        "null": pl.Series("k", [None if k == 3 else k for k in keys], dtype=pl.Int64),
    }
    values = [
        chance.choice([-0.0, 0.0, 1e300, chance.uniform(-1, 1), chance.uniform(-1e9, 1e9)])
        for _ in range(height)
    ]
    whole = [chance.choice([None, chance.randint(-(2**40), 2**40)]) for _ in range(height)]
    second = pl.Series("j", [chance.randint(0, 1) for _ in range(height)], dtype=pl.Int8)
    return pl.DataFrame(
        [made[key], pl.Series("v", values, dtype=pl.Float64), pl.Series("w", whole, dtype=pl.Int64), second]
    )


def bits(frame: pl.DataFrame) -> list[list[object]]:
    return [
        [struct.pack(">d", value) if isinstance(value, float) else value for value in row]
        for row in frame.rows()
    ]


@pytest.mark.moving(4)
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("key", ["int", "wide", "text", "null"])
@pytest.mark.parametrize("two", [False, True])
def test_the_tree_bit_for_bit(key: str, two: bool, seed: int) -> None:
    chance = random.Random(f"{key} {two} {seed}")
    names = ["k", "j"] if two else ["k"]
    keys = [pl.col(name) for name in names]
    indexes = sorted(chance.sample(range(40), chance.randint(3, 12)))
    frames = {
        index: aggregates.partial(rows(chance, key, chance.choice([0, 1, 5, 40])).lazy(), keys, AGGS)
        for index in indexes
    }
    together = merge_all(frames, names, AGGS)
    assert together is not None
    leaves = {index: merge.Leaf(str(index), lambda frame=frame: frame) for index, frame in frames.items()}  # type: ignore[misc]
    tree = merge.merge_tree(leaves, lambda a, b: aggregates.merge_pair(a, b, names, AGGS))
    assert tree is not None
    assert together.schema == tree.schema
    assert bits(together) == bits(tree)


WHOLE = [("n", agg.count()), ("c", agg.count("w")), ("t", agg.sum("w")), ("j", agg.sum("j"))]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("key", ["int", "wide", "text", "null"])
@pytest.mark.parametrize("names", [["k"], ["k", "j"]])
def test_few_whole_numbers_are_the_tree(
    key: str, names: list[str], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(f"{key} {names} {seed}")
    aggs = [one for one in WHOLE if one[0] not in names]
    keys = [pl.col(name) for name in names]
    frames = {
        index: aggregates.partial(rows(chance, key, chance.choice([0, 1, 5, 40])).lazy(), keys, aggs)
        for index in chance.sample(range(40), 5)
    }
    few = merge_all(frames, names, aggs)
    monkeypatch.setattr(dense, "_FEW_ROWS", -1)
    many = merge_all(frames, names, aggs)
    leaves = {index: merge.Leaf(str(index), lambda frame=frame: frame) for index, frame in frames.items()}  # type: ignore[misc]
    tree = merge.merge_tree(leaves, lambda a, b: aggregates.merge_pair(a, b, names, aggs))
    assert few is not None
    assert many is not None
    assert tree is not None
    for merged in (few, many):
        assert merged.schema == tree.schema
        assert merged.equals(tree)


def test_few_sums_that_would_wrap_around_are_declined() -> None:
    aggs = [("t", agg.sum("w"))]
    frame = pl.DataFrame({"k": [1, 2], "w": [2**62, -(2**62)]})
    frames = {i: aggregates.partial(frame.lazy(), [pl.col("k")], aggs) for i in range(4)}
    assert merge_all(frames, ["k"], aggs) is None


@pytest.mark.parametrize(
    "aggs",
    [
        [("x", agg.min("v"))],
        [("x", agg.std("v"))],
        [("x", agg.mean("w"))],
        [("x", agg.approx_quantile("v", 0.5))],
    ],
)
def test_other_states_are_declined(aggs: list[tuple[str, agg.Aggregate]]) -> None:
    chance = random.Random(1)
    frames = {i: aggregates.partial(rows(chance, "int", 20).lazy(), [pl.col("k")], aggs) for i in range(4)}
    assert merge_all(frames, ["k"], aggs) is None


def test_float_keys_are_declined() -> None:
    frame = pl.DataFrame({"k": [1.0, float("nan")], "v": [1.0, 2.0]})
    frames = {i: aggregates.partial(frame.lazy(), [pl.col("k")], [("s", agg.sum("v"))]) for i in range(4)}
    assert merge_all(frames, ["k"], [("s", agg.sum("v"))]) is None


@pytest.mark.parametrize("names", [["k"], ["k", "j"], ["x"]])
def test_large_partials_in_any_order(names: list[str]) -> None:
    chance = random.Random(5)
    frames = {}
    for index in range(5):
        numbers = chance.sample(range(60_000), 30_000 if index else 60_000)
        frame = pl.DataFrame({"k": numbers, "j": [n % 2 for n in numbers], "x": [f"t{n}" for n in numbers]})
        frame = frame.with_columns(v=pl.col("k") * 0.1, w=pl.col("k"))
        frames[index] = aggregates.partial(frame.lazy(), [pl.col(name) for name in names], AGGS)
    leaves = {index: merge.Leaf(str(index), lambda frame=frame: frame) for index, frame in frames.items()}  # type: ignore[misc]
    tree = merge.merge_tree(leaves, lambda a, b: aggregates.merge_pair(a, b, names, AGGS))
    together = merge_all(frames, names, AGGS)
    assert together is not None
    assert tree is not None
    assert tree.height == 60_000
    assert tree.select(names).equals(tree.select(names).sort(names))
    assert together.equals(tree)
    alone = aggregates.final(frames[0], names, AGGS)
    assert alone.select(names).equals(alone.select(names).sort(names))
