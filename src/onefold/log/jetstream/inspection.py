"""Comparing the copies of a log server by server: for the doctor, with an admin's credential, on a cluster that has a leader.

Direct gets cannot be aimed at a server. A consumer can be known: one with a single replica lives on one of the servers that keep
the stream, reads that server's own files, and its leader's name tells which. So short-lived consumers are made until every server
had one. They delay nobody and keep nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from onefold import config
from onefold.codec import is_intact
from onefold.errors import OnefoldError, Timeout, Unavailable
from onefold.log.jetstream.connection import Connection
from onefold.log.jetstream.link import Link
from onefold.log.jetstream.names import CONSUMER_CREATE, CONSUMER_DELETE, CONSUMER_NEXT, LogNames
from onefold.log.jetstream.spaces import SpaceInfo
from onefold.log.jetstream.streams import StreamState, ask_api, stream_state

_TRIES_PER_SERVER: Final = 12
"""Servers are drawn at random; with so many tries per server each has had its turn, but for one chance in a hundred."""
_IDLE_NS: Final = 10_000_000_000
"""A consumer that is forgotten is removed by the servers after this."""
_BATCH: Final = 500
_BYTES: Final = 4 << 20


@dataclass(frozen=True)
class ServerCopy:
    """What one server has of a range of a log."""

    server: str
    digest: str | None
    """Over offsets and bytes of all records in the range; equal copies have equal ones. None: the server was not reached."""
    records: int = 0
    missing: tuple[int, ...] = ()
    """The first offsets of the range at which it has nothing (at most 20)."""
    damaged: tuple[int, ...] = ()
    """The first offsets at which it has bytes that are no record (at most 20); a client may have sent them."""
    problem: str | None = None


def log_states(link: Link, info: SpaceInfo) -> list[StreamState]:
    """The state of every shard's stream, as its leader says. Raises Unavailable, Timeout, SpaceError."""
    streams = [LogNames(info.space, info.incarnation, shard).stream for shard in range(info.shards)]
    return [link.run(stream_state(link, stream), config.ENGINE_REQUEST_TIMEOUT_S) for stream in streams]


def compare_copies(link: Link, info: SpaceInfo, shard: int, start: int, stop: int) -> list[ServerCopy]:
    """What each server has of the offsets from ``start`` up to ``stop`` (not included) of a shard's log, by server name.

    Reads the range from every server. Raises Unavailable, Timeout; SpaceError when the credential may make no consumers.
    """
    return link.run(_compare(link, LogNames(info.space, info.incarnation, shard), start, stop), None)


async def _compare(link: Link, names: LogNames, start: int, stop: int) -> list[ServerCopy]:
    state = await stream_state(link, names.stream)
    start, stop = max(start, state.first), min(stop, state.last + 1)
    found: dict[str, ServerCopy] = {}
    for _ in range(_TRIES_PER_SERVER * len(state.servers)):
        if set(state.current) <= set(found):
            break
        copy = await _one(link, names, start, stop, set(found))
        if copy is not None:
            found[copy.server] = copy
    for server in state.servers:
        if server not in found:
            found[server] = ServerCopy(server, None, problem="it is away or not up to date")
    return [found[server] for server in sorted(found)]


async def _one(link: Link, names: LogNames, start: int, stop: int, known: set[str]) -> ServerCopy | None:
    """The copy of the server on which a new consumer happens to live; None when that one is known already."""
    consumer = f"of-compare-{link.env.token(6).hex()}"
    settings = {
        "name": consumer,
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": start,
        "ack_policy": "none",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": _IDLE_NS,
    }
    what = f"comparing the copies of {names.stream}"
    made = await ask_api(
        link,
        f"{CONSUMER_CREATE}{names.stream}.{consumer}",
        {"stream_name": names.stream, "config": settings, "action": "create"},
        what,
    )
    server = str((made.get("cluster") or {}).get("leader") or "alone")
    try:
        return None if server in known else await _read(link, names, consumer, server, start, stop)
    finally:
        await asyncio.shield(_remove(link, names, consumer, what))


async def _remove(link: Link, names: LogNames, consumer: str, what: str) -> None:
    try:
        await ask_api(link, f"{CONSUMER_DELETE}{names.stream}.{consumer}", None, what)
    except OnefoldError:
        pass  # the servers remove it when it was idle for a while


class _Reader:
    """Takes what a consumer delivers, in order, and sums it up."""

    def __init__(self, start: int, stop: int) -> None:
        self.next = start
        self.stop = stop
        self.digest = hashlib.blake2b(digest_size=16)
        self.records = 0
        self.missing: list[int] = []
        self.damaged: list[int] = []
        self.arrived = asyncio.Event()
        self.left = 0
        """Messages that the last request may still bring."""

    def take(self, _subject: bytes, reply: bytes, data: bytes, _headers: bytes | None) -> None:
        """A record, whose reply subject tells its offset; or the word that there are no more."""
        self.arrived.set()
        parts = reply.split(b".")
        if len(parts) < 9 or not reply.startswith(b"$JS.ACK."):
            self.left = 0
            return
        self.left -= 1
        offset = int(parts[-4])
        if not self.next <= offset < self.stop:
            self.left = 0 if offset >= self.stop else self.left
            self._skip(min(offset, self.stop))
            return
        self._skip(offset)
        self.next = offset + 1
        self.records += 1
        self.digest.update(b"%d %d " % (offset, len(data)) + data)
        if not is_intact(data):
            self.damaged.append(offset)

    def _skip(self, upto: int) -> None:
        if len(self.missing) < 20:
            self.missing.extend(range(self.next, min(upto, self.next + 20)))
        self.next = max(self.next, upto)


async def _read(
    link: Link, names: LogNames, consumer: str, server: str, start: int, stop: int
) -> ServerCopy | None:
    reader = _Reader(start, stop)
    inbox = f"{link.address.inbox}.compare.{consumer}"
    connection = link.connection()
    sid = await connection.listen(inbox, reader.take)
    try:
        while reader.next < stop:
            before = reader.next
            await _request(connection, names, consumer, inbox, reader, stop)
            if reader.next == before:
                break  # it has no more
    except (Unavailable, Timeout) as error:
        return ServerCopy(server, None, problem=str(error))
    finally:
        connection.unlisten(sid)
    reader._skip(stop)
    return ServerCopy(
        server,
        reader.digest.hexdigest(),
        reader.records,
        tuple(reader.missing[:20]),
        tuple(reader.damaged[:20]),
    )


async def _request(
    connection: Connection, names: LogNames, consumer: str, inbox: str, reader: _Reader, stop: int
) -> None:
    """One batch."""
    reader.left = min(_BATCH, stop - reader.next)
    body = {"batch": reader.left, "max_bytes": _BYTES, "no_wait": True}
    subject = f"{CONSUMER_NEXT}{names.stream}.{consumer}"
    connection.publish(subject, json.dumps(body).encode(), reply=inbox)
    while reader.left > 0:
        reader.arrived.clear()
        try:
            async with asyncio.timeout(config.ENGINE_REQUEST_TIMEOUT_S):
                await reader.arrived.wait()
        except TimeoutError:
            raise Timeout(f"{names.stream} was not delivered by a consumer") from None


def differing(copies: Sequence[ServerCopy]) -> list[ServerCopy]:
    """Those that are not as the majority of the copies that were reached; all of them when there is no majority."""
    reached = [copy for copy in copies if copy.digest is not None]
    for copy in reached:
        same = [other for other in reached if other.digest == copy.digest]
        if 2 * len(same) > len(reached):
            return [other for other in reached if other.digest != copy.digest]
    return reached
