"""Writers killed at any moment: what was acknowledged is there, once, and nobody is locked out."""

import random
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from kit.environment import with_tests
from kit.ledger import Ledger, entry, lines, receipt
from onefold.env import SYSTEM
from onefold.errors import Timeout
from onefold.log.memory import MemoryLog
from onefold.shard.memory import MemoryShard
from onefold.space.open_shard import open_shard
from onefold.store import exactly_once

pytestmark = pytest.mark.faults
WRITER = Path(__file__).with_name("space_writer.py")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def start_writer(directory, name):
    command = [sys.executable, WRITER, directory, name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=with_tests())


def kill_after_acks(writers, acks, rng):
    """Let each acknowledge a few, then kill all within moments of each other; what they said."""
    said = []
    for writer in writers:
        got = 0
        while got < acks:
            line = writer.stdout.readline()
            assert line, "a writer ended by itself"
            said.append(line)
            got += line.startswith(b"ack")
    for writer in writers:
        time.sleep(rng.random() * 0.005)  # the random moment of the kill, not a wait for a state
        writer.kill()
    for writer in writers:
        said += writer.stdout.read().splitlines()
        writer.stdout.close()
        writer.wait()
    words = [line.split() for line in said]
    tried = {word[1] for word in words if len(word) == 2 and word[0] == b"try"}
    acked = {word[1]: word[2] for word in words if len(word) == 3 and word[0] == b"ack"}
    return tried, acked


def check_ledger(space, acked):
    with space.view() as view:
        ledger = lines(view)
    for token, outcome in acked.items():
        assert token in ledger, f"{token} was acknowledged and is lost"
        assert outcome == receipt(ledger[token].offset, ledger[token].place)
    for token, line in ledger.items():
        assert line.times == 1, f"{token} was applied {line.times} times"


def replayed_digest(space):
    log = MemoryLog()
    start = 1
    while page := space.log.read(start):
        for item in page:
            log.append(item.data)
            log._stored[-1].engine_ms = item.engine_ms
        start = page[-1].offset + 1
    return MemoryShard(log, [Ledger()], SYSTEM).state_digest()


@pytest.mark.moving(4)
@pytest.mark.parametrize("seed", range(8))
def test_killed_writers_lose_nothing(seed, tmp_path):
    rng = random.Random(seed)
    directory = tmp_path / "space"
    tried, acked = set(), {}
    for round_number in range(3):
        writers = [start_writer(directory, f"s{seed}r{round_number}w{number}") for number in range(3)]
        more_tried, more_acked = kill_after_acks(writers, rng.randint(1, 40), rng)
        tried |= more_tried
        acked |= more_acked
    with closing(open_shard(directory, [Ledger()], timeout=60)) as space:
        check_ledger(space, acked)
        # Whoever does not know the outcome tries again under the same request id: applied once, whoever did it.
        for token in sorted(tried - set(acked)) + sorted(acked)[:5]:
            acked[token] = space.submit([entry(token, request_id=token.decode())])[0]
        check_ledger(space, acked)
        assert space.state_digest() == replayed_digest(space)
        assert names(directory / "members") == [space.member]
        assert names(directory / "wake") == []


def test_the_check_notices_a_missing_dedupe(tmp_path, monkeypatch):
    with closing(open_shard(tmp_path / "space", [Ledger()])) as space:
        acked = {b"a": space.submit([entry(b"a", request_id="a")])[0]}
        monkeypatch.setattr(exactly_once, "requested", lambda con, request_id, now_ms: None)
        space.submit([entry(b"a", request_id="a")])
        with pytest.raises(AssertionError):
            check_ledger(space, acked)


HOLDER = """
import sys
from pathlib import Path
from onefold.log.sqlite.engine import SqliteLog
log = SqliteLog(sys.argv[1])
with log.appending() as con:
    log.append_in(con, b"never committed", 0)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has appended and not committed, and the space it is in."""
    directory = tmp_path / "space"
    open_shard(directory, [Ledger()]).close()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        yield process, directory
        process.kill()


def test_a_writer_killed_in_its_transaction_locks_nobody_out(holder):
    process, directory = holder
    process.kill()
    process.wait()
    with closing(open_shard(directory, [Ledger()], timeout=60)) as space:
        assert space.applied == 0
        assert space.submit([entry(b"a")]) == [receipt(1, 1)]


def test_a_stopped_writer_gives_a_definite_timeout(tmp_path):
    directory = tmp_path / "space"
    with closing(open_shard(directory, [Ledger()], timeout=0.2)) as space:
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout.readline() == b"held\n"
            process.send_signal(signal.SIGSTOP)
            for _ in range(3):
                with pytest.raises(Timeout) as caught:
                    space.submit([entry(b"a")])
                assert caught.value.definite
            with space.view() as view:
                assert lines(view) == {}, "readers are not blocked by a writer"
            process.kill()
            process.wait()
        in_time = SYSTEM.boot_s() + 60
        assert space.submit([entry(b"a")], in_time) == [receipt(1, 1)]
        assert space.submit([entry(b"b")], in_time) == [receipt(2, 0)]
