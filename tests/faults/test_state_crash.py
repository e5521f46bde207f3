"""Programs that die at a place of the commit path: from one commit on everything is there, and before it nothing."""

import json
import signal
import subprocess
import sys

import pytest

import onefold as of
from support.state_writing import BALANCE_TOTAL, WRITER, check_space, program

pytestmark = pytest.mark.faults


class Crasher:
    """The program that runs operations in forked processes, which die at named places."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, WRITER, "crash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def run(self, directory, place, times, ops, first=()):
        """Which operations were acknowledged, and whether the process died there (else it came by less often). ``first``: what it
        does before."""
        command = {"directory": str(directory), "place": place, "times": times, "ops": ops, "first": first}
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
@pytest.mark.moving(3)
def test_a_program_that_dies_at_a_place_has_committed_from_there_on_and_not_before(place, tmp_path, crasher):
    committed = list(program.PLACES).index(place) >= program.COMMITTED_FROM
    with of.connect(tmp_path / "space", timeout=60) as db:
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


DECISIVE_PLACES = ["before the log", "before COMMIT", "after COMMIT", "before the answer"]
"""The lines between them are those of every commit, which are above."""


def died_doing(crasher, db, directory, place, kind, first=None, times=1):
    """Have a process die at the place of the kind of operation, which may need another one first; whether it was committed."""
    before = db._shards[0].applied
    prepared = [] if first is None else [{"id": first, "op": first}]
    acked, dead = crasher.run(directory, place, times, [{"id": kind, "op": kind}], prepared)
    assert (list(acked), dead) == ([op["id"] for op in prepared], True)
    done = db._shards[0].applied - before - len(prepared) - (times - 1)
    committed = list(program.PLACES).index(place) >= program.COMMITTED_FROM
    assert done == committed, f"{kind} killed {place}: {done} commits"
    return committed


@pytest.mark.parametrize("place", DECISIVE_PLACES)
def test_a_message_is_as_its_taker_left_it_wherever_that_dies(place, tmp_path, crasher):
    space = tmp_path / "space"
    with of.connect(space, timeout=60) as db:
        program.set_up(db)
        q = db.queue("work", lease="1h", max_attempts=1 << 40)

        def taken_after(kind, first="take"):
            q.put(kind)
            committed = died_doing(crasher, db, space, place, kind, first)
            if kind == "ack" and committed:
                assert len(q) == 0
                return committed, None, None
            with q.get(timeout=60) as message:
                assert message.value == kind
                return committed, message.attempt, message.errors

        q.put("first")
        q.take(timeout=0).give_back()  # folds know by now what that is
        with q.get(timeout=0) as message:
            assert message.attempt == 1
        committed, attempt, _ = taken_after("take", None)
        assert attempt == (2 if committed else 1)
        committed, attempt, _ = taken_after("ack")
        assert attempt == (None if committed else 2)
        committed, attempt, errors = taken_after("nack")
        assert (attempt, errors == ("refused",)) == (2, committed)
        committed, attempt, _ = taken_after("give back")
        assert attempt == (1 if committed else 2)
        _, attempt, _ = taken_after("extend")
        assert attempt == 2
        assert (len(q), q.dead()) == (0, [])


@pytest.mark.parametrize("place", DECISIVE_PLACES)
def test_a_lock_is_as_its_holder_left_it_wherever_that_dies(place, tmp_path, crasher):
    space = tmp_path / "space"
    with of.connect(space, timeout=60) as db:
        program.set_up(db)
        lock = db.lock("lock", ttl="1h")
        committed = died_doing(crasher, db, space, place, "acquire")
        assert (lock.holder() is not None) is committed
        with lock:
            token = lock.fencing_token
        committed = died_doing(crasher, db, space, place, "release", "acquire")
        assert (lock.holder() is None) is committed
        with lock:
            assert lock.fencing_token > token
            # It asks, as one who waits, and gives up then.
            committed = died_doing(crasher, db, space, place, "withdraw", times=2)
            assert lock.holder().waiting == (0 if committed else 1)
        with lock:  # nobody waits who is dead
            assert lock.holder().waiting == 0


SHARDED_PLACES = ["before COMMIT", "after COMMIT", "before the answer"]
COMMITS_MAX = 40


@pytest.mark.parametrize("place", SHARDED_PLACES)
def test_a_transaction_over_several_shards_is_whole_wherever_its_program_dies(place, tmp_path, crasher):
    died = []
    with of.connect(tmp_path / "space", shards=3, timeout=60) as db:
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
