"""What is taken from other regions, what waits, what is refused, and what is kept for whom."""

import pytest

from kit.regions.desk import Desk
from onefold.available import applying, exchange, ops, out, reading
from onefold.available.effects import Effect, SetCell, decode_effect, encode_effect
from onefold.available.rows import CONFLICTS, OUT


def put(value, key=b"k"):
    return ops.Put("r", "carts", ((key, value),))


def effects(desk, asks, answers):
    return desk.reply(asks, answers).effects


def test_repeats_are_skipped_and_a_gap_waits():
    desk = Desk()
    for at in range(3):
        desk.ok(1, put(b"%d" % at))
    sent = effects(desk, 2, 1)
    assert desk.append(2, ops.Import(1, sent[1:])).waiting == {1: "gap"}
    assert desk[2].have() == {}
    assert desk.append(2, ops.Import(1, sent[:1])).taken == 1
    assert desk.append(2, ops.Import(1, sent)).taken == 2
    assert desk.append(2, ops.Import(1, sent)).taken == 0
    assert desk[2].have() == {1: 3}


def test_an_effect_waits_for_what_it_was_made_from_and_others_pass():
    desk = Desk(3)
    desk.ok(1, put(b"cause"))
    desk.pull(2, 1)
    desk.ok(2, put(b"result"))
    cause, result = effects(desk, 3, 2)
    desk.ok(1, put(b"other", b"o"))
    other = effects(desk, 3, 1)[1]
    assert desk.append(3, ops.Import(2, (result,))).waiting == {2: "deps"}
    outcome = desk.append(3, ops.Import(2, (result, cause, other)))
    assert (outcome.taken, outcome.waiting) == (2, {2: "deps"})
    assert desk.append(3, ops.Import(2, (result,))).taken == 1
    assert desk[3].shown()["r/carts", b"k"] == b"result"


def test_any_region_passes_on_what_it_has_of_any_other():
    desk = Desk(3)
    desk.ok(1, put(b"v"))
    desk.pull(2, 1)
    assert desk.pull(3, 2).taken == 1
    assert desk[3].shown() == desk[1].shown()


def test_answers_are_bounded_and_hold_at_least_one_effect():
    desk = Desk()
    for at in range(5):
        desk.ok(1, put(b"x" * 1000, b"%d" % at))
    reply = exchange.answer(desk[1].store, desk[2].ask(), 10)
    assert len(reply.effects) == 1
    assert len(exchange.answer(desk[1].store, desk[2].ask(), 3500).effects) == 3
    desk.append(2, reply.as_import())
    assert len(effects(desk, 2, 1)) == 4


def test_nobody_but_nodes_may_append_what_other_regions_did():
    desk = Desk()
    desk.ok(1, put(b"v"))
    forged = desk.reply(2, 1).as_import()
    region = desk[2]
    from onefold.available.fold import AvailableFold
    from onefold.fold.api import Context

    context = Context(99, 0, desk.now_ms, "c0-x", None, trusted=False)
    body = ops.available_op(forged).body
    outcome = ops.decode_outcome(AvailableFold().apply(region.store, context, body, 4))
    assert outcome == ops.Rejected("untrusted")
    assert region.have() == {}


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\xc1",
        b"not an effect",
        encode_effect(Effect(1, 1, {}, 5, (SetCell("x/carts", b"k", b"v"),))),
        encode_effect(Effect(1, 1, {}, 5, (SetCell("n/likes", b"k", b"v"),))),
        encode_effect(Effect(1, 1, {}, 5, (SetCell("r/" + "n" * 300, b"k", b"v"),))),
    ],
)
def test_effects_that_cannot_be_are_refused_whole(bad):
    desk = Desk()
    desk.ok(1, put(b"v"))
    outcome = desk.append(2, ops.Import(1, (*effects(desk, 2, 1), bad)))
    assert outcome == ops.Rejected("malformed", "effects")
    assert desk[2].have() == {}


def test_other_effects_under_the_same_numbers_are_noticed():
    desk, other = Desk(), Desk()
    desk.ok(1, put(b"one"))
    other.ok(1, put(b"two"))
    desk.pull(2, 1)
    other.ok(1, put(b"three"))
    reply = exchange.answer(other[1].store, desk[2].ask())
    assert (reply.state, reply.origin) == ("diverged", 1)
    chains = {1: other[1].me.origin(1).chain}
    second = effects(other, 2, 1)[1]
    assert desk.append(2, ops.Import(1, (second,), chains)) == ops.Rejected("diverged", here=1)


def test_a_log_that_lost_its_end_is_noticed_by_anyone_who_asks():
    desk = Desk()
    for at in range(4):
        desk.ok(1, put(b"%d" % at))
    desk.pull(2, 1)
    desk[1].back_to(4)
    assert desk.reply(2, 1).state == "lost"
    outcome = desk.pull(1, 2)
    assert (outcome.taken, outcome.waiting) == (0, {1: "unknown"})


