"""Fetching records by batched direct gets. A server prefers its own replica for them, so what it says may be old or damaged:
nothing is inferred from what is missing, and order and content are checked by the caller.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from onefold import config
from onefold.errors import OnefoldError, Unavailable
from onefold.log.api import Entry
from onefold.log.jetstream.client import message
from onefold.log.jetstream.client.message import parse_headers, record_headers
from onefold.log.jetstream.names import DIRECT_GET, LogNames

if TYPE_CHECKING:
    from onefold.log.jetstream.client.link import Link

_WAIT_S: Final = 10.0
"""Longer than a fetch may be silent; what it waits for is bounded by itself."""


class Asker(Protocol):
    """A link or a connection to one server."""

    async def collect(
        self,
        subject: str,
        payload: bytes,
        each: Callable[[bytes, bytes | None], bool],
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """See ``Connection.collect``."""
        ...


class Batch(NamedTuple):
    """What a server gave from an offset on."""

    entries: list[Entry]
    """In the order in which they came; the first may lie beyond what was asked for, and there may be gaps."""
    pending: int
    """How many more the server has."""


async def fetch(
    asker: Asker,
    names: LogNames,
    start: int,
    *,
    max_records: int = config.FETCH_BATCH_RECORDS,
    max_bytes: int,
    subject: str | None = None,
) -> Batch:
    """Records from ``start`` on, at least one if the server has any. Empty: it has none there, which proves nothing. ``subject``:
    only those that were published there.

    Raises Unavailable, Timeout, SpaceError.
    """
    request: dict[str, object] = {"seq": max(start, 1), "batch": max_records, "max_bytes": max(max_bytes, 1)}
    if subject is not None:
        request["next_by_subj"] = subject
    entries: list[Entry] = []
    end: Mapping[str, str] = {}
    origin = Origin.of(names)

    def each(data: bytes, block: bytes | None) -> bool:
        nonlocal end
        entry = entry_of(block, data, origin)
        if entry is not None:
            entries.append(entry)
            return False
        end = parse_headers(block) or {}
        return message.STATUS in end

    await asker.collect(
        DIRECT_GET + names.stream, json.dumps(request).encode(), each, timeout=config.ENGINE_REQUEST_TIMEOUT_S
    )
    if end[message.STATUS] not in ("204", "404"):
        said = f"{end[message.STATUS]} {end.get(message.DESCRIPTION, '')}"
        raise Unavailable(f"the log {names.stream} could not be read: {said}")
    return Batch(entries, int(end.get(message.NUM_PENDING, "0")))


class Origin(NamedTuple):
    """What the headers of a log's messages say where they come from."""

    stream: bytes
    node_subject: bytes

    @classmethod
    def of(cls, names: LogNames) -> Origin:
        """That of one log."""
        return cls(names.stream.encode(), names.node_subject.encode())


def entry_of(block: bytes | None, data: bytes, origin: Origin) -> Entry | None:
    """The entry in a message with this header block, if it is one out of this log. It is trusted if it was published where only
    nodes may publish, as the server that took it noted."""
    found = record_headers(block)
    if found is None or found.stream != origin.stream:
        return None
    return Entry(found.sequence, data, found.stamp_ms, found.subject == origin.node_subject)


class ReadAhead:
    """A batch that is on its way. At most one reader waits for it; one that nobody wants is forgotten."""

    def __init__(self, start: int, link: Link, work: Callable[[], Coroutine[Any, Any, Batch]]) -> None:
        self.start = start
        self._link = link
        self._call = link.started(work)

    def wait(self) -> list[Entry]:
        """Its entries; none when it failed, which says nothing: ask again."""
        call = self._call
        if call is None:
            return []
        if not call.turn.acquire(timeout=_WAIT_S):
            self._link.post(call.cancel)
            return []
        try:
            batch: Any = call.result()
        except (OnefoldError, asyncio.CancelledError):
            return []
        return [] if batch is None else list(batch.entries)
