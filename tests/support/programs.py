"""A program as text, loaded as a module, and the digest of a plan."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from onefold.compute.code.identity import Digest, plan_digest
from onefold.compute.plan.nodes import Into, Job, Node, Source

SOURCE = Source("csv", ("a.csv",), (("separator", ";"),))

Load = Callable[..., ModuleType]


@pytest.fixture(name="load")
def load_program(tmp_path: Path) -> Iterator[Load]:
    """Import a module of the program from its text, each time as another file and module."""
    names: list[str] = []
    numbers = itertools.count()

    def importer(text: str, name: str | None = None) -> ModuleType:
        name = name or f"program_{tmp_path.name}_{next(numbers)}"
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(text))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        names.append(name)
        spec.loader.exec_module(module)
        return module

    yield importer
    for name in names:
        sys.modules.pop(name, None)


def of_plan(node: Node, sink: Any = None) -> Digest:
    return plan_digest(Job(node, sink or Into("t")))


PROGRAM = '''
import re

STOP = {"the", "a", "an", "of", "and"}
WORD = re.compile(r"[a-z]+", re.I)
LIMIT = 3


class Counter:
    """Counts."""

    step: int = 1

    def __init__(self, start=0):
        self.start = start

    def add(self, n):
        return self.start + n * self.step


def helper(word):
    return word not in STOP and len(word) > LIMIT


def make(factor):
    def inner(row):
        return [row["n"] * factor, Counter().add(1)]

    return inner


inner = make(2)


def job(row, scale=10, *, sign=1):
    """Split a line."""
    out = []
    for word in WORD.findall(row["line"]):
        if helper(word):
            try:
                out.append({"word": word.lower(), "n": len(word) * scale * sign, "i": inner(row)})
            except ValueError:
                continue
    return [item for item in out if item["n"] in {1, 2, 3}]
'''
