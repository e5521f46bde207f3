"""A full sync of many rows: in records of bounded size, and readers see the old rows, whole, until one of them switches."""

from contextlib import closing
from unittest.mock import patch

import pytest

from kit.regions.desk import Desk
from onefold.available import exchange, ops, reading
from onefold.available.fold import AvailableFold
from onefold.available.kinds import places
from onefold.available.ops import available_op, decode_outcome
from onefold.available.rows import OUT, load_row, tables_of
from onefold.available.sync import joining, leaving
from onefold.env import SeededEnv
from onefold.errors import TooOld
from onefold.log.memory import MemoryLog
from onefold.shard.embedded import EmbeddedShard
from onefold.shard.memory import MemoryShard

CARTS = "r/carts"


def put(value, key=b"k", ttl_ms=None):
    return ops.Put("r", "carts", ((key, value),), ttl_ms)


def many(count, value=b"v", prefix=b"k"):
    return ops.Put("r", "carts", tuple((prefix + b"%05d" % at, value) for at in range(count)))


@pytest.fixture
def few():
    """So few rows in one record that several records are needed for some rows."""
    with (
        patch.object(joining, "JOINED_ROWS_MAX", 3),
        patch.object(leaving, "CLEARED_PER_OPERATION_MAX", 3),
        patch.object(leaving, "LATER_PER_OPERATION_MAX", 1),
    ):
        yield


def begun(desk, asks, answers, id="s"):
    """All but the last operation of a full sync are appended; the last one."""
    *first, last = exchange.sync_ops(desk[answers].store, id)
    for op in first:
        assert desk.append(asks, op).value is True
    return last


def cleared(desk, number):
    """What full syncs have left is dropped; in how many operations."""
    for done in range(1000):
        me = desk[number].me
        if not (me.cleared or me.staged or me.later or me.passed):
            assert desk[number].unseen_tables() == []
            return done
        desk.append(number, ops.Accept(number, 0))
    raise AssertionError("something is left for ever")


def test_no_record_of_a_full_sync_joins_or_drops_more_than_a_bound():
    rows = 2 * joining.JOINED_ROWS_MAX
    desk = Desk()
    for at in range(0, rows, 500):
        desk.ok(1, many(500, prefix=b"new%d/" % at))
        desk.ok(2, many(500, prefix=b"old%d/" % at))
    last = begun(desk, 2, 1)
    before, steps, writes = desk[2].shown(), 0, []
    while True:
        written = desk[2].store.writes
        outcome = desk.append(2, last)
        writes.append(desk[2].store.writes - written)
        if not exchange.continues(last, outcome):
            break
        assert desk[2].shown() == before
        steps += 1
    assert outcome.value is True and steps >= 2 * rows // joining.JOINED_ROWS_MAX
    assert len(desk[2].shown()) == 2 * rows
    assert desk[2].me.owes_beat()  # others wait to hear what is known here
    assert max(writes) < 2 * joining.JOINED_ROWS_MAX + leaving.CLEARED_PER_OPERATION_MAX + 1100
    assert writes[-1] < leaving.CLEARED_PER_OPERATION_MAX + 1100  # the switch itself writes few rows
    assert cleared(desk, 2) > 1


def test_one_record_joins_rows_of_a_bounded_size():
    desk = Desk()
    for at in range(8):
        desk.ok(1, put(bytes(300_000), b"%d" % at))
    last = begun(desk, 2, 1)
    outcomes = [desk.append(2, last)]
    while exchange.continues(last, outcomes[-1]):
        outcomes.append(desk.append(2, last))
    assert len(outcomes) >= 3 and outcomes[-1].value is True


def test_an_operation_does_not_bring_more_rows_than_a_bound():
    desk = Desk()
    for at in range(5):
        desk.ok(1, many(500, prefix=b"%d/" % at))
    pages = [op for op in exchange.sync_ops(desk[1].store, "s") if isinstance(op, ops.SyncRows)]
    assert [len(page.rows) for page in pages] == [ops.SYNC_ROWS_MAX, 500]
    begin = next(exchange.sync_ops(desk[1].store, "s"))
    desk.append(2, begin)
    whole = ops.SyncRows("s", tuple(row for page in pages for row in page.rows))
    assert desk.append(2, whole) == ops.Rejected("too_large", "rows")


