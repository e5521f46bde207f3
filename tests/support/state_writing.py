"""What programs of ``state_writer`` said that they did, and whether it is what is there."""

import importlib.util
import json
import time
from collections import Counter
from pathlib import Path

from onefold.env import SYSTEM
from onefold.folds import folds as space_folds
from onefold.log.memory import MemoryLog
from onefold.machine import members
from onefold.shard.memory import MemoryShard
from onefold.state.core import recovery
from onefold.testing.history import Operation
from onefold.testing.linearizability import check_linearizable
from onefold.testing.models import register
from onefold.testing.workload_checks import check_bank, check_counter, check_set

WRITER = Path(__file__).parents[1] / "faults" / "state_writer.py"
_spec = importlib.util.spec_from_file_location("state_writer", WRITER)
program = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(program)
BALANCE_TOTAL = program.BALANCE * len(program.ACCOUNTS)


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
    return MemoryShard(log, space_folds(shard, shards), SYSTEM).state_digest()


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
    now = time.monotonic()
    later = now + 1
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
    for shard, space in enumerate(db._shards):
        space.verify()
        assert space.state_digest() == replayed_digest(space, shard, len(db._shards))
        assert set(members.notes(space.directory / "members")) == {space.member}, (
            "a dead process counts as alive"
        )
        assert list((space.directory / "wake").iterdir()) == []
