"""Who is admitted, evicted, retired, held; who inherits; and what the fold does with garbage."""

import random

import pytest

from kit.regions.desk import Desk
from kit.regions.region import SimRegion
from kit.regions.world import World
from onefold.available import exchange, ops, reading
from onefold.available.fold import AvailableFold
from onefold.available.ops import available_op
from onefold.testing.fold_suite import check_fold


def put(value, key=b"k"):
    return ops.Put("r", "carts", ((key, value),))


def newcomer(desk, number, others):
    """A region with an empty log that is to be admitted."""
    region = desk.regions[number] = SimRegion(number, f"r{number}")
    for other in others:
        desk.append(number, ops.Admit(other, f"r{other}"))
    desk.append(number, ops.Admit(number, region.name, here=True))
    return region


def test_a_log_without_a_region_takes_nothing():
    desk = Desk()
    alone = desk.regions[9] = SimRegion(9, "r9")
    assert desk.do(9, put(b"v")).reason == "no_region"
    assert desk.append(9, ops.Import(1, ())).reason == "no_region"
    assert desk.append(9, ops.Beat()).value is False
    assert desk.append(9, ops.Retire(0)).reason == "no_region"
    assert [one.reason for one in [desk.sync(9, 1)] if isinstance(one, ops.Rejected)] in ([], ["no_region"])
    assert alone.have() == {}


@pytest.mark.parametrize("name", ["", "a/b", "x" * 33])
def test_names_of_regions_that_cannot_be_are_refused(name):
    desk = Desk()
    assert desk.append(1, ops.Admit(3, name)).reason == "malformed"
    assert 3 not in desk[1].me.regions


def test_a_new_region_writes_when_every_live_one_has_admitted_it():
    desk = Desk()
    desk.ok(1, put(b"v"))
    for _ in range(3):
        desk.round()
    newcomer(desk, 3, (1, 2))
    assert desk.do(3, put(b"w")).reason == "not_admitted"
    desk.append(1, ops.Admit(3, "r3"))
    assert desk.reply(3, 1).state == "sync"
    assert desk.sync(3, 1).value is True
    assert desk.do(3, put(b"w")).reason == "not_admitted"
    assert desk[3].shown() == desk[1].shown()
    desk.append(2, ops.Admit(3, "r3"))
    desk.pull(3, 2)
    desk.ok(3, put(b"w"))
    desk.round()
    assert desk.shown()[0] == desk.shown()[1] == desk.shown()[2]


def test_a_region_that_is_new_must_know_who_has_to_admit_it():
    desk = Desk()
    desk.regions[3] = SimRegion(3, "r3")
    assert desk.append(3, ops.Admit(3, "r3", here=True)).reason == "unknown_region"


def test_while_a_new_region_is_not_heard_of_nothing_is_collected():
    desk = Desk()
    desk.ok(1, put(b"v"))
    desk.append(1, ops.Admit(3, "r3"))
    desk.append(2, ops.Admit(3, "r3"))
    desk.ok(1, ops.Delete("r", "carts", (b"k",)))
    for _ in range(4):
        desk.round()
    assert desk[1].me.gone_rows == 1


def test_nothing_is_taken_from_an_evicted_region_but_from_others_that_know_it():
    desk = Desk(3)
    desk.ok(3, put(b"a"))
    desk.pull(1, 3)
    desk.ok(3, put(b"b"))
    desk.pull(2, 3)
    for number in (1, 2):
        assert desk.append(number, ops.Evict(3, 1)).value is True
        assert desk.append(number, ops.Evict(3, 1)).value is False
    assert desk.pull(1, 3) == ops.Rejected("evicted", here=3)
    assert desk.sync(1, 3).value is False
    gone = desk.regions.pop(3)
    for _ in range(4):
        desk.round()
    assert desk.shown()[0] == desk.shown()[1] == {("r/carts", b"k"): b"b"}
    for region in desk.regions.values():
        assert (region.me.regions[3].limit, region.me.regions[3].out) == (2, True)
    assert reading.status(desk[1].store, desk.now_ms).regions[2].state == "evicted"
    desk.regions[3] = gone
    desk.ok(3, put(b"c"))
    assert desk.append(3, ops.Retire(2)).value == 1
    assert desk.do(3, put(b"d")).reason == "evicted"
    assert desk.append(3, ops.Admit(4, "r4", here=True)).reason == "evicted"
    assert [effect.seq for effect in exchange.unseen(gone.store, 2)] == [3]


