"""Processing time behind a hop: however old the views are by which it passes, no row comes that is late by it."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from onefold.compute.live.event_time import operator_watermark, passed_by
from onefold.state.fold.live.ops import Position

PARTITIONS = 2
STEPS = 150
View = tuple[list[Position], int]
"""What the part above has committed, and the end of the hop."""


def passed_whatever_is_unread(positions: list[Position], heads: dict[Any, tuple[int, int]]) -> list[Position]:
    """The planted bug: nobody looks whether the part above has read to the head."""
    return passed_by(
        positions, {(one.input, one.partition): (one.next, heads[0, one.partition][1]) for one in positions}
    )


def late_rows(seed: int, passed: Any) -> int:
    """Rows that the part below meets behind its watermark, of one random history."""
    random, now, late = Random(seed), 1, 0
    logs: list[list[int]] = [[] for _ in range(PARTITIONS)]
    hop: list[int] = []
    views: list[View] = [([Position(0, number, 0) for number in range(PARTITIONS)], 0)]
    heads: list[dict[Any, tuple[int, int]]] = []
    read, seen, mark = 0, 0, None
    for _ in range(STEPS):
        now += random.randint(0, 3)
        partition = random.randrange(PARTITIONS)
        match random.choice(("append", "above", "read", "look", "pass")):
            case "append":
                logs[partition].append(now)
            case "above":
                positions = list(views[-1][0])
                at = positions[partition].next
                taken = logs[partition][at : at + random.randint(1, 3)]
                hop += taken
                highest = max(taken, default=positions[partition].max_us)
                positions[partition] = Position(0, partition, at + len(taken), highest)
                views.append((positions, len(hop)))
            case "read":
                upto = random.randint(read, len(hop))
                late += sum(mark is not None and time < mark for time in hop[read:upto])
                read = upto
            case "look":
                heads.append({(0, number): (len(log), now) for number, log in enumerate(logs)})
            case "pass":
                seen = random.randint(seen, len(views) - 1)  # as far as this replica is
                positions, end = views[seen]
                if heads and read >= end:
                    found = {one.partition: one for one in passed(positions, random.choice(heads[-3:]))}
                    told = operator_watermark(mark, [found.get(one.partition, one) for one in positions], {})
                    mark = told
    return late


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_no_row_is_late_by_the_time_that_has_passed(first: int) -> None:
    assert sum(late_rows(seed, passed_by) for seed in range(first, first + 100)) == 0


def test_time_that_passes_unread_records_makes_rows_late() -> None:
    assert any(late_rows(seed, passed_whatever_is_unread) for seed in range(5))
