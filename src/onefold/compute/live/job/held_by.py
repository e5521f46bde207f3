"""What keeps a live job's watermark, and with it its windows, where it is: in words, each cause with what to do. Pure.

Asked most of all about any stream processor is why a window does not close. These are the causes, in the order in which they are
looked for:

- the job does not run; a stream is not there;
- lanes have no worker; its history is not in; a worker cannot work now; a function does not return; a worker is behind;
- a partition that is read to its end has had no record, or is behind the others in event time;
- records wait to be read; every partition is idle;
- times are too far ahead to count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from onefold.compute.live.event_time import time_of
from onefold.compute.live.idleness import Place
from onefold.compute.live.job.committed import committed, unread
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import WATERMARK_END_US

if TYPE_CHECKING:
    from onefold.compute.live.plan import LivePart, StreamInput
    from onefold.state.fold.live.ops import Position
    from onefold.state.fold.live.rows import BundleRow

_LONG_S: Final = 10.0
"""A step that takes longer than this is named."""


@dataclass(frozen=True)
class Standing:
    """A job at one moment."""

    id: str
    part: LivePart
    state: str
    error: str
    bundles: Sequence[BundleRow]
    heads: Mapping[Place, int]
    ahead: int
    full: Sequence[tuple[str, int]] = ()
    """Workers that hold so much open state that they read nothing, and how many bytes."""
    below: Sequence[BundleRow] = ()
    """Of the part that reads the hop of this one, if there is one. The windows are its own, and so is the watermark."""
    history: tuple[int, StreamInput] | None = None
    """Which input is a history: of the part below, if there is one."""
    dead: int = 0
    """Records that were set aside."""
    worked_on_here: bool = False
    """Whether this process has a worker for it."""
    busy_s: float = 0.0
    """For how long a worker of this process has been in one step."""
    trouble: str = ""
    """Why a worker of this process cannot work now, and tries again."""


def held_by(at: Standing) -> str:
    """The cause, as a sentence; empty: nothing, the next events move it on."""
    for cause in (
        _not_running,
        _no_stream,
        _no_worker,
        _full,
        _history,
        _trouble,
        _long_step,
        _unequal,
        _silent,
        _behind,
        _unread,
        _all_idle,
        _ahead,
    ):
        found = cause(at)
        if found:
            return found
    return ""


def _not_running(at: Standing) -> str:
    if at.state in live_rows.ACTIVE:
        return ""
    match at.state:
        case "stopped":
            return "the job is stopped: start it again, or call resume()"
        case "failed":
            return f"the job failed: {at.error}"
        case "cancelled":
            return "the job was cancelled"
        case _:
            return ""


def _no_stream(at: Standing) -> str:
    there = {one.input for row in at.bundles for one in row.positions}
    missing = [one.stream for number, one in enumerate(at.part.inputs) if number not in there]
    if not missing or (at.part.operator is None and there):
        return ""
    return (
        f"there is no stream {missing[0]!r} yet: the job begins with its first record, or when it is created"
    )


def _no_worker(at: Standing) -> str:
    bundles = (*at.bundles, *at.below)
    lanes = [lane_sets.count(lane_sets.unpack(row.lanes)) for row in bundles]
    free = sum(count for count, row in zip(lanes, bundles, strict=True) if not row.owner)
    if not free:
        return ""
    if at.worked_on_here and at.trouble:
        return _trouble(at)  # why it has not taken them
    if at.worked_on_here:
        return f"the worker of this process is starting: {free} of {sum(lanes)} lanes wait for it"
    return (
        f"{free} of {sum(lanes)} lanes have no worker: start the job in a process that stays, call "
        f"db.open_run({at.id!r}).resume(), or wait for a node"
    )


def _history(at: Standing) -> str:
    found, rows = at.history, at.below or at.bundles
    if found is None or all(one.next for row in rows for one in row.positions if one.input == found[0]):
        return ""
    return (
        f"its history is not in yet: the batch job of table {found[1].history!r} is at work, or nobody works on it "
        f"(db.table of it says how far it is; db.open_run({at.id!r}).resume(), or start the job again, continues it)"
    )


def _full(at: Standing) -> str:
    """A worker has no room for more groups."""
    if not at.full:
        return ""
    worker, held = at.full[0]
    return (
        f"worker {worker} holds {held / 1e6:,.0f} MB of open groups, which is all that one may hold, and reads nothing until it "
        "has less: start the job in another process too, which takes over a part of them, or replay it with shorter windows, "
        "or with a ttl"
    )


def _trouble(at: Standing) -> str:
    if not at.trouble:
        return ""
    return f"a worker of this process cannot work now, and tries again: {at.trouble}"


def _long_step(at: Standing) -> str:
    waiting = _waiting(at, at.bundles)
    if at.busy_s < _LONG_S or not waiting:
        return ""
    return (
        f"a worker of this process has been in one step for {at.busy_s:.0f} s, and {waiting:,} records of its inputs wait: a "
        "function of the plan (map, for_each, an aggregate) takes that long, or does not return"
    )


def _unequal(at: Standing) -> str:
    """One worker is behind the others: slow, or stopped."""
    if not at.part.windowed:
        return ""
    marks = sorted(
        ((row.watermark_us, row) for row in at.below or at.bundles if row.watermark_us != WATERMARK_END_US),
        key=lambda one: (one[0] is not None, one[0] or 0),
    )
    if len(marks) < 2 or marks[0][0] == marks[-1][0]:
        return ""
    row = marks[0][1]
    unread = 0 if at.below else _waiting(at, [row])
    why = f"it has {unread:,} records to read" if unread else "it has not committed yet"
    count = lane_sets.count(lane_sets.unpack(row.lanes))
    return f"worker {row.owner} with {count} lanes is behind the other workers: {why}"


def _unread(at: Standing) -> str:
    waiting = _waiting(at, at.bundles)
    if not waiting:
        return ""
    return f"{waiting:,} records of its inputs are not committed yet: it is catching up"


def _silent(at: Standing) -> str:
    """A partition without any record holds everything until it is idle."""
    if not at.part.windowed:
        return ""
    silent = [one for one in _holding(at) if one.max_us is None and _is_read(at, one)]
    if not silent:
        return ""
    one = silent[0]
    source = at.part.inputs[one.input]
    place = f"partition {one.partition} of {source.stream!r}"
    if one.next and (at.ahead or at.dead):
        found = [
            f"{at.ahead:,} are further than max_ahead={_seconds(source.max_ahead_us)} ahead of their append"
        ]
        dead = f"{at.dead:,} were set aside, without a time perhaps (run.dead_letters() says why)"
        reasons = " and ".join((*found, dead) if at.ahead and at.dead else found if at.ahead else (dead,))
        return f"{place} has had no record with a time that counts: {reasons}"
    if source.idle_us is None:
        return f"{place} has had no record, and with idle=None it holds all windows until it has one"
    return f"{place} has had no record; it is idle, and holds nothing, after {_seconds(source.idle_us)} of silence"


def _behind(at: Standing) -> str:
    """One partition is behind the others in event time."""
    if not at.part.windowed:
        return ""
    active = [one for one in _positions(at) if not one.idle and one.max_us is not None]
    if len(active) < 2:
        return ""
    active.sort(key=lambda one: one.max_us or 0)
    first, last = next((one for one in active if one in _holding(at)), active[-1]), active[-1]
    if first.max_us == last.max_us or not _is_read(at, first):
        return ""
    source = at.part.inputs[first.input]
    until = (
        "it holds all windows until it has a later one (idle=None)"
        if source.idle_us is None
        else f"it holds the windows until it has a later one, or was silent for {_seconds(source.idle_us)}"
    )
    return (
        f"the latest event of partition {first.partition} of {source.stream!r} is of {_shown(first.max_us)}, while another "
        f"partition is at {_shown(last.max_us)}: {until}"
    )


def _all_idle(at: Standing) -> str:
    positions = _positions(at)
    if not at.part.windowed or not positions or not all(one.idle for one in positions):
        return ""
    return "every partition is idle: the last windows close with later events, or with stop(drain=True)"


def _ahead(at: Standing) -> str:
    if not at.part.windowed or not at.ahead:
        return ""
    source = at.part.inputs[0]
    return (
        f"{at.ahead:,} events are further than max_ahead={_seconds(source.max_ahead_us)} ahead of their append: they are in the "
        "table, and move no watermark"
    )


def _holding(at: Standing) -> list[Position]:
    """Partitions that hold windows: not those that are idle, nor those of processing time, which passes."""
    return [one for one in _positions(at) if not one.idle and not at.part.inputs[one.input].by_append]


def _positions(at: Standing) -> list[Position]:
    return list(committed(at.bundles).values())


def _is_read(at: Standing, one: Position) -> bool:
    """Whether nothing of the partition waits: what it is at is not for want of reading."""
    return at.heads.get((one.input, one.partition), 0) <= one.next


def _waiting(at: Standing, bundles: Sequence[BundleRow]) -> int:
    return sum(unread(committed(bundles), at.heads, at.part.inputs).values())


def _seconds(micros: int | None) -> str:
    return "None" if micros is None else f"{micros / 1e6:g}s"


def _shown(micros: int | None) -> str:
    time = time_of(micros)
    return "no time" if time is None else f"{time:%Y-%m-%d %H:%M:%S}"
