"""Each asynchronous class has what its synchronous twin has, with the same parameters; what only forwards says the same."""

import ast
import inspect
from pathlib import Path

import pytest

from onefold.aio import (
    available_maps,
    available_transactions,
    counters,
    database,
    jobs,
    maps,
    queues,
    sets,
    streams,
    transactions,
)
from onefold.compute.live.tables import LiveTable
from onefold.compute.live_runs import LiveRun
from onefold.database import Database
from onefold.state.available.counters import Counters
from onefold.state.available.maps.map import AvailableMap
from onefold.state.available.sets import Sets
from onefold.state.available.transactions.counters import TxCounters
from onefold.state.available.transactions.maps import TxAvailableMap
from onefold.state.available.transactions.sets import TxSets
from onefold.state.locks.lock import Lock
from onefold.state.maps.in_transaction import TxMap
from onefold.state.maps.map import Map
from onefold.state.queues.in_transaction import TxQueue
from onefold.state.queues.messages import Message
from onefold.state.queues.queue import Queue
from onefold.state.streams.consumer import Consumer
from onefold.state.streams.in_transaction import TxStream
from onefold.state.streams.stream import Stream
from onefold.state.transaction import Transaction

TWINS = {
    database.AsyncDatabase: Database,
    jobs.AsyncTable: LiveTable,
    jobs.AsyncRun: LiveRun,
    maps.AsyncMap: Map,
    available_maps.AsyncAvailableMap: AvailableMap,
    counters.AsyncCounters: Counters,
    sets.AsyncSets: Sets,
    queues.AsyncQueue: Queue,
    queues.AsyncMessage: Message,
    queues.AsyncLock: Lock,
    streams.AsyncStream: Stream,
    streams.AsyncConsumer: Consumer,
    transactions.AsyncTransaction: Transaction,
    transactions.AsyncTxMap: TxMap,
    available_transactions.AsyncTxAvailableMap: TxAvailableMap,
    available_transactions.AsyncTxCounters: TxCounters,
    available_transactions.AsyncTxSets: TxSets,
    transactions.AsyncTxQueue: TxQueue,
    transactions.AsyncTxStream: TxStream,
}
ITS_OWN = {"sync", "aclose", "contains", "count", "check", "run", "name", "start", "replay"}
ITS_OWN.add("sync_regions")
"""What stands for a dunder or a ``with`` statement, is a method of what has no asynchronous form (prepared jobs), or has no
meaning elsewhere; and ``Database.sync``, a name that is taken."""
NOT_THERE = {
    "Database": {
        "collections",
        "explain",
        "map_reduce",
        "read_csv",
        "read_files",
        "read_jsonl",
        "read_parquet",
        "read_text",
    },
    "LiveTable": {"columns", "key_columns", "value_columns", "windowed"},
    "LiveRun": {
        "abandoned",
        "created_ms",
        "error",
        "exists",
        "look",
        "raise_if_failed",
        "refusals",
        "role",
        "seed",
        "table",
        "table_name",
        "worker_pids",
    },
    "Map": {"popitem"},
    "AvailableMap": {"popitem"},
    "Queue": {"drop_dead", "retry_dead", "take"},
    "Message": {"attempt", "ended", "errors", "id", "key", "queue", "value"},
    "Lock": {"acquire", "holder", "release", "renew"},
    "Stream": {"create", "partitions", "read_frames", "retention", "set_retention", "to_polars"},
    "TxMap": {"clear", "keys", "popitem", "values"},
    "TxAvailableMap": {"clear", "keys", "popitem", "values"},
    "TxQueue": {"put_many"},
    "Consumer": {"assignment", "close", "committed", "poll", "position", "timeout"},
}
"""Plans over files, which wait for nothing; details of runs and tables, which ``sync`` has; what ``async with`` and ``async for``
do; and what ``sync`` gives. To be added here deliberately."""
INTERNAL = {
    "AvailableMap": {"client"},
    "Counters": {"client"},
    "Sets": {"client"},
    "LiveTable": {"contents", "dead", "estimate_of", "frame_of", "known_columns", "problem"},
    "LiveRun": {"ends"},
    "Queue": {
        "forward_dead",
        "handover",
        "look_for",
        "submit",
        "take_for",
        "take_one",
        "taking",
    },
    "Message": {"give_back", "read", "renew", "renew_every_s"},
    "Lock": {
        "acquisition",
        "asking",
        "claim",
        "end",
        "forget",
        "lose",
        "new_hold",
        "note_granted",
        "renew_every_s",
    },
    "Stream": {"client", "codec", "layout", "wanted_retention_ms"},
    "Consumer": {"add_commit_to", "check_settled", "client", "give", "handed", "look", "quiet"},
    "Transaction": {"client", "kept"},
}
OTHER_PARAMETERS = {
    ("AsyncMap", "pop"),
    ("AsyncAvailableMap", "pop"),
    ("AsyncTxMap", "pop"),
    ("AsyncTxAvailableMap", "pop"),
}
"""Whose default is an object that nobody can pass."""


def public(of_class):
    return {name for name in dir(of_class) if not name.startswith("_")}


def parameters(function):
    return [(one.name, one.default, one.kind) for one in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("mine", TWINS, ids=lambda one: one.__name__)
def test_it_has_what_its_twin_has_with_the_same_parameters(mine):
    twin = TWINS[mine]
    left_out = NOT_THERE.get(twin.__name__, set()) | INTERNAL.get(twin.__name__, set())
    assert public(twin) - public(mine) - ITS_OWN == left_out
    attributes = {"id"} if mine is jobs.AsyncRun else set()  # of instances
    assert public(mine) - public(twin) <= ITS_OWN | attributes
    for name in sorted(public(mine) & public(twin)):
        own, other = getattr(mine, name), getattr(twin, name)
        if not (inspect.isfunction(own) and inspect.isfunction(other)):
            continue
        if (mine.__name__, name) in OTHER_PARAMETERS:
            assert [one[::2] for one in parameters(own)] == [one[::2] for one in parameters(other)], name
        else:
            assert parameters(own) == parameters(other), name


def forwards():
    """(class, method, the twin's method) of each that only awaits its twin's."""
    for mine, twin in TWINS.items():
        if mine is jobs.AsyncRun:  # stands for two classes, Run and LiveRun, and refers to both
            continue
        tree = ast.parse(Path(inspect.getsourcefile(mine)).read_text())
        (of_class,) = (
            one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == mine.__name__
        )
        for one in of_class.body:
            if not isinstance(one, ast.AsyncFunctionDef) or one.name.startswith("_"):
                continue
            lines = [ast.unparse(line) for line in one.body[1:]]
            lines = [line for line in lines if not line.startswith("self._check(")]
            if len(lines) == 1 and lines[0].removeprefix("return ").startswith("await self."):
                for name in ast.walk(one.body[-1]):
                    if isinstance(name, ast.Attribute) and ast.unparse(name.value) == "self.sync":
                        if not name.attr.startswith("_"):
                            yield mine, one.name, getattr(twin, name.attr)
                        break


def test_what_only_forwards_says_what_its_twin_says():
    found = list(forwards())
    assert len(found) > 20
    other = [
        f"{mine.__name__}.{name}"
        for mine, name, twin in found
        if inspect.getdoc(getattr(mine, name)) != inspect.getdoc(twin)
    ]
    assert other == []
