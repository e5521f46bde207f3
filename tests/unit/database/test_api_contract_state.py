"""The names, signatures and defaults of shared state that programs are written against."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import MutableMapping
from datetime import timedelta
from typing import Any

import pytest

import onefold as of
from onefold import aio, testing
from onefold.state.locks.lock import Lock
from onefold.state.maps.in_transaction import TxMap
from onefold.state.maps.watch import Watch
from onefold.state.queues.in_transaction import TxQueue
from onefold.state.queues.queue import Queue
from onefold.state.streams.consumer import Consumer
from onefold.state.streams.in_transaction import TxStream
from onefold.state.streams.stream import Stream

REQUIRED = inspect.Parameter.empty


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }


def takes(function: Any, **expected: Any) -> None:
    """It has these parameters with these defaults; more are allowed, if they have defaults."""
    found = {name: parameter.default for name, parameter in parameters(function).items()}
    assert {name: found.get(name, "missing") for name in expected} == expected
    for name, default in found.items():
        assert name in expected or default is not REQUIRED, f"{name} is required and nobody gives it"


def by_position(function: Any) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in parameters(function).items() if parameter.kind in kinds]


def test_connecting():
    takes(of.connect, url=None, session=None, consistency="strong", timeout=None, shards=None)
    takes(of.aio.connect, url=None)
    for connection in (of.Database, aio.AsyncDatabase):
        takes(connection.outcome, request_id=REQUIRED)
        takes(connection.at, when=REQUIRED)
        takes(connection.close)
        assert by_position(connection.at) == ["when"]
    assert inspect.iscoroutinefunction(aio.AsyncDatabase.outcome)
    for kind in (5, 5.0, "5s", timedelta(seconds=5)):
        assert of.bounded(kind) == of.bounded("5s")


@pytest.mark.parametrize("map_type", [of.Map, aio.AsyncMap])
def test_maps(map_type):
    takes(map_type.get, key=REQUIRED, default=None, consistency=None)
    assert by_position(map_type.get) == ["key", "default"]
    takes(map_type.get_item, key=REQUIRED)
    takes(
        map_type.put,
        key=REQUIRED,
        value=REQUIRED,
        ttl=None,
        if_version=None,
        if_absent=False,
        request_id=None,
    )
    assert by_position(map_type.put) == ["key", "value"]
    takes(map_type.delete, key=REQUIRED, if_version=None, request_id=None)
    assert by_position(map_type.delete) == ["key"]
    takes(map_type.put_many, items=REQUIRED, atomic=True)
    takes(map_type.get_many, keys=REQUIRED)
    takes(map_type.modify, key=REQUIRED, fn=REQUIRED, default=None)
    assert by_position(map_type.modify) == ["key", "fn", "default"]
    takes(map_type.increment, key=REQUIRED, by=1, ttl=None)
    assert by_position(map_type.increment) == ["key", "by"]
    scan = {"prefix": None, "start": None, "stop": None, "limit": None, "reverse": False, "consistency": None}
    takes(map_type.scan, **scan)
    assert by_position(map_type.scan) == []
    takes(map_type.watch, prefix=None, start=None, initial=False, timeout=None)
    assert by_position(map_type.watch) == ["prefix"]
    assert by_position(map_type.pop) == by_position(map_type.setdefault) == ["key", "default"]
    takes(map_type.setdefault, key=REQUIRED, default=None)


def test_a_map_is_a_mapping_and_an_asynchronous_one_is_not():
    assert issubclass(of.Map, MutableMapping)
    for name in ("__getitem__", "__setitem__", "__delitem__", "__len__", "__contains__"):
        assert not hasattr(aio.AsyncMap, name)
    assert hasattr(aio.AsyncMap, "__aiter__")
    for name in ("scan", "watch", "keys", "values", "items"):
        assert not inspect.iscoroutinefunction(getattr(aio.AsyncMap, name))
    for name in ("get", "get_item", "put", "delete", "put_many", "get_many", "modify", "increment", "pop"):
        assert inspect.iscoroutinefunction(getattr(aio.AsyncMap, name)), name


def test_what_maps_give():
    names = ["key", "value", "version", "expires_at", "siblings", "region"]
    assert [field.name for field in dataclasses.fields(of.Item)] == names
    with of.connect("memory://") as db:
        m = db.map("m")
        with m.watch(initial=True) as changes:
            assert isinstance(changes, Watch)
            m["k"] = 1
            change = next(changes)
        assert isinstance(change, of.Change)
        fields = [change.key, change.value, change.version, change.kind]
        assert fields == ["k", 1, m.get_item("k").version, "put"] and isinstance(change.token, str)
        assert isinstance(m.get_item("k"), of.Item) and isinstance(m.put("k", 2), of.Version)


def test_transactions():
    for database in (of.Database, aio.AsyncDatabase):
        takes(database.transaction, request_id=None, read_only=False)
        takes(database.run_transaction, fn=REQUIRED, attempts=20)
        assert by_position(database.run_transaction) == ["fn"]
    for name in ("map", "queue", "stream"):
        assert by_position(getattr(of.Transaction, name))[0] == "name"
    assert by_position(of.Transaction.commit) == ["consumer"]
    takes(TxMap.get, key=REQUIRED, default=None)
    takes(TxMap.put, key=REQUIRED, value=REQUIRED, ttl=None, if_version=None, if_absent=False)
    takes(TxMap.increment, key=REQUIRED, by=1, ttl=None)
    takes(TxMap.scan, prefix=None, start=None, stop=None, limit=None, reverse=False)
    takes(TxQueue.put, value=REQUIRED, key=None, delay=None)
    takes(TxStream.append, value=REQUIRED, key=None)
    assert issubclass(TxMap, MutableMapping)


@pytest.mark.parametrize("database", [of.Database, aio.AsyncDatabase])
def test_queues_and_locks(database):
    takes(database.queue, name=REQUIRED, type=None, lease="30s", max_attempts=5, dead_letter=None)
    assert by_position(database.queue) == ["name"]
    takes(database.lock, name=REQUIRED, ttl="30s", timeout=None)
    for queue in (Queue, aio.AsyncQueue):
        takes(queue.put, value=REQUIRED, key=None, delay=None, request_id=None)
        assert by_position(queue.put) == ["value"]
        takes(queue.get, timeout=None)
        assert callable(queue.dead)
    assert isinstance(Lock.fencing_token, property) and isinstance(aio.AsyncLock.fencing_token, property)
    takes(of.Message.extend)


@pytest.mark.parametrize("database", [of.Database, aio.AsyncDatabase])
def test_streams(database):
    takes(database.stream, name=REQUIRED, partitions=None, type=None, retention=None)
    for stream in (Stream, aio.AsyncStream):
        takes(stream.append, value=REQUIRED, key=None, request_id=None)
        takes(stream.append_many, records=REQUIRED, key=None)
        takes(stream.read, start="earliest", follow=False)
        assert by_position(stream.read) == ["start"]
        takes(stream.consumer, group=REQUIRED)
        assert by_position(stream.consumer)[0] == "group"
    for consumer in (Consumer, aio.AsyncConsumer):
        takes(consumer.commit)


ERRORS = {
    "Conflict": True,
    "Unavailable": True,
    "TooStale": True,
    "TooOld": True,
    "Timeout": False,
    "AppendUnknown": False,
    "LogCorrupt": True,
    "MergeFailed": True,
    "InvalidKey": True,
    "InvalidValue": True,
    "InvalidArgument": True,
    "TooLarge": True,
    "UnsupportedConsistency": True,
    "TransactionError": True,
    "BelowFloor": True,
    "TokenError": True,
    "SpaceError": True,
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_says_whether_the_operation_certainly_did_not_happen(name):
    kind = getattr(of, name)
    assert issubclass(kind, of.OnefoldError)
    assert kind("what to do").definite is ERRORS[name]
    assert str(kind("what to do")) == "what to do"


def test_public_methods_of_shared_state_have_docstrings_and_types():
    kinds = [
        of.Map,
        Queue,
        of.Message,
        Lock,
        Stream,
        Consumer,
        of.Transaction,
        TxMap,
        TxQueue,
        TxStream,
        Watch,
    ]
    kinds += [getattr(aio, name) for name in aio.__all__ if inspect.isclass(getattr(aio, name))]
    assert len(kinds) > 12
    for kind in kinds:
        for name, member in vars(kind).items():
            function = member.fget if isinstance(member, property) else member
            if name.startswith("_") or not inspect.isfunction(function):
                continue
            if typed_elsewhere(function):
                continue
            assert inspect.getdoc(getattr(kind, name)), f"{kind.__name__}.{name}"
            assert "return" in function.__annotations__, f"{kind.__name__}.{name}"


def typed_elsewhere(function):
    """A signature for type checkers only, whose implementation has none."""
    return not function.__annotations__ and len(parameters(function)) > 0


def test_fields_of_a_record():
    with of.connect("memory://") as db:
        stream = db.stream("clicks", partitions=8)
        position = stream.append({"user": "u1"}, key="u1", request_id=None)
        assert isinstance(position, of.Position)
        (record,) = stream.read(start=position, follow=False)
        assert (record.value, record.key, record.offset) == ({"user": "u1"}, "u1", 0)
        assert 0 <= record.partition < 8 and record.time.tzinfo is not None


def test_the_asynchronous_connection_is_awaited_or_entered():
    async def program():
        async with of.aio.connect("memory://") as db:
            m = db.map("m")  # not awaited
            await m.put("k", 1)
            with pytest.raises(TypeError):
                m["k"]
            assert [pair async for pair in m.scan()] == [("k", 1)]
            assert isinstance(db.session.token, str)
        db = await of.aio.connect("memory://")
        assert await db.map("m").get("k") is None
        await db.close()

    asyncio.run(program())


def test_names_of_the_testing_package():
    names = ["Simulation", "Faults", "History", "check_linearizable", "check_list_append", "check_session"]
    for name in [*names, "check_set", "check_counter", "check_queue"]:
        assert inspect.getdoc(getattr(testing, name)), name
