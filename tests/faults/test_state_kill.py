"""Programs that are killed while they work on shared state: what was acknowledged is there, once, and nobody is locked out."""

import importlib.util
import json
import os
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
from onefold.env import SYSTEM
from onefold.fold import exactly_once
from onefold.fold.log_space import LogSpace
from onefold.folds import folds as space_folds
from onefold.log import members
from onefold.log.memory import MemoryLog
from onefold.state import recovery
from onefold.testing.history import Operation
from onefold.testing.linearizability import check_linearizable
from onefold.testing.models import register
from onefold.testing.workload_checks import check_bank, check_counter, check_set

pytestmark = pytest.mark.faults
ROUNDS = int(os.environ.get("ONEFOLD_FAULT_ROUNDS", "6"))
WRITER = Path(__file__).with_name("state_writer.py")
_spec = importlib.util.spec_from_file_location("state_writer", WRITER)
program = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(program)
BALANCE_TOTAL = program.BALANCE * len(program.ACCOUNTS)
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


def operations(said, kinds):
    """The lines of one process name as operations; each start of it is a client of its own."""
    found, opened, expected = [], {}, {}
    for line in said:
        if line["say"] == "try" and line["op"] in kinds:
            opened[line["id"], line["start"]] = line
        elif line["say"] == "expects":
            expected[line["id"]] = line["value"]
        elif line["say"] in ("ack", "failed", "unknown") and (line["id"], line["start"]) in opened:
            tried = opened.pop((line["id"], line["start"]))
            status = {"ack": "ok", "failed": "fail", "unknown": "info"}[line["say"]]
            found.append((tried, status, line.get("result"), line["t"]))
    found += [(tried, "info", None, None) for tried in opened.values()]
    return found, expected


def register_history(all_said):
    history = []
    for number, said in enumerate(all_said):
        found, expected = operations(said, ("write", "read", "cas"))
        for tried, status, result, at in found:
            value = tried["id"] if tried["op"] == "write" else None
            if tried["op"] == "cas":
                if tried["id"] not in expected:
                    continue  # it was killed before it had written
                value = (expected[tried["id"]], tried["id"])
            if tried["op"] == "write":
                result = None
            process = number * 10_000 + tried["start"]
            history.append(
                Operation(process, tried["op"], tried["key"], value, result, tried["t"], at, status)
            )
    return history


def named(all_said, kind):
    """For each request of a kind: every answer it was given."""
    answers = {}
    for said in all_said:
        kinds = {line["id"]: line["op"] for line in said if line["say"] == "try"}
        for name, op in kinds.items():
            if op == kind:
                answers.setdefault(name, [])
        for line in said:
            if line["say"] == "ack" and kinds[line["id"]] == kind:
                answers[line["id"]].append(line["result"])
    return answers


def replayed_digest(space, shard, shards):
    log, start = MemoryLog(), 1
    while page := space.log.read(start):
        for item in page:
            log.append(item.data)
            log._stored[-1].engine_ms = item.engine_ms
        start = page[-1].offset + 1
    return LogSpace(log, space_folds(shard, shards), SYSTEM).state_digest()


def drain(queue):
    found = []
    while True:
        with queue.get(timeout=0) as message:
            if message is None:
                return found
            found.append(message.value)


def check_once(what, seen, answers, *, settled):
    """What is there is there once, and it is what was acknowledged and perhaps some of what has no known outcome; once
    ``settled`` (all was repeated), it is everything."""
    twice = [name for name, times in Counter(seen).items() if times > 1]
    assert not twice, f"{what} applied twice: {twice}"
    acked = {name for name, results in answers.items() if results}
    assert acked <= set(seen), f"{what} acknowledged and lost: {acked - set(seen)}"
    assert set(seen) <= set(answers), f"{what} that nobody asked for: {set(seen) - set(answers)}"
    if settled:
        assert set(seen) == set(answers), f"{what} repeated and not there: {set(answers) - set(seen)}"


