"""Why a window does not close: each cause in words, with what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import onefold as of
from onefold import agg
from onefold.compute.live.job.held_by import Standing, held_by
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live.ops import Position
from onefold.state.fold.live.rows import BundleRow

SECOND = 1_000_000
T0 = 1_767_225_600 * SECOND
"""2026-01-01 in µs."""


TUMBLING = of.window.tumbling("10s")


def part(window: Any = TUMBLING, **source: Any) -> Any:
    with of.connect("memory://") as db:
        db.stream("clicks").create()
        rows = db.read_stream("clicks", follow=True, **{"event_time": "at", **source})
        rows = rows if window is None else rows.window(window)
        run: Any = rows.group_by("page").agg(n=agg.count()).into("t").start(workers=0, lanes=4)
        return run._part


def bundle(*positions: Position, owner: str = "w", mark: int | None = T0, lanes: int = 0b1111) -> BundleRow:
    return BundleRow(lane_sets.pack(lanes), owner, 1, 1, 1, positions, mark)


def at(partition: int, end: int = 5, second: int | None = 0, idle: bool = False) -> Position:
    return Position(0, partition, end, None if second is None else T0 + second * SECOND, idle)


def standing(*bundles: BundleRow, **facts: Any) -> Standing:
    heads = {(0, 0): 5, (0, 1): 5}
    return replace(Standing("t", part(), "running", "", bundles, heads, 0), **facts)


CAUSES: dict[str, tuple[Standing, str]] = {
    "nothing": (standing(bundle(at(0))), ""),
    "stopped": (
        standing(bundle(at(0)), state="stopped"),
        "the job is stopped: start it again, or call resume()",
    ),
    "failed": (standing(bundle(at(0)), state="failed", error="no time"), "the job failed: no time"),
    "cancelled": (standing(bundle(at(0)), state="cancelled"), "the job was cancelled"),
    "done": (standing(bundle(at(0)), state="done"), ""),
    "no stream": (standing(bundle(mark=None)), "there is no stream 'clicks' yet"),
    "no worker": (
        standing(bundle(at(0), lanes=0b11), bundle(at(0), owner="", lanes=0b1100)),
        "2 of 4 lanes have no worker: start the job in a process that stays, call db.open_run('t').resume()",
    ),
    "no worker yet": (
        standing(bundle(at(0), lanes=0b11), bundle(at(0), owner="", lanes=0b1100), worked_on_here=True),
        "the worker of this process is starting: 2 of 4 lanes wait for it",
    ),
    "a worker that cannot begin": (
        standing(bundle(at(0), owner=""), worked_on_here=True, trouble="the disk is full"),
        "a worker of this process cannot work now, and tries again: the disk is full",
    ),
    "trouble": (
        standing(bundle(at(0, 3)), trouble="the disk is full", busy_s=25.4),
        "a worker of this process cannot work now, and tries again: the disk is full",
    ),
    "a long step": (
        standing(bundle(at(0, 3)), busy_s=25.4),
        "a worker of this process has been in one step for 25 s, and 2 records of its inputs wait: a function",
    ),
    "a long step behind all records": (standing(bundle(at(0)), busy_s=25.4), ""),
    "a worker behind": (
        standing(bundle(at(0), lanes=0b11), bundle(at(0, 2), owner="slow", mark=T0 - 1, lanes=0b1100)),
        "worker slow with 2 lanes is behind the other workers: it has 3 records to read",
    ),
    "silent, with dead records": (
        standing(bundle(at(0), at(1, 5, None), mark=None), dead=2),
        "partition 1 of 'clicks' has had no record with a time that counts: 2 were set aside",
    ),
    "silent, with dead records and some too far ahead": (
        standing(bundle(at(0), at(1, 5, None), mark=None), dead=2, ahead=1),
        "partition 1 of 'clicks' has had no record with a time that counts: "
        "1 are further than max_ahead=60s ahead of their append and 2 were set aside",
    ),
    "unread": (standing(bundle(at(0, 3))), "2 records of its inputs are not committed yet"),
    "silent": (
        standing(bundle(at(0), at(1, 5, None), mark=None)),
        "partition 1 of 'clicks' has had no record; it is idle, and holds nothing, after 10s of silence",
    ),
    "silent while another one is read": (
        standing(bundle(at(0, 3), at(1, 5, None), mark=None)),
        "partition 1 of 'clicks' has had no record; it is idle",
    ),
    "behind with records to read": (
        standing(bundle(at(0, second=100), at(1, 3, second=3))),
        "2 records of its inputs are not committed yet",
    ),
    "silent for ever": (
        standing(bundle(at(0), at(1, 5, None), mark=None), part=part(idle=None)),
        "partition 1 of 'clicks' has had no record, and with idle=None it holds all windows",
    ),
    "behind": (
        standing(bundle(at(0, second=100), at(1, second=3))),
        "the latest event of partition 1 of 'clicks' is of 2026-01-01 00:00:03, while another partition is at "
        "2026-01-01 00:01:40: it holds the windows until it has a later one, or was silent for 10s",
    ),
    "silent by append": (standing(bundle(at(0), at(1, 5, None)), part=part(event_time=None)), ""),
    "behind by append": (
        standing(bundle(at(0, second=100), at(1, second=3)), part=part(event_time=None)),
        "",
    ),
    "steps before the key, each worker with partitions of its own": (
        standing(bundle(at(0)), bundle(mark=None), below=[bundle(at(0, 9)), bundle(at(0, 9), owner="v")]),
        "",
    ),
    "a worker behind after steps": (
        standing(bundle(at(0)), below=[bundle(at(0)), bundle(at(0), owner="slow", mark=T0 - 1, lanes=0b11)]),
        "worker slow with 2 lanes is behind the other workers: it has not committed yet",
    ),
    "no worker after steps": (
        standing(bundle(at(0)), below=[bundle(at(0), owner="")]),
        "4 of 8 lanes have no worker",
    ),
    "all idle": (
        standing(bundle(at(0, idle=True), at(1, idle=True))),
        "every partition is idle: the last windows close with later events, or with stop(drain=True)",
    ),
    "far ahead": (standing(bundle(at(0)), ahead=7), "7 events are further than max_ahead=60s ahead"),
    "only far ahead": (
        standing(bundle(at(0, 5, None), mark=None), ahead=5),
        "partition 0 of 'clicks' has had no record with a time that counts: 5 are further than max_ahead=60s",
    ),
    "no window, nothing to hold": (
        standing(bundle(at(0, second=100), at(1, second=3)), part=part(window=None)),
        "",
    ),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_is_named(cause: str) -> None:
    found, said = CAUSES[cause]
    assert held_by(found).startswith(said) if said else held_by(found) == ""
