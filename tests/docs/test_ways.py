"""``benches/ways.py`` counts what it says: on a package whose calls are known, in two threads."""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

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
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_calls_moves_and_depth_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = load("ways", Path(__file__).parents[2] / "benches" / "ways.py")
    package = tmp_path / "waypoints"
    package.mkdir()
    for name, text in (("__init__", ""), ("a", A), ("b", B)):
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    from waypoints import a  # type: ignore[import-not-found]

    tracer = ways.Tracer(package)
    before, before_threads = sys.getprofile(), threading.getprofile()
    tracer.install()
    try:
        with tracer.recording() as trace:
            a.walk()
            other = threading.Thread(target=a.alone)
            other.start()
            other.join()
        a.alone()  # no longer recorded
    finally:
        sys.setprofile(before)
        threading.setprofile(before_threads)
        sys.modules.pop("ways")
        for name in [name for name in sys.modules if name.split(".")[0] == "waypoints"]:
            sys.modules.pop(name)

    walked = ["walk", "far", "near", "block", "far", "near", "block"]
    assert [call.function for call in trace.calls] == [*walked, "alone", "near", "near"]
    assert [call.depth for call in trace.calls] == [1, 2, 3, 2, 2, 3, 2, 1, 2, 2]
    assert trace.moves == 4  # twice to `far` and twice back to `near`
    assert (trace.files, trace.depth, trace.threads) == (2, 3, 2)
