"""Regions with everything that can go wrong between them become equal again, and equal to a model that knows only effects.

Each part of a day takes other seeds. All of a thousand and more by hand::

    ONEFOLD_REGIONS_SEEDS=1000 ONEFOLD_TEST_DAY=all pytest tests/sim/test_regions_sim.py -n auto
"""

import os

import pytest

from kit.regions.bugs import BUGS, planted
from kit.regions.region import Violation
from kit.regions.runs import run
from kit.regions.world import World
from onefold.available import ops

SEEDS = int(os.environ.get("ONEFOLD_REGIONS_SEEDS", "320"))
BATCH = 20
PLANTED_SEEDS = 100
ALL = "rfksnb"
CAUGHT_BY = [
    ("tombstones_by_age", "rf", 1),
    ("gaps", ALL, 0),
    ("no_dependencies", "rf", 8),
    ("looks_at_value", ALL, 1),
    ("grants_all", "b", 7),
    ("union", ALL, 1),
    ("early_switch", ALL, 2),
    ("rows_missing", ALL, 26),
    ("lost_meanwhile", ALL, 8),
    ("no_session", ALL, 0),
    ("split", ALL, 1),
    ("evicted_alone", ALL, 5),
    ("one_round", "rf", 1),
    ("not_admitted", "r", 3),
    ("no_births", "n", 3),
    ("old_number", ALL, 9),
]
"""The error, the kinds of collections that notice it, and the first seed with which they do."""


@pytest.mark.moving(8)
@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_regions_become_equal_to_each_other_and_to_the_model(first):
    for seed in range(first, first + BATCH):
        run(seed)


@pytest.mark.moving(4)
@pytest.mark.parametrize("kind", ALL)
def test_one_kind_of_collection_alone(kind):
    """So that the same keys are written again and again."""
    for seed in range(12):
        run(seed, kinds=kind)


@pytest.mark.parametrize(("bug", "kinds", "known"), CAUGHT_BY)
def test_planted_errors_are_caught(bug, kinds, known):
    for seed in (known, *range(PLANTED_SEEDS)):
        try:
            with planted(bug) as options:
                run(seed, kinds=kinds, **options)
        except Violation as violation:
            print(f"{bug} is noticed with seed {seed}: {violation}")
            return
    pytest.fail(f"{bug} was not noticed in {PLANTED_SEEDS} seeds")


def test_every_planted_error_is_tried():
    assert {bug for bug, *_ in CAUGHT_BY} == {*BUGS, "old_number"}


def quiet(count=2):
    """Regions without faults."""
    return World(0, count)


def change(world, number, by, key=b"k"):
    return world.append(world.regions[number], ops.Do((ops.Change("stock", 0, key, by),)))


def wish(world, number, need, key=b"k", ttl_ms=60_000):
    return world.append(world.regions[number], ops.Do((ops.Wish("stock", 0, key, need, ttl_ms),)))


def test_two_regions_that_want_more_than_either_has_come_to_an_end():
    world = quiet()
    for number in world.regions:
        assert change(world, number, 5).results == (5,)
    world._round()
    assert wish(world, 1, 8).results == (5,)
    assert wish(world, 2, 8).results == (5,)
    for _ in range(4):
        world._round()
    sold = [number for number in world.regions if not isinstance(change(world, number, -8), ops.Rejected)]
    assert sold == [1]  # whose wish is the oldest
    world._round()
    refused = change(world, 2, -8)
    assert (refused.reason, refused.value, refused.here) == ("below_floor", 2, 2)
    effects = sum(region.me.origin(region.number).seq for region in world.regions.values())
    for _ in range(4):
        world._round()
    assert effects >= sum(region.me.origin(region.number).seq for region in world.regions.values()) - 4


def test_a_deleted_item_is_gone_everywhere_within_three_beats_of_the_heal():
    world = quiet(3)
    put = ops.Put("r", "carts", ((b"k", b"v"),))
    world.append(world.regions[1], ops.Do((put,)))
    world._round()
    world.append(world.regions[2], ops.Do((ops.Delete("r", "carts", (b"k",)),)))
    assert world.regions[2].me.gone_rows == 1
    for _ in range(3):
        world._round()
    assert [region.me.gone_rows for region in world.regions.values()] == [0, 0, 0]
    assert [region.shown() for region in world.regions.values()] == [{}, {}, {}]


def test_a_region_that_is_cut_off_holds_back_collection_until_it_is_evicted():
    world = quiet(3)
    world.append(world.regions[1], ops.Do((ops.Put("r", "carts", ((b"k", b"v"),)),)))
    world._round()
    away = world.regions.pop(3)
    world.append(world.regions[1], ops.Do((ops.Delete("r", "carts", (b"k",)),)))
    for _ in range(5):
        world._round()
    assert all(region.me.gone_rows and region.me.gone_bytes for region in world.regions.values())
    world.gone[3] = away
    world.decisions.append(ops.Evict(3, 1))
    for _ in range(5):
        world._round()
    assert not any(region.me.gone_rows or region.me.gone_bytes for region in world.regions.values())


def test_a_region_whose_clock_is_an_hour_ahead_wins_nothing_elsewhere():
    world = quiet()
    fast, other = world.regions[1], world.regions[2]
    fast.skew_ms = 3_600_000
    world.append(fast, ops.Do((ops.Put("r", "carts", ((b"k", b"fast"),)),)))
    outcome = world.append(other, answer(fast, other).as_import())
    assert (outcome.taken, outcome.waiting) == (0, {1: "held"})
    world.append(other, ops.Do((ops.Put("r", "carts", ((b"k", b"slow"),)),)))
    assert other.shown() == {("r/carts", b"k"): b"slow"}
    world.clock_ms += 3_600_000
    assert world.append(other, answer(fast, other).as_import()).taken == 1
    assert other.shown() == {("r/carts", b"k"): b"fast"}


def answer(from_region, to_region):
    from onefold.available import exchange

    return exchange.answer(from_region.store, to_region.ask())
