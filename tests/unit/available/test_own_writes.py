"""What a region checks before it does what its programs ask for, and how it stamps that."""

import pytest

from kit.regions.desk import START_MS, Desk
from onefold.available import ops, reading
from onefold.available.fold import AvailableFold
from onefold.available.kinds import places
from onefold.available.rows import load_row
from onefold.available.stamps import clock_at, ms_of
from onefold.env import SeededEnv
from onefold.fold.api import PASSING, Context
from onefold.log.memory import MemoryLog
from onefold.shard.memory import MemoryShard

CARTS = "r/carts"


def put(value, key=b"k"):
    return ops.Put("r", "carts", ((key, value),))


def seen(desk, number, place=CARTS, key=b"k"):
    return ops.Read(place, key, reading.signature(load_row(desk[number].store, place, key)))


@pytest.mark.parametrize(
    ("place", "change"),
    [
        (CARTS, put(b"w")),
        ("f/users", ops.Patch("users", b"k", (("b", b"2"),))),
        ("f/users", ops.Delete("f", "users", (b"k",))),
        ("k/notes", ops.Put("k", "notes", ((b"k", b"2"),))),
        ("n/likes", ops.Add("likes", b"k", 0)),
        ("b0/stock", ops.Change("stock", 0, b"k", 0)),
    ],
)
def test_what_was_read_must_be_as_it_was(place, change):
    desk = Desk()
    desk.ok(1, put(b"v"), ops.Replace("users", b"k", (("a", b"1"),)), ops.Put("k", "notes", ((b"k", b"1"),)))
    desk.ok(1, ops.Add("likes", b"k", 1), ops.Change("stock", 0, b"k", 1))
    reads = (seen(desk, 1, place), seen(desk, 1, place, b"absent"))
    desk.ok(1, put(b"x", b"x"), reads=reads)
    desk.ok(1, change)
    refused = desk.do(1, put(b"y", b"y"), reads=reads)
    assert refused == ops.Rejected("conflict", place, b"k")
    assert (CARTS, b"y") not in desk[1].shown()
    desk.ok(1, put(b"y", b"y"), reads=(seen(desk, 1, place),))


def test_what_comes_from_another_region_changes_what_was_read():
    desk = Desk()
    desk.ok(1, put(b"v"))
    read = seen(desk, 2)
    assert read.seen == b""
    desk.pull(2, 1)
    assert desk.do(2, put(b"w"), reads=(read,)).reason == "conflict"


def test_a_collected_tombstone_changes_nothing_that_was_read():
    desk = Desk()
    desk.ok(1, put(b"v"))
    desk.ok(1, ops.Delete("r", "carts", (b"k",)))
    read = seen(desk, 1)
    for _ in range(4):
        desk.round()
    assert not list(desk[1].store.scan("ap/c/" + CARTS))
    desk.ok(1, put(b"w"), reads=(read,))


@pytest.mark.parametrize(
    "request_",
    [
        ops.Put("r", "", ((b"k", b"v"),)),
        ops.Put("r", "n" * 300, ((b"k", b"v"),)),
    ],
)
def test_names_that_cannot_be_are_refused(request_):
    desk = Desk()
    assert desk.do(1, request_).reason == "malformed"
    assert desk.do(1).reason == "malformed"
    assert desk[1].have() == {}


def test_a_name_is_one_thing_in_a_region():
    desk = Desk()
    desk.ok(1, put(b"v"))
    assert desk.do(1, ops.Add("carts", b"k", 1)) == ops.Rejected("other_kind", CARTS)
    desk.ok(1, ops.Change("stock", 0, b"k", 1))
    assert desk.do(1, ops.Change("stock", -5, b"k", 1)) == ops.Rejected("other_kind", "b0/stock")
    both = desk.do(1, ops.Add("new", b"k", 1), ops.Put("k", "new", ((b"k", b"v"),)))
    assert both == ops.Rejected("other_kind", "n/new")


def test_two_regions_that_make_one_name_with_different_kinds_write_on_in_each():
    desk = Desk()
    desk.ok(1, put(b"v"))
    desk.ok(2, ops.Add("carts", b"k", 1))
    desk.round()
    assert reading.places_of(desk[1].store, "carts") == ["n/carts", CARTS]
    desk.ok(1, ops.Add("carts", b"k", 1))
    desk.ok(2, put(b"w"))
    desk.round()
    desk.round()
    assert desk.shown()[0] == desk.shown()[1] == {(CARTS, b"k"): b"w", ("n/carts", b"k"): 2}


def test_counters_are_integers_of_64_bit():
    desk = Desk()
    most = ops.INT_MAX
    desk.ok(1, ops.Add("likes", b"k", most))
    assert desk.do(1, ops.Add("likes", b"k", 1)).reason == "too_large"
    assert desk.do(1, ops.Add("likes", b"j", most), ops.Add("likes", b"j", 1)).reason == "too_large"
    assert desk.ok(2, ops.Add("likes", b"k", most)) == most
    desk.round()
    assert desk.ok(1, ops.Add("likes", b"other", 1)) == 1
    assert desk[1].shown()["n/likes", b"k"] == most  # both together are longer than that
    desk.ok(1, ops.Change("stock", 0, b"k", most))
    assert desk.do(1, ops.Change("stock", 0, b"k", 1)).reason == "too_large"


