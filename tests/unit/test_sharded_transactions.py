"""Transactions over several shards: coordinators interleaved from a seed, killed at every step, and left without answers.

Coordinators run in threads of which one at a time goes on, from one append, view or pause to the next; a seed says which.
"""

import random
from contextlib import contextmanager

import pytest

from onefold import config
from onefold.errors import AppendUnknown, Conflict, OnefoldError, Unavailable
from onefold.log.memory import Faults
from onefold.state import coordinator, lock_table, recovery, rows, shard_fold, values
from onefold.state.consistency import STRONG
from onefold.state.keys import encode_key, shard_of
from onefold.state.ops import (
    Clear,
    Committed,
    Decided,
    Increment,
    Put,
    Read,
    Span,
    decode_outcome,
    state_op,
)
from onefold.state.shard_ops import Decide, Resolve
from onefold.state.sharded import ShardPart, commit_over_shards, snapshot_read, validate_cut
from onefold.testing.sharded_world import ShardedWorld
from onefold.testing.stepper import Killed

SHARDS = 3
BALANCE = 100
MAP, MARKS = "accounts", "marks"


def keys_of(shard, many):
    found = (encode_key(f"a{number}") for number in range(1000))
    return [key for key in found if shard_of(key, SHARDS) == shard][:many]


ACCOUNTS = {shard: keys_of(shard, 2) for shard in range(SHARDS)}
ALL = [key for keys in ACCOUNTS.values() for key in keys]


class World(ShardedWorld):
    """A bank."""

    def __init__(self, seed, **options):
        super().__init__(seed, SHARDS, **options)
        self.acked, self.refused, self.marks = [], [], 0

    def open_accounts(self):
        client = self.client()
        for shard, keys in ACCOUNTS.items():
            items = tuple((key, values.encode_value(BALANCE)) for key in keys)
            client.commit(shard, (Put(MAP, items),))

    # -- what programs do

    def transfer(self, client, source, target, amount, request_id=None):
        """One try, which also marks every shard that it writes."""
        self.marks += 1
        mark = f"mark{self.marks}"
        taken, given = read_account(client, source), read_account(client, target)
        parts = {}
        for (key, (number, read)), change in ((((source, taken)), -amount), (((target, given)), amount)):
            shard = client.shard_of(key)
            put = Put(MAP, ((key, values.encode_value(number + change)),))
            one = ShardPart((read,), (), (put, Put(MARKS, ((encode_key(mark), b"\xc3"),))))
            parts[shard] = one
        try:
            done = commit_over_shards(client, parts, request_id)
        except OnefoldError as error:
            if error.definite:
                self.refused.append(mark)
            raise
        assert set(done) >= set(parts)
        assert all(isinstance(one, Committed) for one in done.values())
        self.acked.append((mark, tuple(parts)))

    # -- what must hold

    def check(self):
        """Everything ends, atomically; what was acknowledged is there, what was refused is not; replays agree."""
        client = self.end()
        found = {}
        for shard, space in enumerate(client.spaces):
            with space.view() as view:
                for key, _ in view.scan(rows.map_table(MARKS)):
                    found.setdefault(key, set()).add(shard)
        assert sum(read_account(client, key)[0] for key in ALL) == BALANCE * len(ALL)
        for mark, shards in self.acked:
            assert found.get(encode_key(mark)) == set(shards), f"{mark} was acknowledged"
        for mark in self.refused:
            assert encode_key(mark) not in found, f"{mark} was refused for certain"
        for key, shards in found.items():
            assert len(shards) == 2, f"{key} was done in a part of its shards: {shards}"
        return found


def read_account(client, key):
    """The balance, and the read of it."""
    with client.view(client.shard_of(key), STRONG) as view:
        row = rows.read_row(view.get(rows.map_table(MAP), key))
    return values.decode_value(row.value), Read(MAP, key, row.offset, row.index)