def check_named(db, all_said, *, settled):
    """Requests under a request id: exactly once, however often they were sent."""
    for kind in program.REPEATABLE:
        for name, results in named(all_said, kind).items():
            assert len({json.dumps(result) for result in results}) <= 1, (
                f"{kind} {name} got two answers: {results}"
            )
    check_once("puts", list(db.map("named")), named(all_said, "named put"), settled=settled)
    many = Counter(name for _, name in db.map("named many"))
    assert set(many.values()) <= {3}, "a put_many was done in part"
    check_once("put_many", list(many), named(all_said, "named many"), settled=settled)
    counts = named(all_said, "named count")
    high = sum(1 for results in counts.values() if results) if not settled else len(counts)
    assert high <= db.map("counts").get("named", 0) <= len(counts)
    answered = [results[0] for results in counts.values() if results]
    assert len(set(answered)) == len(answered), "two increments gave the same value"
    records = [record.value for record in db.stream("named").read()]
    check_once("records", records, named(all_said, "named record"), settled=settled)


def check_bank_moves(db, all_said, *, settled):
    moves = dict(db.map("moves"))
    check_once("transfers", list(moves), named(all_said, "transfer"), settled=settled)
    check_once(
        "outbox records",
        [r.value for r in db.stream("audit").read()],
        named(all_said, "transfer"),
        settled=settled,
    )
    assert {record.value for record in db.stream("audit").read()} == set(moves)
    assert db.map("counts").get("moves", 0) == len(moves)
    assert len(db.queue("mail")) == len(moves)
    balances = dict.fromkeys(range(len(program.ACCOUNTS)), program.BALANCE)
    for said in all_said:
        for line in said:
            if line["say"] == "try" and line["op"] == "transfer" and line["id"] in moves:
                moves.pop(line["id"])
                balances[line["source"]] -= line["amount"]
                balances[line["target"]] += line["amount"]
    bank = db.map("bank")
    assert [bank[account] for account in program.ACCOUNTS] == list(balances.values())


def check_plain(db, all_said):
    """Requests without a name: acknowledged ones are there; those of unknown outcome once or not at all."""
    history, counts, deleted, attempted = [], [], set(), set()
    for said in all_said:
        found, _ = operations(said, ("put", "delete", "count", "many"))
        for tried, status, _, at in found:
            if tried["op"] == "put":
                history.append(Operation(0, "add", None, tried["id"], None, tried["t"], at, status))
            elif tried["op"] == "many":
                history.append(Operation(1, "add", None, tried["id"], None, tried["t"], at, status))
            elif tried["op"] == "count":
                counts.append(Operation(2, "add", None, 1, None, tried["t"], at, status))
            else:
                (deleted if status == "ok" else attempted).add(tried["key"])
    puts, many = list(db.map("plain")), Counter(name for _, name in db.map("many"))
    now, later = time.monotonic(), time.monotonic() + 1
    assert not deleted & set(puts), "a deleted key is there"
    kept = [op for op in history if op.process == 0 and op.value not in deleted | attempted]
    # A key whose delete has no known outcome may be there or not.
    left = [key for key in puts if key not in attempted]
    check_set([*kept, Operation(0, "read", None, None, left, now, later, "ok")]).require()
    assert set(many.values()) <= {3}, "a put_many was done in part"
    wholes = [op for op in history if op.process == 1]
    check_set([*wholes, Operation(1, "read", None, None, list(many), now, later, "ok")]).require()
    total = db.map("counts").get("plain", 0)
    check_counter([*counts, Operation(2, "read", None, None, total, now, later, "ok")]).require()


def check_reads(all_said):
    reads = []
    for said in all_said:
        for tried, status, result, at in operations(said, ("balances",))[0]:
            named_result = None if result is None else dict(enumerate(result))
            reads.append(Operation(0, "read", None, None, named_result, tried["t"], at, status))
    check_bank(reads, BALANCE_TOTAL, range(len(program.ACCOUNTS))).require()
    check_linearizable(register_history(all_said), register()).require()


