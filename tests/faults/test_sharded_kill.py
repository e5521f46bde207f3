"""Programs killed amid transactions over several shards: all or nothing, nothing acknowledged is lost, no lock stays."""

import importlib.util
import random
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

import onefold as of
from onefold import config
from onefold.errors import Conflict
from onefold.state.core import recovery
from onefold.state.encoding.keys import encode_key
from onefold.state.fold import rows
from onefold.state.fold.shards import fold as shard_fold

pytestmark = pytest.mark.faults
WRITER = Path(__file__).with_name("sharded_writer.py")
SHARDS = 4
_spec = importlib.util.spec_from_file_location("sharded_writer", WRITER)
bank = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bank)

TOTAL = bank.BALANCE * len(bank.ACCOUNTS)


@pytest.fixture(autouse=True)
def never_timed_out(monkeypatch):
    monkeypatch.setattr(config, "TRANSACTION_TIMEOUT_S", 600)


def kill_after_acks(writers, acks, rng):
    """Let each acknowledge a few, then kill all within moments of each other; the lines they wrote, as words."""
    said = []
    for writer in writers:
        got = 0
        while got < acks:
            line = writer.stdout.readline()
            assert line, "a writer ended by itself"
            said.append(line)
            got += line.startswith(b"ack")
    for writer in writers:
        time.sleep(rng.random() * 0.01)  # the random moment of the kill, not a wait for a state
        writer.kill()
    for writer in writers:
        said += writer.stdout.read().splitlines()
        writer.stdout.close()
        writer.wait()
    return [line.decode().split() for line in said]


def marks_in(client):
    found = {}
    for shard in range(SHARDS):
        with client.view(shard) as view:
            for key, _ in view.scan(rows.map_table(bank.MARKS)):
                found.setdefault(key, []).append(shard)
    return found


def check(client, words):
    """Nobody is left to wait for: the dead are known to be dead."""
    began = time.monotonic()
    assert recovery.recover(client) == 0
    assert time.monotonic() - began < config.TRANSACTION_TIMEOUT_S / 2, "nothing was watched for the timeout"
    for space in client.shards:
        with space.view() as view:
            for table in ("locks", "ranges", "open", "prepared", "parts", "decided"):
                assert view.count(f"state/x/{table}") == 0
    assert sum(bank.read_all(client).values()) == TOTAL
    found = marks_in(client)
    for kind, mark, *_ in words:
        shards = found.get(encode_key(mark), [])
        assert len(shards) in (0, 2), f"{mark} was done in {shards}"
        assert kind != "ack" or len(shards) == 2, f"{mark} was acknowledged"
        assert kind != "no" or not shards, f"{mark} was refused for certain"


@pytest.mark.moving(3)
@pytest.mark.parametrize("seed", range(3))
def test_killed_coordinators_leave_whole_transactions_and_no_locks(seed, tmp_path):
    rng = random.Random(seed)
    directory, words, stop = tmp_path / "space", [], threading.Event()
    with closing(of.connect(directory, shards=SHARDS)) as db:
        client = db._state
        bank.open_accounts(client)
        totals = []

        def watch():
            while not stop.is_set():
                try:
                    totals.append(sum(bank.read_all(client).values()))
                except Conflict:
                    continue

        reader = threading.Thread(target=watch)
        reader.start()
        for number in range(4):
            writers = [
                subprocess.Popen(
                    [sys.executable, WRITER, directory, f"s{seed}r{number}w{one}"], stdout=subprocess.PIPE
                )
                for one in range(2)
            ]
            words += kill_after_acks(writers, rng.randrange(1, 12), rng)
        stop.set()
        reader.join()
        assert set(totals) == {TOTAL}, "a reader saw a transfer in part"
        check(client, words)
    with closing(of.connect(directory)) as db:
        check(db._state, words)
        retry_in_doubt(db._state, words, rng)
        assert sum(bank.read_all(db._state).values()) == TOTAL
    for place in (directory, *(directory / "shards" / str(shard) for shard in range(1, SHARDS))):
        assert list((place / "members").iterdir()) == []


def retry_in_doubt(client, words, rng):
    """Whoever does not know what became of a request sends it again under its name: it happened once, whoever did it."""
    known = {word[1] for word in words if word[0] != "try"}
    doubt = [word[1] for word in words if word[0] == "try" and word[2] == "1" and word[1] not in known]
    acked = [word[1] for word in words if word[0] == "try" and word[2] == "1" and word[1] in known]
    before = marks_in(client)
    for mark in (*doubt, *acked[:3]):
        done = None
        for _ in range(5):
            try:
                done = bank.transfer(client, *bank.random_pair(client, rng), 1, mark, request_id=mark)
                break
            except Conflict:
                break  # its rejection was kept
        shards = marks_in(client).get(encode_key(mark), [])
        assert len(shards) == (2 if done else 0)
        if encode_key(mark) in before:
            assert shards == before[encode_key(mark)], f"{mark} was done twice"


def test_a_killed_coordinator_at_each_step_is_got_by_at_once(tmp_path):
    """A process that kills itself before its n-th append, so that every state between two records is met."""
    with closing(of.connect(tmp_path / "space", shards=SHARDS)) as db:
        client = db._state
        bank.open_accounts(client)
        source, target = bank.random_pair(client, random.Random(1))
        for number in range(8):
            script = SUICIDE.format(writer=str(WRITER), directory=str(tmp_path / "space"), number=number)
            done = subprocess.run([sys.executable, "-c", script, source.hex(), target.hex()], check=False)
            assert done.returncode == (-9 if number < 5 else 0)
            began = time.monotonic()
            bank.transfer(client, target, source, 1, f"mine{number}")
            assert time.monotonic() - began < config.TRANSACTION_TIMEOUT_S / 2, (
                "a dead process is not watched for the timeout"
            )
            assert sum(bank.read_all(client).values()) == TOTAL
        check(client, [])
        for _, space in enumerate(client.shards):
            with space.view() as view:
                assert not shard_fold.is_any_prepared(view)


SUICIDE = """
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("sharded_writer", {writer!r})
bank = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bank)
import onefold as of
from onefold.shard.embedded import EmbeddedShard
submit, left = EmbeddedShard.submit, [{number}]
def dying(self, ops, deadline=None, receipt=None):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return submit(self, ops)
client = of.connect({directory!r})._state
EmbeddedShard.submit = dying
source, target = (bytes.fromhex(text) for text in sys.argv[1:])
bank.transfer(client, source, target, 5, "mark{number}")
"""
