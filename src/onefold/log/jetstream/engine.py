"""``JetStreamLog``: one shard's log on a NATS cluster.

What is appended is published to the stream and acknowledged by its leader once a majority has synced it. What others append
comes by a plain subscription to the stream's republished payloads, with no consumer in between; whatever is missed there, and
everything before it, is fetched by direct gets. Nothing that a server says is believed but records whose checksums are good and
whose offsets follow each other: see ``quorum_read`` for what happens otherwise.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from onefold import config
from onefold.codec import crc32c, is_intact
from onefold.env import SYSTEM, Env
from onefold.errors import InvalidArgument, SpaceError, TooLarge, TooOld
from onefold.log.api import Entry
from onefold.log.jetstream import acks, quorum_read, streams
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.client.message import EXPECTED_STREAM
from onefold.log.jetstream.fetch import Batch, ReadAhead, fetch
from onefold.log.jetstream.names import STREAM_INFO, LogNames
from onefold.log.jetstream.spaces import SpaceInfo
from onefold.log.jetstream.streams import ask_api
from onefold.log.jetstream.tailer import Tailer
from onefold.machine import forks

_HEADER_BYTES_MAX: Final = 1024
"""Room for the headers that a writer and the servers add to a record."""
_DELIVERY_WAIT_S: Final = 1.0
"""How long an append waits for its own delivery once it is acknowledged; it usually came first."""


class JetStreamLog:
    """See ``onefold.log.api.Log``. Thread-safe. The link stays open when the log is closed.

    ``last`` is what was delivered here without a gap, so it may lag behind what was appended.
    """

    def __init__(self, link: Link, space_info: SpaceInfo, shard: int, env: Env = SYSTEM) -> None:
        """The log of shard ``shard`` of a space that ``spaces`` has read or made. Nothing is asked before the first use."""
        if not 0 <= shard < space_info.shards:
            raise InvalidArgument(
                f"shard {shard} of space {space_info.space}: it has {space_info.shards}, counted from 0"
            )
        self.names = LogNames(space_info.space, space_info.incarnation, shard)
        self._info = space_info
        self._link = link
        self._env = env
        self._process = forks.process
        self._headers = {EXPECTED_STREAM: self.names.stream}
        whose = f"{space_info.region}'s own log" if space_info.region else "the log"
        self._what = f"{whose} of shard {shard} of {link.address}"
        self._starting = threading.Lock()
        self._tailer: Tailer | None = None
        self._first = 1
        self._agreed: dict[int, int] = {}
        self._ahead: ReadAhead | None = None
        self._closed = False

    # -- the contract

    @property
    def incarnation(self) -> str:
        """The space's."""
        return self._info.incarnation

    @property
    def space_info(self) -> SpaceInfo:
        """The record of the space that this is a log of."""
        return self._info

    @property
    def link(self) -> Link:
        """The connection; its owner's."""
        return self._link

    @property
    def first(self) -> int:
        self._tail()
        return self._first

    @property
    def last(self) -> int:
        return self._tail().last

    def append(self, data: bytes, deadline: float | None = None) -> int:
        return self._append(self.names.subject, data, deadline)

    def append_trusted(self, data: bytes, deadline: float | None = None) -> int:
        """``append`` where only nodes may publish: operations that only nodes may append count in such records. Raises SpaceError
        too (definite), when the credential may not."""
        return self._append(self.names.node_subject, data, deadline)

    def takes_trusted(self) -> bool:
        """Whether its stream takes what ``append_trusted`` publishes; one of an earlier release does after another `init`.

        Raises Unavailable, Timeout, SpaceError."""
        work = partial(ask_api, self._link, STREAM_INFO + self.names.stream, None, self._what)
        found = self._link.run(work, config.ENGINE_REQUEST_TIMEOUT_S)
        return streams.takes_node_records(found.get("config") or {}, self.names)

    def first_trusted(self) -> Entry | None:
        """The oldest record that is left of those published where only nodes may publish. None: the server that was asked has
        none, which proves nothing. Raises Unavailable, Timeout, SpaceError."""
        work = partial(
            fetch, self._link, self.names, 1, max_records=1, max_bytes=1, subject=self.names.node_subject
        )
        batch: Batch = self._link.run(work, None)
        return next((entry for entry in self._checked(batch.entries) if entry.trusted), None)

    def _append(self, subject: str, data: bytes, deadline: float | None) -> int:
        self._check_usable()
        limit = min(config.RECORD_BYTES_MAX, self._link.max_payload - _HEADER_BYTES_MAX)
        if len(data) > limit:
            raise TooLarge(
                f"a record of {len(data)} bytes; {self._what} takes {limit} (the servers' max_payload). Write less at once"
            )
        answer = self._link.append(subject, data, self._headers).wait(
            self._within(config.APPEND_ACK_TIMEOUT_S, deadline)
        )
        offset = acks.offset_of(answer, self.names.stream, self._what)
        tailer = self._tailer
        if tailer is not None:
            tailer.announce(offset)
            tailer.wait(offset - 1, self._within(_DELIVERY_WAIT_S, deadline))
        return offset

    def read(self, start: int, max_bytes: int = 1 << 20) -> Sequence[Entry]:
        tailer = self._tail()
        if start < self._first:
            raise self._too_old(start)
        delivered = tailer.take(start, max_bytes)
        entries = self._checked(delivered)
        if entries or start > tailer.last:
            return entries
        return self._fetch(start, max_bytes, start + len(delivered) if delivered else tailer.kept_from)

    def read_everywhere(self, start: int, max_bytes: int = 1 << 20) -> Sequence[Entry]:
        """Like ``read``, but all copies are asked, and nothing that was delivered or is kept here counts. For who doubts its own
        copy. Raises LogCorrupt when good copies differ, and Unavailable when there is no majority to ask."""
        tailer = self._tail()
        if start < self._first:
            raise self._too_old(start)
        return [] if start > tailer.last else self._quorum_read(start, max_bytes, thorough=True)

    def wait(self, after: int, timeout: float | None) -> int:
        try:
            return self._tail().wait(after, timeout)
        except SpaceError:
            if self._closed and self._tailer is not None:
                return self._tailer.last
            raise

    def trim(self, before: int) -> None:
        """See the contract. Raises SpaceError when the credential may not purge; Unavailable and Timeout: try again."""
        before = min(before, self.last + 1)  # beyond its end the engine would skip offsets
        if before <= self._first:
            return
        self._link.run(
            lambda: streams.purge(self._link, self.names.stream, before), config.ENGINE_REQUEST_TIMEOUT_S
        )
        self._first = max(self._first, before)

    def close(self) -> None:
        if self._process != forks.process:
            return
        self._closed = True
        self._ahead = None
        with self._starting:
            if self._tailer is not None:
                self._tailer.close()

    def _within(self, seconds: float, deadline: float | None) -> float:
        """So many seconds, or fewer when the deadline comes before."""
        return seconds if deadline is None else max(0.0, min(seconds, deadline - self._env.boot_s()))

    # -- the tail

    def _tail(self) -> Tailer:
        """What keeps up with the log; begun at the first use, since who only appends needs none."""
        self._check_usable()
        tailer = self._tailer
        if tailer is not None:
            return tailer
        with self._starting:
            self._check_usable()
            if self._tailer is None:
                tailer = Tailer(self._link, self.names)
                try:
                    self._first = max(self._first, tailer.begin())
                except BaseException:
                    tailer.close()
                    raise
                self._tailer = tailer
            return self._tailer

    def _check_usable(self) -> None:
        if self._process != forks.process:
            raise forks.opened_before(self._what, "the space")
        if self._closed:
            raise SpaceError(f"{self._what} is closed. Open it again")

    # -- fetching and checking

    def _fetch(self, start: int, max_bytes: int, stop: int) -> list[Entry]:
        """Entries from ``start`` on, which are known to exist. ``stop``: from there on they are here."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.start == start:
            found = _contiguous(ahead.wait(), start)
            if entries := self._checked(found):
                self._read_ahead(entries[-1].offset + 1, max_bytes, stop)
                return _page(entries, max_bytes)
        for pause_s in (0.0, 0.01, 0.05):  # the server may not have applied yet what others have
            time.sleep(pause_s)
            records = max(1, min(config.FETCH_BATCH_RECORDS, stop - start))
            work = partial(fetch, self._link, self.names, start, max_records=records, max_bytes=max_bytes)
            batch: Batch = self._link.run(work, None)
            found = _contiguous(batch.entries, start)
            if entries := self._checked(found):
                self._read_ahead(entries[-1].offset + 1, max_bytes, stop)
                return entries
            if found:
                break  # bytes that are no record
        return self._quorum_read(start, max_bytes)

    def _read_ahead(self, start: int, max_bytes: int, stop: int) -> None:
        """Fetch what comes next while the caller works on what it got."""
        if start < stop:
            records = min(config.FETCH_BATCH_RECORDS, stop - start)
            work = partial(fetch, self._link, self.names, start, max_records=records, max_bytes=max_bytes)
            self._ahead = ReadAhead(start, self._link, work)

    def _checked(self, entries: list[Entry]) -> list[Entry]:
        """Those before the first whose checksum is not good. What the servers have agreed on passes too."""
        for index, entry in enumerate(entries):
            if not is_intact(entry.data) and self._agreed.get(entry.offset) != crc32c(entry.data):
                return entries[:index]
        return entries

    def _quorum_read(self, start: int, max_bytes: int, *, thorough: bool = False) -> list[Entry]:
        """Entries from ``start`` on, from all copies together. Raises TooOld, LogCorrupt, Unavailable."""
        work = partial(
            quorum_read.settle,
            self._link,
            self.names,
            start,
            replicas=self._info.replicas,
            what=self._what,
            thorough=thorough,
        )
        try:
            entries = self._link.run(work, None)
        except quorum_read.Missing as error:
            if error.first <= start:
                raise
            self._first = max(self._first, error.first)
            raise self._too_old(start) from None
        for entry in entries:
            if not is_intact(entry.data):
                self._agree(entry)
        return _page(entries, max_bytes)

    def _agree(self, entry: Entry) -> None:
        self._agreed[entry.offset] = crc32c(entry.data)
        while len(self._agreed) > config.REFUSED_KEPT_MAX:
            del self._agreed[next(iter(self._agreed))]

    def _too_old(self, start: int) -> TooOld:
        return TooOld(
            f"offset {start} of {self._what} was trimmed; the oldest kept is {self._first}. Start from a snapshot"
        )


def _page(entries: list[Entry], max_bytes: int) -> list[Entry]:
    size = 0
    for index, entry in enumerate(entries):
        size += len(entry.data)
        if size >= max_bytes:
            return entries[: index + 1]
    return entries


def _contiguous(entries: list[Entry], start: int) -> list[Entry]:
    for index, entry in enumerate(entries):
        if entry.offset != start + index:
            return entries[:index]
    return entries
