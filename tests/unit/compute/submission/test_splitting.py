"""Packing units into splits: nothing lost, nothing twice, fair, and the same for the same seed."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefold import config
from onefold.compute.plan.stages import Unit
from onefold.compute.submission.splitting import SeededStream, default_target, dispatch_order, pack, repack


def unit(path: str, start: int = 0, cost: int = 1, etag: str = "e") -> Unit:
    return Unit(path, start, start + max(cost, 1), 10**6, etag, cost)


units_lists = st.lists(
    st.builds(
        unit,
        st.text("abc", min_size=1, max_size=3),
        st.integers(0, 50),
        st.integers(0, 1000),
        st.sampled_from(["e1", "e2"]),
    ),
    max_size=60,
    unique=True,
)


@settings(max_examples=200, deadline=None)
@given(units_lists, st.integers(1, 70), st.integers(0, 2**40))
def test_pack_takes_every_unit_once(units: list[Unit], target: int, seed: int) -> None:
    splits = pack(units, target_splits=target, seed=seed)
    assert sorted(u for split in splits for u in split) == sorted(units)
    assert all(split and list(split) == sorted(split) for split in splits)
    assert len(splits) == min(target, len(units))
    assert splits == pack(list(reversed(units)), target_splits=target, seed=seed)


@settings(max_examples=200, deadline=None)
@given(units_lists, units_lists, st.integers(1, 20), st.integers(0, 99))
def test_repack_keeps_whole_unchanged_splits_only(
    old: list[Unit], new: list[Unit], target: int, seed: int
) -> None:
    previous = pack(old, target_splits=target, seed=seed)
    kept, fresh = repack(previous, new, target_splits=target, seed=seed + 1)
    assert sorted(u for split in [*kept, *fresh] for u in split) == sorted(new)
    assert kept == [split for split in previous if set(split) <= set(new)]


def test_repack_reads_a_unit_of_two_old_splits_once() -> None:
    a, b, c = unit("a"), unit("b"), unit("c")
    kept, fresh = repack([(a, b), (b, c)], [a, b, c], target_splits=2, seed=1)
    assert kept == [(a, b)]
    assert fresh == [(c,)]


def test_repack_sizes_new_splits_like_the_whole() -> None:
    old = [unit(f"old{i:03}", cost=100) for i in range(90)]
    new = [unit(f"new{i:03}", cost=100) for i in range(10)]
    kept, fresh = repack(pack(old, target_splits=9, seed=3), [*old, *new], target_splits=10, seed=4)
    assert (len(kept), len(fresh)) == (9, 1)


def test_costs_are_level() -> None:
    units = [unit(f"f{i:04}", cost=1 + i % 97) for i in range(3000)]
    costs = [sum(u.cost for u in split) for split in pack(units, target_splits=50, seed=11)]
    assert max(costs) - min(costs) <= 97


def test_files_without_cost_are_spread() -> None:
    splits = pack([unit(f"f{i:03}", cost=0) for i in range(100)], target_splits=10, seed=2)
    assert {len(split) for split in splits} == {10}


@pytest.mark.parametrize("seed", range(5))
def test_what_goes_into_a_split_is_scattered(seed: int) -> None:
    """Were units packed in file order, a split would hold neighbours; scattered, about 1 in 20 pairs are."""
    units = [unit(f"f{i:04}") for i in range(1000)]
    place = {u: i for i, u in enumerate(units)}
    splits = pack(units, target_splits=20, seed=seed)
    neighbours = sum(place[b] - place[a] == 1 for split in splits for a, b in pairwise(split))
    assert neighbours < 100
    assert splits != pack(units, target_splits=20, seed=seed + 1000)


def test_large_units_get_splits_of_their_own() -> None:
    units = [unit("big", cost=1000), *(unit(f"s{i:02}", cost=10) for i in range(30))]
    splits = pack(units, target_splits=4, seed=5)
    assert (units[0],) in splits


@pytest.mark.parametrize("count", [0, 1, 2, 48, 1000])
def test_dispatch_order_is_a_permutation(count: int) -> None:
    order = dispatch_order(count, 7)
    assert sorted(order) == list(range(count))
    assert order == dispatch_order(count, 7)
    if count > 2:
        assert order != dispatch_order(count, 8)


def test_dispatch_order_is_the_same_for_ever() -> None:
    """Runs are resumed by other processes and releases: the order is part of the format."""
    assert dispatch_order(10, 7) == DISPATCH_ORDER_10_SEED_7


def test_dispatch_order_is_uniform() -> None:
    """Chi-square over where the first split ends up, 8 cells, 4000 seeds: 24.3 is the 0.999 quantile for 7 degrees."""
    seen = [0] * 8
    for seed in range(4000):
        seen[dispatch_order(8, seed).index(0)] += 1
    assert sum((n - 500) ** 2 / 500 for n in seen) < 24.3


def test_stream_has_no_modulo_bias_and_respects_bounds() -> None:
    stream = SeededStream("test", 1)
    drawn = [stream.below(3) for _ in range(3000)]
    assert set(drawn) == {0, 1, 2}
    assert all(900 < drawn.count(v) < 1100 for v in (0, 1, 2))


def test_default_target() -> None:
    assert default_target(0, 0) == 0
    assert default_target(10, 3) == 3
    assert default_target(10, 500) == config.SPLITS_DEFAULT_MIN
    assert default_target(config.SPLIT_BYTES_TARGET * 1000, 5000) == 1000


DISPATCH_ORDER_10_SEED_7 = [4, 8, 9, 6, 1, 5, 3, 0, 2, 7]
