"""Histories of transactions over several shards are strictly serializable, whatever is killed or unanswered on the way.

List-append workloads, interleaved step by step from a seed: reads and appends over keys of three shards, in transactions over
shards and in one, reads of single keys, of one shard and of all.
"""

import random
import threading

import pytest

from kit.sharded_world import ShardedWorld, left_behind
from kit.stepper import Killed
from onefold.errors import AppendUnknown, Conflict, OnefoldError, Unavailable
from onefold.log.memory import Faults
from onefold.space import cuts
from onefold.space.open_space import open_shards
from onefold.state.core import recovery
from onefold.state.core.client import StateClient
from onefold.state.core.consistency import STRONG
from onefold.state.encoding import values
from onefold.state.fold import lock_table, rows
from onefold.state.fold.machine import StateFold
from onefold.state.fold.maps.ops import Put
from onefold.state.fold.ops import Read
from onefold.state.fold.shards import fold as shard_fold
from onefold.state.transactions import over_shards as sharded
from onefold.state.transactions.over_shards import ShardPart, commit_over_shards, snapshot_read, validate_cut
from onefold.testing.history import History
from onefold.testing.list_append import check_list_append

MAP = "lists"
FAULTS = Faults(refused=0.02, lost_answer=0.05, late=0.03, vanished=0.03)


class Program:
    """One client, whose operations are noted in the history."""

    def __init__(self, client, history, number, keys, seed):
        self.client = client
        self.history, self.number, self.keys = history, number, keys
        self.rng = random.Random(seed)
        self.elements = 0

    def run(self, operations):
        kinds = (
            self.transact,
            self.transact,
            self.transact,
            self.read_cut,
            self.read_all,
            self.peek,
            self.read_shard,
        )
        for _ in range(operations):
            self.rng.choice(kinds)()

    def element(self):
        self.elements += 1
        return self.number * 10_000 + self.elements

    def look(self, view, key):
        found = view.get(rows.map_table(MAP), key)
        if found is None:
            return [], Read(MAP, key, 0, 0)
        row = rows.read_row(found)
        return values.decode_value(row.value), Read(MAP, key, row.offset, row.index)

    def strong(self, key):
        with self.client.view(self.client.shard_of(key), STRONG) as view:
            return self.look(view, key)

    def note(self, micros, work):
        """Run it as one operation; it fills in what it read."""
        token = self.history.invoke(self.number, "txn", value=micros)
        try:
            read = work()
        except Killed:
            raise
        except OnefoldError as error:
            (self.history.fail if error.definite else self.history.info)(token)
            if not isinstance(error, Conflict | Unavailable | AppendUnknown):
                raise
            self.client.shards[0].pause(0.01)
        else:
            result = [
                (kind, key, read[key]) if kind == "r" else (kind, key, element)
                for kind, key, element in micros
            ]
            self.history.ok(token, result)

    def transact(self):
        keys = self.rng.sample(self.keys, self.rng.randrange(1, 4))
        writing = {key for key in keys if self.rng.random() < 0.7}
        added = {key: self.element() for key in writing}
        micros = [("r", key, None) for key in keys] + [
            ("append", key, added[key]) for key in keys if key in added
        ]

        def work():
            read, parts = {}, {}
            for key in keys:
                read[key], seen = self.strong(key)
                part = parts.setdefault(self.client.shard_of(key), ([], []))
                part[0].append(seen)
                if key in added:
                    value = values.encode_value([*read[key], added[key]])
                    part[1].append(Put(MAP, ((key, value),)))
            commit_over_shards(
                self.client,
                {shard: ShardPart(tuple(one), (), tuple(two)) for shard, (one, two) in parts.items()},
            )
            return read

        self.note(micros, work)

    def read_cut(self):
        keys = self.rng.sample(self.keys, 3)

        def work():
            read, parts = {}, {}
            for key in keys:
                read[key], seen = self.strong(key)
                parts.setdefault(self.client.shard_of(key), []).append(seen)
            validate_cut(self.client, {shard: ShardPart(tuple(reads)) for shard, reads in parts.items()})
            return read

        self.note([("r", key, None) for key in keys], work)

    def read_all(self):
        def once():
            read, parts = {}, {}
            for key in self.keys:
                read[key], seen = self.strong(key)
                parts.setdefault(self.client.shard_of(key), []).append(seen)
            return read, {shard: ShardPart(tuple(reads)) for shard, reads in parts.items()}

        def at(offsets):
            read = {}
            for key in self.keys:
                shard = self.client.shard_of(key)
                with self.client.shards[shard].view(at=offsets[shard]) as view:
                    read[key] = self.look(view, key)[0]
            return read

        self.note([("r", key, None) for key in self.keys], lambda: snapshot_read(self.client, once, at))

    def read_shard(self):
        shard = self.rng.randrange(self.client.shard_count)
        keys = [key for key in self.keys if self.client.shard_of(key) == shard]

        def work():
            with self.client.view(shard, STRONG) as view:
                return {key: self.look(view, key)[0] for key in keys}

        self.note([("r", key, None) for key in keys], work)

    def peek(self):
        key = self.rng.choice(self.keys)

        def work():
            found = self.client.peek(self.client.shard_of(key), rows.map_table(MAP), key, STRONG)
            return {key: [] if found is None else values.decode_value(rows.read_row(found).value)}

        self.note([("r", key, None)], work)


