"""One deadline through a write: what leaves in time, what is tried again, and what leaves in doubt."""

import asyncio
import random
import threading
from contextlib import closing

import pytest

import onefold as of
from kit.ledger import Ledger, entry
from onefold import config
from onefold.db import Database
from onefold.env import SYSTEM, SeededEnv
from onefold.log.memory import MemoryLog
from onefold.shard import embedded as sqlite_space
from onefold.shard.embedded import EmbeddedShard
from onefold.shard.memory import MemoryShard
from onefold.state.core.client import StateClient
from onefold.state.core.time_limits import limited
from onefold.state.encoding.keys import encode_key, shard_of
from onefold.state.fold import rows
from onefold.state.fold.machine import StateFold
from onefold.state.fold.maps.ops import Put
from onefold.state.fold.queues import ops as queue_ops
from onefold.state.fold.shards import fold as shard_fold
from onefold.state.transactions.over_shards import ShardPart, commit_over_shards

SOON_S = 60


class Scripted(MemoryLog):
    """Fails as told, and notes when it was asked and what deadlines it was given."""

    def __init__(self, env, script=()):
        super().__init__(env=env)
        self.script, self.deadlines, self.asked = list(script), [], []

    def append(self, data, deadline=None):
        self.deadlines.append(deadline)
        self.asked.append(data)
        step = self.script.pop(0) if self.script else None
        if step is not None:
            step(data)
        return super().append(data)


def no_leader(_data):
    raise of.Unavailable("no leader", definite=True)


def lost(_data):
    raise of.AppendUnknown("no answer")


def scripted(script, replica=False):
    env = SeededEnv(1)
    log = Scripted(env, script)
    return env, log, MemoryShard(log, [Ledger()], env, pause=env.advance, replica=replica)


def test_a_failure_that_passes_is_tried_again():
    env, log, space = scripted([no_leader] * 7)
    assert space.submit([entry(b"a")], env.boot_s() + 5)
    assert len(log.asked) == 8


def test_a_failure_that_lasts_is_definite_at_the_deadline():
    env, log, space = scripted([no_leader] * 1000)
    with pytest.raises(of.Unavailable, match="no leader") as caught:
        space.submit([entry(b"a")], env.boot_s() + 5)
    assert caught.value.definite
    assert 4.5 <= env.boot_s() <= 5
    assert log.last == 0
    assert set(log.deadlines) == {5.0}


def test_an_append_in_doubt_ends_at_the_deadline():
    env, log, space = scripted([lost] * 1000)
    with pytest.raises(of.AppendUnknown) as caught:
        space.submit([entry(b"a")], env.boot_s() + 5)
    assert not caught.value.definite
    assert 3 <= env.boot_s() <= 5
    assert len(set(log.asked)) == 1, "always under one number"


@pytest.mark.parametrize(
    ("script", "error", "tries"),
    [
        ([lost] * 1000, of.AppendUnknown, 12),
        ([lost] + [no_leader] * 1000, of.AppendUnknown, 12),
        ([no_leader] * 1000, of.Unavailable, 25),
    ],
)
def test_the_last_try_is_made_when_the_time_is_up(script, error, tries):
    """Not one pause before: the last pause is cut to what is left."""
    env, log, space = scripted(script)
    with pytest.raises(error):
        space.submit([entry(b"a")], env.boot_s() + 5)
    assert env.boot_s() == 5
    assert len(log.asked) == tries


def test_an_answer_at_the_deadline_is_taken():
    env, log, space = scripted([lost] * 11)
    assert space.submit([entry(b"a")], env.boot_s() + 5)
    assert env.boot_s() == 5
    assert log.last == 1


def test_a_commit_in_doubt_is_tried_until_its_time_is_up(tmp_path, monkeypatch):
    env, tries = SeededEnv(1), []

    def no_answer(timeout=None, hold=None):
        tries.append(env.boot_s())
        raise of.AppendUnknown("the disk failed")

    with closing(EmbeddedShard(tmp_path / "space", [Ledger()], env)) as space:
        monkeypatch.setattr(sqlite_space.time, "sleep", env.advance)
        monkeypatch.setattr(space.log.file, "writing", no_answer)
        with pytest.raises(of.AppendUnknown):
            space.submit([entry(b"a")], env.boot_s() + 5)
        monkeypatch.undo()
    assert len(tries) == 12
    assert tries[-1] == 5


def test_without_a_limit_a_write_sits_out_an_election():
    env, _, space = scripted([no_leader] * 1000)
    with pytest.raises(of.Unavailable):
        space.submit([entry(b"a")])
    assert 0.9 * config.APPEND_RETRY_S <= env.boot_s() <= config.APPEND_RETRY_S


