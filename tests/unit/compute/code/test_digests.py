"""What changes the digest of code and of values, and what does not."""

from __future__ import annotations

import collections
import dataclasses
import decimal
import enum
import functools
import math
import operator
import os
import random
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

from onefold.compute.code.canonical.values import Normaliser
from onefold.compute.code.identity import explain_difference
from onefold.compute.plan.nodes import Map
from support.programs import (
    PROGRAM,
    SOURCE,
    Load,
    load_program,  # noqa: F401
    of_plan,
)


def digest_of(value: object) -> bytes:
    normaliser = Normaliser()
    found = normaliser.digest(value)
    assert normaliser.unstable == []
    return found


UNCHANGED = {
    "comments": lambda text: text.replace("    out = []\n", "    # why\n\n    out = []  # here\n\n"),
    "moved lines": lambda text: "\n\n\nimport sys\n" + text,
    "a docstring": lambda text: text.replace("Split a line.", "Cut a line into words.").replace(
        "Counts.", "Adds."
    ),
    "no docstring": lambda text: text.replace('    """Split a line."""\n', ""),
    "annotations": lambda text: text.replace("def helper(word):", "def helper(word: str) -> bool:"),
    "future import": lambda text: "from __future__ import annotations\n" + text,
    "order of a set": lambda text: text.replace(
        '{"the", "a", "an", "of", "and"}', '{"and", "of", "a", "an", "the"}'
    ),
    "order of a constant set": lambda text: text.replace("{1, 2, 3}", "{3, 2, 1}"),
    "something else in the module": lambda text: text + "\n\ndef other():\n    return 1\n",
    "order of definitions": lambda text: text.replace("LIMIT = 3\n", "").replace(
        "STOP =", "LIMIT = 3\nSTOP ="
    ),
    "broken lines": lambda text: text.replace(
        "    return word not in STOP and len(word) > LIMIT",
        "    return (\n        word not in STOP\n        and len(word) > LIMIT\n    )",
    ),
}

CHANGED = {
    "a constant": lambda text: (
        text.replace("= 10", "= 11").replace("= 11, *", "= 10, *").replace('["line"]', '["text"]')
    ),
    "a default": lambda text: text.replace("scale=10", "scale=11"),
    "a keyword default": lambda text: text.replace("sign=1", "sign=-1"),
    "an operator": lambda text: text.replace("* scale * sign", "* scale + sign"),
    "a comparison": lambda text: text.replace("> LIMIT", ">= LIMIT"),
    "a global": lambda text: text.replace("LIMIT = 3", "LIMIT = 4"),
    "a global set": lambda text: text.replace('"and"}', '"or"}'),
    "a global's type": lambda text: text.replace("LIMIT = 3", "LIMIT = 3.0"),
    "a helper": lambda text: text.replace("word not in STOP", "word in STOP"),
    "a pattern": lambda text: text.replace("[a-z]+", "[a-z]*"),
    "a pattern's flags": lambda text: text.replace(", re.I", ""),
    "a closure": lambda text: text.replace("make(2)", "make(3)"),
    "the code of a closure": lambda text: text.replace('row["n"] * factor', 'row["n"] - factor'),
    "a method": lambda text: text.replace("self.start + n", "self.start - n"),
    "a class attribute": lambda text: text.replace("step: int = 1", "step: int = 2"),
    "a base class": lambda text: text.replace("class Counter:", "class Counter(dict):"),
    "an exception that is caught": lambda text: text.replace("except ValueError", "except KeyError"),
    "where an exception is caught": lambda text: text.replace("continue", "break"),
    "a constant set": lambda text: text.replace("{1, 2, 3}", "{1, 2, 4}"),
    "a method's name": lambda text: text.replace("word.lower()", "word.upper()"),
    "a generator": lambda text: text.replace("return [item for item in out", "yield [item for item in out"),
}


@pytest.mark.parametrize("change", UNCHANGED)
def test_what_does_not_matter_leaves_the_digest(load: Load, change: str) -> None:
    text = UNCHANGED[change](PROGRAM)
    assert text != PROGRAM
    before, after = load(PROGRAM), load(text)
    assert digest_of(before.job) == digest_of(after.job)


@pytest.mark.parametrize("change", CHANGED)
def test_what_matters_changes_the_digest(load: Load, change: str) -> None:
    text = CHANGED[change](PROGRAM)
    assert text != PROGRAM
    before, after = load(PROGRAM), load(text)
    assert digest_of(before.job) != digest_of(after.job)


def test_digests_of_all_changes_differ_from_each_other(load: Load) -> None:
    digests = [digest_of(load(CHANGED[change](PROGRAM)).job) for change in CHANGED]
    assert len(set(digests)) == len(digests)


