"""One moment of all shards: whole, strict and never refused, whatever others write; readers that die are aborted."""

import random
import threading
from contextlib import contextmanager

import pytest

import onefold as of
from kit.bugs import planted
from kit.remote_world import RemoteWorld
from onefold import config
from onefold.db import Database
from onefold.env import SeededEnv
from onefold.errors import Conflict, Unavailable
from onefold.folds import folds
from onefold.log.sqlite.pooled_file import PooledFile
from onefold.shard.memory import MemoryShard
from onefold.space import cuts
from onefold.state.encoding.keys import encode_key, shard_of
from onefold.state.fold import lock_table
from onefold.state.transactions import moments
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
                client.shards[0].pause(0.01)

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
    from onefold.state.encoding.keys import encode_key
    from onefold.state.fold import rows

    for shard, offset in offsets.items():
        with client.shards[shard].view(at=offset) as view:
            if view.get(rows.map_table("marks"), encode_key(mark)) is not None:
                return True
    return False


@pytest.mark.parametrize("replica", [False, True])
@pytest.mark.moving(4)
@pytest.mark.parametrize("seed", range(12))
def test_moments_are_whole_and_strict(seed, replica):
    world, sums, stale = bank(seed, replica=replica)
    assert sums == [TOTAL] * 6, f"seed {seed}"
    assert stale == [], f"seed {seed}"
    world.check()


@pytest.mark.parametrize("bug", ["moment_without_locks", "moment_after_release"])
def test_moments_that_are_not_pinned_under_locks_are_found(bug):
    with planted(bug):
        for seed in (13, *range(200)):  # the first that has found it
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
        writer.shards[0].barrier()
        before = world.env.boot_s()
        moments.give_way(writer)
        assert world.env.boot_s() - before >= config.GIVE_WAY_S
    writer.shards[0].barrier()
    before = world.env.boot_s()
    moments.give_way(writer)
    assert world.env.boot_s() == before


def test_the_claim_of_a_reader_that_died_is_given_way_to_once_and_ended():
    world = World(3)
    world.open_accounts()
    reader, writer = world.client(replica=True), world.client(replica=True)
    moments._Claim(reader, reader.deadline()).post()  # and it is never withdrawn

    def waited():
        before = world.env.boot_s()
        moments.give_way(writer)
        return world.env.boot_s() - before

    def claims():
        writer.shards[0].barrier()
        with writer.shards[0].view() as view:
            return lock_table.range_holders(view, moments.CLAIM)

    assert len(claims()) == 1
    assert waited() >= config.GIVE_WAY_S
    assert [waited() for _ in range(3)] == [0, 0, 0]
    assert len(claims()) == 1
    world.env.advance(config.TRANSACTION_TIMEOUT_S + 1)
    waited()
    assert claims() == []


def test_a_reader_that_still_waits_renews_its_claim():
    world = World(3)
    world.open_accounts()
    reader, writer = world.client(replica=True), world.client(replica=True)
    with moments._Claim(reader, reader.deadline()) as claim:
        claim.post()
        first = claim._id
        claim.post()
        assert claim._id == first
        world.env.advance(2 * config.GIVE_WAY_S)
        claim.post()
        writer.shards[0].barrier()
        with writer.shards[0].view() as view:
            assert lock_table.range_holders(view, moments.CLAIM) == [claim._id] != [first]


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


# -- connections opened read-only, which hold up nobody


class ReadOnlyBank:
    """An account in each of three shards of a cluster, and a reader that may not write and has no replica."""

    def __init__(self, monkeypatch):
        env = SeededEnv(1)
        self.world = RemoteWorld(shards=3, env=env, pause=env.advance)
        self.writer = self.world.connect()
        self.reader = Database(self.world.open_shards(read_only=True), level=None)
        names = [f"a{number}" for number in range(100)]
        self.accounts = [
            next(name for name in names if shard_of(encode_key(name), 3) == at) for at in range(3)
        ]
        self.writer.map("m").update(dict.fromkeys(self.accounts, BALANCE))
        self.transfers = 0
        view_from = moments._view_from

        @contextmanager
        def then_view(client, shard, offset):
            if client is self.reader._state and self.transfers:
                self.transfers -= 1
                self.transfer()
            with view_from(client, shard, offset) as view:
                assert view.offset >= offset  # pins it
                yield view

        monkeypatch.setattr(moments, "_view_from", then_view)

    def transfer(self):
        def move(tx):
            m = tx.map("m")
            m[self.accounts[0]] -= 1
            m[self.accounts[2]] += 1

        self.writer.run_transaction(move)

    def read(self):
        def read(tx):
            return [tx.map("m")[name] for name in self.accounts]

        return self.reader.run_transaction(read, read_only=True)


