"""Members of consumer groups that fall silent or are killed: others take over their shares, and every record counts once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys

import pytest

import onefold as of
from onefold import config
from onefold.env import SeededEnv
from onefold.log.memory import MemoryLog
from onefold.shard.memory import MemoryShard
from onefold.state.core.client import StateClient
from onefold.state.fold.machine import StateFold
from onefold.state.streams.stream import Stream
from support.filled_streams import fill


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    monkeypatch.setattr(config, "CONSUMER_WATCH_S", 0.02)


def test_a_silent_member_is_expired_and_may_come_back():
    env = SeededEnv(1)
    client = StateClient([MemoryShard(MemoryLog(env=env), [StateFold()], env)])
    s = Stream(client, "s", partitions=4)
    for number in range(20):
        s.append(number, key=number)
    one, two = s.consumer("g"), s.consumer("g")
    next(one)
    next(two)
    for _ in range(2):  # two beats, one is silent
        env.advance(config.CONSUMER_SESSION_S / 3)
        two._members.look_now()
        two._keep_share()
    assert len(two.assignment) == 2
    env.advance(4)
    two._members.look_now()
    two._keep_share()
    assert two.assignment == (0, 1, 2, 3)
    with pytest.raises(of.Conflict):
        one.commit()
    next(one)
    assert len(one.assignment) == 2
    two._members.look_now()
    two._keep_share()
    assert len(two.assignment) == 2
    client.close()


def test_a_member_that_beats_is_not_expired():
    env = SeededEnv(1)
    client = StateClient([MemoryShard(MemoryLog(env=env), [StateFold()], env)])
    s = Stream(client, "s", partitions=2)
    one, two = s.consumer("g"), s.consumer("g")
    for _ in range(20):
        env.advance(config.CONSUMER_SESSION_S / 2)
        one._keep_share()
        two._keep_share()
    assert len(one.assignment) == len(two.assignment) == 1
    assert one._members.generation == two._members.generation == 2
    client.close()


MEMBER = """
import sys, onefold as of
with of.connect(sys.argv[1]) as db:
    consumer = db.stream("s").consumer("g")
    for record in consumer:
        print(record.partition, record.value, flush=True)
"""


@pytest.mark.parametrize("shards", [None, 3])
def test_the_share_of_a_killed_process_is_taken_over(tmp_path, shards, monkeypatch):
    monkeypatch.setattr(config, "CONSUMER_SESSION_S", 100.0)
    with of.connect(tmp_path / "space", shards=shards) as db:
        s = fill(db, 40)
        other = subprocess.Popen(
            [sys.executable, "-c", MEMBER, str(tmp_path / "space")], stdout=subprocess.PIPE, text=True
        )
        try:
            first = other.stdout.readline()
            assert first
            with s.consumer("g") as consumer:
                found = set()
                other.send_signal(signal.SIGSTOP)  # it holds its share, and gives no more
                before = db._state.env.boot_s()
                while len(consumer.assignment) == 2 and len(found) < _share_size(s, consumer):
                    found.add(next(consumer).value)
                assert len(consumer.assignment) == 2
                other.kill()
                while len(found) < 40:
                    found.add(next(consumer).value)
                assert consumer.assignment == (0, 1, 2, 3)
                assert (
                    db._state.env.boot_s() - before < config.CONSUMER_SESSION_S
                )  # its death was known at once
                consumer.commit()
        finally:
            other.kill()
            other.wait()
            other.stdout.close()


def _share_size(stream, consumer):
    return sum(end for p, (_, end) in stream.positions().items() if p in consumer.assignment)


WORKER = """
import sys, onefold as of
with of.connect(sys.argv[1]) as db:
    with db.stream("s").consumer("g", timeout=6) as consumer:
        for record in consumer:
            try:
                with db.transaction() as tx:
                    seen = tx.map("seen")
                    seen[record.value] = seen.get(record.value, 0) + 1
                    tx.stream("out").append(record.value, key=record.key)
                    tx.commit(consumer)
            except of.Conflict:
                continue
"""


@pytest.mark.parametrize("shards", [None, 2])
def test_transactions_make_every_record_count_once_though_processes_are_killed(tmp_path, shards):
    rng = random.Random(11)
    with of.connect(tmp_path / "space", shards=shards) as db:
        fill(db, 120)
        db.stream("out", partitions=3).create()
        command = [sys.executable, "-c", WORKER, str(tmp_path / "space")]
        workers = []
        try:
            for _ in range(3):
                workers.append(subprocess.Popen(command))
                have, want = db._state.env.boot_s(), rng.randrange(5, 30) + len(db.map("seen"))
                while len(db.map("seen")) < min(want, 100) and db._state.env.boot_s() - have < 20:
                    db._state.shards[0].wait(db._state.shards[0].applied, 0.1)
                os.kill(workers[-1].pid, signal.SIGKILL)
                workers[-1].wait()
            workers += [subprocess.Popen(command) for _ in range(2)]
            for worker in workers[-2:]:
                assert worker.wait(60) == 0
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        assert dict(db.map("seen").items()) == dict.fromkeys(range(120), 1)
        assert sorted(record.value for record in db.stream("out").read()) == list(range(120))


DIES = """
import os, signal, sys, onefold as of
from onefold.state.streams.consumer import Consumer
Consumer._confirm = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with of.connect(sys.argv[1]) as db, db.stream("s").consumer("g", timeout=0) as consumer:
    batch = [next(consumer).value for _ in range(3)]
    with db.transaction(request_id=sys.argv[2] or None) as tx:
        for value in batch:
            tx.map("seen").increment(value)
        tx.commit(consumer)
"""


@pytest.mark.parametrize("shards", [None, 2])
def test_a_process_that_is_killed_before_it_knows_of_its_commit_has_moved_the_offsets(tmp_path, shards):
    with of.connect(tmp_path / "space", shards=shards) as db:
        stream = fill(db, 8, partitions=1)
        for number, request_id in enumerate(("", "x")):
            died = subprocess.run(
                [sys.executable, "-c", DIES, str(tmp_path / "space"), request_id], check=False
            )
            assert died.returncode == -signal.SIGKILL
            assert dict(db.map("seen").items()) == dict.fromkeys(range(3 * number + 3), 1)
        with stream.consumer("g", timeout=1) as consumer:  # its share is free once its death is seen
            assert [record.value for record in consumer] == [6, 7]
