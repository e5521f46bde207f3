"""Two-phase commit in the fold of one shard: votes, locks, decisions, tombstones, and what they leave behind."""

import itertools
import random

import pytest

from onefold import config
from onefold.env import SeededEnv
from onefold.log.memory import MemoryLog
from onefold.shard.memory import MemoryShard
from onefold.state.encoding import values
from onefold.state.encoding.keys import encode_key
from onefold.state.fold import blobs, lock_table, rows
from onefold.state.fold.machine import StateFold
from onefold.state.fold.maps.ops import Clear, Delete, Increment, Put
from onefold.state.fold.ops import UNREAD, Commit, Decide, Forget, Prepare, Read, Resolve, Span, state_op
from onefold.state.fold.outcomes import Answer, Blocked, Committed, Decided, Rejected, Voted, decode_outcome
from onefold.state.fold.queues.ops import Enqueue, Message
from onefold.state.fold.shards import fold as shard_fold
from onefold.state.fold.streams.ops import STREAM_BLOBS_VERSION, AppendBlob, CommitOffsets, Join, MakeStream
from onefold.state.fold.validation import validate
from onefold.state.fold.validation import wants as lock_wants
from onefold.testing import check_fold

A, B, C = (encode_key(name) for name in "abc")
ONE, TWO = values.encode_value(1), values.encode_value(2)


class Shard:
    """One shard, told operations one record each."""

    def __init__(self, fold=None):
        self.env = SeededEnv(1)
        self.log = MemoryLog(env=self.env)
        self.space = MemoryShard(self.log, [fold or StateFold(3)], self.env)

    def __call__(self, op, request_id=None):
        return decode_outcome(self.space.submit([state_op(op, request_id)])[0])

    def put(self, key, value=ONE, ttl_ms=None):
        return self(Commit((), (), (Put("m", ((key, value),), ttl_ms),)))

    def value(self, key):
        with self.space.view() as view:
            found = view.get(rows.map_table("m"), key)
        return None if found is None else values.decode_value(rows.read_row(found).value)

    def prepare(self, transaction="t", reads=(), spans=(), writes=()):
        return self(Prepare(transaction, 0, (0, 1), tuple(reads), tuple(spans), tuple(writes)))

    def left(self):
        """Everything that transactions keep, save of tombstones."""
        tables = ("locks", "ranges", "open", "prepared", "parts", "decided")
        with self.space.view() as view:
            return {table: found for table in tables if (found := list(view.scan(f"state/x/{table}")))}


@pytest.fixture
def shard():
    return Shard()


def put(key, value=TWO):
    return Put("m", ((key, value),))


def read(committed, key):
    return Read("m", key, committed.offset, committed.index)


def test_a_prepared_write_is_done_when_it_is_resolved_and_not_before(shard):
    shard.put(A)
    assert shard.prepare(writes=[put(A)]) == Voted(True, 2)
    assert shard.value(A) == 1
    assert shard(Resolve("t", commit=True)) == Committed(3, 0, (None,))
    assert shard.value(A) == 2
    assert shard.left() == {}


def test_an_abort_does_nothing_and_gives_up_the_locks(shard):
    shard.prepare(writes=[put(A)], reads=[Read("m", B, 0, 0)], spans=[Span("m", A, C, 1)])
    assert set(shard.left()) == {"locks", "ranges", "open", "prepared", "parts"}
    assert shard(Resolve("t", commit=False)) == Answer(True)
    assert shard.left() == {}
    assert shard.value(A) is None
    assert isinstance(shard.put(A), Committed)


def test_reads_and_ranges_are_validated_in_the_vote(shard):
    seen = shard.put(A)
    assert shard.prepare("t1", reads=[read(seen, A)], spans=[Span("m", A, C, seen.offset)]).yes
    shard(Resolve("t1", commit=False))
    shard.put(A, TWO)
    vote = shard.prepare("t2", reads=[read(seen, A)])
    assert (vote.yes, vote.reason, vote.key) == (False, "conflict", A)
    vote = shard.prepare("t3", spans=[Span("m", A, C, seen.offset)])
    assert (vote.yes, vote.reason) == (False, "conflict")
    shard.put(B, values.encode_value("text"))
    vote = shard.prepare("t4", writes=[Increment("m", B, ONE)])
    assert (vote.yes, vote.reason) == (False, "not_a_number")
    assert shard.left() == {}, "a no leaves nothing behind"