def read_all(client):
    """All balances in one moment's state."""

    def read():
        found, parts = {}, {}
        for shard in range(SHARDS):
            with client.view(shard, STRONG) as view:
                pairs = list(view.scan(rows.map_table(MAP)))
                parts[shard] = ShardPart(spans=(Span(MAP, b"", b"\xff", view.offset),))
            found |= {key: values.decode_value(rows.read_row(row).value) for key, row in pairs}
        return found, parts

    return snapshot_read(client, read)


SOURCE, TARGET = ACCOUNTS[0][0], ACCOUNTS[2][0]


@pytest.fixture
def world():
    made = World(1)
    made.open_accounts()
    return made


# -- one at a time


def test_a_transfer_is_done_in_both_shards_and_leaves_nothing(world):
    client = world.client()
    world.transfer(client, SOURCE, TARGET, 30)
    assert read_account(client, SOURCE)[0] == 70
    assert read_account(client, TARGET)[0] == 130
    world.check()


def test_what_was_read_and_changed_since_is_a_conflict(world):
    client, other = world.client(), world.client()
    _, read = read_account(client, SOURCE)
    world.transfer(other, SOURCE, TARGET, 30)
    part = ShardPart((read,), (), ())
    mine = ShardPart((), (), (Put(MAP, ((TARGET, values.encode_value(0)),)),))
    with pytest.raises(Conflict) as caught:
        commit_over_shards(client, {0: part, 2: mine})
    assert caught.value.definite
    assert read_account(client, TARGET)[0] == 130
    world.check()


def test_results_come_back_for_each_write(world):
    client = world.client()
    one = values.encode_value(1)
    parts = {
        shard: ShardPart(writes=(Increment("n", ACCOUNTS[shard][0], one), Put("n", ()))) for shard in range(3)
    }
    for expected in (1, 2):
        done = commit_over_shards(client, parts)
        assert {shard: committed.results for shard, committed in done.items()} == dict.fromkeys(
            range(3), (values.encode_value(expected), None)
        )
    assert commit_over_shards(client, {}) == {}


def test_the_session_has_seen_every_participant(world):
    client = world.client()
    world.transfer(client, SOURCE, TARGET, 1)
    for shard in (0, 2):
        assert client.session.floor(shard) == client.spaces[shard].applied, "its Resolve came last"


def request_of(shard):
    return next(f"r{n}" for n in range(1000) if shard_of(encode_key(f"r{n}"), SHARDS) == shard)


@pytest.mark.parametrize("home", range(SHARDS))
def test_a_request_is_done_once_and_answered_alike(world, home):
    client, request_id = world.client(), request_of(home)
    one = values.encode_value(1)
    parts = {shard: ShardPart(writes=(Increment("n", ACCOUNTS[shard][0], one),)) for shard in (0, 2)}
    first = commit_over_shards(client, parts, request_id)
    for again in (client, world.client()):
        assert commit_over_shards(again, parts, request_id) == first
    kept = decode_outcome(client.spaces[home].outcome(request_id))
    assert isinstance(kept, Decided) and kept.commit
    assert set(first) == {0, 2, home}
    world.check()


def test_two_of_one_request_at_once_are_done_once():
    for seed in range(30):
        world = World(seed)
        world.open_accounts()
        request_id, done = request_of(seed % 3), []

        def request(world=world, request_id=request_id, done=done):
            client = world.client()
            parts = {
                shard: ShardPart(writes=(Increment("n", ACCOUNTS[shard][0], values.encode_value(1)),))
                for shard in (0, 2)
            }
            done.append(commit_over_shards(client, parts, request_id))

        for _ in range(3):
            world.stepper.start(request)
        world.stepper.run()
        assert len(done) == 3 and done[0] == done[1] == done[2], f"seed {seed}"
        for shard in (0, 2):
            assert done[0][shard].results == (values.encode_value(1),), f"seed {seed}"
        world.check()


def test_only_a_rejection_of_the_last_try_is_kept(world):
    client, request_id = world.client(), request_of(1)
    _, read = read_account(client, SOURCE)
    world.transfer(client, SOURCE, TARGET, 1)
    parts = {0: ShardPart((read,)), 2: ShardPart(writes=(Put("n", ((TARGET, b"\xc0"),)),))}
    with pytest.raises(Conflict):
        commit_over_shards(client, parts, request_id, False)
    assert client.spaces[1].outcome(request_id) is None
    with pytest.raises(Conflict):
        commit_over_shards(client, parts, request_id, True)
    fresh = {0: ShardPart((read_account(client, SOURCE)[1],)), 2: parts[2]}
    with pytest.raises(Conflict, match="changed by somebody else"):
        commit_over_shards(client, fresh, request_id)
    world.check()