def test_what_nobody_took_is_done_again_where_that_undoes_nothing():
    desk = Desk(3)
    desk.ok(3, put(b"old", b"a"), put(b"old", b"b"), ops.Change("stock", 0, b"k", 5))
    for _ in range(3):
        desk.round()
    gone = desk.regions.pop(3)
    for number in (1, 2):
        desk.append(number, ops.Evict(3, 1))
    for _ in range(3):
        desk.round()
    gone.append(ops.Do((put(b"new", b"a"), put(b"new", b"b"), put(b"over", b"c"))), desk.now_ms)
    gone.append(
        ops.Do((ops.Add("likes", b"k", 3), ops.Include("tags", b"k", (b"x",), 9000))), desk.now_ms, "r"
    )
    gone.append(ops.Do((ops.Change("stock", 0, b"k", -2), ops.Delete("r", "carts", (b"a",)))), desk.now_ms)
    final = desk[1].me.regions[3].limit
    assert gone.append(ops.Retire(final), desk.now_ms).value == 3
    desk.ok(1, put(b"since", b"b"))
    desk.now_ms += 1000
    store = desk[1].store
    first, second, third = (
        exchange.again(store, one, desk.now_ms) for one in exchange.unseen(gone.store, final)
    )
    assert [one.key for one in first.left] == [b"b"]
    desk.append(1, first.op)
    assert (second.effect.request_id, second.left) == ("r", ())
    desk.append(1, second.op, second.effect.request_id)
    assert third.op is None and len(third.left) == 2
    assert desk[1].shown() == {
        ("r/carts", b"a"): b"new",
        ("r/carts", b"b"): b"since",
        ("r/carts", b"c"): b"over",
        ("n/likes", b"k"): 3,
        ("s/tags", b"k"): {b"x"},
        ("b0/stock", b"k"): 5,
    }
    desk.now_ms += 8000
    desk.append(1, ops.Accept(1, 0))
    assert ("s/tags", b"k") not in desk[1].shown()
    assert exchange.again(store, second.effect, desk.now_ms).left == second.effect.writes[1:]


def test_an_evicted_region_counts_until_all_that_it_said_is_known():
    desk = Desk(3)
    desk.ok(3, put(b"a"))
    desk.pull(2, 3)
    desk.append(1, ops.Evict(3, 1))
    assert reading.status(desk[1].store, desk.now_ms).regions[2].state == "evicting"
    assert not desk[1].me.regions[3].final  # the other one has not voted
    desk.append(2, ops.Evict(3, 1))
    desk.pull(1, 2)
    region = desk[1].me.regions[3]
    assert (region.final, region.limit) == (True, 1)


def test_what_is_beyond_the_final_number_is_taken_from_nobody():
    desk = Desk(3)
    desk.ok(3, put(b"a"))
    desk.pull(1, 3)
    for number in (1, 2):
        desk.append(number, ops.Evict(3, 1))
    gone = desk.regions.pop(3)
    for _ in range(3):
        desk.round()
    desk.regions[3] = gone
    desk.ok(3, put(b"b"))
    late = desk.reply(1, 3).effects
    assert len(late) == 1
    assert desk.append(1, ops.Import(2, late)).waiting == {3: "evicted"}


def test_another_eviction_begins_another_round_of_votes():
    desk = Desk(4)
    desk.ok(4, put(b"a"))
    desk.pull(3, 4)
    desk.append(3, ops.Evict(4, 1))
    desk.append(1, ops.Evict(4, 1))
    desk.pull(1, 3)  # knows the vote of 3, and with it the effect
    for number in (1, 2):
        if number == 2:
            desk.append(2, ops.Evict(4, 1))
        desk.append(number, ops.Evict(3, 2))
    for number in (3, 4):
        del desk.regions[number]
    for _ in range(4):
        desk.round()
    for region in desk.regions.values():
        assert {number: (one.limit, one.out) for number, one in region.me.evicted()} == {
            3: (1, True),
            4: (1, True),
        }
    assert desk.shown()[0] == desk.shown()[1] == {("r/carts", b"k"): b"a"}


def test_the_last_region_and_the_own_one_are_not_evicted():
    desk = Desk()
    assert desk.append(1, ops.Evict(1, 1)).reason == "unknown_region"
    assert desk.append(1, ops.Evict(7, 1)).reason == "unknown_region"
    three = Desk(3)
    three.append(1, ops.Evict(3, 2))
    assert three.append(1, ops.Evict(2, 1)) == ops.Rejected("malformed", "round")
    assert desk.append(1, ops.Evict(2, 1)).value is True
    assert desk[1].me.live() == [1]
    desk.ok(1, put(b"v"), ops.Delete("r", "carts", (b"k",)))
    assert (desk[1].me.gone_rows, desk[1].me.out_count) == (0, 0)


