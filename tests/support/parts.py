"""Which part of a fixed set of seeds or cases this run takes: another one each day, so that a few days see all of them.

``ONEFOLD_TEST_DAY`` is the number of the day, which runs the same part again; ``all`` takes the whole set. Tests with the mark
``moving(parts)`` run for a part of their parameters, also for none where there are more parts than those; ``first`` says on which
day the first part is run, so that long tests can share the days.
``ONEFOLD_TEST_FILES_PARTS`` takes a part of the unit and conformance files.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pytest

VARIABLE = "ONEFOLD_TEST_DAY"
FILES_PARTS = "ONEFOLD_TEST_FILES_PARTS"
T = TypeVar("T")


def fix_day() -> None:
    """Write today's number into the environment, so that all workers of a run take the same part, past midnight too."""
    os.environ.setdefault(VARIABLE, str(datetime.now(UTC).toordinal()))


def takes_all() -> bool:
    return os.environ.get(VARIABLE) == "all"


def part_of_day(parts: int, first: int = 0) -> int:
    """Which of so many parts is today's, counted from 0; 0 where all of them are taken. ``first``: the day of part 0."""
    fix_day()
    return 0 if takes_all() else (int(os.environ[VARIABLE]) - first) % parts


def todays(items: Sequence[T], parts: int, first: int = 0) -> list[T]:
    """Every ``parts``-th of the items, beginning with another one each day; all of them with ``all``."""
    return list(items) if takes_all() else list(items[part_of_day(parts, first) :: parts])


def is_todays(name: str, parts: int) -> bool:
    """Whether the part that a name falls into is today's. Names are scattered, so that a part has something of every kind."""
    return takes_all() or zlib.crc32(name.encode()) % parts == part_of_day(parts)


def deselect_others(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the mark ``moving`` leaves to other days. A test that is named with its parameters runs."""
    named = {argument for argument in config.invocation_params.args if "[" in argument}
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("moving") is not None:
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    others: set[pytest.Item] = set()
    for cases in tests.values():
        mark = cases[0].get_closest_marker("moving")
        assert mark is not None
        # Scattered, so that a part has something of every kind also where kinds alternate.
        cases.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
        others.update(set(cases) - set(todays(cases, mark.args[0], mark.kwargs.get("first", 0))))
    others = {item for item in others if item.nodeid not in named}
    if others:
        config.hook.pytest_deselected(items=[item for item in items if item in others])
        items[:] = [item for item in items if item not in others]


def ignores_file(path: Path) -> bool:
    """Whether a file is left to another day; only where a part of the files is asked for."""
    asked = os.environ.get(FILES_PARTS)
    return asked is not None and path.name.startswith("test_") and not is_todays(path.name, int(asked))
