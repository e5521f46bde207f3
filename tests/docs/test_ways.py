"""``benches/ways.py`` counts what it says: on a package whose calls are known, in two threads. And by its count
the ways of operations on a map do not get longer unseen."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import Context
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import onefold

A = """
from contextlib import contextmanager
from waypoints import b

def alone():
    return sorted([2, 1], key=near)  # the library in between is left out

def near(x):
    return x

@contextmanager
def block():
    yield

def walk():
    b.far()
    with block():
        b.far()
"""
B = """
def far():
    from waypoints import a
    return a.near(1)
"""


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for its dataclasses
    spec.loader.exec_module(module)
    del sys.modules[name]
    return module


CALLS_MAX = {
    1: {"put": 92, "get": 20, "transaction of 5 keys": 445},
    4: {"put": 103, "get": 38, "transaction of 5 keys": 1944},
}
"""Of Onefold's own functions on Python 3.11 (later ones take fewer), by the number of shards, when everything is warm. What
makes one longer is to be worth it: every program pays for these."""


@contextmanager
def tracing(ways: ModuleType, package: Path) -> Iterator[Any]:
    """A tracer of the package, which is taken away afterwards."""
    tracer = ways.Tracer(package)
    before, before_threads = sys.getprofile(), threading.getprofile()
    tracer.install()
    try:
        yield tracer
    finally:
        sys.setprofile(before)
        threading.setprofile(before_threads)


NOW_AND_THEN = ("Notifier.notify.<locals>", "PooledFile._look_for_files", "inode_at")
"""Calls that depend on the time: whether the files are still there, and who listens while the folder of listeners is young."""


def is_always_there(call: Any) -> bool:
    """Whether a call of this thread comes with each operation."""
    return call.thread == threading.get_ident() and not call.function.startswith(NOW_AND_THEN)


@pytest.mark.parametrize("shards", CALLS_MAX)
def test_the_ways_of_operations_on_a_map_get_no_longer(tmp_path: Path, shards: int) -> None:
    Context().run(check_ways, tmp_path, shards)  # one in which no earlier test has had a deadline


def check_ways(folder: Path, shards: int) -> None:
    ways = load("ways", Path(__file__).parents[2] / "benches" / "ways.py")
    with ExitStack() as stack:
        operations = ways.of_state(folder, shards, stack)
        assert set(operations) == set(CALLS_MAX[shards])
        for operation in [*operations.values()] * ways.WARM_UPS:
            operation()
        tracer = stack.enter_context(tracing(ways, Path(onefold.__file__).parent))
        for name, operation in operations.items():
            traces = []
            for _ in range(3):
                with tracer.recording() as trace:
                    operation()
                traces.append([call for call in trace.calls if is_always_there(call)])
            shortest = min(traces, key=len)
            most = Counter(f"{call.function} in {call.file}" for call in shortest).most_common()
            assert 10 < len(shortest) <= CALLS_MAX[shards][name], (name, len(shortest), most)


def test_calls_moves_and_depth_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = load("ways", Path(__file__).parents[2] / "benches" / "ways.py")
    package = tmp_path / "waypoints"
    package.mkdir()
    for name, text in (("__init__", ""), ("a", A), ("b", B)):
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    from waypoints import a  # type: ignore[import-not-found]

    try:
        with tracing(ways, package) as tracer:
            with tracer.recording() as trace:
                a.walk()
                other = threading.Thread(target=a.alone)
                other.start()
                other.join()
            a.alone()  # no longer recorded
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "waypoints"]:
            sys.modules.pop(name)

    walked = ["walk", "far", "near", "block", "far", "near", "block"]
    assert [call.function for call in trace.calls] == [*walked, "alone", "near", "near"]
    assert [call.depth for call in trace.calls] == [1, 2, 3, 2, 2, 3, 2, 1, 2, 2]
    assert trace.moves == 4  # twice to `far` and twice back to `near`
    assert (trace.files, trace.depth, trace.threads) == (2, 3, 2)