def test_who_loses_to_its_own_request_is_told_that_it_was_done(world):
    """Two processes run one request; the second finds what it had read changed, by the first."""
    client, twin, request_id = world.client(), world.client(), request_of(1)
    _, read = read_account(client, SOURCE)
    put = Put(MAP, ((SOURCE, values.encode_value(BALANCE)),))
    parts = {0: ShardPart((read,), (), (put,)), 2: ShardPart(writes=(Put("n", ((TARGET, b"\xc0"),)),))}
    submit, first = client.spaces[1].inner.submit, []

    def late(ops):
        client.spaces[1].inner.submit = submit
        first.append(commit_over_shards(twin, parts, request_id))
        return submit(ops)

    client.spaces[1].inner.submit = late  # after it has looked whether the request was done
    assert set(commit_over_shards(client, parts, request_id)) == {0, 1, 2}
    assert first
    world.check()


# -- killed at every step


def steps_of_a_transfer():
    world = World(0)
    world.open_accounts()
    client = world.client()
    worker = world.stepper.start(lambda: world.transfer(client, SOURCE, TARGET, 30))
    world.stepper.run()
    return worker.steps


STEPS = steps_of_a_transfer()


def killed_at(step, **options):
    """A world in which a coordinator was killed at that step of a transfer."""
    world = World(step, **options)
    world.open_accounts()
    client = world.client()
    worker = world.stepper.start(lambda: world.transfer(client, SOURCE, TARGET, 30), kill_at=step)
    world.stepper.run()
    assert worker.killed
    return world, client


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_somebody_else_finishes_what_a_dead_coordinator_began(step):
    world, _ = killed_at(step)
    client = world.client()
    state = read_all(client)
    assert sum(state.values()) == BALANCE * len(ALL)
    with world.client().spaces[0].view() as view:
        decided = any(decision.commit for _, decision in shard_fold.decisions(view, 1))
    if decided:
        assert state[SOURCE] == 70, "decided, so it may have been acknowledged"
    # A writer that meets the locks gets by, after the timeout at the latest.
    began = world.env.boot_s()
    world.transfer(client, SOURCE, TARGET, 5) if not locked(client) else retry(world, client)
    assert world.env.boot_s() - began <= config.TRANSACTION_TIMEOUT_S + 1
    found = world.check()
    assert len(found) in (1, 2)


def locked(client):
    found = False
    for space in client.spaces:
        with space.view() as view:
            found = found or lock_table.is_any_held(view)
    return found


def retry(world, client):
    for _ in range(1000):
        try:
            return world.transfer(client, SOURCE, TARGET, 5)
        except Conflict:
            client.spaces[0].pause(0.1)
    raise AssertionError("no progress")


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_the_dead_are_not_waited_for(step):
    dead = set()
    world, client = killed_at(step, alive=lambda member: False if member in dead else None)
    dead.update(space.member for space in client.spaces)
    other, began = world.client(), world.env.boot_s()
    key = SOURCE
    other.commit(0, (Put("n", ((key, b"\xc0"),)), Put(MAP, ((key, values.encode_value(BALANCE)),))))
    assert world.env.boot_s() - began < 1, "it is known to be dead, so it is aborted at once"
    assert recovery.recover(other) == 0


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_blind_writes_and_increments_get_by_locks_invisibly(step):
    world, _ = killed_at(step)
    client = world.client()
    client.commit(2, (Increment("n", TARGET, values.encode_value(1)),))
    client.commit(2, (Put(MAP, ((TARGET, values.encode_value(7)),)),))
    assert read_account(client, TARGET)[0] == 7
    client.commit(0, (Clear(MAP, b"", b"\xff"),))
    both = {shard: ShardPart(writes=(Put("n", ((ACCOUNTS[shard][0], b"\xc0"),)),)) for shard in (0, 2)}
    commit_over_shards(client, both)
    assert recovery.recover(client) == 0


