"""Which part of a fixed set of seeds or cases this run takes: another one each day, so that a few days see all of them.

``ONEFOLD_TEST_DAY`` is the number of the day, which runs the same part again; ``all`` takes the whole set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar

VARIABLE = "ONEFOLD_TEST_DAY"
T = TypeVar("T")


def fix_day() -> None:
    """Write today's number into the environment, so that all workers of a run take the same part, past midnight too."""
    os.environ.setdefault(VARIABLE, str(datetime.now(UTC).toordinal()))


def takes_all() -> bool:
    return os.environ.get(VARIABLE) == "all"


def part_of_day(parts: int) -> int:
    """Which of so many parts is today's, counted from 0; 0 where all of them are taken."""
    fix_day()
    return 0 if takes_all() else int(os.environ[VARIABLE]) % parts


def todays(items: Sequence[T], parts: int) -> list[T]:
    """Every ``parts``-th of the items, beginning with another one each day; all of them with ``all``."""
    return list(items) if takes_all() else list(items[part_of_day(parts) :: parts])