def history_of(seed, *, faults=None, programs=5, operations=6, kills=2, replica=False):
    """The operations of several programs, some of them killed, in a world that comes to an end without anything left behind."""
    world = ShardedWorld(seed)
    world.fail(faults or Faults())
    history = History()
    keys = [key for shard in range(world.shards) for key in world.keys(shard, 2)]
    rng = random.Random(seed)
    for number in range(programs):
        program = Program(world.client(replica=replica), history, number, keys, seed * 100 + number)
        kill_at = rng.randrange(1, 120) if number < kills else None
        world.stepper.start(lambda program=program: program.run(operations), kill_at)
    world.stepper.run()
    world.heal()
    Program(world.end(), history, programs, keys, seed).read_all()
    return history.operations


def check(seed, **options):
    verdict = check_list_append(history_of(seed, **options))
    assert verdict, f"seed {seed}: {verdict}"


@pytest.mark.moving(5)
@pytest.mark.parametrize("seed", range(25))
def test_histories_are_strictly_serializable(seed):
    check(seed)


@pytest.mark.moving(5)
@pytest.mark.parametrize("seed", range(25))
def test_so_they_are_when_appends_have_no_answer(seed):
    check(seed, faults=FAULTS)


@pytest.mark.moving(5)
@pytest.mark.parametrize("seed", range(10))
def test_so_they_are_where_reads_are_strong_by_barriers_only(seed):
    check(seed, replica=True, programs=4, operations=4)


@pytest.mark.parametrize("url", ["memory://", "folder"])
def test_threads_on_a_real_space_make_such_histories(url, tmp_path):
    """Two connections, each used by two threads at once."""
    history, errors = History(), []
    place = "memory://" if url == "memory://" else tmp_path / "space"
    spaces = open_shards(place, lambda shard, shards: [StateFold(shards)], shards=3)
    others = spaces if url == "memory://" else open_shards(place, lambda shard, shards: [StateFold(shards)])
    clients = [StateClient(spaces), StateClient(others)]
    keys = [key for shard in range(3) for key in ShardedWorld(0).keys(shard, 2)]

    def work(number):
        try:
            Program(clients[number % 2], history, number, keys, number).run(15)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    Program(clients[0], history, 4, keys, 4).read_all()
    check_list_append(history.operations).require()
    for space in spaces:
        with space.view() as view:
            assert left_behind(view) == {}
    for space in {id(space): space for space in (*spaces, *others)}.values():
        space.close()


def test_enough_of_the_operations_succeed_to_mean_something():
    ended = [operation.status for seed in range(10) for operation in history_of(seed)]
    assert ended.count("ok") > len(ended) / 2


def first_found(seeds):
    """The first seed whose history or end is wrong."""
    for seed in seeds:
        try:
            check(seed)
        except (AssertionError, KeyError):
            return seed
    return None


def plant_no_locks(monkeypatch):
    monkeypatch.setattr(lock_table, "take", lambda *_: None)


def plant_no_shared_locks(monkeypatch):
    wants = shard_fold.wants
    monkeypatch.setattr(shard_fold, "wants", lambda reads, spans, writes: wants((), (), writes))


def plant_readers_that_do_not_ask(monkeypatch):
    monkeypatch.setattr(recovery, "_decided_in", lambda *_: ())


def plant_unvalidated_cuts(monkeypatch):
    def whatever(spaces, pin, offset_of, stack, *, locked, until_s=None):
        return [stack.enter_context(pin(space)) for space in spaces]

    monkeypatch.setattr(cuts, "unmoved", whatever)
    monkeypatch.setattr(sharded, "validate_cut", lambda *_: None)


@pytest.mark.parametrize(
    ("plant", "first_seed"),
    [
        (plant_no_locks, 0),
        (plant_no_shared_locks, 52),
        (plant_readers_that_do_not_ask, 12),
        (plant_unvalidated_cuts, 48),
    ],
)
def test_planted_bugs_are_found(monkeypatch, plant, first_seed):
    plant(monkeypatch)
    assert first_found(range(first_seed, first_seed + 100)) is not None