@pytest.mark.usefixtures("few")
def test_what_programs_write_and_what_is_imported_meanwhile_is_not_lost():
    desk = Desk(3)
    desk.ok(1, *(put(b"one", b"%d" % at) for at in range(9)), ops.Include("tags", b"k", (b"x", b"y")))
    desk.ok(1, ops.Add("likes", b"k", 5), ops.Change("stock", 0, b"k", 7))
    last = begun(desk, 2, 1)
    desk.now_ms += 5
    step = 0
    while exchange.continues(last, desk.append(2, last)):
        desk.ok(2, put(b"two", b"%d" % step), ops.Add("likes", b"k", 1), ops.Include("tags", b"k", (b"z",)))
        desk.ok(2, ops.Change("stock", 0, b"k", 1), ops.Delete("r", "carts", (b"%d" % (8 - step % 3),)))
        desk.ok(3, put(b"three", b"from 3 %d" % step), ops.Put("k", "notes", ((b"n", b"%d" % step),)))
        desk.pull(2, 3)
        assert (CARTS, b"4") not in desk[2].shown() or desk[2].shown()[CARTS, b"4"] == b"two"
        step += 1
    assert step > 3
    shown = desk[2].shown()
    assert (shown["n/likes", b"k"], shown["b0/stock", b"k"]) == (5 + step, 7 + step)
    assert shown["s/tags", b"k"] == {b"x", b"y", b"z"}
    for _ in range(3):
        desk.round()
    assert desk.shown()[0] == desk.shown()[1] == desk.shown()[2]
    assert len({region.me.content for region in desk.regions.values()}) == 1


@pytest.mark.usefixtures("few")
def test_a_sync_that_is_begun_again_leaves_no_rows_of_the_first_one():
    desk = Desk()
    desk.ok(1, many(9))
    desk.ok(2, put(b"own", b"x"))
    last = begun(desk, 2, 1, "first")
    assert desk.append(2, last).value == ops.MORE
    again = begun(desk, 2, 1, "second")
    assert desk.append(2, last).value is False
    assert desk.finish(2, again).value is True
    assert len(desk[2].shown()) == 10
    cleared(desk, 2)
    assert desk[2].me.free_generation() < 3  # numbers of generations are used again
    desk[2].restart()


@pytest.mark.usefixtures("few")
def test_a_sync_from_a_region_that_is_evicted_is_given_up():
    desk = Desk(3)
    desk.ok(3, many(9))
    last = begun(desk, 1, 3)
    assert desk.append(1, last).value == ops.MORE
    desk.append(1, ops.Evict(3, 1))
    assert desk[1].me.sync is None
    assert desk.append(1, last).value is False
    assert desk[1].shown() == {}
    cleared(desk, 1)


@pytest.mark.usefixtures("few")
def test_rows_end_during_a_full_sync_in_both_generations():
    desk = Desk()
    desk.ok(1, *(put(b"v", b"%d" % at) for at in range(4)), put(b"short", b"s", 1000))
    desk.ok(1, put(b"short too", b"t", 1500), ops.Include("tags", b"k", (b"x",), 1000))
    last = begun(desk, 2, 1)
    desk.ok(2, put(b"own", b"u", 1000))
    for _ in range(3):
        assert desk.append(2, last).value == ops.MORE
    assert desk[2].store.count(tables_of(1).due) == 4  # all that have an end and have come are joined
    desk.now_ms += 1200
    desk.finish(2, last)
    assert (CARTS, b"s") not in desk[2].shown() and (CARTS, b"u") not in desk[2].shown()
    assert desk[2].shown()[CARTS, b"t"] == b"short too"
    desk.now_ms += 400
    desk.append(2, ops.Accept(2, 0))
    assert desk[2].shown() == {(CARTS, b"%d" % at): b"v" for at in range(4)}


@pytest.mark.usefixtures("few")
def test_requests_that_came_with_a_full_sync_are_known_after_it_and_conflicts_listed():
    desk = Desk()
    desk.ok(1, put(b"there"), request_id="twice")
    desk.ok(1, put(b"once", b"o"), request_id="once")
    desk.now_ms += 5
    desk.ok(2, put(b"here"), request_id="twice")
    last = begun(desk, 2, 1)
    while exchange.continues(last, desk.append(2, last)):
        assert desk[2].me.conflicts == 0
        assert desk[2].shown() == {(CARTS, b"k"): b"here"}
    cleared(desk, 2)
    ((_, conflict),) = reading.conflicts(desk[2].store)
    assert (conflict.place, conflict.key) == ("", b"twice")
    assert (conflict.kept_dot, conflict.dropped_dot) == ((1, 1), (2, 1))
    assert desk.do(2, put(b"again", b"o"), request_id="once").region == 1
    assert desk[2].shown()[CARTS, b"o"] == b"once"


def until_beyond(desk, last, part, key):
    """Rows are joined until that part of them has come beyond a key."""
    sync = desk[2].me.sync
    while (sync.part, sync.after) <= (part, key):
        assert desk.append(2, last).value == ops.MORE
        sync = desk[2].me.sync