def test_a_slow_coordinator_that_was_aborted_learns_it(world):
    """Stopped before its decision, for longer than the timeout: somebody aborts it, and its Decide comes too late."""
    client, other = world.client(), world.client()
    submit, decides = client.spaces[0].inner.submit, []

    def slow(ops):
        if b"decide" in ops[0].body and not decides:
            decides.append(ops)
            recovery.recover(other)
            world.env.advance(config.TRANSACTION_TIMEOUT_S)
            assert recovery.recover(other) == 0
        return submit(ops)

    client.spaces[0].inner.submit = slow
    world.transfer(client, SOURCE, TARGET, 30)
    assert decides
    assert read_account(other, SOURCE)[0] == 70, (
        "what it had read still held, so its next try committed, once"
    )
    assert world.check() == {encode_key("mark1"): {0, 2}}


def test_an_abort_that_nobody_has_resolved_at_home_holds(world):
    """Who aborted it died after the first of its steps."""
    client, other = world.client(), world.client()
    submit, decides = client.spaces[0].inner.submit, []

    def slow(ops):
        if b"decide" in ops[0].body and not decides:
            decides.append(ops)
            with other.spaces[2].view() as view:
                ((transaction, _),) = shard_fold.prepared_in(view)
            other.spaces[0].submit([state_op(Decide(transaction, commit=False))])
            other.spaces[2].submit([state_op(Resolve(transaction, commit=False))])
        return submit(ops)

    client.spaces[0].inner.submit = slow
    world.transfer(client, SOURCE, TARGET, 30)
    assert decides
    assert read_account(other, SOURCE)[0] == 70
    world.check()


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("answers", [True, False])
def test_a_decision_without_an_answer_is_asked_for(world, applied, answers):
    client = world.client()
    submit, lost = client.spaces[0].inner.submit, []

    def losing(ops):
        if b"decide" in ops[0].body and (not lost or not answers):
            if applied and not lost:
                submit(ops)
            lost.append(ops)
            raise AppendUnknown("the answer was lost")
        return submit(ops)

    client.spaces[0].inner.submit = losing
    if not answers:
        with pytest.raises(AppendUnknown) as caught:
            world.transfer(client, SOURCE, TARGET, 30)
        assert not caught.value.definite
    else:
        world.transfer(client, SOURCE, TARGET, 30)
    assert (read_account(world.client(), SOURCE)[0] == 70) == (applied or answers)
    world.check()


@pytest.mark.parametrize("shard", [0, 2])
@pytest.mark.parametrize("surfaces", ["at once", "later", "never"])
def test_a_prepare_without_an_answer_is_a_definite_no(world, shard, surfaces):
    client, other = world.client(), world.client()
    submit, late = client.spaces[shard].inner.submit, []

    def losing(ops):
        if b"prep" in ops[0].body and not late:
            late.append(ops)
            if surfaces == "at once":
                submit(ops)
            raise AppendUnknown("the answer was lost")
        return submit(ops)

    client.spaces[shard].inner.submit = losing
    with pytest.raises(Unavailable) as caught:
        world.transfer(client, SOURCE, TARGET, 30)
    assert caught.value.definite
    if surfaces == "later":
        other.spaces[shard].inner.submit(late[0])
    for key in (SOURCE, TARGET):
        assert read_account(other, key)[0] == BALANCE
    assert recovery.recover(other) == 0, "the tombstone refuses it"
    world.check()