class Held:
    """A space whose first append waits, and is let go on."""

    def __init__(self, then=None):
        self.begun, self.go = threading.Event(), threading.Event()

        def wait(data):
            self.begun.set()
            assert self.go.wait(SOON_S)
            if then is not None:
                then(data)

        self.log = Scripted(SYSTEM, [wait])
        self.space = MemoryShard(self.log, [Ledger()], SYSTEM)
        self.outcomes = {}

    def start(self, name, seconds):
        def run():
            try:
                self.outcomes[name] = self.space.submit([entry(name)], SYSTEM.boot_s() + seconds)
            except of.OnefoldError as error:
                self.outcomes[name] = error

        thread = threading.Thread(target=run)
        thread.start()
        return thread


def test_one_that_waits_leaves_definitely_and_is_not_appended_later():
    held = Held()
    first = held.start(b"first", SOON_S)
    assert held.begun.wait(SOON_S)
    held.start(b"waits", 0.05).join()
    assert isinstance(held.outcomes[b"waits"], of.Timeout)
    assert held.outcomes[b"waits"].definite
    held.go.set()
    first.join()
    assert isinstance(held.outcomes[b"first"], list)
    held.space.submit([entry(b"later")])
    assert not any(b"waits" in data for data in held.log.asked)


def test_one_in_the_append_under_way_leaves_in_doubt():
    held = Held()
    blocker = held.start(b"blocker", SOON_S)
    assert held.begun.wait(SOON_S)
    begun, go = threading.Event(), threading.Event()

    def wait(_data):
        begun.set()
        assert go.wait(SOON_S)

    held.log.script = [wait]
    leader = held.start(b"leader", SOON_S)
    until(lambda: len(held.space._appender._waiting) == 1)
    follower = held.start(b"follower", 3.0)
    until(lambda: len(held.space._appender._waiting) == 2)
    held.go.set()
    assert begun.wait(SOON_S)
    follower.join()
    assert isinstance(held.outcomes[b"follower"], of.AppendUnknown)
    assert b"leader" not in held.outcomes
    go.set()
    leader.join()
    blocker.join()
    assert isinstance(held.outcomes[b"leader"], list)


def until(reached):
    end = SYSTEM.boot_s() + SOON_S
    while not reached():
        assert SYSTEM.boot_s() < end
        threading.Event().wait(0.001)


def test_those_with_more_time_continue_when_the_leaders_is_up():
    held = Held(no_leader)
    leader = held.start(b"leader", 0.05)
    assert held.begun.wait(SOON_S)
    patient = held.start(b"patient", SOON_S)
    until(lambda: len(held.space._appender._waiting) == 1)
    until(lambda: SYSTEM.boot_s() > held.log.deadlines[0])
    held.go.set()
    leader.join()
    patient.join()
    assert isinstance(held.outcomes[b"leader"], of.Unavailable)
    assert held.outcomes[b"leader"].definite
    assert isinstance(held.outcomes[b"patient"], list)


def test_a_leader_takes_nobody_along_who_has_much_more_time():
    held = Held()
    first = held.start(b"first", SOON_S)
    assert held.begun.wait(SOON_S)
    short = held.start(b"short", SOON_S / 3)
    until(lambda: len(held.space._appender._waiting) == 1)
    patient = held.start(b"patient", SOON_S)
    until(lambda: len(held.space._appender._waiting) == 2)
    held.go.set()
    for thread in (first, short, patient):
        thread.join()
    assert len(held.log.asked) == 3


@pytest.mark.parametrize("seed", range(4))
def test_those_with_more_time_lead_next_and_together(seed):
    """Nobody is passed over by more than one append, however many with little time come meanwhile."""
    held = Held()
    first = held.start(b"first", SOON_S)
    assert held.begun.wait(SOON_S)
    gates = [(threading.Event(), threading.Event()) for _ in range(2)]
    held.log.script = [lambda _, gate=gate: (gate[0].set(), gate[1].wait(SOON_S)) for gate in gates]
    waiting, threads = held.space._appender._waiting, [first]

    def queue_up(name, seconds):
        before = len(waiting)
        threads.append(held.start(name, seconds))
        until(lambda: len(waiting) == before + 1)

    queue_up(b"short 0", SOON_S / 3)
    rest = [(b"patient %d" % number, SOON_S) for number in range(8)]
    rest += [(b"short %d" % number, SOON_S / 3) for number in range(1, 5)]
    random.Random(seed).shuffle(rest)
    for name, seconds in rest:
        queue_up(name, seconds)
    held.go.set()
    assert gates[0][0].wait(SOON_S)  # one with little time leads
    for number in range(5, 9):
        queue_up(b"short %d" % number, SOON_S / 3)  # more of those come
    gates[0][1].set()
    assert gates[1][0].wait(SOON_S)
    gates[1][1].set()
    for thread in threads:
        thread.join()
    assert len(held.log.asked) == 3
    assert all(b"short %d" % number in held.log.asked[1] for number in range(5))
    assert not any(b"patient" in data for data in held.log.asked[:2])
    assert all(b"patient %d" % number in held.log.asked[2] for number in range(8))
    assert all(b"short %d" % number in held.log.asked[2] for number in range(5, 9))