def check_space(db):
    assert recovery.recover(db._state) == 0, "a transaction over several shards was left undecided"
    for shard, space in enumerate(db._spaces):
        space.verify()
        assert space.state_digest() == replayed_digest(space, shard, len(db._spaces))
        assert set(members.notes(space.directory / "members")) == {space.member}, (
            "a dead process counts as alive"
        )
        assert list((space.directory / "wake").iterdir()) == []


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
    began = time.monotonic()
    with of.connect(directory, timeout=10) as db:
        db.map("plain")["afterwards"] = 1
        del db.map("plain")["afterwards"]
        assert time.monotonic() - began < 10, "a lock was left behind"
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


# -- dying on every line of the commit path


class Crasher:
    """The program that runs operations in forked processes, which die at named places."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, WRITER, "crash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def run(self, directory, place, times, ops):
        """Which operations were acknowledged, and whether the process died there (else it came by less often)."""
        command = {"directory": str(directory), "place": place, "times": times, "ops": ops}
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()
        acked = {}
        while (line := json.loads(self.process.stdout.readline()))["say"] != "ended":
            assert line["say"] not in ("failed", "unknown"), line
            if line["say"] == "ack":
                acked[line["id"]] = line["result"]
        assert line["signal"] == signal.SIGKILL or line["status"] == 0
        return acked, line["signal"] is not None

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def crasher():
    made = Crasher()
    yield made
    made.close()


@pytest.mark.parametrize("place", program.PLACES)
def test_a_program_that_dies_at_a_place_has_committed_from_there_on_and_not_before(place, tmp_path, crasher):
    committed = list(program.PLACES).index(place) >= program.COMMITTED_FROM
    with of.connect(tmp_path / "space", timeout=10) as db:
        program.set_up(db)
        everything = {"named put": "named", "named many": "named many", "transfer": "moves"}
        for kind, where in everything.items():
            op = {"id": kind, "op": kind, "source": 0, "target": 1, "amount": 3}
            # What a process does first also registers nothing here, so the first commit is the operation's.
            assert crasher.run(tmp_path / "space", place, 1, [op]) == ({}, True)
            there = list(db.map(where))
            assert bool(there) is committed, f"{kind} killed {place}: {there}"
            assert db.outcome(kind) == ("committed" if committed else None)
            if kind == "transfer":
                assert len(db.queue("mail")) == len(list(db.stream("audit").read())) == int(committed)
            first = program.DO[kind](db, op)
            assert program.DO[kind](db, op) == first
        assert list(db.map("named many")) == [(n, "named many") for n in range(3)]
        assert (len(db.queue("mail")), db.map("counts")["moves"]) == (1, 1)
        assert program.balances(db, None) == [97, 103, 100, 100, 100, 100]
        check_space(db)


SHARDED_PLACES = ["before COMMIT", "after COMMIT", "before the answer"]
COMMITS_MAX = 40


@pytest.mark.parametrize("place", SHARDED_PLACES)
def test_a_transaction_over_several_shards_is_whole_wherever_its_program_dies(place, tmp_path, crasher):
    died = []
    with of.connect(tmp_path / "space", shards=3, timeout=10) as db:
        program.set_up(db)
        for times in range(1, COMMITS_MAX):
            name = f"t-{times}"
            op = {"id": name, "op": "transfer", "source": times % 6, "target": (times + 1) % 6, "amount": 1}
            acked, dead = crasher.run(tmp_path / "space", place, times, [op])
            assert sum(program.balances(db, None)) == BALANCE_TOTAL
            done = name in db.map("moves")
            assert done or not acked
            assert (name in {r.value for r in db.stream("audit").read()}) is done
            assert len(db.queue("mail")) == db.map("counts").get("moves", 0) == len(db.map("moves"))
            assert db.outcome(name) == ("committed" if done else None)
            program.transfer(db, op)  # asked again, it happens once
            assert len(db.queue("mail")) == db.map("counts")["moves"] == len(db.map("moves")) == times
            if not dead:
                break
            died.append(done)
        else:
            pytest.fail(f"a transfer takes more than {COMMITS_MAX} commits")
        assert died == sorted(died), (
            "one commit decides: whoever dies before it has done nothing, and after it everything"
        )
        assert {True, False} == set(died)
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
