"""What nobody took of an evicted region is listed as conflicts, for a person to decide on."""

import pytest

from kit.regions.desk import Desk
from kit.regions.region import SimRegion
from onefold.available import effects, exchange, ops, reading


def put(value, key=b"k"):
    return ops.Put("r", "carts", ((key, value),))


def evicted(desk, number=3):
    """A region is evicted while it writes on; its log, and its final number."""
    gone = desk.regions.pop(number)
    for other in desk.regions:
        desk.append(other, ops.Evict(number, 1))
    for _ in range(3):
        desk.round()
    return gone, next(iter(desk.regions.values())).me.regions[number].limit


def listed(desk, number):
    return [conflict for _, conflict in reading.conflicts(desk[number].store)]


def test_each_write_that_nobody_took_is_listed_once_next_to_what_is_here():
    desk = Desk(3)
    desk.ok(3, put(b"old"), ops.Include("tags", b"k", (b"x",)), ops.Patch("users", b"k", (("a", b"1"),)))
    for _ in range(3):
        desk.round()
    gone, final = evicted(desk)
    gone.append(
        ops.Do((put(b"unseen"), put(b"alone", b"a"), ops.Put("k", "notes", ((b"k", b"n"),)))), desk.now_ms
    )
    gone.append(
        ops.Do((ops.Delete("r", "carts", (b"k",)), ops.Change("stock", 0, b"k", 1), ops.Empty("tags", b"k"))),
        desk.now_ms,
    )
    gone.append(ops.Do((ops.Patch("users", b"k", (("a", b"2"),)), ops.Add("likes", b"k", 5))), desk.now_ms)
    desk.ok(1, put(b"since"))
    since = 1, desk[1].have()[1]
    before = desk.shown()
    (op,) = exchange.unseen_ops(gone.store, final)
    assert desk.append(1, op).value == 8
    assert desk.append(1, op).value == 0
    found = listed(desk, 1)
    assert [(one.place, one.key, one.kept, one.dropped) for one in found] == [
        ("r/carts", b"k", b"since", b"unseen"),
        ("r/carts", b"a", None, b"alone"),
        ("k/notes", b"k", None, b"n"),
        ("r/carts", b"k", b"since", None),
        ("b0/stock", b"k", None, None),
        ("s/tags", b"k", None, None),
        ("f/users", b"k", None, None),
        ("n/likes", b"k", None, None),
    ]
    assert [one.dropped_dot for one in found] == [(3, 2)] * 3 + [(3, 3)] * 3 + [(3, 4)] * 2
    assert [one.kept_dot for one in found][:4] == [since, (0, 0), (0, 0), since]
    assert found[6].kept_dot == (3, 1)
    assert [effects.decode_write(one.write) for one in found] == [
        write for effect in exchange.unseen(gone.store, final) for write in effect.writes
    ]
    assert desk.shown() == before
    desk[1].restart()


def test_the_region_lists_it_under_its_new_number_and_does_again_what_it_can():
    desk = Desk(3)
    gone, final = evicted(desk)
    gone.append(ops.Do((put(b"unseen"), ops.Add("likes", b"k", 5))), desk.now_ms)
    desk.regions[4] = SimRegion(4, "r4")
    for other in (1, 2):
        desk.append(4, ops.Admit(other, f"r{other}"))
        desk.append(other, ops.Admit(4, "r4"))
    desk.append(4, ops.Admit(3, "r3"))
    desk.append(4, ops.Admit(4, "r4", here=True))
    desk.append(4, ops.Evict(3, 1))
    (op,) = exchange.unseen_ops(gone.store, final)
    assert desk.append(4, op) == ops.Rejected("not_final", here=3)
    desk.sync(4, 1)
    for _ in range(4):
        desk.round()
    assert desk.append(4, op).value == 2
    for _ in range(2):  # as if the first answer was lost
        for effect in exchange.unseen(gone.store, final):
            again = exchange.again(desk[4].store, effect, desk.now_ms)
            assert desk.append(4, again.op, again.request_id).region == 4
    assert desk[4].shown() == {("r/carts", b"k"): b"unseen", ("n/likes", b"k"): 5}
    assert [one.dropped_dot for one in listed(desk, 4)] == [(3, 1)] * 2


def test_pages_are_bounded_and_what_was_listed_is_skipped_in_any_page():
    desk = Desk(3)
    gone, final = evicted(desk)
    for at in range(exchange.UNSEEN_EFFECTS_MAX + 3):
        gone.append(ops.Do((put(b"%d" % at),)), desk.now_ms)
    first, second = exchange.unseen_ops(gone.store, final)
    assert desk.append(1, first).value == exchange.UNSEEN_EFFECTS_MAX
    whole = ops.Unseen(3, first.effects + second.effects)
    assert desk.append(1, whole).value == 3
    assert desk[1].me.conflicts == exchange.UNSEEN_EFFECTS_MAX + 3


def test_what_counts_or_is_not_of_an_evicted_region_is_not_listed():
    desk = Desk(3)
    desk.ok(3, put(b"counts"))
    known = desk.reply(1, 3).effects
    assert len(known) == 1
    for _ in range(2):
        desk.round()
    assert desk.append(1, ops.Unseen(3, known)) == ops.Rejected("unknown_region", here=3)
    assert desk.append(1, ops.Unseen(9, known)) == ops.Rejected("unknown_region", here=9)
    gone, final = evicted(desk)
    assert final >= 1
    assert desk.append(1, ops.Unseen(3, known)).value == 0
    gone.append(ops.Do((put(b"v"),)), desk.now_ms)
    (op,) = exchange.unseen_ops(gone.store, final)
    for bad in (b"", b"\xc1", effects.encode_effect(effects.Effect(2, 1, {}, 5))):
        assert desk.append(1, ops.Unseen(3, (*op.effects, bad))).reason == "malformed"
    assert listed(desk, 1) == []
    alone = SimRegion(9, "r9")
    assert alone.append(op, desk.now_ms).reason == "no_region"


@pytest.mark.parametrize("place", ["x/carts", "n/likes"])
def test_writes_that_cannot_be_are_not_listed(place):
    desk = Desk(3)
    _, final = evicted(desk)
    data = effects.encode_effect(effects.Effect(3, final + 1, {}, 5, (effects.SetCell(place, b"k", b"v"),)))
    assert desk.append(1, ops.Unseen(3, (data,))).reason == "malformed"
