"""Isolation over several shards: coordinators interleaved from a seed are atomic, and no reader sees a transaction in part.

Coordinators run in threads of which one at a time goes on, from one append, view or pause to the next; a seed says which.
"""

import random
from contextlib import contextmanager

import pytest

from kit.stepper import Killed
from onefold import config
from onefold.errors import AppendUnknown, Conflict, Unavailable
from onefold.log.memory import Faults
from onefold.state.core import recovery
from onefold.state.core.consistency import STRONG
from onefold.state.encoding import values
from onefold.state.fold import rows
from onefold.state.fold.maps.ops import Put
from onefold.state.fold.ops import Span
from onefold.state.fold.shards import fold as shard_fold
from onefold.state.transactions.over_shards import ShardPart, commit_over_shards, snapshot_read, validate_cut
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
    balances_at,
    killed_at,
    locked,
    open_bank,  # noqa: F401
    planted,
    read_account,
    read_all,
)

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
                client.shards[0].pause(0.05)

    for number in range(workers):
        kill_at = rng.randrange(1, 60) if number < kills else None
        world.stepper.start(lambda seed=seed * 100 + number: work(seed), kill_at)
    world.stepper.run()
    world.heal()
    return world


@pytest.mark.moving(5)
@pytest.mark.parametrize("seed", range(40))
def test_interleaved_transfers_are_atomic_and_reads_are_whole(seed):
    bank(seed).check()


FAULTS = Faults(refused=0.02, lost_answer=0.05, late=0.03, vanished=0.03)


@pytest.mark.moving(5)
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
    seeds = (
        (20, *range(40)) if bug == "a cut that is not validated" else range(40)
    )  # that one has found it first
    assert found_in(seeds, lambda seed: bank(seed, faults=FAULTS).check())


# -- reads


def test_a_read_between_decision_and_resolve_shows_the_decision():
    """Killed right after the Decide: whoever reads any of its keys, in whatever order, sees all of it."""
    for step in range(1, STEPS + 1):
        world, _ = killed_at(step)
        with world.client().shards[0].view() as view:
            if not any(decision.commit for _, decision in shard_fold.decisions(view, 1)):
                continue
        client = world.client()
        row = client.peek(2, rows.map_table(MAP), TARGET, STRONG)
        assert values.decode_value(rows.read_row(row).value) == 130
        assert read_account(world.client(), SOURCE)[0] == 70


def test_a_read_does_not_wait_for_the_undecided(world):
    client, other = world.client(), world.client()
    submit = client.shards[0].inner.submit

    def stopped(ops, deadline=None, receipt=None):
        if b"decide" in ops[0].body:
            raise Killed
        return submit(ops)

    client.shards[0].inner.submit = stopped
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


def test_a_read_that_keeps_losing_reads_at_a_moment(world):
    """Somebody writes after every view of the reader, until it reads at the offsets of one moment."""
    client, other = world.client(replica=True), world.client()
    tries = []

    def disturbed():
        state, parts = {}, {}
        for shard in range(SHARDS):
            with client.view(shard, STRONG) as view:
                pairs = list(view.scan(rows.map_table(MAP)))
                parts[shard] = ShardPart(spans=(Span(MAP, b"", b"\xff", view.offset),))
            state |= {key: values.decode_value(rows.read_row(row).value) for key, row in pairs}
            world.transfer(other, SOURCE, TARGET, 1)
        tries.append(sum(state.values()))
        return state, parts

    found = snapshot_read(client, disturbed, lambda offsets: balances_at(client, offsets))
    assert sum(found.values()) == BALANCE * len(ALL)
    assert tries, "first it reads without locks"
    world.check()


def test_an_item_that_is_due_and_locked_does_not_keep_a_reader(world):
    client, other = world.client(), world.client()
    item = ((SOURCE, values.encode_value(1)),)
    client.commit(0, (Put("t", item, 10),))
    submit = client.shards[0].inner.submit

    def stopped(ops, deadline=None, receipt=None):
        if b"decide" in ops[0].body:
            raise Killed
        return submit(ops)

    client.shards[0].inner.submit = stopped
    put = ShardPart(writes=(Put("t", item), Put(MAP, ((SOURCE, values.encode_value(BALANCE)),))))
    with pytest.raises(Killed):
        commit_over_shards(client, {0: put, 2: ShardPart(writes=(Put("n", ((TARGET, b"\xc0"),)),))})
    world.env.advance(1)
    before = other.shards[0].applied
    other.settle_due(0)
    assert other.shards[0].applied <= before + 2
    assert recovery.recover(other) > 0
    world.env.advance(config.TRANSACTION_TIMEOUT_S)
    assert recovery.recover(other) == 0
    other.settle_due(0)
    with other.view(0) as view:
        assert view.get(rows.map_table("t"), SOURCE) is None


def follow(world, other):
    """A transaction is decided and its coordinator dies; somebody sees it in shard 0 and then writes another key in shard 2."""
    client = world.client()
    submit = client.shards[2].inner.submit

    def dying(ops, deadline=None, receipt=None):
        if b"resolve" in ops[0].body:
            raise Killed
        return submit(ops)

    client.shards[2].inner.submit = dying
    with pytest.raises(Killed):
        world.transfer(client, SOURCE, TARGET, 30)
    assert read_account(other, SOURCE)[0] == 70
    other.commit(2, (Put("n", ((ACCOUNTS[2][1], b"\xc3"),)),))


def view_while_it_happens(world, at_view):
    """What a reader of shard 2 sees, when ``follow`` happens before its n-th look: the first transaction, and the second."""
    reader, other = world.client(), world.client()
    view, views = reader.shards[2].inner.view, []

    def looking(at=None, need=None):
        views.append(at)
        if len(views) == at_view:
            follow(world, other)
        return view(at, need)

    reader.shards[2].inner.view = looking
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
        with client.shards[shard].view() as view:
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
        submit = client.shards[shard].inner.submit

        def dying(ops, deadline=None, receipt=None, submit=submit):
            if b"resolve" in ops[0].body:
                raise Killed
            return submit(ops)

        client.shards[shard].inner.submit = dying
    with pytest.raises(Killed):
        world.transfer(client, SOURCE, TARGET, 30)


def test_who_may_not_write_waits_for_somebody_who_may_and_never_shows_half(world):
    decided_and_dead(world)
    reader = world.client()
    for space in reader.shards:
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
    with other.shards[0].view() as view:
        assert len(shard_fold.decisions(view)) == 1
    for _ in range(5):
        world.transfer(other, SOURCE, TARGET, 1)
    with other.shards[0].view() as view:
        assert shard_fold.decisions(view) == []