def test_helpers_in_other_modules_count_by_their_code(load: Load) -> None:
    helpers = "LIMIT = 5\ndef long(word):\n    return len(word) > LIMIT\ndef unused():\n    return 1\n"
    one = load(helpers)
    same = load("# moved\n" + helpers.replace("return 1", "return 2"))
    other = load(helpers.replace("5", "6"))
    imported = "import {0} as helpers\ndef job(row):\n    return helpers.long(row)\n"
    by_name = "from {0} import long\ndef job(row):\n    return long(row)\n"
    inside = "def job(row):\n    import {0} as helpers\n    return helpers.long(row)\n"
    for text in (imported, by_name):
        jobs = [digest_of(load(text.format(module.__name__)).job) for module in (one, same, other)]
        assert jobs[0] == jobs[1]
        assert jobs[0] != jobs[2]
    name = one.__name__
    before = digest_of(load(inside.format(name)).job)
    one.LIMIT = 7  # type: ignore[attr-defined]
    assert digest_of(load(inside.format(name)).job) != before


def test_functions_that_call_each_other_end(load: Load) -> None:
    text = "def even(n):\n    return n == 0 or odd(n - 1)\ndef odd(n):\n    return n != 0 and even(n - 1)\n"
    assert digest_of(load(text).even) == digest_of(load("\n" + text).even)
    assert digest_of(load(text).even) != digest_of(load(text.replace("n != 0", "n != 1")).even)
    many = "".join(
        f"def f{n}(x):\n    return {' or '.join(f'f{m}(x)' for m in range(40))}\n" for n in range(40)
    )
    digest_of(load(many).f0)


def test_what_a_handler_covers_counts(load: Load) -> None:
    """The instructions are the same; only the table of handlers tells the two apart."""
    inside = "def job(row):\n    try:\n        row.a()\n        row.b()\n    except KeyError:\n        pass\n"
    after = "def job(row):\n    try:\n        row.a()\n    except KeyError:\n        pass\n    else:\n        row.b()\n"
    assert digest_of(load(inside).job) != digest_of(load(after).job)


def test_a_lambda_is_its_code(load: Load) -> None:
    text = "job = lambda row: row['x'] + 1\n"
    assert digest_of(load(text).job) == digest_of(load("def job(row):\n    return row['x'] + 1\n").job)
    assert digest_of(load(text).job) != digest_of(load(text.replace("1", "2")).job)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Point:
    x: int
    tags: set[str] = dataclasses.field(default_factory=set)


Pair = collections.namedtuple("Pair", "a b")


class Record(msgspec.Struct):
    n: int = 3
    tags: list[str] = msgspec.field(default_factory=list)

    def twice(self) -> int:
        return self.n * 2


class OtherRecord(msgspec.Struct):
    n: int = 4
    tags: list[str] = msgspec.field(default_factory=list)

    def twice(self) -> int:
        return self.n * 2


class Tree:
    def __init__(self, value: int) -> None:
        self.value = value
        self.parent: Tree | None = None
        self.children: list[Tree] = []

    def add(self, child: Tree) -> Tree:
        child.parent = self
        self.children.append(child)
        return self

    @functools.cached_property
    def size(self) -> int:
        return 1 + sum(child.size for child in self.children)

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def cached(self) -> int:
        return self.value


class Scaler:
    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, row: dict[str, float]) -> float:
        return row["x"] * self.by

    def method(self, row: dict[str, float]) -> float:
        return row["x"] / self.by


@functools.singledispatch
def shown(value: object) -> str:
    return "?"


@shown.register
def _(value: int) -> str:
    return "int"


def cyclic(n: int) -> list[Any]:
    made: list[Any] = [n]
    made.append(made)
    return made