@pytest.mark.usefixtures("few")
def test_requests_that_were_done_during_a_full_sync_are_known_after_it():
    desk = Desk()
    desk.ok(1, many(9))
    for at in range(8):
        desk.ok(2, put(b"v", b"%d" % at), request_id=f"b{at}")
    last = begun(desk, 2, 1)
    until_beyond(desk, last, 2, b"b")
    done = desk.do(2, put(b"once", b"o"), request_id="a")
    desk.finish(2, last)
    assert desk.do(2, put(b"again", b"o"), request_id="a") == done
    assert desk[2].shown()[CARTS, b"o"] == b"once"


@pytest.mark.usefixtures("few")
def test_a_conflict_that_is_met_during_a_full_sync_is_listed_once():
    desk = Desk(3)
    desk.ok(1, many(9))
    for at in range(8):
        desk.ok(2, put(b"v", b"%d" % at), request_id=f"b{at}")
    desk.now_ms += 5
    desk.ok(3, put(b"other", b"o"), request_id="b0")
    last = begun(desk, 2, 1)
    until_beyond(desk, last, 2, b"b0")
    desk.pull(2, 3)
    assert desk[2].me.conflicts == 1
    desk.finish(2, last)
    cleared(desk, 2)
    assert desk[2].me.conflicts == 1


@pytest.mark.usefixtures("few")
def test_a_full_sync_that_follows_at_once_loses_no_conflict_of_the_first_one():
    desk = Desk()
    for at in range(9):
        desk.ok(1, put(b"there", b"%d" % at), request_id=f"r{at}")
    desk.now_ms += 5
    for at in range(9):
        desk.ok(2, put(b"here", b"%d" % at), request_id=f"r{at}")
    assert desk.sync(2, 1, "first").value is True
    assert desk[2].me.later
    desk.ok(1, put(b"new", b"n"))
    with patch.object(joining, "JOINED_ROWS_MAX", 100):
        assert desk.sync(2, 1, "second").value is True
    cleared(desk, 2)
    assert desk[2].me.conflicts == 9


@pytest.mark.usefixtures("few")
def test_wishes_that_came_with_a_full_sync_are_met():
    desk = Desk()
    desk.ok(2, ops.Change("stock", 0, b"k", 9), ops.Change("stock", 0, b"m", 9))
    desk.pull(1, 2)
    desk.ok(1, ops.Wish("stock", 0, b"k", 4, 60_000), ops.Wish("stock", 0, b"m", 4, 60_000))
    desk.finish(2, begun(desk, 2, 1))
    cleared(desk, 2)
    desk.pull(1, 2)
    assert [reading.here(desk[1].store, "stock", 0, key) for key in (b"k", b"m")] == [4, 4]


@pytest.mark.usefixtures("few")
def test_names_of_collections_are_shown_with_their_rows():
    desk = Desk()
    desk.ok(1, *(ops.Put("r", f"m{at}", ((b"k", b"v"),)) for at in range(9)))
    desk.ok(2, ops.Add("own", b"k", 1), ops.Delete("r", "empty", (b"k",)))
    last = begun(desk, 2, 1)
    own = [("empty", ["r/empty"]), ("own", ["n/own"])]
    until_beyond(desk, last, 1, b"")
    desk.ok(2, ops.Empty("aaa", b"k"))
    own = [("aaa", ["s/aaa"]), *own]
    while exchange.continues(last, desk.append(2, last)):
        assert list(reading.names(desk[2].store)) == own
        desk.ok(2, ops.Add("own", b"k", 1))
    desk.ok(2, ops.Put("k", "other", ((b"k", b"v"),)))
    assert [name for name, _ in reading.names(desk[2].store)] == sorted(
        ["aaa", "empty", "other", "own", *(f"m{at}" for at in range(9))]
    )


def test_effects_that_a_full_sync_has_passed_over_are_dropped_bit_by_bit():
    desk = Desk(3)
    for at in range(5):
        desk.ok(1, put(b"%d" % at))
    desk.pull(2, 1)
    for at in range(5):
        desk.ok(1, put(b"%d" % at, b"more"))
    with patch("onefold.available.out.DROPPED_PER_OPERATION_MAX", 2):
        assert desk.sync(2, 1).value is True
        assert desk.reply(3, 2).state == "sync"
        assert desk[2].store.count(OUT) == 3
        cleared(desk, 2)
    assert (desk[2].store.count(OUT), desk[2].me.out_count, desk[2].me.out_bytes) == (0, 0, 0)


def region_of(shard, number):
    """A region's log in a real shard, with another region that was founded with it."""
    for other in (1, 2):
        submit(shard, ops.Admit(other, f"r{other}", here=number == other, founder=True))


def submit(shard, *operations):
    """Each of them in a record of its own; the last outcome."""
    outcome = None
    for op in operations:
        while exchange.continues(op, outcome := decode_outcome(shard.submit([available_op(op)])[0])):
            pass
    return outcome


def do(shard, *requests, **options):
    return submit(shard, ops.Do(requests, **options))