LOCKING = {
    "reads a": {"reads": [Read("m", A, UNREAD, 0)]},
    "reads a range with a": {"spans": [Span("m", A, B, UNREAD)]},
    "puts a": {"writes": [put(A)]},
    "deletes a": {"writes": [Delete("m", (A,))]},
    "clears a range with a": {"writes": [Clear("m", A, B)]},
    "increments a": {"writes": [Increment("m", A, ONE)]},
    "puts a message": {"writes": [Enqueue("m", (Message(A),))]},
    "puts b": {"writes": [put(B)]},
    "puts a of another map": {"writes": [Put("n", ((A, ONE),))]},
}
BY_SOME = {"reads a", "reads a range with a"}
WRITES = {"puts a", "deletes a", "clears a range with a", "increments a"}


def meets(one, other):
    """The lock table, said once more in another way."""
    if one == other and one in ("puts b", "puts a of another map"):
        return True
    on_a = BY_SOME | WRITES
    return one in on_a and other in on_a and not (one in BY_SOME and other in BY_SOME)


@pytest.mark.parametrize(("held", "wanted"), list(itertools.product(LOCKING, LOCKING)))
def test_locks_meet_as_they_should(shard, held, wanted):
    assert shard.prepare("t1", **LOCKING[held]).yes
    vote = shard.prepare("t2", **LOCKING[wanted])
    assert vote.yes != meets(held, wanted)
    if not vote.yes:
        assert (vote.reason, vote.blockers) == ("locked", (("t1", 0),))
        shard(Resolve("t1", commit=False))
        assert shard.prepare("t2", **LOCKING[wanted]).yes


@pytest.mark.parametrize(("held", "wanted"), list(itertools.product(LOCKING, LOCKING)))
def test_a_commit_in_one_shard_meets_the_same_locks(shard, held, wanted):
    shard.prepare("t1", **LOCKING[held])
    at = shard.space.applied
    parts = LOCKING[wanted]
    op = Commit(
        tuple(Read(one.map, one.key, 0, 0) for one in parts.get("reads", ())),
        tuple(Span(one.map, one.start, one.stop, at) for one in parts.get("spans", ())),
        tuple(parts.get("writes", ())),
    )
    outcome = shard(op, request_id="r")
    if not meets(held, wanted):
        assert isinstance(outcome, Committed)
        return
    assert outcome == Blocked((("t1", 0),))
    shard(Resolve("t1", commit=False))
    assert isinstance(shard(op, request_id="r"), Committed), "being blocked is not kept under a request id"


def test_shared_locks_are_given_up_one_by_one(shard):
    for name in ("t1", "t2", "t3"):
        assert shard.prepare(name, reads=[Read("m", A, UNREAD, 0)], spans=[Span("m", A, C, UNREAD)]).yes
    for name in ("t2", "t1", "t3"):
        assert isinstance(shard.put(A), Blocked)
        shard(Resolve(name, commit=False))
    assert isinstance(shard.put(A), Committed)
    assert shard.left() == {}


def test_an_increment_waits_for_another_one_as_its_answer_reads(shard):
    shard.prepare("t1", writes=[Increment("m", A, ONE)])
    add = Commit((), (), (Increment("m", A, TWO),))
    assert isinstance(shard(add), Blocked)
    shard(Resolve("t1", commit=True))
    assert shard(add).results == (values.encode_value(3),)


def test_offsets_of_a_group_are_locked_and_those_of_another_are_not(shard):
    shard(MakeStream("s", 2))
    moves = {}
    for group in ("g", "h"):
        generation = shard(Join("s", group, "member", "m_1")).value
        moves[group] = CommitOffsets("s", group, "member", generation, ((0, -1, 5),))
    assert shard.prepare("t1", writes=[moves["g"]]).yes
    assert shard.prepare("t2", writes=[moves["g"]]).reason == "locked"
    assert shard.prepare("t2", writes=[moves["h"]]).yes