# -- calls of many steps


def database(env, script, *, shards=1, timeout=3.0):
    logs = [Scripted(env, script if not shard else ()) for shard in range(shards)]
    spaces = [MemoryShard(log, [StateFold(shards)], env, pause=env.advance, replica=True) for log in logs]
    return logs, spaces, timeout


CALLS = {
    "put": lambda db: db.map("m").put("k", 1),
    "modify": lambda db: db.map("m").modify("k", lambda old: 1),
    "pop": lambda db: db.map("m").pop("k", None),
    "increment": lambda db: db.map("m").increment("k"),
    "get": lambda db: db.map("m").get("k"),
    "clear": lambda db: db.map("m").clear(),
    "queue put": lambda db: db.queue("q").put(1),
    "queue take": lambda db: db.queue("q").take(timeout=0),
    "queue counts": lambda db: db.queue("q").counts(),
    "lock": lambda db: db.lock("l", timeout=0).acquire(),
    "stream append": lambda db: db.stream("s").append(1),
    "run_transaction": lambda db: db.run_transaction(lambda tx: tx.map("m").put("k", len(tx.map("m")))),
    "outcome": lambda db: db.outcome("r"),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_call_ends_by_the_deadline_without_a_leader(name):
    env = SeededEnv(1)
    _, spaces, timeout = database(env, [no_leader] * 100_000)
    with Database(spaces, level=None, timeout=timeout) as db:
        began = env.boot_s()
        with pytest.raises(of.OnefoldError) as caught:
            CALLS[name](db)
        assert caught.value.definite
        assert 0.8 * timeout <= env.boot_s() - began <= timeout + 2 * config.RELEASE_S


@pytest.mark.parametrize("fails_in", [0, 1, 2])
def test_a_transaction_over_shards_has_one_deadline(fails_in):
    env = SeededEnv(1)
    logs, spaces, timeout = database(env, (), shards=3)
    client = StateClient(spaces, timeout=timeout)
    logs[fails_in].script = [no_leader] * 100_000
    parts = {}
    for number in range(100):
        key = encode_key(number)
        parts[shard_of(key, 3)] = ShardPart((), (), (Put("m", ((key, b"\x01"),)),))
    began = env.boot_s()
    with pytest.raises(of.Unavailable) as caught:
        commit_over_shards(client, parts)
    assert caught.value.definite
    assert env.boot_s() - began <= timeout + 4 * config.RELEASE_S


@pytest.mark.parametrize("answered", [True, False])
def test_a_decision_at_the_last_moment_is_carried_out_or_ruled_out(answered):
    env = SeededEnv(1)
    logs, spaces, timeout = database(env, (), shards=3)
    client = StateClient(spaces, timeout=timeout)
    keys = [next(encode_key(n) for n in range(100) if shard_of(encode_key(n), 3) == at) for at in range(3)]
    parts = {at: ShardPart((), (), (Put("m", ((key, b"\x01"),)),)) for at, key in enumerate(keys)}

    def late(data):
        env.advance(timeout + 1)
        if not answered:
            lost(data)

    client.shards[0].barrier()  # what comes with the first record is over
    logs[0].script = [None, late]  # the vote of the home shard, and the decision
    if answered:
        commit_over_shards(client, parts)
    else:
        with pytest.raises(of.OnefoldError) as caught:
            commit_over_shards(client, parts)
        assert caught.value.definite, "it was settled that it did not happen"
    for space, key in zip(spaces, keys, strict=True):
        space.barrier()
        with space.view() as view:
            assert not shard_fold.is_any_prepared(view)
            assert (view.get(rows.map_table("m"), key) is not None) == answered


def test_leases_of_a_dead_worker_end_in_few_records(memory_queue_of_a_dead_worker):
    _, q, records = memory_queue_of_a_dead_worker
    before = records()
    message = q.take(timeout=0)
    assert message is not None
    assert message.attempt == 2
    assert records() - before <= 2, "one ends leases, one takes"
    before = records()
    q.counts()
    assert records() - before <= 3


@pytest.fixture
def memory_queue_of_a_dead_worker(monkeypatch):
    monkeypatch.setattr(config, "LEASES_ENDED_PER_RECORD_MAX", 100)
    env = SeededEnv(1)
    log = MemoryLog(env=env)
    dead = Database([MemoryShard(log, [StateFold(1)], env, pause=env.advance)], level=None)
    q = dead.queue("q")
    q.put_many(range(250))
    while q.take(timeout=0) is not None:
        pass
    space = MemoryShard(log, [StateFold(1)], env, pause=env.advance)
    monkeypatch.setattr(space, "member_alive", lambda member: member == space.member)
    db = Database([space], level=None)
    yield db, db.queue("q"), lambda: log.last
    db.close()


def test_dead_letters_for_another_shard_are_forwarded_together():
    env = SeededEnv(1)
    logs, spaces, _ = database(env, (), shards=3)
    db = Database(spaces, level=None)
    source = "mail"
    target = next(f"dead{n}" for n in range(50) if db.queue(f"dead{n}").shard != db.queue(source).shard)
    q = db.queue(source, max_attempts=1, dead_letter=target)
    q.put_many(range(50))
    taken = [q.take(timeout=0) for _ in range(50)]
    home = logs[q.shard]
    for message in taken[:-1]:
        q.submit(queue_ops.Nack("mail", message.id, message._epoch, "no"))
    before = home.last
    assert q.take(timeout=0) is None
    assert home.last - before < 10
    assert len(db.queue(target)) == 49


# -- waits: their limit is for the wait, not for its last step


@pytest.mark.parametrize(("lock_s", "connection_s"), [(1.0, 0.5), (0.5, 0.5), (0.3, 20.0)])
def test_a_timed_wait_leaves_nobody_in_the_line_of_a_lock(lock_s, connection_s):
    env = SeededEnv(1)
    log = Scripted(env)
    holder, other = (Database([in_world(log, env)], level=None, timeout=t) for t in (None, connection_s))
    held = holder.lock("l")
    held.acquire()
    with pytest.raises(of.Timeout):
        other.lock("l").acquire(timeout=lock_s)
    assert held.holder().waiting == 0
    held.release()
    assert held.holder() is None, "nobody who has left was given it"
    held.acquire(timeout=0)


def test_an_async_timed_wait_leaves_nobody_in_the_line_of_a_lock(tmp_path):
    async def main():
        async with of.aio.connect(tmp_path / "s") as a, of.aio.connect(tmp_path / "s", timeout=0.5) as b:
            async with a.lock("l"):
                with pytest.raises(of.Timeout):
                    async with b.lock("l", timeout=1.0):
                        pass
            async with a.lock("l", timeout=0):
                pass

    asyncio.run(main())


def in_world(log, env, shards=1):
    """A shard in a world of one thread, whose waits only let time pass."""
    space = MemoryShard(log, [StateFold(shards)], env, pause=env.advance, replica=True)

    def wait(after, timeout):
        if space.applied <= after:
            env.advance(timeout + 0.001)  # as any wait does: a little longer
        return space.applied

    space.wait = wait
    return space


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(("take_s", "connection_s"), [(1.0, 0.5), (0.5, 0.5), (0.3, 20.0)])
def test_a_take_from_an_idle_queue_ends_with_nothing(shards, take_s, connection_s):
    env = SeededEnv(1)
    logs = [Scripted(env) for _ in range(shards)]
    db = Database([in_world(log, env, shards) for log in logs], level=None, timeout=connection_s)
    began = env.boot_s()
    assert db.queue("q").take(timeout=take_s) is None
    assert take_s <= env.boot_s() - began < take_s + 0.1
    with db.queue("q").get(timeout=take_s) as message:
        assert message is None


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(("take_s", "connection_s"), [(1.0, 0.5), (0.3, 20.0)])
def test_what_comes_at_the_end_of_a_wait_is_taken_with_the_time_of_a_write(shards, take_s, connection_s):
    env = SeededEnv(1)
    logs = [Scripted(env) for _ in range(shards)]
    db = Database([in_world(log, env, shards) for log in logs], level=None, timeout=connection_s)
    q = db.queue("q")
    space, end_s = db._state.shards[q.shard], env.boot_s() + take_s
    wait, tries = space.wait, []

    def put_at_the_end(after, timeout):
        if env.boot_s() + timeout < end_s - 0.01 or tries:
            return wait(after, timeout)
        env.advance(end_s - 0.001 - env.boot_s())
        tries.append(q.put("late"))
        logs[q.shard].script = [no_leader] * 2  # the take meets a short election
        return space.applied

    space.wait = put_at_the_end
    assert q.take(timeout=take_s).value == "late"
    assert q.counts().in_flight == 1


def test_what_cleans_up_has_time_when_the_call_around_it_has_none():
    env = SeededEnv(1)
    db = Database([in_world(Scripted(env), env)], level=None, timeout=1.0)
    q = db.queue("q")
    q.put(1)
    with limited(db._state):
        message = q.take(timeout=0)
        held = db.lock("l")
        held.acquire()
        env.advance(2.0)
        message.nack()
        held.release()
    assert q.counts().ready == 1
    assert held.holder() is None