def values(changes):
    return [
        (one.key, one.value and reading.visible(places.read_row(CARTS, one.value), CARTS)) for one in changes
    ]


def offset_of(shard):
    with shard.view() as view:
        return view.offset


@pytest.fixture(params=["memory", "file"])
def shard(request, tmp_path):
    """A region's log and its state, as spaces have them."""
    env, folds = SeededEnv(0), [AvailableFold()]
    if request.param == "memory":
        yield MemoryShard(MemoryLog(env=env), folds, env)
    else:
        with closing(EmbeddedShard(tmp_path / "space", folds, env)) as opened:
            yield opened


@pytest.mark.usefixtures("few")
def test_history_and_changes_reach_over_the_switch(shard):
    region_of(shard, 2)
    do(shard, put(b"kept", b"a"), put(b"old", b"b"), put(b"own", b"own"))
    other = Desk()
    other.now_ms = shard.env.wall_ms() + 1000  # later than what is here
    other.ok(1, put(b"new", b"c"), put(b"changed", b"b"), put(b"new", b"d"), ops.Add("likes", b"k", 1))
    begin = offset_of(shard)
    do(shard, put(b"before", b"p"))
    submit(shard, *exchange.sync_ops(other[1].store, "s"))
    switched = offset_of(shard)
    do(shard, put(b"after", b"q"))
    for _ in range(30):  # so that the generation before is dropped
        submit(shard, ops.Accept(2, 0))
    with shard.view() as view:
        for place in (CARTS, "n/likes"):
            assert view.count(tables_of(0).rows + place) == 0
        end = view.offset
        whole = reading.changes(view, CARTS, begin, at=lambda at: shard.view(at=at))
        first = reading.changes(view, CARTS, begin, limit=2, at=lambda at: shard.view(at=at))
        found = list(first)
        while first:
            last = found[-1]
            within = (last.place, last.key)
            first = reading.changes(
                view, CARTS, last.offset - 1, within=within, limit=2, at=lambda at: shard.view(at=at)
            )
            found += first
        tail = reading.changes(view, CARTS, switched)
        bounds = reading.changes(view, CARTS, begin, start=b"c", stop=b"d", at=lambda at: shard.view(at=at))
        with pytest.raises(TooOld):
            reading.changes(view, CARTS, begin)
    assert values(whole) == [
        (b"p", b"before"),
        (b"b", b"changed"),
        (b"c", b"new"),
        (b"d", b"new"),
        (b"q", b"after"),
    ]
    assert found == whole and values(tail) == [(b"q", b"after")] and values(bounds) == [(b"c", b"new")]
    assert [one.offset for one in whole[1:4]] == [switched] * 3
    for offset, shown in ((begin, b"old"), (switched - 1, b"old"), (switched, b"changed"), (end, b"changed")):
        with shard.view(at=offset) as view:
            assert reading.get(view, CARTS, b"b") == shown
            assert [name for name, _ in reading.names(view)] == (
                ["carts"] if offset < switched else ["carts", "likes"]
            )


@pytest.mark.usefixtures("few")
def test_what_was_read_before_the_switch_must_be_as_it_was(shard):
    region_of(shard, 2)
    do(shard, put(b"own", b"b"))
    other = Desk()
    other.ok(1, put(b"new", b"c"), *(ops.Add("likes", b"%d" % at, 1) for at in range(9)))
    before = offset_of(shard)
    with shard.view() as view:
        read = ops.Read(CARTS, b"c", reading.signature(load_row(view, CARTS, b"c")))
        same = ops.Read(CARTS, b"b", reading.signature(load_row(view, CARTS, b"b")))
    *first, last = exchange.sync_ops(other[1].store, "s")
    submit(shard, *first)
    during = before
    while exchange.continues(last, decode_outcome(shard.submit([available_op(last)])[0])):
        during = offset_of(shard)
    assert during > before
    span = ops.Span(CARTS, b"", None, before)
    assert do(shard, put(b"x"), spans=(span,)) == ops.Rejected("conflict", CARTS, b"")
    joined = ops.Span(CARTS, b"c", b"d", during)  # its rows were joined before
    assert do(shard, put(b"x"), spans=(joined,)) == ops.Rejected("conflict", CARTS, b"c")
    assert do(shard, put(b"x"), reads=(read,)) == ops.Rejected("conflict", CARTS, b"c")
    assert isinstance(do(shard, put(b"x", b"x"), reads=(same,)), ops.Committed)
    now = ops.Span(CARTS, b"", b"d", offset_of(shard))
    do(shard, put(b"y", b"y"))
    assert isinstance(do(shard, put(b"z", b"z"), spans=(now,)), ops.Committed)
    do(shard, put(b"y", b"c"))
    assert do(shard, put(b"z", b"z"), spans=(now,)) == ops.Rejected("conflict", CARTS, b"")