VALUES: list[Callable[[], Any]] = [
    *(
        lambda value=value: value
        for value in (None, True, False, 1, 0, -1, 2**70, 1.0, 0.0, -0.0, "1", b"1", "", 1j, ...)
    ),
    lambda: math.nan,
    lambda: math.inf,
    lambda: bytearray(b"1"),
    lambda: (1, 2),
    lambda: [1, 2],
    lambda: [2, 1],
    lambda: [[1], 2],
    lambda: {1: 2},
    lambda: {2: 1},
    lambda: {"a": 1, "b": 2},
    lambda: {"b": 2, "a": 1},
    lambda: {1, 2},
    lambda: frozenset({1, 3}),
    lambda: {frozenset({1}), frozenset({2})},
    lambda: range(3),
    lambda: slice(1, 2),
    lambda: date(2024, 1, 1),
    lambda: datetime(2024, 1, 1),
    lambda: datetime(2024, 1, 1, tzinfo=UTC),
    lambda: timedelta(days=1),
    lambda: decimal.Decimal("1.0"),
    lambda: decimal.Decimal("1.00"),
    lambda: Fraction(1, 2),
    lambda: Path("/a/b"),
    lambda: re.compile("a"),
    lambda: re.compile("a", re.I),
    lambda: Colour.RED,
    lambda: Colour.BLUE,
    lambda: Colour,
    lambda: Point(1, {"a", "b", "c"}),
    lambda: Point(2),
    lambda: Point,
    lambda: Pair(1, 2),
    lambda: Pair(2, 1),
    lambda: collections.OrderedDict(a=1),
    lambda: collections.Counter("aab"),
    lambda: collections.defaultdict(list, a=[1]),
    lambda: collections.deque([1, 2]),
    lambda: Tree(1).add(Tree(2)).add(Tree(3)),
    lambda: Tree(1).add(Tree(3)).add(Tree(2)),
    lambda: Tree,
    lambda: Record,
    lambda: OtherRecord,
    lambda: Record(5),
    lambda: collections.UserDict({"a": 1}),
    lambda: cyclic(1),
    lambda: cyclic(2),
    lambda: Scaler(2.0),
    lambda: Scaler(3.0),
    lambda: Scaler(2.0).method,
    lambda: Scaler(3.0).method,
    lambda: shown,
    lambda: functools.partial(int, base=2),
    lambda: functools.partial(int, base=3),
    lambda: functools.lru_cache(maxsize=2)(Scaler.method),
    lambda: operator.itemgetter(1),
    lambda: operator.itemgetter(2),
    lambda: operator.attrgetter("a"),
    lambda: len,
    lambda: str.upper,
    lambda: "abc".join,
    lambda: math.sin,
    lambda: math,
    lambda: textwrap.dedent,
    lambda: list[int],
    lambda: int | str,
    lambda: np.array([1, 2]),
    lambda: np.array([1.0, 2.0]),
    lambda: np.array([[1, 2]]),
    lambda: np.float64(1.0),
    lambda: np.array(["a", {1: 2}], dtype=object),
    lambda: np.sin,
    lambda: np.dtype("i4"),
    lambda: pl.DataFrame({"a": [1, 2]}),
    lambda: pl.DataFrame({"a": [1, 3]}),
    lambda: pl.DataFrame({"b": [1, 2]}),
    lambda: pl.Series("a", [1, 2]),
    lambda: pl.Series("a", [1, 2], dtype=pl.Int8),
    lambda: pl.col("a") > 1,
    lambda: pl.col("a") > 2,
    lambda: pl.Int64,
    lambda: pl.List(pl.Int64),
]


def test_every_kind_of_value_has_a_digest_that_is_its_own() -> None:
    digests = [digest_of(make()) for make in VALUES]
    assert digests == [digest_of(make()) for make in VALUES]
    doubles = [number for number, digest in enumerate(digests) if digests.index(digest) != number]
    assert [VALUES[number]() for number in doubles] == []


def test_large_plain_values_count_as_small_ones_do() -> None:
    words = [f"word {number}" for number in range(50)]
    rng = random.Random(1)
    shuffled = rng.sample(words, len(words))
    same = ["".join(word) for word in words]
    assert digest_of(words) == digest_of(same)
    assert digest_of(set(words)) == digest_of(frozenset(shuffled))
    assert digest_of(dict.fromkeys(words, 1)) == digest_of(dict.fromkeys(same, 1))
    mixed: list[Any] = [*words, 1, 1.0, True, None, b"x", 2**80, math.nan, -0.0]
    different = [
        words, shuffled, set(words), tuple(words), dict.fromkeys(words, 1), dict.fromkeys(shuffled, 1), [*words, [1]],
        mixed, [*words, 1, 1, True, None, b"x", 2**80, math.nan, -0.0], [*mixed[:-1], 0.0], words[:-1], [*words, words[0]],
    ]  # fmt: skip
    assert len({digest_of(value) for value in different}) == len(different)


def test_shared_values_count_as_equal_ones() -> None:
    shared = [1]
    assert digest_of([shared, shared]) == digest_of([[1], [1]])
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep, deep]
    digest_of(deep)


def test_frames_count_by_values_not_by_chunks() -> None:
    whole = pl.DataFrame({"a": [1, 2, 3]})
    parts = pl.concat([whole[:1], whole[1:]], rechunk=False)
    assert digest_of(whole) == digest_of(parts) == digest_of(whole.sort("a"))


def test_a_value_without_canonical_form_is_random_and_says_why() -> None:
    lock = threading.Lock()

    def job(row: Any) -> Any:
        with lock:
            return row

    first, second = (of_plan(Map(SOURCE, job)) for _ in range(2))
    assert first.hex != second.hex
    reasons = [name for name in first.parts if name.startswith("unstable: ")]
    assert len(reasons) == 1
    assert "lock of" in reasons[0] and "without a canonical form" in reasons[0]
    assert any(
        "counts as changed in every run" in line for line in explain_difference(first.parts, second.parts)
    )


def test_the_digest_is_the_same_in_other_processes(tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text(PROGRAM)
    program = textwrap.dedent(
        """
        import sys; sys.path.insert(0, sys.argv[1])
        import words, polars as pl
        from onefold.compute.code.identity import plan_digest
        from onefold.compute.plan.nodes import *
        node = Map(Filter(Source("text", ("x",)), (pl.col("line").is_in(words.STOP),)), words.job)
        digest = plan_digest(Job(node, Into("t")))
        print(digest.hex, digest.parts)
        """
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(found) == 1
    assert "unstable" not in found.pop()