def test_a_late_prepare_beyond_the_tombstones_locks_and_is_aborted(world, monkeypatch):
    monkeypatch.setattr(config, "TOMBSTONE_OFFSETS", 2)
    client, other = world.client(), world.client()
    submit, late = client.spaces[2].inner.submit, []

    def losing(ops):
        if b"prep" in ops[0].body and not late:
            late.append(ops)
            raise AppendUnknown("the answer was lost")
        return submit(ops)

    client.spaces[2].inner.submit = losing
    one = values.encode_value(1)
    parts = {shard: ShardPart(writes=(Increment("n", ACCOUNTS[shard][0], one),)) for shard in (0, 2)}
    with pytest.raises(Unavailable):
        commit_over_shards(client, parts)
    for _ in range(10):
        world.transfer(other, SOURCE, TARGET, 1)
    other.spaces[2].inner.submit(late[0])
    assert locked(other)
    assert recovery.recover(other) == 0, "home knows nothing of it, so it was aborted"
    with other.view(2) as view:
        assert view.count(rows.map_table("n")) == 0
    world.check()


# -- many at a time


def bank(seed, *, workers=4, rounds=3, faults=None, kills=2, alive=lambda member: None):
    """The world after transfers between random accounts and full reads by several programs, some of them killed."""
    world = World(seed, alive=alive)
    world.open_accounts()
    world.fail(faults or Faults())
    rng = random.Random(seed)

    def work(seed):
        rng, client = random.Random(seed), world.client()
        for _ in range(rounds):
            try:
                if rng.random() < 0.25:
                    state = read_all(client)
                    assert sum(state.values()) == BALANCE * len(ALL), f"seed {seed}: {state}"
                else:
                    source, target = (rng.choice(ACCOUNTS[shard]) for shard in rng.sample(range(SHARDS), 2))
                    request_id = f"q{seed}-{rng.randrange(1000)}" if rng.random() < 0.3 else None
                    world.transfer(client, source, target, rng.randrange(1, 20), request_id)
            except (Conflict, Unavailable, AppendUnknown):
                client.spaces[0].pause(0.05)

    for number in range(workers):
        kill_at = rng.randrange(1, 60) if number < kills else None
        world.stepper.start(lambda seed=seed * 100 + number: work(seed), kill_at)
    world.stepper.run()
    world.heal()
    return world


@pytest.mark.parametrize("seed", range(40))
def test_interleaved_transfers_are_atomic_and_reads_are_whole(seed):
    bank(seed).check()


FAULTS = Faults(refused=0.02, lost_answer=0.05, late=0.03, vanished=0.03)


@pytest.mark.parametrize("seed", range(40))
def test_so_they_are_when_appends_have_no_answer(seed):
    bank(seed, faults=FAULTS).check()


def test_a_seed_gives_the_same_run():
    runs = [bank(7, faults=FAULTS) for _ in range(2)]
    assert [[entry.data for entry in log.read(1, 1 << 30)] for log in runs[0].logs] == [
        [entry.data for entry in log.read(1, 1 << 30)] for log in runs[1].logs
    ]


def test_transfers_mostly_commit():
    worlds = [bank(seed, kills=0) for seed in range(20)]
    acked, refused = (sum(len(getattr(world, kind)) for world in worlds) for kind in ("acked", "refused"))
    assert acked > refused, (acked, refused)


def found_in(seeds, run):
    """Whether any of the seeds finds the bug."""
    for seed in seeds:
        try:
            run(seed)
        except (AssertionError, KeyError):
            return True
    return False


def planted(monkeypatch, bug):
    if bug == "a Prepare without locks":
        monkeypatch.setattr(lock_table, "take", lambda *_: None)
    elif bug == "the last Decide wins":
        first = shard_fold.decide

        def last(store, context, op):
            store.delete("state/x/decided", op.transaction.encode())
            return first(store, context, op)

        monkeypatch.setattr(shard_fold, "decide", last)
    elif bug == "a reader that does not ask the home shard":
        monkeypatch.setattr(recovery, "_decided_in", lambda *_: ())
    elif bug == "a no taken for a yes":
        ask = coordinator.Coordinator.prepare
        monkeypatch.setattr(coordinator.Coordinator, "prepare", lambda self: ask(self) and None)
    elif bug == "a cut that is not validated":
        from onefold.state import sharded

        monkeypatch.setattr(sharded, "validate_cut", lambda *_: None)