def test_preparing_again_gives_the_same_vote_and_after_the_end_a_no(shard):
    first = shard.prepare(writes=[Increment("m", A, ONE)])
    assert shard.prepare(writes=[Increment("m", A, ONE)]) == first
    shard(Resolve("t", commit=True))
    vote = shard.prepare(writes=[Increment("m", A, ONE)])
    assert (vote.yes, vote.reason) == (False, "resolved")
    assert (shard.value(A), shard.left()) == (1, {})


def test_a_prepare_that_comes_after_its_abort_is_refused(shard):
    assert shard(Resolve("t", commit=False)) == Answer(False)
    assert shard.prepare(writes=[put(A)]).reason == "resolved"
    assert shard.left() == {}


def test_resolving_again_changes_nothing_and_answers_alike(shard):
    shard.prepare(writes=[Increment("m", A, ONE)])
    first = shard(Resolve("t", commit=True))
    assert shard(Resolve("t", commit=True)) == first
    assert shard.value(A) == 1
    shard.prepare("t2", writes=[Increment("m", A, ONE)])
    assert shard(Resolve("t2", commit=False)) == Answer(True)
    assert shard(Resolve("t2", commit=False)) == Answer(False)
    assert shard.value(A) == 1


def test_the_first_decision_wins_until_it_is_forgotten(shard):
    for transaction, commit in (("t1", True), ("t2", False)):
        shard.prepare(transaction, writes=[put(encode_key(transaction))])
        first = shard(Decide(transaction, commit))
        assert first == Decided(transaction, commit, shard.space.applied, 0, participants=(0, 1))
        assert shard(Decide(transaction, not commit)) == first
        assert shard(Resolve(transaction, not commit)) == Rejected("decided")
        shard(Forget(transaction))
        shard(Resolve(transaction, commit))
        shard(Forget(transaction))
        assert shard.left() == {}
        later = shard(Decide(transaction, not commit))
        assert (later.commit, later.known) == (commit, True), "the tombstone still tells"


def test_nothing_commits_that_is_not_prepared_at_home(shard):
    decided = shard(Decide("t", commit=True))
    assert (decided.commit, decided.known) == (False, False)
    shard.prepare(writes=[put(A)])
    shard(Resolve("t", commit=False))
    for number in range(20):
        shard.prepare(f"other{number}")
        shard(Resolve(f"other{number}", commit=False))
    assert not shard(Decide("t", commit=True)).commit
    assert shard.left() == {}


def test_a_forgotten_transaction_cannot_be_committed_however_late(shard, monkeypatch):
    monkeypatch.setattr(config, "TOMBSTONE_OFFSETS", 10)
    shard.prepare(writes=[put(A)])
    shard(Decide("t", commit=False))
    shard(Resolve("t", commit=False))
    for number in range(20):
        shard(Resolve(f"other{number}", commit=False))
    decided = shard(Decide("t", commit=True))
    assert (decided.commit, decided.known) == (False, False)


def test_tombstones_are_bounded(shard, monkeypatch):
    monkeypatch.setattr(config, "TOMBSTONE_OFFSETS", 50)
    for number in range(300):
        shard.prepare(f"t{number}", writes=[put(A)])
        shard(Resolve(f"t{number}", commit=number % 2 == 0))
    with shard.space.view() as view:
        assert view.count("state/x/ended") == view.count("state/x/ended_at") <= 30
        assert shard_fold.standing(view, "t299") == "aborted"
        assert shard_fold.standing(view, "t298") == "committed"
        assert shard_fold.standing(view, "t0") == "unknown"


def test_a_decision_keeps_the_request_and_tells_whose_it_is(shard):
    shard.prepare("t1")
    assert shard(Decide("t1", commit=True), "r").transaction == "t1"
    shard.prepare("t2")
    assert shard(Decide("t2", commit=True), "r").transaction == "t1"
    with shard.space.view() as view:
        assert shard_fold.standing(view, "t2") == "undecided"


