"""Fetching records by batched direct gets. A server prefers its own replica for them, so what it says may be old or damaged:
nothing is inferred from what is missing, and order and content are checked by whoever asked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from onefold import config
from onefold.errors import OnefoldError, Unavailable
from onefold.log.api import Entry
from onefold.log.jetstream import message
from onefold.log.jetstream.message import parse_headers, record_headers
from onefold.log.jetstream.names import DIRECT_GET, LogNames

if TYPE_CHECKING:
    from onefold.log.jetstream.link import Link

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
) -> Batch:
    """Records from ``start`` on, at least one if the server has any. Empty: it has none there, which proves nothing.

    Raises Unavailable, Timeout, SpaceError.
    """
    request = {"seq": max(start, 1), "batch": max_records, "max_bytes": max(max_bytes, 1)}
    entries: list[Entry] = []
    end: Mapping[str, str] = {}
    stream = names.stream.encode()

    def each(data: bytes, block: bytes | None) -> bool:
        nonlocal end
        entry = entry_of(block, data, stream)
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


def entry_of(block: bytes | None, data: bytes, stream: bytes) -> Entry | None:
    """The entry in a message with this header block, if it is one out of this stream."""
    found = record_headers(block)
    return Entry(found[1], data, found[2]) if found is not None and found[0] == stream else None


class ReadAhead:
    """A batch that is on its way. At most one reader waits for it; one that nobody wants is forgotten."""

    def __init__(self, start: int, link: Link, work: Coroutine[Any, Any, Batch]) -> None:
        self.start = start
        self._link = link
        self._future = asyncio.run_coroutine_threadsafe(work, link.loop)
        self._future.add_done_callback(lambda future: future.cancelled() or future.exception())

    def wait(self) -> list[Entry]:
        """Its entries; none when it failed, which says nothing: ask again."""
        try:
            return self._future.result(_WAIT_S).entries
        except (OnefoldError, TimeoutError, CancelledError):
            self._future.cancel()
            return []
