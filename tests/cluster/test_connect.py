"""Programs on a real cluster of three servers, each with a replica on this machine: the same API, several processes, restarts."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count

import pytest

import onefold as of
from onefold import config
from onefold.cluster.servers import LocalServers
from onefold.env import SYSTEM
from onefold.folds import folds as space_folds
from onefold.log.jetstream.client import link
from onefold.log.jetstream.engine import JetStreamLog
from onefold.shard.memory import MemoryShard
from support.times import scaled

SOON_S = 60
_numbers = count()


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    started = LocalServers.start(tmp_path_factory.mktemp("servers"), 3)
    yield started
    started.stop(delete=True)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Made:
    """A new space, by its URLs."""

    def __init__(self, servers, shards):
        self.shards = shards
        name = f"connect{next(_numbers)}"
        self.url = servers.url(name, user="app")
        of.connect(servers.url(name, user="admin"), shards=shards).close()


@pytest.fixture(params=[1, 3], ids=["one shard", "three shards"])
def made(request, servers, cache):
    return Made(servers, request.param)


@pytest.fixture
def single(servers, cache):
    return Made(servers, 1)


def check_folded(db):
    """Every shard's replica has just the state that its log folds to, and agrees with it."""
    shards = len(db._shards)
    for shard, space in enumerate(db._shards):
        space.barrier(SOON_S)
        log = JetStreamLog(space.log._link, space.log._info, shard)
        try:
            assert log.wait(space.applied - 1, SOON_S) >= space.applied
            space.verify()
            while True:
                oracle = MemoryShard(log, space_folds(shard, shards), SYSTEM, replica=True)
                if oracle.applied == space.applied:
                    break
            assert oracle.state_digest() == space.state_digest()
        finally:
            log.close()


OTHER = """
import json, sys
import onefold as of
db = of.connect(sys.argv[1], timeout=60)
print("ready", flush=True)
for line in sys.stdin:
    try:
        print(json.dumps(eval(line)), flush=True)
    except of.OnefoldError as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
"""


class Other:
    """Another process with a database of its own, that evaluates what it is told."""

    def __init__(self, url):
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, expression):
        self.send(expression)
        return json.loads(self.process.stdout.readline())

    def send(self, expression):
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()


@contextmanager
def other(url):
    process = Other(url)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.wait()
        process.process.stdin.close()
        process.process.stdout.close()


def test_everything_works_as_it_does_on_one_machine(made):
    with of.connect(made.url, timeout=SOON_S) as db:
        accounts = db.map("accounts")
        accounts.put_many(dict.fromkeys("abcdef", 100))
        accounts["z"] = {"when": datetime(2024, 1, 1, tzinfo=UTC)}
        assert dict(accounts.scan(start="z")) == {"z": {"when": datetime(2024, 1, 1, tzinfo=UTC)}}
        assert len(accounts) == 7 and accounts.get_many(["a", "b", "x"]) == {"a": 100, "b": 100}
        version = accounts.put("a", 100)
        with pytest.raises(of.Conflict):
            accounts.put("b", 1, if_version=version)
        assert accounts.increment("visits") == 1
        accounts.put("soon", 1, ttl=0.05)

        def move(tx):
            tx.map("accounts")["a"] -= 10
            tx.map("accounts")["b"] += 10
            tx.stream("audit").append("moved", key="a")
            tx.queue("mail").put("moved")

        db.run_transaction(move, request_id="move")
        db.run_transaction(move, request_id="move")
        assert (accounts["a"], accounts["b"]) == (90, 110)
        assert db.outcome("move") == "committed" and db.outcome("never") is None
        assert [record.value for record in db.stream("audit").read()] == ["moved"]
        with db.queue("mail").get(timeout=SOON_S) as message:
            assert message.value == "moved"
        assert len(db.queue("mail")) == 0
        with db.lock("l", timeout=SOON_S) as held:
            assert held is not None
        for level in ("strong", "bounded:10s", "session", "prefix", "eventual"):
            assert accounts.get("a", consistency=level) == 90
        with accounts.watch(initial=True, timeout=SOON_S) as changes:
            first = next(changes)
            assert first.key in accounts
        token = db.session.token
        with db.transaction(read_only=True) as tx:
            assert sum(tx.map("accounts")[name] for name in "abcdef") == 600
        accounts["a"] = 0
        past = db.at(token)
        assert past.map("accounts")["a"] == 90
        past.close()
        deadline = time.monotonic() + SOON_S
        while "soon" in accounts:
            assert time.monotonic() < deadline
        assert {found.name for found in db.collections()} >= {"accounts", "audit", "mail"}
        check_folded(db)