def test_only_a_final_abort_is_kept_under_the_request(shard):
    shard.prepare("t1")
    shard(Decide("t1", commit=False), "r1")
    assert shard.space.outcome("r1") is None
    shard(Decide("t1", commit=True), "r1")
    assert shard.space.outcome("r1") is None, (
        "it was aborted by somebody else: the request may be tried again"
    )
    shard(Decide("t2", False, True, "conflict", "m", A), "r2")
    kept = decode_outcome(shard.space.outcome("r2"))
    assert (kept.commit, kept.reason, kept.detail, kept.key) == (False, "conflict", "m", A)


def test_an_item_under_a_lock_stays_until_the_lock_is_gone(shard):
    for locked, parts in LOCKING.items():
        if not meets(locked, "puts a"):
            continue
        shard.put(A, ttl_ms=100)
        shard.put(B, ttl_ms=100)
        shard.prepare(locked, **parts)
        shard.env.advance(1)
        shard(Forget("nothing"))
        assert (shard.value(A), shard.value(B)) == (1, None), locked
        shard(Resolve(locked, commit=False))
        shard.env.advance(1)
        shard(Forget("nothing"))
        assert shard.value(A) is None, locked
        with shard.space.view() as view:
            assert view.count(rows.DUE) == 0


def test_no_more_transactions_are_prepared_than_allowed(shard, monkeypatch):
    monkeypatch.setattr(config, "PREPARED_TRANSACTIONS_MAX", 3)
    votes = [shard.prepare(f"t{number}") for number in range(4)]
    assert [vote.reason for vote in votes] == ["", "", "", "busy"]
    shard(Resolve("t0", commit=False))
    assert shard.prepare("t3").yes


def test_blockers_are_told_up_to_a_bound(shard):
    for number in range(50):
        shard.prepare(f"t{number:02}", reads=[Read("m", A, UNREAD, 0)])
    outcome = shard.put(A)
    assert len(outcome.transactions) == config.BLOCKERS_TOLD_MAX


def test_nonsense_is_refused(shard):
    huge = "x" * 70_000
    for op in (
        Prepare("", 0, (0,), (), (), ()),
        Prepare("x" * 65, 0, (0,), (), (), ()),
        Prepare("t", 3, (0, 1), (), (), ()),
        Prepare("t", 0, tuple(range(2000)), (), (), ()),
        Resolve("", commit=True),
    ):
        assert shard(op) == Rejected("malformed", "transaction")
    assert shard.prepare(writes=[Put(huge, ())]).reason == "malformed"
    shard.put(A)
    assert shard.prepare(spans=[Span("m", A, C, 1 << 62)]).reason == "malformed"
    assert shard.prepare("t2", reads=[Read(huge, A, 0, 0)], spans=[Span(huge, C, A, 0)]).yes
    shard(Resolve("t2", commit=True))
    assert shard.left() == {}


# -- planted bugs, each seen by a test above


def test_a_prepare_without_locks_is_seen(shard, monkeypatch):
    monkeypatch.setattr(lock_table, "take", lambda *_: None)
    with pytest.raises(AssertionError):
        test_locks_meet_as_they_should(shard, "puts a", "puts a")


def test_a_resolve_that_is_done_twice_is_seen(shard, monkeypatch):
    once = shard_fold.resolve

    def twice(store, context, op):
        held = {table: list(store.scan(table)) for table in ("state/x/prepared", "state/x/parts")}
        outcome = once(store, context, op)
        for table, items in held.items():
            store.put_many(table, items)
        return outcome

    monkeypatch.setattr(shard_fold, "resolve", twice)
    with pytest.raises(AssertionError):
        test_resolving_again_changes_nothing_and_answers_alike(shard)


def test_a_last_decision_that_wins_is_seen(shard, monkeypatch):
    first = shard_fold.decide

    def last(store, context, op):
        store.delete("state/x/decided", op.transaction.encode())
        return first(store, context, op)

    monkeypatch.setattr(shard_fold, "decide", last)
    with pytest.raises(AssertionError):
        test_the_first_decision_wins_until_it_is_forgotten(shard)


# -- the contract of folds


