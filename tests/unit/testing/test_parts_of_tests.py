"""Tests that take a part of a fixed set each day: a few days take all of it, and no day takes nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from support import lanes, parts

pytest_plugins = ("pytester",)
FILES = sorted(path.name for path in Path(__file__).parents[2].rglob("test_*.py"))


@pytest.mark.parametrize("first", [0, 739_000])
def test_so_many_days_take_every_item_once(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    taken: list[int] = []
    for day in range(first, first + 3):
        monkeypatch.setenv(parts.VARIABLE, str(day))
        todays = parts.todays(range(10), 3)
        assert len(todays) >= 3
        taken += todays
    assert sorted(taken) == [*range(10)]
    monkeypatch.setenv(parts.VARIABLE, "all")
    assert parts.todays(range(10), 3) == [*range(10)]


def test_names_are_scattered_over_the_days(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for day in range(10):
        monkeypatch.setenv(parts.VARIABLE, str(day))
        todays = [name for name in FILES if parts.is_todays(name, 10)]
        assert len(todays) > len(FILES) / 30
        taken += todays
    assert sorted(taken) == FILES
    monkeypatch.setenv(parts.VARIABLE, "all")
    assert all(parts.is_todays(name, 10) for name in FILES)


CASES = """
import pytest
@pytest.mark.moving(3)
@pytest.mark.parametrize("inner", range(3))
@pytest.mark.parametrize("outer", range(4))
def test_it(outer, inner): pass
def test_always(): pass
"""


def test_each_day_takes_a_part_of_every_marked_test(
    monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester
) -> None:
    taken: list[str] = []
    for day in range(3):
        monkeypatch.setenv(parts.VARIABLE, str(day))
        items = pytester.getitems(CASES)
        parts.deselect_others(items[0].config, items)
        assert len(items) == 5
        assert items[-1].name == "test_always"
        cases = [item.name for item in items[:-1]]
        assert len({name.split("-")[1] for name in cases}) > 1, "one kind only"
        taken += cases
    assert len(set(taken)) == 12


SHARED = """
import pytest
@pytest.mark.moving(5)
@pytest.mark.parametrize("case", range(3))
def test_one(case): pass
@pytest.mark.moving(5, first=3)
@pytest.mark.parametrize("case", range(2))
def test_other(case): pass
"""


def test_long_tests_share_the_days(monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester) -> None:
    taken: list[str] = []
    for day in range(5):
        monkeypatch.setenv(parts.VARIABLE, str(day))
        items = pytester.getitems(SHARED)
        parts.deselect_others(items[0].config, items)
        assert len(items) == 1
        taken += [item.name for item in items]
    assert len(set(taken)) == 5


def test_all_workers_of_a_run_have_one_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(parts.VARIABLE)
    parts.fix_day()
    assert parts.part_of_day(1 << 30) > 739_000
    monkeypatch.setenv(parts.VARIABLE, "7")
    parts.fix_day()
    assert parts.part_of_day(5) == 2


def test_the_longest_files_exist_and_wait() -> None:
    root = Path(__file__).parents
    project = next(folder for folder in root if (folder / "pyproject.toml").exists())
    for path in lanes.LONGEST:
        assert (project / path).is_file() and lanes.waits(path)


def test_workers_and_programs_keep_compiled_code() -> None:
    assert not sys.dont_write_bytecode
    assert "PYTHONDONTWRITEBYTECODE" not in os.environ