def test_the_same_effects_and_other_rows_are_an_alarm():
    desk = Desk()
    desk.ok(1, put(b"v"))
    desk.round()
    desk.round()
    asked = desk[2].ask()
    have = desk[1].have()
    wrong = exchange.Ask(2, have, {}, b"x" * 16)
    assert exchange.answer(desk[1].store, wrong).state == "differs"
    assert exchange.answer(desk[1].store, exchange.Ask(2, have, {}, asked.content)).state == "same"
    assert exchange.answer(desk[1].store, exchange.Ask(2, have, {}, b"")).state == "same"


def test_effects_are_kept_until_all_are_known_to_know_them():
    desk = Desk(3)
    desk.ok(1, put(b"v"))
    desk.pull(2, 1)
    desk.append(2, ops.Beat())
    desk.pull(1, 2)
    assert desk[1].me.out_count > 1
    for _ in range(3):
        desk.round()
    assert desk[1].me.dropped[1].seq >= 1
    assert desk[1].store.get(OUT, b"\x00\x01" + (1).to_bytes(8)) is None
    for region in desk.regions.values():
        kept = list(region.store.scan(OUT))
        assert region.me.out_count == len(kept)
        assert region.me.out_bytes == sum(len(data) - 16 for _, data in kept)


def test_beats_end_when_all_is_known():
    desk = Desk(3)
    desk.ok(1, put(b"v"), ops.Delete("r", "carts", (b"other",)))
    for _ in range(4):
        desk.round()
    before = [region.have() for region in desk.regions.values()]
    for _ in range(4):
        desk.round()
    assert [region.have() for region in desk.regions.values()] == before


@pytest.mark.parametrize(
    ("name", "value"), [("OUT_EFFECTS_MAX", 3), ("OUT_BYTES_MAX", 300), ("KEPT_MS", 1000)]
)
def test_a_region_that_was_away_for_too_long_gets_the_rows(monkeypatch, name, value):
    monkeypatch.setattr(out, name, value)
    desk = Desk()
    for at in range(300):
        desk.now_ms += 100
        desk.ok(1, put(b"%d" % at, b"%d" % (at % 7)))
    assert desk[1].me.out_count < 300
    assert desk.reply(2, 1).state == "sync"
    desk.ok(2, put(b"mine", b"m"))
    assert desk.sync(2, 1).value is True
    assert desk[2].have() == {1: 300, 2: 1}
    assert desk.reply(2, 1).state == "same"
    desk.ok(1, put(b"later", b"l"))
    assert desk.pull(2, 1).taken == 1
    for _ in range(3):
        desk.round()
    assert desk.shown()[0] == desk.shown()[1]
    assert desk.shown()[0]["r/carts", b"m"] == b"mine"
    assert desk[1].me.content == desk[2].me.content


def test_readers_see_the_old_rows_until_a_full_sync_ends():
    desk = Desk()
    for at in range(5):
        desk.ok(1, put(b"new", b"%d" % at))
    desk.ok(2, put(b"old", b"x"))
    *first, last = exchange.sync_ops(desk[1].store, "s")
    for op in first:
        assert desk.append(2, op).value is True
        assert desk[2].shown() == {("r/carts", b"x"): b"old"}
    assert desk.append(2, last).value is True
    assert len(desk[2].shown()) == 6


def test_a_full_sync_that_is_not_whole_or_not_needed_does_nothing():
    desk = Desk()
    desk.ok(1, put(b"v"))
    begin, rows, end = exchange.sync_ops(desk[1].store, "one")
    assert desk.append(2, rows).value is False
    desk.append(2, begin)
    assert desk.append(2, end).value is False
    assert desk.append(2, ops.SyncEnd("other", 1)).value is False
    desk.append(2, rows)
    desk.append(2, rows)
    assert desk.append(2, end).value is True
    assert desk.append(2, end).value is False
    assert desk.append(2, begin).value is False  # nothing is missing
    assert desk[2].shown() == desk[1].shown()


def test_a_deleted_item_does_not_come_back_by_a_full_sync():
    desk = Desk(3)
    desk.ok(1, put(b"v"), ops.Include("tags", b"k", (b"x",)), ops.Put("k", "notes", ((b"k", b"n"),)))
    for _ in range(3):
        desk.round()
    desk.ok(1, ops.Delete("r", "carts", (b"k",)), ops.Empty("tags", b"k"), ops.Delete("k", "notes", (b"k",)))
    assert desk.sync(1, 2).value is False
    desk.ok(2, put(b"y", b"other"))
    assert desk.sync(1, 2).value is True
    assert desk[1].shown() == {("r/carts", b"other"): b"y"}
    assert desk.sync(3, 1).value is True
    assert desk[3].shown() == {("r/carts", b"other"): b"y"}


