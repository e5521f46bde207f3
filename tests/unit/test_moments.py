"""One moment of all shards: whole, strict and never refused, whatever others write; readers that die are aborted."""

import random
import threading

import pytest

import onefold as of
from onefold import config
from onefold.errors import Conflict, Unavailable
from onefold.state import moments
from onefold.testing.sim.bugs import planted
from support.sharded_bank import ACCOUNTS, ALL, BALANCE, SHARDS, World, balances_at

TOTAL = BALANCE * len(ALL)


def bank(seed, *, replica, writers=3, readers=2, kill=None):
    """Transfers, and readers of moments whose last one's session sees at least what each moment showed. The sums read, and
    those that are behind what was acknowledged before the moment began."""
    world = World(seed)
    world.open_accounts()
    sums, stale = [], []

    def write(seed):
        rng, client = random.Random(seed), world.client(replica=replica)
        for _ in range(4):
            source, target = (rng.choice(ACCOUNTS[shard]) for shard in rng.sample(range(SHARDS), 2))
            try:
                world.transfer(client, source, target, rng.randrange(1, 20))
            except (Conflict, Unavailable):
                client.spaces[0].pause(0.01)

    def read():
        client = world.client(replica=replica)
        for _ in range(3):
            acknowledged = [mark for mark, _ in world.acked]
            offsets = moments.moment(client)
            sums.append(sum(balances_at(client, offsets).values()))
            for shard, offset in offsets.items():
                assert client.session.floor(shard) >= offset
            stale.extend(mark for mark in acknowledged if not shown(client, offsets, mark))

    for number in range(writers):
        world.stepper.start(lambda seed=seed * 100 + number: write(seed))
    for number in range(readers):
        world.stepper.start(read, kill if not number else None)
    world.stepper.run()
    return world, sums, stale


def shown(client, offsets, mark):
    from onefold.state import rows
    from onefold.state.keys import encode_key

    for shard, offset in offsets.items():
        with client.spaces[shard].view(at=offset) as view:
            if view.get(rows.map_table("marks"), encode_key(mark)) is not None:
                return True
    return False


@pytest.mark.parametrize("replica", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_moments_are_whole_and_strict(seed, replica):
    world, sums, stale = bank(seed, replica=replica)
    assert sums == [TOTAL] * 6, f"seed {seed}"
    assert stale == [], f"seed {seed}"
    world.check()


@pytest.mark.parametrize("bug", ["moment_without_locks", "moment_after_release"])
def test_moments_that_are_not_pinned_under_locks_are_found(bug):
    with planted(bug):
        for seed in range(200):
            _, sums, stale = bank(seed, replica=True)
            if set(sums) != {TOTAL} or stale:
                return
    pytest.fail(f"{bug} was not noticed")


@pytest.mark.parametrize("kill", range(2, 40, 3))
def test_a_reader_that_dies_holding_its_locks_is_aborted(kill):
    world, _, _ = bank(1, replica=True, kill=kill)
    world.env.advance(config.TRANSACTION_TIMEOUT_S + 1)
    world.check()


def test_a_claim_is_given_way_to_and_not_for_ever():
    world = World(3)
    world.open_accounts()
    reader, writer = world.client(replica=True), world.client(replica=True)
    with moments._Claim(reader, reader.deadline()) as claim:
        claim.post()
        writer.spaces[0].barrier()
        before = world.env.boot_s()
        moments.give_way(writer)
        assert world.env.boot_s() - before >= config.GIVE_WAY_S
    writer.spaces[0].barrier()
    before = world.env.boot_s()
    moments.give_way(writer)
    assert world.env.boot_s() == before


@pytest.mark.parametrize("many", [1, 6])
def test_a_read_only_block_is_one_moment_beside_writers(tmp_path, many):
    with of.connect(tmp_path, shards=3) as db:
        m, keys, stop = db.map("m"), [f"k{number}" for number in range(9)], threading.Event()
        m.update(dict.fromkeys(keys, 0))

        def write(number):
            at, own = 0, keys if many == 1 else [f"{number}-{key}" for key in keys]
            while not stop.is_set():
                at += 1
                m.put_many(dict.fromkeys([*own, f"only{number}"], at))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(many)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(40):
                with db.transaction(read_only=True) as tx:
                    found = dict(tx.map("m").items())
                assert db.run_transaction(lambda tx: len(tx.map("m")), read_only=True) >= len(found)
                for number in range(many):
                    own = keys if many == 1 else [f"{number}-{key}" for key in keys]
                    assert len({found.get(key) for key in own}) == 1
        finally:
            stop.set()
            for thread in threads:
                thread.join()
