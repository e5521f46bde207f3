"""The heavy modules are imported by one thread at a time, wherever two may need them first."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import onefold
from onefold.machine import lazy
from onefold.machine.first_use import first_use

LIBRARY = Path(onefold.__file__).parent
USERS = ("database", "node", "state")
"""What uses the heavy modules from threads of a program's or a node's own."""
HEAVY = ("polars", "numpy", "onefold.compute")


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [one.name for one in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def _unlocked(tree: ast.AST) -> list[int]:
    """Lines inside functions that import something heavy, outside ``with first_use``."""
    locked = {
        id(inner)
        for block in ast.walk(tree)
        if isinstance(block, ast.With) and any(ast.unparse(one) == "first_use" for one in block.items)
        for inner in ast.walk(block)
    }
    return sorted(
        {
            node.lineno
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
            if any(name.startswith(HEAVY) for name in _imported(node)) and id(node) not in locked
        }
    )


def test_heavy_imports_of_functions_are_locked() -> None:
    found = {
        str(path.relative_to(LIBRARY)): lines
        for part in USERS
        for path in sorted((LIBRARY / part).rglob("*.py"))
        if (lines := _unlocked(ast.parse(path.read_text())))
    }
    assert not found


def test_an_unlocked_import_would_be_found() -> None:
    assert _unlocked(
        ast.parse("def f():\n    import polars\n    with first_use:\n        import numpy\n")
    ) == [2]


def test_a_lazy_module_is_imported_under_the_lock_and_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[bool] = []

    def look() -> None:
        got.append(first_use.acquire(blocking=False))
        if got[-1]:
            first_use.release()

    def imported(name: str) -> SimpleNamespace:
        assert name == "heavy"
        other = threading.Thread(target=look)
        other.start()
        other.join()
        return SimpleNamespace(value=3)

    monkeypatch.setattr(lazy, "import_module", imported)
    module = lazy.LazyModule("heavy")
    assert got == []
    assert module.value + module.value == 6
    assert got == [False]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_can_import_while_another_thread_did() -> None:
    program = """
import os, threading
from onefold.machine.first_use import first_use
held, go_on = threading.Event(), threading.Event()
def hold():
    with first_use:
        held.set()
        go_on.wait(0.2)
threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if child == 0:
    with first_use:
        os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "7", done.stderr
    with first_use:
        pass  # and here it is free
