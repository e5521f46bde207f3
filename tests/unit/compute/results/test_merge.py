"""The fixed merge tree: bit for bit the same whatever the order of arrival and whatever was cached."""

from __future__ import annotations

import random
import threading

import numpy as np
import polars as pl
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from onefold import agg
from onefold.compute.aggregates import encode, merge_pair, partial
from onefold.compute.results.merge import Leaf, MergeCache, merge_tree

KEYS = ["k"]
AGGS = [("n", agg.count()), ("s", agg.sum("x")), ("v", agg.var("x")), ("top", agg.max("x"))]


def pair(a: pl.DataFrame, b: pl.DataFrame) -> pl.DataFrame:
    return merge_pair(a, b, KEYS, AGGS)


def partials(count: int, salt: int, groups: int = 30, missing: float = 0.3) -> list[pl.DataFrame]:
    rng = np.random.default_rng(salt)
    made = []
    for _ in range(count):
        keys = np.flatnonzero(rng.random(groups) > missing)
        rows = pl.LazyFrame(
            {"k": np.repeat(keys, 3), "x": rng.random(3 * len(keys)) * 10.0 ** rng.integers(-8, 8)}
        )
        made.append(partial(rows, [pl.col("k")], AGGS, engine="in-memory"))
    return made


def leaves_of(frames: list[pl.DataFrame], indexes: list[int] | None = None) -> dict[int, Leaf]:
    places = range(len(frames)) if indexes is None else indexes
    return {
        i: Leaf(f"content {i}", lambda frame=frame: frame) for i, frame in zip(places, frames, strict=False)
    }


def by_definition(frames: dict[int, pl.DataFrame], level: int, index: int) -> pl.DataFrame | None:
    """Node (level, index) written out, merging group by group over rows that are looked up one by one."""
    if level == 0:
        return frames.get(index)
    left, right = by_definition(frames, level - 1, 2 * index), by_definition(frames, level - 1, 2 * index + 1)
    if left is None or right is None:
        return right if left is None else left
    rows = []
    for key in sorted({*left["k"], *right["k"]}):
        a, b = left.filter(k=key), right.filter(k=key)
        rows.append(pair(a, b) if a.height and b.height else (a if a.height else b))
    return pl.concat(rows)


def test_no_leaves_and_one_leaf() -> None:
    [frame] = partials(1, 1)
    assert merge_tree({}, pair) is None
    assert merge_tree({77: Leaf("x", lambda: frame)}, pair) is frame


@settings(max_examples=12, deadline=None)
@seed(20)
@given(indexes=st.sets(st.integers(0, 70), min_size=1, max_size=9), salt=st.integers(0, 10**6))
def test_equals_the_definition_bit_by_bit(indexes: set[int], salt: int) -> None:
    places = sorted(indexes)
    frames = dict(zip(places, partials(len(places), salt, groups=10), strict=True))
    want = by_definition(frames, 7, 0)
    got = merge_tree({i: Leaf(str(i), lambda i=i: frames[i]) for i in places}, pair)
    assert want is not None and got is not None
    assert encode(got) == encode(want.rechunk())


@pytest.mark.parametrize("missing", [0.0, 0.3], ids=["same groups", "other groups"])
@pytest.mark.parametrize("salt", range(2))
def test_arrival_and_caching_do_not_matter(salt: int, missing: float) -> None:
    frames = partials(19, salt, missing=missing)
    rng = random.Random(salt)
    want = merge_tree(leaves_of(frames), pair)
    assert want is not None
    for bytes_max in (0, 3000, 1 << 20):
        cache = MergeCache(bytes_max)
        order = list(range(19))
        rng.shuffle(order)
        arrived: dict[int, Leaf] = {}
        for index in order:
            arrived |= {index: leaves_of(frames)[index]}
            got = merge_tree(arrived, pair, cache)
            assert cache.bytes <= bytes_max
        assert got is not None and encode(got) == encode(want)
    # The order does change the bits: the test above is not vacuous.
    other = merge_tree(leaves_of(frames[::-1]), pair)
    assert other is not None and encode(other) != encode(want)


def test_a_new_leaf_costs_one_merge_a_level() -> None:
    frames = partials(64, 3, groups=5)
    cache = MergeCache()
    loads: list[int] = []
    arrived: dict[int, Leaf] = {}
    for index, frame in enumerate(frames):
        arrived[index] = Leaf(f"content {index}", lambda i=index, f=frame: loads.append(i) or f)
        before = cache.merges
        loads.clear()
        merge_tree(arrived, pair, cache)
        assert cache.merges - before <= 6
        assert len(loads) <= 2
    before = cache.merges
    merge_tree(arrived, pair, cache)
    assert cache.merges == before


def test_a_changed_leaf_changes_the_result() -> None:
    frames = partials(9, 4)
    cache = MergeCache()
    first = merge_tree(leaves_of(frames), pair, cache)
    other = leaves_of(frames) | {3: Leaf("new content", lambda: frames[0])}
    got, want = merge_tree(other, pair, cache), merge_tree(other, pair)
    assert first is not None and got is not None and want is not None
    assert encode(got) == encode(want) != encode(first)


def test_threads_share_a_cache() -> None:
    frames = partials(33, 5)
    want = merge_tree(leaves_of(frames), pair)
    cache = MergeCache(50_000)
    results: list[pl.DataFrame | None] = []
    readers = [
        threading.Thread(target=lambda: results.append(merge_tree(leaves_of(frames), pair, cache)))
        for _ in range(6)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert want is not None
    assert [encode(got) for got in results if got is not None] == [encode(want)] * 6


def test_a_load_that_fails_is_told() -> None:
    def lost() -> pl.DataFrame:
        raise FileNotFoundError("blob")

    leaves = leaves_of(partials(16, 6)) | {2: Leaf("lost", lost)}
    with pytest.raises(FileNotFoundError):
        merge_tree(leaves, pair)