@pytest.mark.parametrize(
    "bug",
    [
        "a Prepare without locks",
        "a reader that does not ask the home shard",
        "a no taken for a yes",
        "a cut that is not validated",
    ],
)
def test_planted_bugs_are_found(monkeypatch, bug):
    planted(monkeypatch, bug)
    assert found_in(range(40), lambda seed: bank(seed, faults=FAULTS).check())


def test_a_planted_last_decision_is_found(monkeypatch, world):
    planted(monkeypatch, "the last Decide wins")
    with pytest.raises(AssertionError):
        test_an_abort_that_nobody_has_resolved_at_home_holds(world)


# -- reads


def test_a_read_between_decision_and_resolve_shows_the_decision():
    """Killed right after the Decide: whoever reads any of its keys, in whatever order, sees all of it."""
    for step in range(1, STEPS + 1):
        world, _ = killed_at(step)
        with world.client().spaces[0].view() as view:
            if not any(decision.commit for _, decision in shard_fold.decisions(view, 1)):
                continue
        client = world.client()
        row = client.peek(2, rows.map_table(MAP), TARGET, STRONG)
        assert values.decode_value(rows.read_row(row).value) == 130
        assert read_account(world.client(), SOURCE)[0] == 70


def test_a_read_does_not_wait_for_the_undecided(world):
    client, other = world.client(), world.client()
    submit = client.spaces[0].inner.submit

    def stopped(ops):
        if b"decide" in ops[0].body:
            raise Killed
        return submit(ops)

    client.spaces[0].inner.submit = stopped
    with pytest.raises(Killed):
        world.transfer(client, SOURCE, TARGET, 30)
    began = world.env.boot_s()
    assert read_all(other) == dict.fromkeys(ALL, BALANCE)
    assert world.env.boot_s() == began
    assert locked(other)


def test_validating_a_cut_finds_what_changed_since(world):
    client, other = world.client(), world.client()
    parts = {shard: ShardPart((read_account(client, key)[1],)) for shard, key in ((0, SOURCE), (2, TARGET))}
    validate_cut(client, parts)
    world.transfer(other, SOURCE, TARGET, 5)
    with pytest.raises(Conflict):
        validate_cut(client, parts)


def test_a_read_that_keeps_losing_takes_locks(world):
    """Somebody writes after every view of the reader, until locks hold it off."""
    client, other = world.client(), world.client()
    refused = []

    def disturbed():
        state, parts = {}, {}
        for shard in range(SHARDS):
            with client.view(shard, STRONG) as view:
                pairs = list(view.scan(rows.map_table(MAP)))
                parts[shard] = ShardPart(spans=(Span(MAP, b"", b"\xff", view.offset),))
            state |= {key: values.decode_value(rows.read_row(row).value) for key, row in pairs}
            try:
                world.transfer(other, SOURCE, TARGET, 1)
            except Conflict:
                refused.append(shard)
        return state, parts

    assert sum(snapshot_read(client, disturbed).values()) == BALANCE * len(ALL)
    assert refused, "the locks held the writer off"
    world.check()


def test_an_item_that_is_due_and_locked_does_not_keep_a_reader(world):
    client, other = world.client(), world.client()
    item = ((SOURCE, values.encode_value(1)),)
    client.commit(0, (Put("t", item, 10),))
    submit = client.spaces[0].inner.submit

    def stopped(ops):
        if b"decide" in ops[0].body:
            raise Killed
        return submit(ops)

    client.spaces[0].inner.submit = stopped
    put = ShardPart(writes=(Put("t", item), Put(MAP, ((SOURCE, values.encode_value(BALANCE)),))))
    with pytest.raises(Killed):
        commit_over_shards(client, {0: put, 2: ShardPart(writes=(Put("n", ((TARGET, b"\xc0"),)),))})
    world.env.advance(1)
    before = other.spaces[0].applied
    other.settle_due(0)
    assert other.spaces[0].applied <= before + 2
    assert recovery.recover(other) > 0
    world.env.advance(config.TRANSACTION_TIMEOUT_S)
    assert recovery.recover(other) == 0
    other.settle_due(0)
    with other.view(0) as view:
        assert view.get(rows.map_table("t"), SOURCE) is None


