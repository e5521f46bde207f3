"""Every public argument that is True or False refuses anything else: ``drain="no"`` must not drain."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onefold as of
import onefold.testing
from onefold import agg
from support.memory_regions import give_region
from support.public_arguments import Argument, public_arguments

Flag = Argument


def public_flags() -> dict[Flag, str]:
    return public_arguments(lambda annotation: annotation in ("bool", "bool | None"))


class Kit:
    """Handles of one space, and of its asynchronous twin."""

    def __init__(self, db: of.Database, adb: of.aio.AsyncDatabase, path: Path) -> None:
        self.db, self.adb, self.path = db, adb, path
        rows = db.read_stream("s", follow=True)
        self.run = rows.group_by("k").agg(n=agg.count()).into("live").start(workers=0)
        self.arun = of.aio.AsyncRun(adb._bridge, self.run)
        (path / "in.csv").write_text("k\na\n")
        self.job = db.read_csv(path / "in.csv").group_by("k").agg(n=agg.count()).into("batch")
        self.table = self.job.run(progress=False).result()
        (self.snapshot,) = self.table.watch(timeout=0)
        self.m, self.am = db.map("m"), adb.map("m")
        give_region(db)
        self.v, self.av = db.map("v", mode="available"), adb.map("v", mode="available")

    def in_transaction(self, call: Callable[[Any], object], mode: str = "consistent") -> None:
        with self.db.transaction() as tx:
            call(tx.map("m") if mode == "consistent" else tx.map("v", mode=mode))

    async def in_atransaction(self, call: Callable[[Any], Any], mode: str = "consistent") -> None:
        async with self.adb.transaction() as tx:
            result = call(tx.map("m") if mode == "consistent" else tx.map("v", mode=mode))
            if inspect.isawaitable(result):
                await result


async def nothing(tx: object) -> None:
    del tx


Call = Callable[[Kit, Any], object]
CALLS: dict[Flag, Call] = {
    ("onefold.db", "connect", "create"): lambda kit, bad: of.connect(kit.path / "new", create=bad),
    ("onefold.db", "connect", "read_only"): lambda kit, bad: of.connect(kit.path / "new", read_only=bad),
    ("Database", "read_stream", "follow"): lambda kit, bad: kit.db.read_stream("s", follow=bad),
    ("Database", "conflicts", "follow"): lambda kit, bad: kit.db.conflicts(follow=bad),
    ("Database", "transaction", "read_only"): lambda kit, bad: kit.db.transaction(read_only=bad),
    ("Database", "run_transaction", "read_only"): lambda kit, bad: kit.db.run_transaction(
        print, read_only=bad
    ),
    ("Map", "put", "if_absent"): lambda kit, bad: kit.m.put("k", 1, if_absent=bad),
    ("Map", "put_many", "atomic"): lambda kit, bad: kit.m.put_many({"k": 1}, atomic=bad),
    ("Map", "scan", "reverse"): lambda kit, bad: kit.m.scan(reverse=bad),
    ("Map", "watch", "initial"): lambda kit, bad: kit.m.watch(initial=bad),
    ("AvailableMap", "put", "if_absent"): lambda kit, bad: kit.v.put("k", 1, if_absent=bad),
    ("AvailableMap", "put_many", "atomic"): lambda kit, bad: kit.v.put_many({"k": 1}, atomic=bad),
    ("AvailableMap", "scan", "reverse"): lambda kit, bad: kit.v.scan(reverse=bad),
    ("AvailableMap", "watch", "initial"): lambda kit, bad: kit.v.watch(initial=bad),
    ("TxMap", "put", "if_absent"): lambda kit, bad: kit.in_transaction(
        lambda m: m.put("k", 1, if_absent=bad)
    ),
    ("TxMap", "scan", "reverse"): lambda kit, bad: kit.in_transaction(lambda m: m.scan(reverse=bad)),
    ("TxAvailableMap", "put", "if_absent"): lambda kit, bad: kit.in_transaction(
        lambda m: m.put("k", 1, if_absent=bad), "available"
    ),
    ("TxAvailableMap", "scan", "reverse"): lambda kit, bad: kit.in_transaction(
        lambda m: m.scan(reverse=bad), "available"
    ),
    ("Queue", "get", "renew"): lambda kit, bad: kit.db.queue("q").get(0, renew=bad),
    ("Stream", "read", "follow"): lambda kit, bad: kit.db.stream("s").read(follow=bad),
    ("PreparedJob", "run", "progress"): lambda kit, bad: kit.job.run(bad),
    ("Table", "to_polars", "final"): lambda kit, bad: kit.table.to_polars(bad),
    ("TableSnapshot", "to_polars", "final"): lambda kit, bad: kit.snapshot.to_polars(bad),
    ("LiveTable", "to_polars", "final"): lambda kit, bad: kit.run.result().to_polars(bad),
    ("LiveRun", "stop", "drain"): lambda kit, bad: kit.run.stop(bad),
    ("LiveRun", "swap", "force"): lambda kit, bad: kit.run.swap(bad),
    ("AsyncDatabase", "read_stream", "follow"): lambda kit, bad: kit.adb.read_stream("s", follow=bad),
    ("AsyncDatabase", "conflicts", "follow"): lambda kit, bad: kit.adb.conflicts(follow=bad),
    ("AsyncDatabase", "transaction", "read_only"): lambda kit, bad: kit.adb.transaction(read_only=bad),
    ("AsyncDatabase", "run_transaction", "read_only"): lambda kit, bad: kit.adb.run_transaction(
        nothing, read_only=bad
    ),
    ("AsyncMap", "put", "if_absent"): lambda kit, bad: kit.am.put("k", 1, if_absent=bad),
    ("AsyncMap", "put_many", "atomic"): lambda kit, bad: kit.am.put_many({"k": 1}, atomic=bad),
    ("AsyncMap", "scan", "reverse"): lambda kit, bad: kit.am.scan(reverse=bad),
    ("AsyncMap", "watch", "initial"): lambda kit, bad: kit.am.watch(initial=bad),
    ("AsyncAvailableMap", "put", "if_absent"): lambda kit, bad: kit.av.put("k", 1, if_absent=bad),
    ("AsyncAvailableMap", "put_many", "atomic"): lambda kit, bad: kit.av.put_many({"k": 1}, atomic=bad),
    ("AsyncAvailableMap", "scan", "reverse"): lambda kit, bad: kit.av.scan(reverse=bad),
    ("AsyncAvailableMap", "watch", "initial"): lambda kit, bad: kit.av.watch(initial=bad),
    ("AsyncTxMap", "put", "if_absent"): lambda kit, bad: kit.in_atransaction(
        lambda m: m.put("k", 1, if_absent=bad)
    ),
    ("AsyncTxMap", "scan", "reverse"): lambda kit, bad: kit.in_atransaction(lambda m: m.scan(reverse=bad)),
    ("AsyncTxAvailableMap", "put", "if_absent"): lambda kit, bad: kit.in_atransaction(
        lambda m: m.put("k", 1, if_absent=bad), "available"
    ),
    ("AsyncTxAvailableMap", "scan", "reverse"): lambda kit, bad: kit.in_atransaction(
        lambda m: m.scan(reverse=bad), "available"
    ),
    ("AsyncQueue", "get", "renew"): lambda kit, bad: kit.adb.queue("q").get(0, renew=bad),
    ("AsyncStream", "read", "follow"): lambda kit, bad: kit.adb.stream("s").read(follow=bad),
    ("AsyncTable", "to_polars", "final"): lambda kit, bad: kit.adb.table("batch").to_polars(bad),
    ("AsyncRun", "stop", "drain"): lambda kit, bad: kit.arun.stop(bad),
    ("AsyncRun", "swap", "force"): lambda kit, bad: kit.arun.swap(bad),
    ("Simulation", "__init__", "syncs"): lambda kit, bad: onefold.testing.Simulation(1, syncs=bad),
}
KIT_MODULES = ("list_append", "log_suite", "session_checks", "workload_checks")


def call_of(flag: Flag) -> Call:
    """A call that gives this argument the value."""
    owner, name, argument = flag
    if flag in CALLS:
        return CALLS[flag]
    assert owner in {f"onefold.testing.{module}" for module in KIT_MODULES}, f"add a call of {flag}"
    function = getattr(onefold.testing, name)
    needed = [one for one in inspect.signature(function).parameters.values() if one.default is one.empty]
    return lambda kit, bad: function(*[[] for _ in needed], **{argument: bad})


def test_every_flag_takes_true_or_false_only(tmp_path: Path) -> None:
    flags = public_flags()
    assert set(CALLS) <= set(flags)
    assert len(flags) >= 40

    async def refusals() -> list[str]:
        wrong: list[str] = []
        async with of.aio.connect(tmp_path / "space") as adb:
            db = adb.sync
            db.stream("s").append({"k": "a"})
            kit = Kit(db, adb, tmp_path)
            for flag, annotation in flags.items():
                or_none = annotation != "bool"
                for bad in ("no", 1, 0, np.True_, [], *([] if or_none else [None])):
                    said = f"{flag[2]} must be {'True, False or None' if or_none else 'True or False'}; got {bad!r} "
                    try:
                        result = call_of(flag)(kit, bad)
                        if inspect.isawaitable(result):
                            await asyncio.wait_for(result, 120)
                        wrong.append(f"{flag}: takes {bad!r}")
                    except of.InvalidArgument as error:
                        if not str(error).startswith(said):
                            wrong.append(f"{flag}: {error}")
            assert kit.run.state == "running"
            assert "k" not in kit.m
            assert "k" not in kit.v
        return wrong

    assert asyncio.run(refusals()) == []
    assert not (tmp_path / "new").exists()


def test_true_and_false_are_taken(tmp_path: Path) -> None:
    with of.connect(tmp_path, create=True, read_only=False) as db:
        m = db.map("m")
        m.put("k", 1, if_absent=True)
        with pytest.raises(of.Conflict):
            m.put("k", 2, if_absent=True)
        m.put("k", 3, if_absent=False)
        assert [*m.scan(reverse=True)] == [("k", 3)]