def test_what_is_written_after_a_full_sync_is_later_than_what_came_with_it():
    desk = Desk()
    desk[1].skew_ms = 30_000
    desk.ok(1, put(b"fast"))
    desk.sync(2, 1)
    desk.ok(2, put(b"after"))
    desk.round()
    desk.round()
    assert desk.shown() == [{("r/carts", b"k"): b"after"}] * 2


def test_conflicts_are_listed_in_both_regions_with_the_same_dots():
    desk = Desk()
    desk.ok(1, put(b"one"))
    desk.now_ms += 5
    desk.ok(2, put(b"two"))
    desk.round()
    listed = [reading.conflicts(region.store) for region in desk.regions.values()]
    ((_, first),), ((_, second),) = listed
    assert (first.place, first.key, first.kept, first.dropped) == ("r/carts", b"k", b"two", b"one")
    assert (first.kept_dot, first.dropped_dot) == ((2, 1), (1, 1)) == (second.kept_dot, second.dropped_dot)
    desk.ok(1, put(b"three"))
    desk.round()
    assert [region.me.conflicts for region in desk.regions.values()] == [1, 1]


def test_fields_conflict_one_by_one_and_siblings_are_told():
    desk = Desk()
    desk.ok(1, ops.Patch("users", b"k", (("a", b"1"), ("b", b"1"))), ops.Put("k", "notes", ((b"k", b"1"),)))
    desk.now_ms += 5
    desk.ok(2, ops.Patch("users", b"k", (("b", b"2"), ("c", b"2"))), ops.Put("k", "notes", ((b"k", b"2"),)))
    desk.round()
    found = [(one.place, one.field, one.kept, one.dropped) for _, one in reading.conflicts(desk[1].store)]
    assert found == [("f/users", "b", b"2", b"1"), ("k/notes", "", b"2", b"1")]


def test_the_list_of_conflicts_is_bounded_by_number_size_and_age(monkeypatch):
    monkeypatch.setattr(applying, "CONFLICTS_KEPT", 5)
    desk = Desk()
    for at in range(8):
        desk.ok(1, put(b"1", b"%d" % at))
        desk.now_ms += 1
        desk.ok(2, put(b"2", b"%d" % at))
        desk.round()
    me = desk[1].me
    assert me.conflicts == 8
    assert [number for number, _ in reading.conflicts(desk[1].store)] == [3, 4, 5, 6, 7]
    assert me.conflicts_bytes == sum(len(data) for _, data in desk[1].store.scan(CONFLICTS))
    monkeypatch.setattr(applying, "CONFLICTS_BYTES_MAX", 10)
    desk.ok(1, put(b"1"))
    desk.ok(2, put(b"2"))
    desk.round()
    assert len(reading.conflicts(desk[1].store)) == 0
    monkeypatch.setattr(applying, "CONFLICTS_BYTES_MAX", 10_000)
    monkeypatch.setattr(applying, "CONFLICTS_KEPT_MS", 1000)
    for _ in range(2):
        desk.ok(1, put(b"1"))
        desk.ok(2, put(b"2"))
        desk.round()
        desk.now_ms += 2000
    assert len(reading.conflicts(desk[1].store)) == 1
    assert desk[1].me.conflicts == 11


def test_a_request_travels_with_its_effect():
    desk = Desk()
    first = desk.do(1, ops.Add("likes", b"k", 5), request_id="r")
    assert desk.do(1, ops.Add("likes", b"k", 5), request_id="r") == first
    desk.pull(2, 1)
    assert desk.do(2, ops.Add("likes", b"k", 5), request_id="r") == first
    assert desk[2].shown() == {("n/likes", b"k"): 5}
    desk.now_ms += 25 * 3_600_000
    assert desk.do(2, ops.Add("likes", b"k", 5), request_id="r").results == (10,)


def test_a_request_that_was_done_in_two_regions_during_a_cut_is_a_conflict():
    desk = Desk()
    desk.do(1, ops.Add("likes", b"k", 5), request_id="r")
    desk.do(2, ops.Add("likes", b"k", 5), request_id="r")
    desk.round()
    desk.round()
    assert desk.shown()[0] == desk.shown()[1] == {("n/likes", b"k"): 10}
    for region in desk.regions.values():
        ((_, conflict),) = reading.conflicts(region.store)
        assert (conflict.place, conflict.key) == ("", b"r")
        assert {conflict.kept_dot, conflict.dropped_dot} == {(1, 1), (2, 1)}


def test_effects_are_read_back_as_they_were_written():
    effect = Effect(3, 7, {1: 2}, 99, (SetCell("r/carts", b"k", None),), "r", (1, None, "x"))
    assert decode_effect(encode_effect(effect)) == effect
