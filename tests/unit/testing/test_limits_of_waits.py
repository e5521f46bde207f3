"""Whatever tests wait for has a minute to come about: a busy machine takes its time, and only a failure takes all of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from onefold import durations
from onefold.errors import InvalidArgument

TESTS = Path(__file__).parents[2]
LEAST_S = 60
TIMED = {"acquire", "catch_up", "communicate", "join", "wait", "wait_for"}
"""Waits that may end by ``timeout=``; ``stop`` waits too when a job is drained."""
FIRST = {"catch_up", "communicate", "join"}
"""Those whose first argument is their limit. Of ``wait`` it is one where something is asserted of the call itself."""


def short_waits(tree: ast.AST) -> Iterator[int]:
    """Lines of waits that may end too soon. What has to fail within its time stands in ``pytest.raises`` or behind ``not``; and
    what is shorter than a second is meant to be."""
    for node in _met(tree):
        limit = _limit(node)
        if isinstance(limit, ast.Constant) and isinstance(limit.value, int | float | str):
            seconds = _seconds(limit.value)
            if seconds is not None and 1 <= seconds < LEAST_S:
                yield limit.lineno


def _limit(node: ast.AST) -> ast.expr | None:
    match node:
        case ast.BinOp(left=ast.Call() as clock, op=ast.Add(), right=limit) if _name(clock) == "monotonic":
            return limit
        case ast.Assert(test=ast.Call(args=[limit, *_]) as call) if _name(call) == "wait":
            return limit
        case ast.Call(keywords=words) if _name(node) in TIMED or _drains(node):
            for word in words:
                if word.arg == "timeout":
                    return word.value
            if _name(node) in FIRST and len(node.args) == 1:
                return node.args[0]
            if ast.unparse(node.func) == "asyncio.wait_for":
                return node.args[-1]
    return None


def _met(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that have to come to nothing."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        fails = isinstance(child, ast.With) and any("raises" in ast.unparse(item) for item in child.items)
        if not fails and not (isinstance(child, ast.UnaryOp) and isinstance(child.op, ast.Not)):
            yield from _met(child)


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _drains(call: ast.Call) -> bool:
    return _name(call) == "stop" and any(word.arg == "drain" for word in call.keywords)


def _seconds(limit: float | str) -> float | None:
    try:
        return durations.seconds(limit, "limit")
    except InvalidArgument:
        return None  # another method of that name


def test_whoever_waits_for_a_state_gives_it_a_minute() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in sorted(TESTS.rglob("*.py"))
        for line in short_waits(ast.parse(path.read_text()))
    ]
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "end = time.monotonic() + 20",
        "run.catch_up(timeout=30)",
        'run.catch_up("30s")',
        "run.stop(drain=True, timeout=20)",
        "thread.join(10)",
        "assert ready.wait(5)",
        "process.communicate(timeout=30)",
        "await asyncio.wait_for(main(), 30)",
    ],
)
def test_short_limits_are_found(text: str) -> None:
    assert [*short_waits(ast.parse(text))] == [1]


@pytest.mark.parametrize(
    "text",
    [
        "run.catch_up(timeout=60)",
        "with pytest.raises(of.Timeout):\n    run.catch_up(timeout=1)",
        "assert not begun.wait(timeout=1.5)",
        'text = ", ".join("abc")',
        "thread.join(0.05)",
        "thread.join(SOON_S)",
    ],
)
def test_what_is_meant_to_be_short_is_not_found(text: str) -> None:
    assert not [*short_waits(ast.parse(text))]
