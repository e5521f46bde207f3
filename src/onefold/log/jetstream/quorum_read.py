"""Asking all copies of a log, when what one of them gave cannot be right: a hole, bytes that changed, a record that is none.

Replicas rot: a server may have lost records or changed them and report itself healthy; the others have what it lost. Servers
hand each direct get to a copy chosen at random, whichever server is asked (measured on 2.15.1, and so in its source), and do not
say which. So a question is repeated: until a good record comes, or until it is certain, but for one chance in a million, that
every copy was asked. What cannot be settled because a copy is missing or behind is Unavailable; only what all copies agree on, or
disagree about, is LogCorrupt.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, NamedTuple

from onefold.codec import is_intact
from onefold.errors import LogCorrupt, OnefoldError, Timeout, Unavailable
from onefold.log.api import Entry
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.fetch import fetch
from onefold.log.jetstream.names import LogNames
from onefold.log.jetstream.streams import REPLICA_SILENT_S, StreamState, stream_state

DOUBT: Final = 1e-6
"""The chance that a copy was never asked, at which all count as asked."""
CONFIRM_S: Final = REPLICA_SILENT_S + 1.5
"""After this long a server that just died is known to be away."""
SAMPLE_RECORDS: Final = 200
SAMPLE_BYTES: Final = 1 << 20
_AT_ONCE: Final = 4
_ROUNDS: Final = 6
_PAUSE_S: Final = 0.02


class Absent(Enum):
    """Why a copy gave nothing for an offset."""

    HOLE = auto()
    """It has something beyond: lost, or trimmed."""
    BEHIND = auto()
    """It has nothing beyond either: not there yet, or lost at its end."""
    NOT_ASKED = auto()
    """What it gave ended before."""


@dataclass(frozen=True)
class Sample:
    """What one copy, nobody knows which, has from an offset on."""

    entries: dict[int, Entry] = field(default_factory=dict)
    upto: int = 0
    """It was asked up to here."""
    complete: bool = False
    """Whether it has nothing beyond."""

    def at(self, offset: int) -> Entry | Absent:
        """What it has there."""
        entry = self.entries.get(offset)
        if entry is not None:
            return entry
        if offset <= self.upto:
            return Absent.HOLE
        return Absent.BEHIND if self.complete else Absent.NOT_ASKED


class Health(NamedTuple):
    """How many copies there should be, and how many the leader takes for up to date (0: there is no leader to ask)."""

    replicas: int
    current: int

    @property
    def majority(self) -> int:
        """The fewest copies that are a majority."""
        return self.replicas // 2 + 1

    @property
    def samples_max(self) -> int:
        """So often is a question repeated at most: enough to tell two copies of three from one (of five: three from two), when
        they differ, but for one chance in ten thousand."""
        return 120 if self.replicas <= 3 else 400


class Missing(LogCorrupt):
    """All copies have something beyond this offset and nothing there: lost everywhere, or trimmed. ``first``: by the leader."""

    first = 0


class Disagree(LogCorrupt):
    """Copies have different good records at one offset."""


class Behind(Unavailable):
    """A copy has not got so far yet; it may a moment later."""


def certain(part: int, of: int) -> int:
    """After how many equal answers it is certain that more than ``part`` of ``of`` copies give that answer."""
    return 1 if part <= 0 else math.ceil(math.log(DOUBT) / math.log(part / of))


def judge(
    offset: int, samples: Sequence[Sample], health: Health, what: str, *, thorough: bool = False
) -> Entry | None:
    """The record at an offset; None when more samples are needed to tell. Pure.

    A record whose checksum is good on one copy is it, unless another has a different good one. One that is not a record counts if
    a majority of the copies has the same bytes; then it is for the fold to refuse. ``thorough``: all copies that are up to date
    must have been asked, a majority at least. Raises Missing, LogCorrupt, and Unavailable when a copy that is missing or behind
    may know better.
    """
    copies = health.current or health.replicas
    seen = [found for sample in samples if (found := sample.at(offset)) is not Absent.NOT_ASKED]
    entries = [found for found in seen if isinstance(found, Entry)]
    good = {(entry.data, entry.trusted): entry for entry in entries if is_intact(entry.data)}
    if len(good) > 1:
        raise Disagree(
            f"the copies of offset {offset} of {what} disagree. Compare the servers with `onefold doctor`"
        )
    if good and not thorough:
        return next(iter(good.values()))
    if good:
        if len(seen) < certain(copies - 1, copies):
            return None
        if health.current < health.majority:
            raise _unsettled(offset, health, what)
        return next(iter(good.values()))
    if not seen:
        return None
    if entries:
        return _judge_bad(offset, entries, seen, health, what)
    if len(seen) < certain(copies - 1, copies):
        return None
    if Absent.BEHIND in seen:
        raise Behind(f"offset {offset} of {what} is not on its servers yet. Try again")
    if health.current < health.replicas:
        raise _unsettled(offset, health, what)
    raise Missing(
        f"offset {offset} of {what} is on none of its {health.replicas} servers. Restore the log from a snapshot or an archive"
    )


def _judge_bad(
    offset: int, entries: Sequence[Entry], seen: Sequence[Entry | Absent], health: Health, what: str
) -> Entry | None:
    """``judge`` where copies have bytes that are no record, and none has a good one."""
    asked = len(seen)
    (data, trusted), count = Counter((entry.data, entry.trusted) for entry in entries).most_common(1)[0]
    agreed = next(entry for entry in entries if (entry.data, entry.trusted) == (data, trusted))
    enough = health.current >= health.majority
    if count == asked:
        if asked < certain(health.majority - 1, max(health.current, health.majority)):
            return None
        if enough:
            return agreed
        raise _unsettled(offset, health, what)
    if asked < health.samples_max:
        return None
    if enough and count / asked > (health.majority - 0.5) / health.current:
        return agreed
    if health.current < health.replicas:
        raise _unsettled(offset, health, what)
    if Absent.BEHIND in seen:
        raise Behind(f"offset {offset} of {what} is not on all of its servers yet. Try again")
    raise LogCorrupt(
        f"offset {offset} of {what} is damaged on its servers. Restore the log from a snapshot or an archive"
    )


def _unsettled(offset: int, health: Health, what: str) -> Unavailable:
    known = (
        f"{health.current} of {health.replicas} are up to date" if health.current else "they have no leader"
    )
    return Unavailable(
        f"offset {offset} of {what} cannot be settled without all its servers: {known}. Start what does not run, then try again"
    )


async def settle(
    link: Link, names: LogNames, start: int, *, replicas: int, what: str, thorough: bool = False
) -> list[Entry]:
    """Entries from ``start`` on, at least one, as all copies together have them. ``thorough``: see ``judge``.

    Raises Missing (with the leader's ``first``), LogCorrupt, Unavailable, Timeout, SpaceError. What would stop a replica is
    looked at twice: a leader takes a server that just died for up to date a while longer.
    """
    doubted = False
    for pause in range(_ROUNDS):
        try:
            return await _settle_once(link, names, start, replicas, what, thorough)
        except Behind:
            if pause == _ROUNDS - 1:
                raise
            await asyncio.sleep(_PAUSE_S * 2**pause)
        except LogCorrupt as error:
            if doubted or isinstance(error, Disagree):
                raise
            doubted = True
            await asyncio.sleep(CONFIRM_S)
    raise Unavailable(f"offset {start} of {what} cannot be settled: its servers change. Try again")


async def _settle_once(
    link: Link, names: LogNames, start: int, replicas: int, what: str, thorough: bool
) -> list[Entry]:
    state = await _state(link, names)
    health = Health(replicas, 0 if state is None else min(len(state.current), replicas))
    samples: list[Sample] = []
    while len(samples) < health.samples_max:
        samples += await _ask(link, names, start)
        try:
            entry = judge(start, samples, health, what, thorough=thorough)
        except Missing as error:
            error.first = 0 if state is None else state.first
            raise
        if entry is not None:
            return [entry, *_following(start + 1, samples, health, what, thorough)]
    raise _unsettled(start, health, what)


def _following(
    offset: int, samples: Sequence[Sample], health: Health, what: str, thorough: bool
) -> list[Entry]:
    """What the same samples settle from ``offset`` on."""
    found: list[Entry] = []
    while True:
        try:
            entry = judge(offset, samples, health, what, thorough=thorough)
        except OnefoldError:
            return found  # for who reads on
        if entry is None:
            return found
        found.append(entry)
        offset += 1


async def _ask(link: Link, names: LogNames, start: int) -> list[Sample]:
    """A few samples at a time. Raises what the questions raised when none of them was answered."""
    asked = [
        fetch(link, names, start, max_records=SAMPLE_RECORDS, max_bytes=SAMPLE_BYTES) for _ in range(_AT_ONCE)
    ]
    samples: list[Sample] = []
    problem: BaseException | None = None
    for batch in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(batch, BaseException):
            problem = batch
            continue
        entries = {entry.offset: entry for entry in batch.entries}
        samples.append(Sample(entries, max(entries, default=start - 1), complete=batch.pending == 0))
    if problem is not None and not samples:
        raise problem
    return samples


async def _state(link: Link, names: LogNames) -> StreamState | None:
    try:
        return await stream_state(link, names.stream)
    except (Unavailable, Timeout):
        return None
