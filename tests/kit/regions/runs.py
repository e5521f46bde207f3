"""Whole runs of a simulated world."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from kit.regions.world import World
from onefold.available import exchange
from onefold.available.sync import joining, leaving, staging


@contextmanager
def small_steps(seed: int) -> Iterator[None]:
    """The bounds of what one record of a full sync does are so low that its few rows need many."""
    rng = random.Random(seed)
    rows = rng.choice((1, 2, 5))
    with (
        patch.object(staging, "SYNC_ROWS_MAX", rows),
        patch.object(exchange, "SYNC_ROWS_MAX", rows),
        patch.object(joining, "JOINED_ROWS_MAX", rng.choice((1, 2, 3, 8))),
        patch.object(leaving, "CLEARED_PER_OPERATION_MAX", rng.choice((1, 3, 50))),
        patch.object(leaving, "LATER_PER_OPERATION_MAX", rng.choice((1, 100))),
    ):
        yield


def run(seed: int, *, steps: int = 200, count: int = 0, **options: Any) -> World:
    """A whole run; raises Violation. ``count`` of regions; by default it follows from the seed."""
    with small_steps(seed):
        world = World(seed, count or 2 + seed % 2, **options)
        for _ in range(steps):
            world.step()
        world.heal()
        return world