@pytest.mark.moving(2)
def test_two_processes_are_one_program(made):
    with of.connect(made.url, timeout=SOON_S) as db, other(made.url) as second:
        m = db.map("m")
        for number in range(20):
            m["k", number] = number
            assert second(f"db.map('m')['k', {number}]") == number
            assert second(f"str(db.map('m').put(('k', {number}), -{number}))")
            assert m["k", number] == -number
        with m.watch() as changes:
            second("str(db.map('m').put('watched', 1))")
            assert next(changes).value == 1
        db.session.merge(second("db.session.token"))
        assert m.get("watched", consistency="session") == 1
        second.send("db.queue('q').get(timeout=60).__enter__().value")
        db.queue("q").put("to the other")
        assert json.loads(second.process.stdout.readline()) == "to the other"
        db.stream("s", partitions=2).create()
        second("db.stream('s').append('a', key='a') and None")
        assert [record.value for record in db.stream("s").read()] == ["a"]
        assert db._shards[0].member_alive(db._shards[0].member) is True
        check_folded(db)
        mine = db._shards[0]
        assert second("db._shards[0].directory.name") == "0"
        assert second("str(db._shards[0]._holder.copy.path)") == str(mine._holder.copy.path)


@pytest.mark.moving(2)
def test_counters_of_several_threads_and_processes_lose_nothing(made):
    with of.connect(made.url, timeout=SOON_S) as db, other(made.url) as first, other(made.url) as second:
        for process in (first, second):
            process.send("[db.map('c').increment('n') for _ in range(50)][-1]")
        failed = []

        def count_up():
            try:
                for _ in range(25):
                    db.map("c").increment("n")
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=count_up) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for process in (first, second):
            json.loads(process.process.stdout.readline())
        assert not failed and db.map("c")["n"] == 200
        check_folded(db)


def test_a_program_goes_on_where_it_was(made):
    with of.connect(made.url, timeout=SOON_S) as db:
        db.map("m").put_many({("k", number): number for number in range(1000)})
        token = db.session.token
        copies = [space._holder.copy.path for space in db._shards]
    with of.connect(made.url, session=token, timeout=SOON_S) as db:
        assert [space._holder.copy.path for space in db._shards] == copies
        assert db.map("m").get(("k", 5), consistency="session") == 5
        assert len(db.map("m")) == 1000
    with of.connect(made.url, read_only=True, timeout=SOON_S) as db:
        assert db.map("m").get(("k", 7), consistency="prefix") == 7
        with pytest.raises(of.SpaceError, match="read-only"):
            db.map("m")["x"] = 1
        with pytest.raises(of.Unavailable, match="read-only"):
            db.map("m").get(("k", 7), consistency="strong")


def test_killed_and_stopped_programs_hold_nobody_up(single, monkeypatch):
    monkeypatch.setattr(config, "REPLICA_STALL_S", scaled(1.0))
    with of.connect(single.url, timeout=SOON_S) as db:
        m = db.map("m")
        for round_number in range(2):
            with other(single.url) as doomed, other(single.url) as stopped:
                for process in (doomed, stopped):
                    process.send("[db.map('m').increment('n') for _ in range(100000)]")
                seen = m.get("n", 0)
                while m.get("n", 0) < seen + 5:
                    m.increment("mine")
                doomed.process.kill()
                os.kill(stopped.process.pid, signal.SIGSTOP)
                for number in range(5):
                    m["k", round_number, number] = number
                    assert m["k", round_number, number] == number
        check_folded(db)


def test_another_number_of_shards_and_a_space_that_is_not_there(servers, cache):
    admin = servers.url(f"connect{next(_numbers)}", user="admin")
    with pytest.raises(of.SpaceError, match="onefold init"):
        of.connect(admin, create=False)
    app = admin.replace(".admin.nk", ".app.nk").replace("_INBOX_admin", "_INBOX_app")
    with pytest.raises(of.SpaceError, match="onefold init"):
        of.connect(app)
    of.connect(admin, shards=2).close()
    with of.connect(app) as db:
        assert len(db._shards) == 2
    with pytest.raises(of.InvalidArgument, match="made with 2 shard"):
        of.connect(app, shards=3)


def test_a_session_of_another_space_makes_no_space_and_no_replica(servers, cache, tmp_path):
    with of.connect(tmp_path / "elsewhere") as db:
        db.map("m")["k"] = 1
        token = db.session.token
    admin = servers.url(f"connect{next(_numbers)}", user="admin")
    for problem in ("junk", token):
        with pytest.raises(of.TokenError):
            of.connect(admin, session=problem, shards=2)
    with pytest.raises(of.SpaceError, match="onefold init"):
        of.connect(admin, create=False)
    of.connect(admin, shards=2).close()
    made = sorted(cache.rglob("*"))
    with pytest.raises(of.TokenError):
        of.connect(admin.replace(".admin.nk", ".app.nk").replace("_INBOX_admin", "_INBOX_app"), session=token)
    assert sorted(cache.rglob("*")) == made


def test_the_connection_is_released(single):
    before = threading.active_count()
    for _ in range(3):
        db = of.connect(single.url, timeout=SOON_S)
        db.map("m")["k"] = 1
        db.close()
        with pytest.raises(of.SpaceError, match="closed"):
            db.map("m")["k"] = 1
        assert not link._shared.links
    deadline = time.monotonic() + SOON_S
    while threading.active_count() > before + 1:  # a thread ends a moment after what it did
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)
