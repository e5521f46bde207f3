"""Programs that are killed while they work on shared state: what was acknowledged is there, once, and nobody is locked out."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

import onefold as of
from onefold.store import exactly_once
from support.state_writing import (
    WRITER,
    check_bank_moves,
    check_named,
    check_once,
    check_plain,
    check_reads,
    check_space,
    named,
    program,
)

pytestmark = pytest.mark.faults
ROUNDS = int(os.environ.get("ONEFOLD_FAULT_ROUNDS", "6"))
REPEATED = 5
"""So many acknowledged requests are repeated by a process that was started again."""


class Writer:
    """A process that works, all that it and those before it of its name said, and what they left open."""

    def __init__(self, directory, name, seed):
        self.directory, self.name, self.seed = directory, name, seed
        self.said = []
        self.starts = 0
        self.changed = threading.Condition()

    def start(self):
        with self.changed:
            lines = list(self.said)
        first = max((int(line["id"].split("-")[1]) for line in lines if line["say"] == "try"), default=0)
        self.starts += 1
        self.process = subprocess.Popen(
            [sys.executable, WRITER, "work", self.directory, self.name, str(self.seed), str(first)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.process.stdin.write(json.dumps(open_requests(lines)).encode() + b"\n")
        self.process.stdin.flush()
        self.reader = threading.Thread(target=self._read, args=(self.process.stdout, self.starts))
        self.reader.start()

    def _read(self, pipe, start):
        for line in pipe:
            with self.changed:
                if line.endswith(b"\n"):  # and is not what a kill has left of it
                    self.said.append({**json.loads(line), "start": start})
                self.changed.notify_all()

    def acks(self):
        return sum(line["say"] == "ack" and line["start"] == self.starts for line in self.said)

    def wait_for_acks(self, wanted, timeout=60):
        """However slow the machine is; it fails when nothing at all comes for so long."""
        there = True
        while there and self.acks() < wanted:
            with self.changed:
                seen = len(self.said)
                there = self.changed.wait_for(lambda seen=seen: len(self.said) > seen, timeout)
        if not there:
            self.process.send_signal(signal.SIGUSR1)  # it prints where it stands
        assert there, f"{self.name} does not go on: {self.said[-3:]}, ended: {self.process.poll()}"

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdin.close()
        self.process.stdout.close()


def open_requests(said):
    """The requests of unknown outcome and the last acknowledged ones, as a program that starts again would repeat them."""
    tried = {line["id"]: line for line in said if line["say"] == "try" and line["op"] in program.REPEATABLE}
    acked = [line["id"] for line in said if line["say"] == "ack" and line["id"] in tried]
    chosen = [name for name in tried if name not in set(acked)] + acked[-REPEATED:]
    wanted = ("id", "op", "source", "target", "amount")
    return [{key: tried[name][key] for key in wanted if key in tried[name]} for name in chosen]


@contextmanager
def writers(directory, seed, number):
    started = [Writer(directory, f"w{n}", seed) for n in range(number)]
    try:
        for writer in started:
            writer.start()
        yield started
    finally:
        for writer in started:
            writer.kill()


def drain(queue):
    found = []
    while True:
        with queue.get(timeout=0) as message:
            if message is None:
                return found
            found.append(message.value)


def failures(all_said):
    """Errors that no workload of this kind should see."""
    return [line for said in all_said for line in said if line["say"] in ("failed", "unknown")]


@pytest.mark.parametrize("shards", [1, 3])
def test_killed_and_stopped_programs_lose_nothing_and_do_nothing_twice(shards, tmp_path):
    for seed in range(max(1, ROUNDS // 6)):
        run_rounds(tmp_path / f"space{seed}", seed, shards, ROUNDS)


def run_rounds(directory, seed, shards, rounds):
    rng = random.Random(f"{seed} {shards}")
    with of.connect(directory, shards=shards) as db:
        program.set_up(db)
    with writers(directory, seed, 3) as started:
        for _ in range(rounds):
            victim = rng.choice(started)
            victim.wait_for_acks(rng.randint(1, 60))
            time.sleep(rng.random() * 0.01)  # the random moment, not a wait for a state
            if rng.random() < 0.4:
                victim.process.send_signal(signal.SIGSTOP)
                if rng.random() < 0.5:
                    time.sleep(rng.random() * 0.2)  # it may have the write lock, so nothing can be waited for
                    victim.process.send_signal(signal.SIGCONT)
                    continue
            victim.kill()
            victim.start()
        for writer in started:
            writer.wait_for_acks(20)
        rng.shuffle(started)
    all_said = [writer.said for writer in started]
    with of.connect(directory, timeout=60) as db:
        db.map("plain")["afterwards"] = 1  # raises when a lock was left behind
        del db.map("plain")["afterwards"]
        check_everything(db, all_said)


def check_everything(db, all_said):
    assert not failures(all_said)
    check_named(db, all_said, settled=False)
    check_bank_moves(db, all_said, settled=False)
    check_plain(db, all_said)
    check_reads(all_said)
    check_space(db)
    # Whoever does not know the outcome asks again under the same request id.
    repeats = [op for said in all_said for op in open_requests(said)]
    for op in repeats:
        all_said[0].append({"say": "try", "t": time.monotonic(), "start": 0, **op})
        result = program.DO[op["op"]](db, op)
        all_said[0].append(
            {"say": "ack", "t": time.monotonic(), "start": 0, "id": op["id"], "result": result}
        )
    check_named(db, all_said, settled=True)
    check_bank_moves(db, all_said, settled=True)
    messages = drain(db.queue("named"))
    check_once("messages", messages, named(all_said, "named message"), settled=True)
    check_once("mails", drain(db.queue("mail")), named(all_said, "transfer"), settled=True)
    check_space(db)


# -- a check that cannot fail is none


def test_the_checks_notice_what_is_lost_torn_or_done_twice(tmp_path):
    said = [
        {"say": "try", "t": 1.0, "start": 1, "id": "w0-1", "op": "named put"},
        {"say": "ack", "t": 2.0, "start": 1, "id": "w0-1", "result": "v"},
        {"say": "try", "t": 3.0, "start": 1, "id": "w0-2", "op": "put"},
        {"say": "ack", "t": 4.0, "start": 1, "id": "w0-2", "result": "v"},
        {"say": "try", "t": 5.0, "start": 1, "id": "w0-3", "op": "count"},
        {"say": "ack", "t": 6.0, "start": 1, "id": "w0-3", "result": 1},
        {"say": "try", "t": 7.0, "start": 1, "id": "w0-4", "op": "read", "key": "r0"},
        {"say": "ack", "t": 8.0, "start": 1, "id": "w0-4", "result": "from nowhere"},
    ]
    with of.connect(tmp_path / "space") as db:
        program.set_up(db)
        with pytest.raises(AssertionError, match="lost"):
            check_named(db, [said], settled=False)
        with pytest.raises(AssertionError, match="lost"):
            check_plain(db, [said])
        db.map("plain")["w0-2"] = "w0-2"
        with pytest.raises(AssertionError, match="sum"):
            check_plain(db, [said])
        db.map("counts").increment("plain", 1)
        check_plain(db, [said])
        db.map("counts").increment("plain", 1)
        with pytest.raises(AssertionError, match="sum"):
            check_plain(db, [said])
        with pytest.raises(AssertionError):
            check_reads([said])
        db.map("named")["w0-1"] = 1
        check_named(db, [said], settled=False)
        db.map("named many")[0, "x"] = 1
        with pytest.raises(AssertionError, match="in part"):
            check_named(db, [said], settled=False)
        db.queue("mail").put("torn")
        with pytest.raises(AssertionError):
            check_bank_moves(db, [said], settled=False)


def repeat_all(db):
    """Every request that may be repeated, done twice, and what was said."""
    said = []
    for number, kind in enumerate(program.REPEATABLE):
        op = {"id": f"w0-{number}", "op": kind, "source": 0, "target": 1, "amount": 3}
        for start in (1, 2):
            said.append({"say": "try", "t": time.monotonic(), "start": start, **op})
            result = program.DO[kind](db, op)
            said.append(
                {"say": "ack", "t": time.monotonic(), "start": start, "id": op["id"], "result": result}
            )
    return said


def test_the_checks_pass_what_is_right_and_notice_a_missing_dedupe(tmp_path, monkeypatch):
    with of.connect(tmp_path / "right") as db:
        program.set_up(db)
        said = repeat_all(db)
        check_named(db, [said], settled=True)
        check_bank_moves(db, [said], settled=True)
    with of.connect(tmp_path / "wrong") as db:
        program.set_up(db)
        monkeypatch.setattr(exactly_once, "requested", lambda con, request_id, now_ms: None)
        said = repeat_all(db)
        with pytest.raises(AssertionError):
            check_bank_moves(db, [said], settled=True)
        for kind in set(program.REPEATABLE) - {"transfer"}:
            names = {line["id"] for line in said if line.get("op") == kind}
            with pytest.raises(AssertionError, match="two answers"):
                check_named(db, [[line for line in said if line["id"] in names]], settled=False)