def test_rights_of_an_evicted_region_are_frozen_until_they_are_reclaimed():
    desk = Desk(3)
    desk.ok(3, ops.Change("stock", 0, b"k", 9))
    desk.ok(1, ops.Change("credit", -4, b"k", -1))
    for _ in range(3):
        desk.round()
    for number in (1, 2):
        desk.append(number, ops.Evict(3, 1))
    del desk.regions[3]
    assert desk.append(2, ops.Reclaim(3, 2)).value is True
    assert reading.here(desk[2].store, "stock", 0, b"k") == 0  # not all are known to have its last effect
    for _ in range(4):
        desk.round()
    assert reading.here(desk[2].store, "stock", 0, b"k") == 9
    assert reading.here(desk[1].store, "stock", 0, b"k") == 0
    assert desk.append(2, ops.Reclaim(3, 1)).value is False
    assert desk.append(2, ops.Reclaim(1, 2)).value is False
    assert desk.append(2, ops.Reclaim(3, 3)).reason == "unknown_region"
    desk.append(1, ops.Reclaim(3, 2))
    desk.ok(2, ops.Change("stock", 0, b"k", -9))
    desk.round()
    assert desk.shown()[0]["b0/stock", b"k"] == 0


def test_a_restored_log_continues_under_a_new_number():
    desk = Desk(3)
    desk.ok(1, put(b"kept"))
    offset = len(desk[1].log)
    desk.ok(1, put(b"lost here", b"x"))
    desk.pull(2, 1)
    desk.ok(1, put(b"lost everywhere", b"y"))
    region = desk.regions.pop(1)
    region.back_to(offset)
    region.number = 4
    desk.regions[4] = region
    assert desk.append(4, ops.Admit(4, "r4", here=True)).value is True
    assert desk.do(4, put(b"z")).reason == "not_admitted"
    for number in (2, 3):
        desk.append(number, ops.Admit(4, "r4"))
    for number in (2, 3, 4):
        desk.append(number, ops.Evict(1, 1))
    for _ in range(4):
        desk.round()
    desk.ok(4, put(b"w", b"z"))
    for _ in range(4):
        desk.round()
    expected = {("r/carts", b"k"): b"kept", ("r/carts", b"x"): b"lost here", ("r/carts", b"z"): b"w"}
    assert desk.shown() == [expected] * 3
    assert desk.append(4, ops.Admit(3, "r3", here=True)).value is False


def test_effects_that_are_far_ahead_wait_or_are_accepted():
    desk = Desk(3)
    desk[1].skew_ms = 3_600_000
    desk.ok(1, put(b"fast"))
    desk.ok(3, put(b"ok", b"o"))
    assert desk.pull(2, 1).waiting == {1: "held"}
    assert desk.pull(2, 3).taken == 1
    held = reading.status(desk[2].store, desk.now_ms).regions[0]
    assert (held.state, held.ahead_ms) == ("held", 3_600_000)
    assert desk.sync(2, 1).value is False  # nor as rows
    by_rows = Desk()
    by_rows[1].skew_ms = 3_600_000
    by_rows.ok(1, put(b"fast"))
    by_rows.pull(2, 1)
    by_rows.append(2, ops.Accept(1, by_rows[1].me.hlc))
    assert by_rows.sync(2, 1).value is True
    assert reading.status(by_rows[2].store, by_rows.now_ms).regions[0].state == "live"
    desk.append(2, ops.Accept(1, desk[2].me.regions[1].held))
    assert desk.pull(2, 1).taken == 1
    assert reading.status(desk[2].store, desk.now_ms).regions[0].state == "live"
    assert desk.append(2, ops.Accept(8, 1)).reason == "unknown_region"


def test_a_clock_that_is_ahead_can_be_capped_while_others_hold_it():
    desk = Desk()
    desk[1].skew_ms = 3_600_000
    now = desk.now_ms + 3_600_000
    desk.append(1, ops.Cap(desk.now_ms, now + 5000))
    desk.ok(1, put(b"v"))
    assert desk.pull(2, 1).taken == 1
    desk.now_ms += 5000
    desk.ok(1, put(b"w"))
    assert desk.pull(2, 1).waiting == {1: "held"}


def test_status_tells_what_a_log_knows_of_its_region():
    desk = Desk()
    desk.ok(1, put(b"v"), ops.Delete("r", "carts", (b"other",)))
    found = reading.status(desk[1].store, desk.now_ms)
    assert (found.number, found.writing, found.retired, found.have) == (1, True, False, {1: 1})
    assert (found.gone_rows, found.out_effects, found.conflicts, found.owes_beat) == (1, 1, 0, True)
    assert found.gone_bytes > 0 and found.out_bytes > 0
    assert [(one.name, one.state, one.seq) for one in found.regions] == [("r1", "here", 1), ("r2", "live", 0)]


@pytest.mark.parametrize("seed", range(4))
def test_the_fold_keeps_its_contract(seed):
    """In a file too, from snapshots, and with garbage."""
    world = World(seed, 2 + seed % 2)
    for _ in range(150):
        world.step()
    region = max(world.regions.values(), key=lambda one: len(one.log))
    bodies = [entry.body for entry in region.log][:200]
    others = [entry.body for one in world.regions.values() for entry in one.log][:100]
    others += [available_op(op).body for op in exchange.sync_ops(region.store, "s")]
    bodies += random.Random(seed).sample(others, len(others))
    check_fold(AvailableFold(), bodies, seed=seed)
