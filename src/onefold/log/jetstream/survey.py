"""Asking every server by itself, when what one of them gave cannot be right: a hole, bytes that changed, a record that is none.

Replicas rot: a server may have lost records or changed them and report itself healthy. The others have what it lost. What cannot
be settled because a server does not answer is Unavailable; only what all servers agree on, or disagree about, is LogCorrupt.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from onefold import config
from onefold.codec import is_intact
from onefold.errors import LogCorrupt, OnefoldError, Unavailable
from onefold.log.api import Entry
from onefold.log.jetstream.connection import Connection
from onefold.log.jetstream.fetch import fetch
from onefold.log.jetstream.link import Link
from onefold.log.jetstream.names import LogNames


class Holding(Enum):
    """What a server has at an offset."""

    RECORD = auto()
    HOLE = auto()
    """Nothing, and something beyond: lost, or trimmed."""
    BEHIND = auto()
    """Nothing there or beyond: not there yet, or lost at its end."""
    UNKNOWN = auto()
    """It was not reached."""


class Copy(NamedTuple):
    """What one server has at one offset."""

    server: str
    holding: Holding
    entry: Entry | None = None


@dataclass(frozen=True)
class Testimony:
    """What one server has from an offset on."""

    server: str
    start: int
    entries: dict[int, Entry] = field(default_factory=dict)
    upto: int = 0
    """Asked for up to here; beyond nothing is known."""
    complete: bool = False
    """Whether nothing follows after ``upto``."""
    problem: OnefoldError | None = None

    def at(self, offset: int) -> Copy:
        """What it has at an offset."""
        entry = self.entries.get(offset)
        if entry is not None:
            return Copy(self.server, Holding.RECORD, entry)
        if self.problem is not None:
            return Copy(self.server, Holding.UNKNOWN)
        if offset <= self.upto:
            return Copy(self.server, Holding.HOLE)
        return Copy(self.server, Holding.BEHIND if self.complete else Holding.UNKNOWN)


class Missing(LogCorrupt):
    """No server has a record at this offset, and all have some beyond it: lost everywhere, or trimmed."""


def judge(offset: int, copies: Sequence[Copy], replicas: int, what: str) -> Entry:
    """The record at an offset, from what all servers have there. Pure.

    A record whose checksum is good on one server is it, unless another has a different good one. One that is no record counts
    if a majority of the replicas has the same bytes; then it is for the fold to refuse. Raises Missing, LogCorrupt, and
    Unavailable when a server that did not answer, or is behind, may know better.
    """
    entries = [copy.entry for copy in copies if copy.entry is not None]
    good = {entry.data: entry for entry in entries if is_intact(entry.data)}
    if len(good) > 1:
        raise LogCorrupt(
            f"the copies of offset {offset} of {what} disagree: {_said(copies)}. Compare the servers with `onefold doctor`"
        )
    if good:
        return next(iter(good.values()))
    majority = replicas // 2 + 1
    for data, count in Counter(entry.data for entry in entries).most_common(1):
        if count >= majority:
            return next(entry for entry in entries if entry.data == data)
    unsettled = [copy.server for copy in copies if copy.holding in (Holding.BEHIND, Holding.UNKNOWN)]
    if unsettled or len(copies) < replicas:
        raise Unavailable(
            f"offset {offset} of {what} cannot be settled without all its servers: {_said(copies)}. "
            "Start what does not run, then try again"
        )
    if not entries:
        raise Missing(
            f"offset {offset} of {what} is on no server: {_said(copies)}. Restore the log from a snapshot or an archive"
        )
    raise LogCorrupt(
        f"offset {offset} of {what} is damaged on all servers: {_said(copies)}. Restore the log from a snapshot or an archive"
    )


async def ask_all(
    link: Link, names: LogNames, start: int, *, only: Sequence[str] = (), max_records: int, max_bytes: int
) -> list[Testimony]:
    """What each server has from ``start`` on. ``only``: names of those that keep a copy; empty: all that are known."""
    asked = [_ask_one(link, server, names, start, max_records, max_bytes) for server in link.servers]
    found = {
        testimony.server: testimony for testimony in await asyncio.gather(*asked)
    }  # one server may have two names
    if not only:
        return list(found.values())
    reached = [testimony for name, testimony in found.items() if name in only]
    missing = set(only) - {testimony.server for testimony in reached}
    silent = Unavailable("it could not be reached")
    return reached + [Testimony(name, start, problem=silent) for name in sorted(missing)]


async def _ask_one(
    link: Link, server: str, names: LogNames, start: int, max_records: int, max_bytes: int
) -> Testimony:
    try:
        connection = await Connection.open(
            link.address,
            server,
            name="onefold-survey",
            env=link.env,
            timeout=config.CONNECT_SERVER_TIMEOUT_S,
        )
    except OnefoldError as error:
        return Testimony(server, start, problem=error)
    try:
        return await _testimony(connection, names, start, max_records, max_bytes)
    except OnefoldError as error:
        return Testimony(connection.server_name, start, problem=error)
    finally:
        connection.close()


async def _testimony(
    connection: Connection, names: LogNames, start: int, max_records: int, max_bytes: int
) -> Testimony:
    batch = await fetch(connection, names, start, max_records=max_records, max_bytes=max_bytes)
    entries = {entry.offset: entry for entry in batch.entries}
    upto = max(entries, default=start - 1)
    return Testimony(connection.server_name, start, entries, upto, complete=batch.pending == 0)


def _said(copies: Sequence[Copy]) -> str:
    words = {
        Holding.HOLE: "has nothing there",
        Holding.BEHIND: "ends before it",
        Holding.UNKNOWN: "gave no answer",
    }
    return ", ".join(
        f"{copy.server} "
        + (
            words[copy.holding]
            if copy.entry is None
            else "has a record"
            if is_intact(copy.entry.data)
            else "has bytes that are no record"
        )
        for copy in copies
    )