@pytest.mark.parametrize("transfers", [0, 1, 2, 3, 20])
def test_a_read_only_connection_finds_a_quiet_moment(monkeypatch, transfers):
    bank = ReadOnlyBank(monkeypatch)
    bank.transfer()
    bank.transfers = transfers
    assert bank.read() == [BALANCE - 1 - transfers, BALANCE, BALANCE + 1 + transfers]


def test_a_moment_that_was_not_quiet_is_found(monkeypatch):
    bank = ReadOnlyBank(monkeypatch)
    monkeypatch.setattr(moments, "_is_quiet", lambda *_: True)
    bank.transfers = 3
    assert sum(bank.read()) != 3 * BALANCE


def test_a_read_only_connection_gives_up_where_nobody_is_ever_quiet(monkeypatch):
    bank = ReadOnlyBank(monkeypatch)
    bank.transfers = 10_000
    with pytest.raises(Unavailable, match="opened read-only holds up nobody") as caught:
        bank.read()
    assert caught.value.definite
    assert 10_000 - bank.transfers <= 3 * moments._QUIET_TRIES


def test_a_read_only_replica_says_what_a_transaction_needs():
    world = RemoteWorld(shards=3)
    spaces = [
        MemoryShard(log, folds(shard, 3), world.env, replica=True, read_only=True)
        for shard, log in enumerate(world.logs)
    ]
    db = Database(spaces, level=None)
    with (
        pytest.raises(Unavailable, match=r"without read_only, or connect with replicas='remote'"),
        db.transaction(read_only=True) as tx,
    ):
        tx.map("m").get("k")
    assert [log.last for log in world.logs] == [0, 0, 0]


def test_a_folder_opened_read_only_is_tried_until_the_time_is_up(tmp_path, monkeypatch):
    with of.connect(tmp_path, shards=3) as db:
        db.map("m").update({"a": 1, "b": 2})
    unmoved, moved = cuts.unmoved, []

    def busy(*args, **options):
        assert not options["locked"]
        moved.append(1)
        return None if len(moved) < 50 else unmoved(*args, **options)

    monkeypatch.setattr(cuts, "unmoved", busy)
    with of.connect(tmp_path, read_only=True, timeout=30) as db, db.transaction(read_only=True) as tx:
        assert dict(tx.map("m").items()) == {"a": 1, "b": 2}
    assert len(moved) == 50
    monkeypatch.setattr(cuts, "unmoved", lambda *_, **__: None)
    with (
        of.connect(tmp_path, read_only=True, timeout=0.1) as db,
        pytest.raises(Unavailable, match="opened read-only holds up nobody"),
        db.transaction(read_only=True) as tx,
    ):
        len(tx.map("m"))


def test_the_locks_of_files_are_waited_for_no_longer_than_the_call_has(tmp_path, monkeypatch):
    monkeypatch.setattr(moments, "_LOCKED_FROM", 0)
    asked, maintaining = [], PooledFile.maintaining

    def noted(file, timeout=None):
        asked.append(timeout)
        return maintaining(file, timeout)

    with of.connect(tmp_path, shards=3) as other, of.connect(tmp_path, timeout=0.2) as db:
        db.map("m")["a"] = 1
        with other._state.shards[1].log.file.maintaining():
            monkeypatch.setattr(PooledFile, "maintaining", noted)
            with pytest.raises(Unavailable), db.transaction(read_only=True) as tx:
                tx.map("m").get("a")
        assert asked
        assert all(timeout is not None and timeout <= 0.2 for timeout in asked)
        with db.transaction(read_only=True) as tx:
            assert tx.map("m").get("a") == 1
