"""Transactions over several shards: done once and in all of their shards, killed at every step, and left without answers."""

import pytest

from onefold import config
from onefold.errors import AppendUnknown, Conflict, Unavailable
from onefold.state.core import recovery
from onefold.state.encoding import values
from onefold.state.encoding.keys import encode_key, shard_of
from onefold.state.fold import rows
from onefold.state.fold.maps.ops import Clear, Increment, Put
from onefold.state.fold.ops import Decide, Resolve, state_op
from onefold.state.fold.outcomes import Decided, decode_outcome
from onefold.state.fold.shards import fold as shard_fold
from onefold.state.transactions.over_shards import ShardPart, commit_over_shards
from support.sharded_bank import (
    ACCOUNTS,
    ALL,
    BALANCE,
    MAP,
    SHARDS,
    SOURCE,
    STEPS,
    TARGET,
    World,
    killed_at,
    locked,
    open_bank,  # noqa: F401
    planted,
    read_account,
    read_all,
)

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
        assert client.session.floor(shard) == client.shards[shard].applied, "its Resolve came last"


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
    kept = decode_outcome(client.shards[home].outcome(request_id))
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
    assert client.shards[1].outcome(request_id) is None
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
    submit, first = client.shards[1].inner.submit, []

    def late(ops, deadline=None, receipt=None):
        client.shards[1].inner.submit = submit
        first.append(commit_over_shards(twin, parts, request_id))
        return submit(ops)

    client.shards[1].inner.submit = late  # after it has looked whether the request was done
    assert set(commit_over_shards(client, parts, request_id)) == {0, 1, 2}
    assert first
    world.check()


# -- killed at every step


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_somebody_else_finishes_what_a_dead_coordinator_began(step):
    world, _ = killed_at(step)
    client = world.client()
    state = read_all(client)
    assert sum(state.values()) == BALANCE * len(ALL)
    with world.client().shards[0].view() as view:
        decided = any(decision.commit for _, decision in shard_fold.decisions(view, 1))
    if decided:
        assert state[SOURCE] == 70, "decided, so it may have been acknowledged"
    # A writer that meets the locks gets by, after the timeout at the latest.
    began = world.env.boot_s()
    world.transfer(client, SOURCE, TARGET, 5) if not locked(client) else retry(world, client)
    assert world.env.boot_s() - began <= config.TRANSACTION_TIMEOUT_S + 1
    found = world.check()
    assert len(found) in (1, 2)


def retry(world, client):
    for _ in range(1000):
        try:
            return world.transfer(client, SOURCE, TARGET, 5)
        except Conflict:
            client.shards[0].pause(0.1)
    raise AssertionError("no progress")


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_the_dead_are_not_waited_for(step):
    dead = set()
    world, client = killed_at(step, alive=lambda member: False if member in dead else None)
    dead.update(space.member for space in client.shards)
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
    submit, decides = client.shards[0].inner.submit, []

    def slow(ops, deadline=None, receipt=None):
        if b"decide" in ops[0].body and not decides:
            decides.append(ops)
            recovery.recover(other)
            world.env.advance(config.TRANSACTION_TIMEOUT_S)
            assert recovery.recover(other) == 0
        return submit(ops)

    client.shards[0].inner.submit = slow
    world.transfer(client, SOURCE, TARGET, 30)
    assert decides
    assert read_account(other, SOURCE)[0] == 70, (
        "what it had read still held, so its next try committed, once"
    )
    assert world.check() == {encode_key("mark1"): {0, 2}}


def test_an_abort_that_nobody_has_resolved_at_home_holds(world):
    """Who aborted it died after the first of its steps."""
    client, other = world.client(), world.client()
    submit, decides = client.shards[0].inner.submit, []

    def slow(ops, deadline=None, receipt=None):
        if b"decide" in ops[0].body and not decides:
            decides.append(ops)
            with other.shards[2].view() as view:
                ((transaction, _),) = shard_fold.prepared_in(view)
            other.shards[0].submit([state_op(Decide(transaction, commit=False))])
            other.shards[2].submit([state_op(Resolve(transaction, commit=False))])
        return submit(ops)

    client.shards[0].inner.submit = slow
    world.transfer(client, SOURCE, TARGET, 30)
    assert decides
    assert read_account(other, SOURCE)[0] == 70
    world.check()


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("answers", [True, False])
def test_a_decision_without_an_answer_is_asked_for(world, applied, answers):
    client = world.client()
    submit, lost = client.shards[0].inner.submit, []

    def losing(ops, deadline=None, receipt=None):
        if b"decide" in ops[0].body and (not lost or not answers):
            if applied and not lost:
                submit(ops)
            lost.append(ops)
            raise AppendUnknown("the answer was lost")
        return submit(ops)

    client.shards[0].inner.submit = losing
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
    submit, late = client.shards[shard].inner.submit, []

    def losing(ops, deadline=None, receipt=None):
        if b"prep" in ops[0].body and not late:
            late.append(ops)
            if surfaces == "at once":
                submit(ops)
            raise AppendUnknown("the answer was lost")
        return submit(ops)

    client.shards[shard].inner.submit = losing
    with pytest.raises(Unavailable) as caught:
        world.transfer(client, SOURCE, TARGET, 30)
    assert caught.value.definite
    if surfaces == "later":
        other.shards[shard].inner.submit(late[0])
    for key in (SOURCE, TARGET):
        assert read_account(other, key)[0] == BALANCE
    assert recovery.recover(other) == 0, "the tombstone refuses it"
    world.check()


def test_a_late_prepare_beyond_the_tombstones_locks_and_is_aborted(world, monkeypatch):
    monkeypatch.setattr(config, "TOMBSTONE_OFFSETS", 2)
    client, other = world.client(), world.client()
    submit, late = client.shards[2].inner.submit, []

    def losing(ops, deadline=None, receipt=None):
        if b"prep" in ops[0].body and not late:
            late.append(ops)
            raise AppendUnknown("the answer was lost")
        return submit(ops)

    client.shards[2].inner.submit = losing
    one = values.encode_value(1)
    parts = {shard: ShardPart(writes=(Increment("n", ACCOUNTS[shard][0], one),)) for shard in (0, 2)}
    with pytest.raises(Unavailable):
        commit_over_shards(client, parts)
    for _ in range(10):
        world.transfer(other, SOURCE, TARGET, 1)
    other.shards[2].inner.submit(late[0])
    assert locked(other)
    assert recovery.recover(other) == 0, "home knows nothing of it, so it was aborted"
    with other.view(2) as view:
        assert view.count(rows.map_table("n")) == 0
    world.check()


def test_a_planted_last_decision_is_found(monkeypatch, world):
    planted(monkeypatch, "the last Decide wins")
    with pytest.raises(AssertionError):
        test_an_abort_that_nobody_has_resolved_at_home_holds(world)


def test_an_interrupted_program_gives_its_locks_up(world):
    client = world.client()
    submit = client.shards[2].inner.submit

    def interrupted(ops, deadline=None, receipt=None):
        if b"prep" in ops[0].body:
            submit(ops)
            raise KeyboardInterrupt
        return submit(ops)

    client.shards[2].inner.submit = interrupted
    with pytest.raises(KeyboardInterrupt):
        world.transfer(client, SOURCE, TARGET, 30)
    assert not locked(client)