def follow(world, other):
    """A transaction is decided and its coordinator dies; somebody sees it in shard 0 and then writes another key in shard 2."""
    client = world.client()
    submit = client.spaces[2].inner.submit

    def dying(ops):
        if b"resolve" in ops[0].body:
            raise Killed
        return submit(ops)

    client.spaces[2].inner.submit = dying
    with pytest.raises(Killed):
        world.transfer(client, SOURCE, TARGET, 30)
    assert read_account(other, SOURCE)[0] == 70
    other.commit(2, (Put("n", ((ACCOUNTS[2][1], b"\xc3"),)),))


def view_while_it_happens(world, at_view):
    """What a reader of shard 2 sees, when ``follow`` happens before its n-th look: the first transaction, and the second."""
    reader, other = world.client(), world.client()
    view, views = reader.spaces[2].inner.view, []

    def looking(at=None):
        views.append(at)
        if len(views) == at_view:
            follow(world, other)
        return view(at)

    reader.spaces[2].inner.view = looking
    with reader.view(2, STRONG) as seen:
        row = rows.read_row(seen.get(rows.map_table(MAP), TARGET))
        follower = seen.get(rows.map_table("n"), ACCOUNTS[2][1])
    return values.decode_value(row.value) == 130, follower is not None


@pytest.mark.parametrize("at_view", [1, 2, 3])
def test_no_view_shows_what_followed_a_transaction_without_it(world, at_view):
    first, follower = view_while_it_happens(world, at_view)
    assert first or not follower


def test_asking_the_home_shard_before_the_view_is_found(monkeypatch):
    properly = recovery.settled_view

    @contextmanager
    def early(client, shard, upto=None, need=None):
        with properly(client, shard, upto):
            pass
        with client.spaces[shard].view() as view:
            yield view

    monkeypatch.setattr(recovery, "settled_view", early)
    seen = set()
    for at_view in (2, 3):
        world = World(1)
        world.open_accounts()
        seen.add(view_while_it_happens(world, at_view))
    assert (False, True) in seen, "what followed it was shown, and it was not"


def decided_and_dead(world):
    """A transfer is decided, and its coordinator dies before it told anyone."""
    client = world.client()
    for shard in (0, 2):
        submit = client.spaces[shard].inner.submit

        def dying(ops, submit=submit):
            if b"resolve" in ops[0].body:
                raise Killed
            return submit(ops)

        client.spaces[shard].inner.submit = dying
    with pytest.raises(Killed):
        world.transfer(client, SOURCE, TARGET, 30)


def test_who_may_not_write_waits_for_somebody_who_may_and_never_shows_half(world):
    decided_and_dead(world)
    reader = world.client()
    for space in reader.spaces:
        space.inner._read_only = True
    for key in (SOURCE, TARGET):
        with pytest.raises(Unavailable, match="read-only") as caught:
            read_account(reader, key)
        assert caught.value.definite
    assert read_account(world.client(), TARGET)[0] == 130
    assert read_account(reader, TARGET)[0] == 130


def test_decisions_of_dead_coordinators_are_swept_by_those_who_commit(world, monkeypatch):
    monkeypatch.setattr(config, "DECISION_SWEEP_OFFSETS", 10)
    monkeypatch.setattr(recovery.sweep, "__defaults__", (10, 8))
    decided_and_dead(world)
    other = world.client()
    assert (read_account(other, SOURCE)[0], read_account(other, TARGET)[0]) == (70, 130)
    with other.spaces[0].view() as view:
        assert len(shard_fold.decisions(view)) == 1
    for _ in range(5):
        world.transfer(other, SOURCE, TARGET, 1)
    with other.spaces[0].view() as view:
        assert shard_fold.decisions(view) == []


def test_an_interrupted_program_gives_its_locks_up(world):
    client = world.client()
    submit = client.spaces[2].inner.submit

    def interrupted(ops):
        if b"prep" in ops[0].body:
            submit(ops)
            raise KeyboardInterrupt
        return submit(ops)

    client.spaces[2].inner.submit = interrupted
    with pytest.raises(KeyboardInterrupt):
        world.transfer(client, SOURCE, TARGET, 30)
    assert not locked(client)
