"""Every public argument that is True or False refuses anything else: ``drain="no"`` must not drain."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import pkgutil
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest

import onefold as of
import onefold.testing
from onefold import agg

NOT_PUBLIC = {"contents", "ends", "frame_of", "look", "__init__"}
"""Methods of handles that only Onefold calls, and objects that only Onefold makes."""
INTERNAL = {"Layout", "StateClient", "View"}
"""Classes that only handles of Onefold's own give."""

Flag = tuple[str, str, str]
"""Class (or module), function, argument."""


def functions_of(owner: type) -> Iterator[FunctionType]:
    for name in dir(owner):
        found = inspect.getattr_static(owner, name)
        found = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
        if inspect.isfunction(found) and (
            not name.startswith("_") or name in ("__init__", "__enter__", "__aenter__")
        ):
            yield found


def public_flags() -> dict[Flag, str]:
    """The arguments whose annotation says bool, of all functions and classes that a program can have: the package's names, and
    what these return."""
    for module in pkgutil.walk_packages(of.__path__, "onefold."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    classes: dict[str, set[type]] = defaultdict(set)
    for name, loaded in list(sys.modules.items()):
        if name.startswith("onefold."):
            for one in vars(loaded).values():
                if inspect.isclass(one) and one.__module__.startswith("onefold."):
                    classes[one.__name__].add(one)
    entries = (of, of.aio, of.agg, of.window, onefold.testing)
    todo: list[Any] = [getattr(module, name) for module in entries for name in module.__all__]
    seen: set[int] = set()
    found: dict[Flag, str] = {}
    while todo:
        one = todo.pop()
        is_error = inspect.isclass(one) and issubclass(one, BaseException)
        if id(one) in seen or is_error or not getattr(one, "__module__", "").startswith("onefold"):
            continue
        seen.add(id(one))
        is_entry = inspect.isclass(one) and any(
            one is getattr(module, one.__name__, None) for module in entries
        )
        for function in (
            functions_of(one) if inspect.isclass(one) else (one,) if inspect.isfunction(one) else ()
        ):
            signature = inspect.signature(function)
            for word in re.findall(r"\w+", str(signature.return_annotation)):
                todo += classes.get(word, ())
            owner = one.__name__ if inspect.isclass(one) else one.__module__
            is_own = function.__name__ in NOT_PUBLIC or owner in INTERNAL
            if is_own and not (is_entry and owner == "Simulation"):
                continue
            for parameter in signature.parameters.values():
                if parameter.annotation in ("bool", "bool | None"):
                    found[owner, function.__name__, parameter.name] = parameter.annotation
    return found


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

    def in_transaction(self, call: Callable[[Any], object]) -> None:
        with self.db.transaction() as tx:
            call(tx.map("m"))

    async def in_atransaction(self, call: Callable[[Any], Any]) -> None:
        async with self.adb.transaction() as tx:
            result = call(tx.map("m"))
            if inspect.isawaitable(result):
                await result


async def nothing(tx: object) -> None:
    del tx


Call = Callable[[Kit, Any], object]
CALLS: dict[Flag, Call] = {
    ("onefold.db", "connect", "create"): lambda kit, bad: of.connect(kit.path / "new", create=bad),
    ("onefold.db", "connect", "read_only"): lambda kit, bad: of.connect(kit.path / "new", read_only=bad),
    ("Database", "read_stream", "follow"): lambda kit, bad: kit.db.read_stream("s", follow=bad),
    ("Database", "transaction", "read_only"): lambda kit, bad: kit.db.transaction(read_only=bad),
    ("Database", "run_transaction", "read_only"): lambda kit, bad: kit.db.run_transaction(
        print, read_only=bad
    ),
    ("Map", "put", "if_absent"): lambda kit, bad: kit.m.put("k", 1, if_absent=bad),
    ("Map", "put_many", "atomic"): lambda kit, bad: kit.m.put_many({"k": 1}, atomic=bad),
    ("Map", "scan", "reverse"): lambda kit, bad: kit.m.scan(reverse=bad),
    ("Map", "watch", "initial"): lambda kit, bad: kit.m.watch(initial=bad),
    ("TxMap", "put", "if_absent"): lambda kit, bad: kit.in_transaction(
        lambda m: m.put("k", 1, if_absent=bad)
    ),
    ("TxMap", "scan", "reverse"): lambda kit, bad: kit.in_transaction(lambda m: m.scan(reverse=bad)),
    ("Queue", "get", "renew"): lambda kit, bad: kit.db.queue("q").get(0, renew=bad),
    ("Stream", "read", "follow"): lambda kit, bad: kit.db.stream("s").read(follow=bad),
    ("PreparedJob", "run", "progress"): lambda kit, bad: kit.job.run(bad),
    ("Table", "to_polars", "final"): lambda kit, bad: kit.table.to_polars(bad),
    ("TableSnapshot", "to_polars", "final"): lambda kit, bad: kit.snapshot.to_polars(bad),
    ("LiveTable", "to_polars", "final"): lambda kit, bad: kit.run.result().to_polars(bad),
    ("LiveRun", "stop", "drain"): lambda kit, bad: kit.run.stop(bad),
    ("LiveRun", "swap", "force"): lambda kit, bad: kit.run.swap(bad),
    ("AsyncDatabase", "read_stream", "follow"): lambda kit, bad: kit.adb.read_stream("s", follow=bad),
    ("AsyncDatabase", "transaction", "read_only"): lambda kit, bad: kit.adb.transaction(read_only=bad),
    ("AsyncDatabase", "run_transaction", "read_only"): lambda kit, bad: kit.adb.run_transaction(
        nothing, read_only=bad
    ),
    ("AsyncMap", "put", "if_absent"): lambda kit, bad: kit.am.put("k", 1, if_absent=bad),
    ("AsyncMap", "put_many", "atomic"): lambda kit, bad: kit.am.put_many({"k": 1}, atomic=bad),
    ("AsyncMap", "scan", "reverse"): lambda kit, bad: kit.am.scan(reverse=bad),
    ("AsyncMap", "watch", "initial"): lambda kit, bad: kit.am.watch(initial=bad),
    ("AsyncTxMap", "put", "if_absent"): lambda kit, bad: kit.in_atransaction(
        lambda m: m.put("k", 1, if_absent=bad)
    ),
    ("AsyncTxMap", "scan", "reverse"): lambda kit, bad: kit.in_atransaction(lambda m: m.scan(reverse=bad)),
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
