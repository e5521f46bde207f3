"""Programs of several regions under everything that can go wrong: sessions, transactions, floors and sets keep what they promise.

Each part of a day takes other seeds, and ``ONEFOLD_SIM_FIRST`` moves them. All of them by hand::

    ONEFOLD_REGIONS_SEEDS=1000 ONEFOLD_TEST_DAY=all pytest tests/sim/test_regions_programs_sim.py -n auto

A failure names the seed; ``kit.regions.program_runs.run(seed)`` is that run again.
"""

import os

import pytest

from kit.regions.program_bugs import BUGS, planted
from kit.regions.program_runs import run
from kit.regions.region import Violation
from onefold.errors import InvalidArgument
from onefold.testing import Faults, Simulation

SEEDS = int(os.environ.get("ONEFOLD_REGIONS_SEEDS", "320"))
FIRST = int(os.environ.get("ONEFOLD_SIM_FIRST", "0"))
BATCH = 4
PLANTED_SEEDS = 100
CUTS = Faults(link=12.0, clock_jump=4.0, lasts_s=2.0, crash=0.5, outage=0.5, partition=0.0)
CAUGHT_BY = [
    ("dropped_token", "all", 0),
    ("acknowledged_early", "all", 0),
    ("others_clock", CUTS, 7),
    ("used_wish", "all", 5),
]
"""The error, under which faults, and the first seed that shows it."""
FAILED_ONCE = [
    17,  # a replica that was behind its own region's log took what a token had seen there for lost
    217,  # a relay that was down when the last program ended did not come back
]


@pytest.mark.moving(40)
@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, BATCH))
def test_what_regions_promise_to_programs_is_kept(first):
    for seed in range(first, first + BATCH):
        run(seed)


@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_seeds_that_failed_once(seed):
    run(seed)


@pytest.mark.moving(4)
@pytest.mark.parametrize(("bug", "faults", "known"), CAUGHT_BY)
def test_planted_errors_are_caught(bug, faults, known):
    for seed in (known, *range(PLANTED_SEEDS)):
        try:
            with planted(bug):
                run(seed, faults=faults)
        except Violation as violation:
            print(f"{bug} is noticed with seed {seed}: {violation}")
            return
    pytest.fail(f"{bug} was not noticed in {PLANTED_SEEDS} seeds")


def test_every_planted_error_is_tried():
    assert {bug for bug, *_ in CAUGHT_BY} == {*BUGS}


def test_the_faults_of_these_tests_are_no_errors():
    for seed in (7, 10):
        run(seed, faults=CUTS)


def test_most_requests_succeed_and_sessions_move_between_regions():
    programs = run(1, faults="none", operations=200)
    done = [*programs.record.values()]
    assert done.count("ok") > 0.8 * len(done) > 40
    assert programs.mail and programs.acked and programs.tags


def test_the_same_seed_is_the_same_run():
    first, again = run(3), run(3)
    assert first.simulation.trace == again.simulation.trace
    assert first.record == again.record
    assert any("the link from" in line for line in first.simulation.trace)


def sell(db):
    db.counters("stock", floor=0).add("sku-1", -2)
    db.map("sold", mode="available")[db.regions()[0].name] = True


def test_regions_are_named_by_programs_and_equal_in_the_end():
    with Simulation(7, regions=("eu", "us"), shards=2) as sim:
        sim.setup(lambda db: db.counters("stock", floor=0).add("sku-1", 10))
        sim.client(sell, region="eu")
        sim.client(sell, region="us")
        sim.client(lambda db: db.map("consistent").put("k", 1))
        sim.run("none")
        for name in ("eu", "us"):
            with sim.healed(region=name) as db:
                assert db.counters("stock", floor=0).get("sku-1") == 6
                assert dict(db.map("sold", mode="available").items()) == {"eu": True, "us": True}
                assert next((one.name, one.state) for one in db.regions()) == (name, "here")
                assert db.map("consistent")["k"] == 1


@pytest.mark.parametrize("regions", ["eu", ("eu", "eu"), ("a/b",), ("witness",), tuple("abcdefghijklmnopqr")])
def test_names_of_regions_that_cannot_be_are_refused(regions):
    with pytest.raises(InvalidArgument):
        Simulation(0, regions=regions)


def test_regions_and_nodes_together_are_refused():
    with pytest.raises(InvalidArgument, match="either regions or nodes"):
        Simulation(0, regions=("eu", "us"), nodes=1)


def test_a_region_that_is_not_there_is_refused():
    with Simulation(0, regions=("eu",)) as sim:
        with pytest.raises(ValueError, match="which are: eu"):
            sim.client(sell, region="us")
        with pytest.raises(ValueError, match="which are: eu"), sim.healed(region="us"):
            pass
