"""Producers, takers and lock holders killed or stopped at any moment: nothing is lost, nothing is had by two at once."""

import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

import onefold as of

pytestmark = pytest.mark.faults
WORKER = Path(__file__).with_name("queue_worker.py")


class Worker:
    """A worker process and all that it said so far, with the times at which it was read."""

    def __init__(self, job, directory, name):
        self.job = job
        self.process = subprocess.Popen(
            [sys.executable, WORKER, job, directory, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.said = []
        self.changed = threading.Condition()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self.changed:
                if line.endswith(b"\n"):
                    self.said.append(line.decode().split())
                self.changed.notify_all()

    def wait_for(self, word, times=1, timeout=60):
        with self.changed:
            found = self.changed.wait_for(lambda: self.heard(word) >= times, timeout)
        assert found, f"it did not say {word!r} {times} times: {self.said[-5:]}"
        return next(words for words in self.said if words[0] == word)

    def heard(self, word):
        return sum(words[0] == word for words in self.said)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdin.close()
        self.process.stdout.close()


@contextmanager
def workers(jobs):
    started = [Worker(*job) for job in jobs]
    try:
        yield started
    finally:
        for worker in started:
            worker.kill()


def values(said, word):
    return [words[1] for words in said if words[0] == word and len(words) > 1]


def check_deliveries(said, left):
    """``said``: all lines of all workers. ``left``: what was drained in the end."""
    tried, put = set(values(said, "try")), set(values(said, "put"))
    acked, done = set(values(said, "ack")), set(values(said, "done"))
    assert not put - done - set(left), "an acknowledged put was lost"
    assert set(values(said, "got")) | set(left) <= tried, "something was delivered that nobody put"
    assert not acked & set(left), "a message came again after its acknowledgement had returned"
    assert max(Counter(left).values(), default=1) == 1, "a message is in the queue twice"
    attempts = Counter((words[1], words[2]) for words in said if words[0] == "got" and len(words) > 2)
    assert max(attempts.values(), default=1) == 1, "one attempt was given to two"


@pytest.mark.moving(2)
@pytest.mark.parametrize("seed", range(4))
def test_killed_producers_and_takers_lose_nothing_and_share_nothing(seed, tmp_path):
    rng = random.Random(seed)
    directory = tmp_path / "space"
    of.connect(directory).close()
    said = []
    for round_number in range(3):
        jobs = [
            (job, directory, f"s{seed}r{round_number}n{number}")
            for job in ("put", "take")
            for number in range(2)
        ]
        with workers(jobs) as started:
            for worker in started:
                worker.wait_for({"put": "put", "take": "ack"}[worker.job], rng.randint(1, 30))
            time.sleep(rng.random() * 0.01)  # the random moment of the kill, not a wait for a state
            rng.shuffle(started)
        for worker in started:
            said += worker.said
    with of.connect(directory) as db:
        q = db.queue("work", lease="60s", max_attempts=1_000_000)
        left = []
        while any(q.counts()):  # leases of the dead are over at once, those of the living would last 60 s
            with q.get(timeout="50s") as msg:
                assert msg is not None, q.counts()
                left.append(msg.value)
        check_deliveries(said, left)
        assert len(q) == 0
        assert q.counts() == (0, 0, 0, 0, 0)
    for name in {value.rsplit("-", 1)[0] for value in left}:  # those of one key were kept in order
        keyed = [int(value.rsplit("-", 1)[1]) for value in left if value.startswith(name + "-")]
        assert [number for number in keyed if number % 3 == 0] == sorted(n for n in keyed if n % 3 == 0)


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ([["try", "a"], ["put", "a"]], []),
        ([["try", "a"], ["put", "a"], ["got", "a", "1"]], []),
        ([["try", "a"], ["put", "a"], ["got", "a", "1"], ["done", "a"], ["ack", "a"]], ["a"]),
        ([["try", "a"], ["put", "a"], ["got", "a", "1"], ["got", "a", "1"]], []),
        ([["got", "a", "1"]], []),
        ([["try", "a"]], ["a", "a"]),
    ],
)
def test_the_check_notices_wrong_deliveries(said, left):
    with pytest.raises(AssertionError):
        check_deliveries(said, left)


def test_a_message_that_kills_its_takers_ends_in_the_dead_letters(tmp_path):
    directory = tmp_path / "space"
    with of.connect(directory) as db:
        q = db.queue("work")
        q.put("poison")
        for attempt in ("1", "2", "3"):
            with workers([("poison", directory, "3")]) as (worker,):
                assert worker.wait_for("got") == ["got", "poison", attempt]
                worker.process.wait()
        while not q.dead():  # until this process has seen the last death
            with q.get(timeout="0.1s") as msg:
                assert msg is None
        (letter,) = q.dead()
        assert (letter.value, letter.attempts) == ("poison", 3)
        assert "died" in letter.error


def test_a_killed_holder_loses_the_lock_at_once(tmp_path):
    directory = tmp_path / "space"
    with of.connect(directory) as db, workers([("lock", directory, "1h")]) as (worker,):
        token = int(worker.wait_for("held")[1])
        with pytest.raises(of.Timeout):
            db.lock("nightly", timeout="0.5s").acquire()
        worker.kill()
        with db.lock("nightly", timeout="120s") as lock:
            assert lock.fencing_token > token


def test_a_killed_waiter_is_passed_over(tmp_path):
    directory = tmp_path / "space"
    with of.connect(directory) as db:
        lock = db.lock("nightly", timeout="120s")
        lock.acquire()
        with workers([("lock", directory, "1h")]) as (worker,):
            while not lock.holder().waiting:
                db._shard.wait(db._shard.applied, 0.05)
            worker.kill()
        lock.release()
        with lock:
            pass


def test_a_stopped_holder_loses_the_lock_after_the_ttl_and_is_told(tmp_path):
    directory = tmp_path / "space"
    with of.connect(directory) as db, workers([("lock", directory, "5s")]) as (worker,):
        token = int(worker.wait_for("held")[1])
        renewals = db.lock("nightly").holder().renewals
        while db.lock("nightly").holder().renewals == renewals:
            db._shard.wait(db._shard.applied, 0.05)
        db._state.tick(0)  # so it has left the commit of its renewal, and is not stopped with the write lock
        worker.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with db.lock("nightly", timeout="120s") as lock:
            assert time.monotonic() - began > 1
            assert lock.fencing_token > token
            worker.process.send_signal(signal.SIGCONT)
            worker.process.stdin.write(b"leave\n")
            worker.process.stdin.flush()
            assert worker.wait_for("conflict") == ["conflict", "False"]
            lock.check()
