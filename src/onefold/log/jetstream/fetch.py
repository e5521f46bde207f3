"""Fetching records by batched direct gets. A server prefers its own replica for them, so what it says may be old or damaged:
nothing is inferred from what is missing, and order and content are checked by whoever asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from onefold import config
from onefold.errors import Unavailable
from onefold.log.api import Entry
from onefold.log.jetstream import message
from onefold.log.jetstream.message import Msg
from onefold.log.jetstream.names import DIRECT_GET, LogNames


class Asker(Protocol):
    """A link or a connection to one server."""

    async def ask_many(
        self,
        subject: str,
        payload: bytes,
        *,
        timeout: float,
        is_last: Callable[[Msg], bool],
        headers: Mapping[str, str] | None = None,
    ) -> list[Msg]:
        """See ``Link.request_many``."""
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
    answers = await asker.ask_many(
        DIRECT_GET + names.stream,
        json.dumps(request).encode(),
        timeout=config.ENGINE_REQUEST_TIMEOUT_S,
        is_last=_is_end,
    )
    end = answers.pop()
    status = end.status
    if status not in ("204", "404"):
        said = None if end.headers is None else end.headers.get(message.DESCRIPTION)
        raise Unavailable(f"the log {names.stream} could not be read: {status} {said}")
    entries = [
        entry for answer in answers if (entry := entry_of(answer.headers, answer.data, names)) is not None
    ]
    pending = 0 if end.headers is None else int(end.headers.get(message.NUM_PENDING, "0"))
    return Batch(entries, pending)


def entry_of(headers: Mapping[str, str] | None, data: bytes, names: LogNames) -> Entry | None:
    """The entry in a message of the log's stream; None when it is none."""
    if headers is None or headers.get(message.STREAM) != names.stream:
        return None
    try:
        return Entry(int(headers[message.SEQUENCE]), data, message.milliseconds(headers[message.TIME_STAMP]))
    except (KeyError, ValueError):
        return None


def _is_end(msg: Msg) -> bool:
    """Whether it is the server's own word that no more comes."""
    return msg.status is not None
