"""Processes that share a replica are killed and stopped: the others go on, with what the log gives and nothing else."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from kit.environment import with_tests
from kit.ledger import Ledger, lines
from onefold import config
from onefold.env import SYSTEM
from onefold.errors import LogCorrupt
from onefold.shard.memory import MemoryShard
from support.times import scaled

pytestmark = pytest.mark.faults
WORKER = Path(__file__).with_name("replica_worker.py")
sys.path.insert(0, str(WORKER.parent))
import replica_worker as program  # noqa: E402

COUNT = 60
SOON_S = 60
LINES_MAX = 20_000


@pytest.fixture(scope="module")
def want():
    """The digest of what the log folds to."""
    with closing(MemoryShard(program.build_log(COUNT), [Ledger()], SYSTEM)) as space:
        return space.state_digest()


@contextmanager
def worker(*arguments):
    process = subprocess.Popen(
        [sys.executable, WORKER, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=with_tests(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def tell(process, text=""):
    process.stdin.write(text.encode() + b"\n")
    process.stdin.flush()


def until(condition):
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def check_whole(directory, want):
    with closing(program.open_replica(directory, program.build_log(COUNT))) as space:
        assert space.reach(COUNT, SOON_S)
        assert space.state_digest() == want
        space.verify()
        names = {path.name for path in directory.glob("copy_*")}
        assert names == {space._holder.copy.path.name}, "what nobody uses is removed"
        assert {path.name for path in (directory / "members").iterdir()} == {space.member}
    assert [path for path in (directory / "wake").iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize("part", range(4))
@pytest.mark.moving(4)
def test_whoever_is_killed_at_any_line_leaves_a_replica_that_others_go_on_with(part, tmp_path, want):
    """Some directories are fresh for the one that is killed, others were left by the one killed before it. The parts look at
    every line together, but for those of long loops."""
    line, killed, directory = part + 1, 0, tmp_path / "0"
    with worker("crash") as crasher:
        for run in range(LINES_MAX):
            tell(crasher, json.dumps({"directory": str(directory), "count": COUNT, "line": line}))
            said = json.loads(crasher.stdout.readline())
            assert said["killed"] != said["done"], said
            if run % 2 or said["done"]:
                check_whole(directory, want)
                directory = tmp_path / str(run + 1)
            if said["done"]:
                break
            killed += 1
            line += 4 if line < 1200 else 41
        assert killed > 100


def test_two_that_share_a_replica_are_killed_again_and_again(tmp_path, want):
    rng = random.Random(3)
    for _ in range(12):
        with worker("crash") as first, worker("crash") as second:
            for crasher in (first, second):
                command = {"directory": str(tmp_path / "r"), "count": COUNT, "line": rng.randrange(1, 3000)}
                tell(crasher, json.dumps(command))
            for crasher in (first, second):
                json.loads(crasher.stdout.readline())
    check_whole(tmp_path / "r", want)


def ledger_of(space):
    with space.view() as view:
        return lines(view)


@pytest.mark.parametrize("opened", ["before", "after"])
def test_a_killed_holder_of_the_lock_holds_nobody_up(opened, tmp_path, want, monkeypatch):
    monkeypatch.setattr(config, "REPLICA_STALL_S", 3600.0)
    log = program.build_log(COUNT).hold(0 if opened == "before" else COUNT)
    with worker("hold", tmp_path, COUNT, 20) as holder:
        if opened == "after":
            assert holder.stdout.readline() == b"held\n"
        with closing(program.open_replica(tmp_path, log)) as space:
            if opened == "before":
                assert holder.stdout.readline() == b"held\n"
                log.go_on()
            assert not space.reach(1, 0.3), "the lock is held"
            holder.kill()
            holder.wait()
            assert space.reach(COUNT, SOON_S)
            assert space.state_digest() == want
            assert len(list(tmp_path.glob("copy_*"))) == 1


def test_a_stopped_holder_of_the_lock_is_left_behind_and_follows_when_it_goes_on(tmp_path, want, monkeypatch):
    monkeypatch.setattr(config, "REPLICA_STALL_S", scaled(3.0))
    with worker("hold", tmp_path, COUNT, 20) as holder:
        assert holder.stdout.readline() == b"held\n"
        holder.send_signal(signal.SIGSTOP)
        spaces = [program.open_replica(tmp_path, program.build_log(COUNT)) for _ in range(2)]
        try:
            assert ledger_of(spaces[0]) == {}, "weak reads show what was committed"
            for space in spaces:
                assert space.reach(COUNT, SOON_S)
                assert space.state_digest() == want
            assert len({space._holder.copy.path for space in spaces}) == 1, "one copy is made for all"
            os.kill(holder.pid, signal.SIGCONT)
            tell(holder)

            def follows():
                tell(holder)
                said = json.loads(holder.stdout.readline())
                assert said["digest"] == want
                return said["copy"] == spaces[0]._holder.copy.path.name

            until(follows)
        finally:
            for space in spaces:
                space.close()
    check_whole(tmp_path, want)


def test_an_opener_that_is_stopped_while_it_chooses_holds_nobody_up(tmp_path, want):
    with worker("decide", tmp_path) as other:
        assert other.stdout.readline() == b"held\n"
        other.send_signal(signal.SIGSTOP)
        log = program.build_log(COUNT)
        from onefold.shard.replica.shard import LocalReplica

        with closing(
            LocalReplica(log, [Ledger()], SYSTEM, directory=tmp_path, url="nats://here/space", timeout=0.2)
        ) as space:
            assert space.reach(COUNT, SOON_S)
            assert space.state_digest() == want
        other.send_signal(signal.SIGCONT)
    check_whole(tmp_path, want)


def test_the_check_notices_a_store_that_forgets_where_it_stands(tmp_path, want, monkeypatch):
    """Without the offset in the transaction a restart applies records again."""
    with closing(program.open_replica(tmp_path, program.build_log(COUNT))) as space:
        assert space.reach(COUNT, SOON_S)
        with space._holder.copy.file.writing() as con:
            con.execute("UPDATE head SET applied = 40")
    from onefold.shard.replica import copy as replica_copy

    monkeypatch.setattr(replica_copy, "agrees", lambda *_: True)
    with pytest.raises((AssertionError, LogCorrupt)):
        check_whole(tmp_path, want)