def operations(seed):
    """Bodies of many kinds, in an order in which most of them find something to do."""
    rng = random.Random(seed)
    names = [f"t{number}" for number in range(40)]
    keys = [encode_key(("k", number)) for number in range(6)]
    found = []
    for _ in range(150):
        name, key, other = rng.choice(names), rng.choice(keys), rng.choice(keys)
        low, high = min(key, other), max(key, other)
        reads = (Read("m", key, rng.choice((0, UNREAD)), 0),) if rng.random() < 0.5 else ()
        spans = (Span("m", low, high, rng.choice((UNREAD, 0, 3))),) if rng.random() < 0.3 else ()
        writes = tuple(
            rng.choice(
                (
                    Put("m", ((key, ONE), (other, TWO)), rng.choice((None, 500, 3000))),
                    Delete("m", (key,)),
                    Clear("m", low, high),
                    Increment("m", encode_key("n"), ONE),
                    Increment("m", key, ONE, 2000),
                    Enqueue("q", (Message(b"x"),)),
                )
            )
            for _ in range(rng.randrange(3))
        )
        found.append(
            rng.choice(
                (
                    Commit(reads, spans, writes),
                    Prepare(name, 0, (0, 1), reads, spans, writes, "m_x"),
                    Prepare(name, 0, (0, 1), reads, spans, writes, "m_x"),
                    Decide(name, rng.random() < 0.7),
                    Resolve(name, rng.random() < 0.7),
                    Forget(name),
                )
            )
        )
    return found


@pytest.mark.parametrize("commit", [True, False])
def test_a_prepared_transaction_names_its_blobs_until_it_is_resolved(shard, commit):
    shard.space.raise_fold_version(STREAM_BLOBS_VERSION)
    shard(MakeStream("s", 1))

    def named():
        with shard.space.view() as view:
            return blobs.named_by(view, "b"), blobs.garbage(view)

    assert shard.prepare(writes=(AppendBlob("s", 0, 1, "b", 90_000),)).yes
    assert named() == (1, []), "a sweeper would take it before the decision comes"
    shard(Decide("t", commit))
    shard(Resolve("t", commit))
    assert named() == ((1, []) if commit else (0, ["b"]))
    shard(Resolve("t", commit))
    assert named() == ((1, []) if commit else (0, ["b"]))


@pytest.mark.parametrize("seed", range(4))
def test_the_fold_keeps_its_contract(seed, monkeypatch):
    monkeypatch.setattr(config, "TOMBSTONE_OFFSETS", 30)
    check_fold(StateFold(3), [state_op(op).body for op in operations(seed)], seed=seed)


def test_the_operations_of_that_check_reach_every_kind_of_outcome(shard):
    kinds = set()
    for op in operations(0) + operations(1) + operations(2) + operations(3):
        outcome = shard(op)
        kinds.add((type(outcome).__name__, getattr(outcome, "yes", None), getattr(outcome, "reason", None)))
    wanted = {("Voted", True, ""), ("Voted", False, "locked"), ("Voted", False, "resolved")}
    wanted |= {("Blocked", None, None), ("Committed", None, None), ("Rejected", None, "decided")}
    assert wanted <= kinds, kinds


@pytest.mark.parametrize("seed", range(3))
def test_locks_are_those_of_what_is_prepared_whatever_happened(shard, seed):
    """The lock table equals one made anew from the prepared transactions."""
    for op in operations(seed + 10):
        shard(op)
        held, expected = {}, {}
        with shard.space.view() as view:
            for row, value in view.scan(lock_table.LOCKS):
                for name, mode in lock_table._holders.decode(value):
                    held[row, name] = mode
            ranges = [lock_table._range.decode(value) for _, value in view.scan(lock_table.RANGES)]
            for name, _ in shard_fold.prepared_in(view):
                parts = shard_fold._parts.decode(view.get("state/x/parts", name.encode()))
                wants = lock_wants(parts.reads, parts.spans, parts.writes)
                expected |= {(row, name): mode for row, mode in wants.keys.items()}
                assert len([one for one in ranges if one.transaction == name]) == len(wants.ranges)
            assert held == expected
            open_now = len(list(shard_fold.prepared_in(view)))
            assert shard_fold.is_any_prepared(view) == (open_now > 0)
            assert validate(view, (), ()) is None
