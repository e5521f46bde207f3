"""Programs without a replica see what programs with one see: the behaviour tests of shared state, over questions to nodes.

The tests are those of ``tests/unit``, run again with other fixtures: a database whose shards have two replicas elsewhere, and one
whose answers come in small pieces.
"""

import importlib.util
import inspect
import sys
from contextlib import closing
from pathlib import Path

import pytest

from kit.remote_world import RemoteWorld
from onefold import config
from onefold.testing.clock import FakeClock, _ClockLog

UNIT = Path(__file__).parent.parent / "unit"
WORLDS = {
    "remote": {},
    "remote-pieces": {"reply_bytes": 100},
    "remote-shards": {"shards": 3},
}


def _tests_of(name, fixtures, without=()):
    """The tests of a module of ``tests/unit`` that need no more than these fixtures."""
    spec = importlib.util.spec_from_file_location(f"onefold_unit_{name}", next(UNIT.rglob(f"{name}.py")))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    found = {}
    for test, function in vars(module).items():
        if not test.startswith("test_") or not inspect.isfunction(function):
            continue
        needs = set(inspect.signature(function).parameters) - _parametrized(function)
        if needs & set(fixtures) and needs <= {*fixtures, "monkeypatch", "tmp_path"} and test not in without:
            found[test] = staticmethod(function)
    missing = set(without) - vars(module).keys()
    assert not missing, f"{name} has no {missing}"
    return found


def _parametrized(function):
    names = set()
    for mark in getattr(function, "pytestmark", ()):
        if mark.name == "parametrize":
            given = mark.args[0]
            names |= set(given.split(",") if isinstance(given, str) else given)
    return {name.strip() for name in names}


class Remote:
    """Fixtures of a database in real time."""

    @pytest.fixture(params=WORLDS)
    def db(self, request):
        yield from opened(**WORLDS[request.param])

    @pytest.fixture(params=["remote", "remote-pieces"])
    def one_shard(self, request):
        yield from opened(**WORLDS[request.param])

    @pytest.fixture
    def memory(self):
        yield from opened()

    @pytest.fixture
    def real_db(self):
        yield from opened()

    @pytest.fixture(params=WORLDS)
    def m(self, request):
        for database in opened(timeout=5, **WORLDS[request.param]):
            yield database.map("m")

    @pytest.fixture
    def one(self):
        for database in opened():
            yield database.map("m")


class OneShard(Remote):
    """The same with one shard, for tests of what several do otherwise."""

    @pytest.fixture(params=["remote", "remote-pieces"])
    def db(self, request):
        yield from opened(**WORLDS[request.param])


class Timed(Remote):
    """The same in the time of a clock that moves when told."""

    @pytest.fixture
    def clock(self):
        return FakeClock()

    @pytest.fixture
    def db(self, clock):
        yield from opened(env=clock, log=lambda _: _ClockLog(clock), pause=clock._pause)


class Impatient(Remote):
    """Consumers that look at their group often."""

    @pytest.fixture(autouse=True)
    def _look_often(self, monkeypatch):
        monkeypatch.setattr(config, "CONSUMER_WATCH_S", 0.02)


def opened(timeout=None, **options):
    with closing(RemoteWorld(**options)) as world, world.connect(timeout=timeout) as database:
        yield database


def suite(name, module, fixtures, base=Remote, without=()):
    return type(name, (base,), _tests_of(module, fixtures, without))


APPENDS = {"test_a_transaction_that_writes_nothing_appends_nothing_and_never_conflicts"}
COUNTS_RECORDS = {"test_put_many_in_parts_writes_everything_in_bounded_records"}
LOOKS_INSIDE = {"test_large_values_make_small_pages"}
"""Strong reads of a replica append a barrier, which is a record too; and the pages of a question are the node's."""

TestMaps = suite("TestMaps", "test_maps", ["db"], OneShard, COUNTS_RECORDS)
TestTransactions = suite(
    "TestTransactions", "test_transactions", ["db", "one_shard", "memory"], Remote, APPENDS
)
TestTransactionBlocks = suite("TestTransactionBlocks", "test_transaction_blocks", ["db", "memory"])
TestTxMap = suite("TestTxMap", "test_tx_map", ["db"], OneShard)
TestQueues = suite("TestQueues", "test_queues", ["db", "clock", "real_db"], Timed)
TestLocks = suite("TestLocks", "test_locks", ["db", "clock", "real_db"], Timed)
TestStreams = suite("TestStreams", "test_streams", ["db"])
TestStreamReading = suite("TestStreamReading", "test_stream_reading", ["db"])
TestConsumers = suite("TestConsumers", "test_consumers", ["db"], Impatient)
TestWatch = suite("TestWatch", "test_watch", ["m", "one"])
TestMapScan = suite("TestMapScan", "test_map_scan", ["m", "one"], Remote, LOOKS_INSIDE)
