"""Decisions on regions, as they come into the logs of regions."""

from __future__ import annotations

import random
from typing import Any

import pytest

from onefold.available.ops import Do, Put, Rejected, available_op, decode_outcome
from onefold.available.regions import Known, read_self
from onefold.env import SYSTEM
from onefold.fold.nodes.regions import Admit, Decision, Evict, Reclaim
from onefold.folds import region_folds
from onefold.log.memory import MemoryLog
from onefold.regions.beginning import first_ops, founders
from onefold.regions.decisions import apply_decisions, missing
from onefold.shard.memory import MemoryShard

CAME_AND_WENT: list[Decision] = [
    Admit(1, "eu", founder=True),
    Admit(2, "us"),
    Admit(3, "asia"),
    Evict(2, 1),
    Reclaim(2, 3),
    Admit(4, "us"),
    Evict(1, 2),
]


def log_of(decisions: list[Decision], here: int, shard: int = 0) -> MemoryShard:
    made = MemoryShard(MemoryLog(), region_folds(shard, 2), SYSTEM)
    made.submit(first_ops(decisions, here, shard))
    return made


def known(shard: MemoryShard) -> Known:
    with shard.view() as view:
        return read_self(view)


def put(shard: MemoryShard) -> Any:
    return decode_outcome(shard.submit([available_op(Do((Put("r", "m", ((b"k", b"v"),)),)))])[0])


@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize("here", [1, 2, 3])
def test_founders_know_each_other_and_write_at_once(here: int, shard: int) -> None:
    decisions = founders(["eu", "us", "asia"])
    log = log_of(decisions, here, shard)
    me = known(log)
    assert (
        me.number == here and me.writing and [me.regions[n].name for n in (1, 2, 3)] == ["eu", "us", "asia"]
    )
    assert not apply_decisions(log, decisions), "nothing is missing"
    assert not isinstance(put(log), Rejected)


def test_a_region_that_comes_later_waits_for_the_others() -> None:
    decisions: list[Decision] = [*founders(["eu"]), Admit(2, "us")]
    log = log_of(decisions, 2)
    assert known(log).number == 2 and not known(log).writing
    assert put(log) == Rejected("not_admitted")


@pytest.mark.parametrize("here", [1, 2, 3, 4])
def test_every_log_comes_to_know_everything(here: int) -> None:
    came = next(i for i, one in enumerate(CAME_AND_WENT, 1) if isinstance(one, Admit) and one.number == here)
    log = log_of(CAME_AND_WENT[:came], here)
    for upto in range(came, len(CAME_AND_WENT) + 1):
        apply_decisions(log, CAME_AND_WENT[:upto])
        assert not list(missing(known(log), CAME_AND_WENT[:upto]))
    me = known(log)
    assert sorted(me.regions) == [1, 2, 3, 4]
    assert me.retired == (here in (1, 2))
    gone = {number for number, region in me.regions.items() if region.round}
    assert gone == {1, 2} - {here}
    if here != 2:
        assert me.regions[2].heir == 3


def test_decisions_that_come_at_once_or_again_change_nothing_more() -> None:
    draw = random.Random(7)
    for _ in range(30):
        here = draw.choice((1, 2, 3, 4))
        log = log_of(CAME_AND_WENT, here)
        apply_decisions(log, CAME_AND_WENT)
        step_by_step = log_of(CAME_AND_WENT, here)
        while list(missing(known(step_by_step), CAME_AND_WENT)):
            apply_decisions(step_by_step, CAME_AND_WENT[: draw.randrange(len(CAME_AND_WENT) + 1)])
        assert known(log).regions == known(step_by_step).regions
        log.submit([available_op(op) for op in missing(Known(), CAME_AND_WENT)])
        assert known(log).regions == known(step_by_step).regions, "a log takes each decision once"


def test_an_evicted_log_never_gets_another_number() -> None:
    log = log_of(CAME_AND_WENT, 2)
    apply_decisions(log, CAME_AND_WENT)
    assert known(log).number == 2 and known(log).retired
    assert put(log) == Rejected("evicted")