def test_an_addition_after_a_reset_in_one_transaction_is_refused():
    desk = Desk()
    reset, add = ops.Reset("likes", b"k"), ops.Add("likes", b"k", 1)
    assert desk.do(1, add, reset, add).reason == "malformed"
    desk.ok(1, add, reset, ops.Add("likes", b"other", 1))
    assert desk[1].shown() == {("n/likes", b"other"): 1}


def test_rights_move_to_regions_that_there_are():
    desk = Desk()
    desk.ok(1, ops.Change("stock", 0, b"k", 5))
    for to in (1, 3):
        assert desk.do(1, ops.Move("stock", 0, b"k", to, 1)) == ops.Rejected("unknown_region", here=to)


def test_a_session_that_has_seen_more_is_told_which_region_is_missing():
    desk = Desk()
    outcome = desk.do(1, put(b"v"))
    refused = desk.do(2, put(b"w"), session={1: outcome.seq}, hlc=outcome.hlc)
    assert refused == ops.Rejected("behind", here=1)
    desk.pull(2, 1)
    assert desk.do(2, put(b"w"), session={1: outcome.seq}, hlc=outcome.hlc).hlc > outcome.hlc


def test_a_session_moves_the_clock_unless_it_is_far_ahead():
    desk = Desk()
    near, far = clock_at(START_MS + 50_000), clock_at(START_MS + 70_000)
    assert desk.do(1, put(b"v"), hlc=near).hlc == near + 1
    assert desk.do(1, put(b"v"), hlc=far).hlc == near + 2
    assert ms_of(desk.do(2, put(b"v")).hlc) == START_MS


def test_a_clock_that_is_set_back_does_not_go_back():
    desk = Desk()
    first = desk.do(1, put(b"v"))
    desk[1].skew_ms = -10_000
    assert desk.do(1, put(b"w")).hlc > first.hlc
    desk[2].skew_ms = 30_000
    fast = desk.do(2, put(b"x"))
    desk.pull(1, 2)
    assert desk.do(1, put(b"y")).hlc > fast.hlc
    for _ in range(3):
        desk.round()
    assert desk.shown()[0] == desk.shown()[1] == {(CARTS, b"k"): b"y"}


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ({"reads": (ops.Read(CARTS, b"k", b"x"),), "last_try": False}, False),
        ({"reads": (ops.Read(CARTS, b"k", b"x"),)}, True),
        ({"session": {2: 9}}, False),  # which says nothing of what was asked for
    ],
)
def test_a_rejection_is_kept_under_the_request_id_on_the_last_try_only(asked, kept):
    desk = Desk()
    body = ops.available_op(ops.Do((put(b"v"),), **asked)).body
    context = Context(50, 0, desk.now_ms, "c0-x", "r")
    answer = AvailableFold().apply(desk[1].store, context, body, 4)
    assert isinstance(ops.decode_outcome(answer), ops.Rejected)
    assert answer.startswith(PASSING) is not kept


def shard():
    """A region over a real store, with history."""
    log = MemoryLog(env=SeededEnv(0))
    found = MemoryShard(log, [AvailableFold()], SeededEnv(0))
    found.submit([ops.available_op(ops.Admit(1, "eu", here=True, founder=True))])
    return found


def submit(space, *requests, **options):
    (answer,) = space.submit([ops.available_op(ops.Do(requests, **options))])
    return ops.decode_outcome(answer)


def test_ranges_that_were_read_must_be_as_they_were():
    space = shard()
    submit(space, put(b"1", b"a"), put(b"2", b"c"))
    with space.view() as view:
        at = view.offset
    span = ops.Span(CARTS, b"a", b"c", at)
    assert isinstance(submit(space, put(b"x", b"c"), spans=(span,)), ops.Committed)
    assert isinstance(submit(space, put(b"x", b"b")), ops.Committed)
    assert submit(space, put(b"y", b"z"), spans=(span,)) == ops.Rejected("conflict", CARTS, b"a")
    assert submit(space, put(b"y"), spans=(ops.Span(CARTS, b"a", None, at + 99),)).reason == "malformed"
    assert submit(space, put(b"y"), spans=(ops.Span("no place", b"a", None, at),)).reason == "malformed"
    assert submit(space, put(b"y"), reads=(ops.Read("no place", b"a", b""),)).reason == "malformed"


def test_a_view_of_an_earlier_offset_shows_what_was_there():
    space = shard()
    submit(space, put(b"old"), ops.Include("tags", b"k", (b"x",)))
    with space.view() as view:
        at = view.offset
    submit(space, put(b"new"), ops.Empty("tags", b"k"))
    with space.view(at=at) as view:
        assert reading.get(view, CARTS, b"k") == b"old"
        assert list(reading.elements(view, "tags", b"k")) == [b"x"]
        changes = reading.changes(view, CARTS, at - 1)
    with space.view() as view:
        assert reading.get(view, CARTS, b"k") == b"new"
        assert list(reading.elements(view, "tags", b"k")) == []
        changes = reading.changes(view, CARTS, at)
    assert [reading.visible(places.read_row(CARTS, one.value), CARTS) for one in changes] == [b"new"]
