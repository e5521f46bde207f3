"""A call of each public function that takes numbers, durations or times, to which one argument more is given.

``refusals`` gives every such argument each of some values, and says what came of it other than an error that names it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import onefold as of
import onefold.testing
from onefold import agg
from onefold.arguments import shown
from onefold.state.maps.map import Map
from support.memory_regions import give_region
from support.public_arguments import Argument

WITHIN_S = 60.0


class Things:
    """Handles of one space, and of its asynchronous twin; by the names of their classes."""

    def __init__(self, db: of.Database, adb: of.aio.AsyncDatabase, folder: Path) -> None:
        self.db, self.adb, self.folder = db, adb, folder
        db.map("m")["there"] = 1
        db.stream("s").append({"k": "a"})
        (folder / "in.csv").write_text("k\na\n")
        rows = db.read_csv(folder / "in.csv")
        live = db.read_stream("s", follow=True, event_time="at")
        job = rows.group_by("k").agg(n=agg.count()).into("batch")
        run = job.run(progress=False, workers=1)
        table = run.result()
        (snapshot,) = table.watch(timeout=0)
        live_job = db.read_stream("s", follow=True).group_by("k").agg(n=agg.count()).into("live")
        self.live_run = live_job.start(workers=0)
        self.point = self.live_run.point()
        queue = db.queue("q")
        queue.put_many([1, 2])
        message, other = queue.take(timeout=0), queue.take(timeout=0)
        clock = onefold.testing.FakeClock()
        self.clock = clock
        self.rows, self.live = rows, live
        self.simulation = onefold.testing.Simulation(1)
        give_region(db)
        self.by_name: dict[str, Any] = {
            "Database": db,
            "AsyncDatabase": adb,
            "Map": db.map("m"),
            "AsyncMap": adb.map("m"),
            "AvailableMap": db.map("available", mode="available", merge="fields"),
            "AsyncAvailableMap": adb.map("available", mode="available", merge="fields"),
            "Counters": db.counters("stock", floor=0),
            "AsyncCounters": adb.counters("stock", floor=0),
            "Sets": db.sets("tags"),
            "AsyncSets": adb.sets("tags"),
            "Queue": db.queue("q"),
            "AsyncQueue": adb.queue("q"),
            "Message": message,
            "AsyncMessage": of.aio.queues.AsyncMessage(adb._bridge, other),
            "Lock": db.lock("l"),
            "Stream": db.stream("s"),
            "AsyncStream": adb.stream("s"),
            "Dataset": rows,
            "LiveDataset": live,
            "LiveGroupBy": live.group_by("k"),
            "PreparedJob": job,
            "PreparedLiveJob": live_job,
            "Run": run,
            "LiveRun": self.live_run,
            "AsyncRun": of.aio.AsyncRun(adb._bridge, self.live_run),
            "Table": table,
            "TableSnapshot": snapshot,
            "LiveTable": self.live_run.result(),
            "AsyncTable": adb.table("batch"),
            "FakeClock": clock,
            "Simulation": self.simulation,
            "ScriptedSource": onefold.testing.ScriptedSource("s", []),
            "onefold.db": of,
            "onefold.agg": agg,
            "onefold.window": of.window,
            "onefold.state.core.consistency": of,
        }
        for module in ("fold_suite", "linearizability", "log_suite", "workload_checks"):
            self.by_name[f"onefold.testing.{module}"] = onefold.testing

    def arguments(self, function: str) -> dict[str, Any]:
        """What a function needs besides, by its name."""
        ones = {
            "put": {"value": 1},
            "put_many": {"values": [1]},
            "modify": {"key": "k", "fn": str},
            "increment": {"key": "n"},
            "add": {"key": "k"},
            "move": {"key": "k", "n": 1, "to": "us"},
            "counters": {"name": "new counters"},
            "sets": {"name": "new sets"},
            "queue": {"name": "new"},
            "lock": {"name": "new"},
            "stream": {"name": "new"},
            "consumer": {"group": "g"},
            "read_stream": {"name": "s", "follow": True},
            "run_transaction": {"fn": print},
            "map_batches": {"fn": str},
            "map_reduce": {"map": pairs, "reduce": max},
            "for_each": {"fn": print},
            "into": {"table": "new"},
            "into_stream": {"name": "new"},
            "join": {"other": self.rows, "on": "k"},
            "concat": {"history": self.rows, "live": self.live},
            "agg": {"n": agg.count()},
            "run": {"progress": False},
            "caught_up": {"point": self.point},
            "connect": {"url": self.folder / "new"},
            "approx_quantile": {"col": "c", "q": 0.5},
            "most_frequent": {"col": "c"},
            "std": {"col": "c"},
            "var": {"col": "c"},
            "sliding": {"length": "10s", "every": "5s"},
            "tumbling": {"length": "10s"},
            "session": {"gap": "10s"},
            "estimate": {"name": "n"},
            "play": {"db": self.db, "clock": self.clock},
            "clients": {"program": print},
            "check_fold": {"fold": None, "operations": []},
            "check_linearizable": {"operations": [], "model": None},
            "check_log": {"open_log": None},
            "ScriptedSource": {"stream": "s", "script": []},
        }
        return ones.get(function, {})


def pairs(record: Any) -> Iterable[tuple[Any, Any]]:
    yield record, 1


async def nothing(tx: object) -> None:
    del tx


async def called(things: Things, argument: Argument, value: object) -> object:
    """Call the function of the argument with the value; if what it gives is awaited or iterated, to its first step."""
    owner, name, given = argument
    if owner == "Transaction" or owner.startswith("Tx"):
        with things.db.transaction() as tx:
            return await stepped(method(things, inside(tx, owner), name, given, value))
    if owner == "AsyncTransaction" or owner.startswith("AsyncTx"):
        async with things.adb.transaction() as atx:
            ahandle = inside(atx, owner.removeprefix("Async"))
            return await stepped(method(things, ahandle, name, given, value))
    if owner in ("Consumer", "AsyncConsumer"):
        async with things.adb.stream("s").consumer(f"group of {owner}") as consumer:
            return await stepped(
                method(things, consumer.sync if owner == "Consumer" else consumer, name, given, value)
            )
    if name == "__init__":
        kind = getattr(onefold.testing, owner)
        return kind(**{**things.arguments(owner), given: value})
    return await stepped(method(things, things.by_name[owner], name, given, value))


def inside(tx: Any, owner: str) -> Any:
    """What has the method: a transaction, or a handle in it."""
    match owner:
        case "TxMap":
            return tx.map("m")
        case "TxAvailableMap":
            return tx.map("available", mode="available", merge="fields")
        case "TxQueue":
            return tx.queue("q")
        case "TxCounters":
            return tx.counters("stock", floor=0)
        case "TxSets":
            return tx.sets("tags")
    return tx


def method(things: Things, handle: Any, name: str, given: str, value: object) -> Any:
    options = dict(things.arguments(name))
    is_map = isinstance(handle, Map) or type(handle).__name__.endswith("Map")
    if is_map and name in ("put", "put_many"):
        item = {"n": 1} if "Available" in type(handle).__name__ else 1
        options = {"key": "k", "value": item} if name == "put" else {"items": {"k": item}}
    if isinstance(handle, of.FakeClock if hasattr(of, "FakeClock") else onefold.testing.FakeClock):
        options.pop("url", None)
    if isinstance(handle, of.aio.AsyncDatabase) and name == "run_transaction":
        options["fn"] = nothing
    function = getattr(handle, name)
    takes = inspect.signature(function).parameters
    if any(one.kind is one.VAR_KEYWORD for one in takes.values()):
        return function(**{**options, given: value})
    return function(**{**{key: one for key, one in options.items() if key in takes}, given: value})


async def stepped(result: Any) -> object:
    async with asyncio.timeout(WITHIN_S):  # in this task, to which a transaction belongs
        if inspect.isawaitable(result):
            return await result
        if hasattr(result, "__anext__"):
            return await anext(result, None)
        if hasattr(result, "__aenter__"):
            async with result:
                return None
    return result


async def refusals(
    things: Things,
    wanted: Mapping[Argument, Iterable[object]],
    refused: Callable[[Argument, object, BaseException | None], str | None],
) -> list[str]:
    """Every call with every value; what ``refused`` says of how it ended (None: as it should)."""
    wrong: list[str] = []
    for argument, values in wanted.items():
        for value in values:
            error: BaseException | None = None
            try:
                await called(things, argument, value)
            except Exception as caught:
                error = caught
            problem = refused(argument, value, error)
            if problem is not None:
                wrong.append(f"{'.'.join(argument)} of {shown(value)}: {problem}")
    return wrong
