"""What fault tests of the JetStream engine share: spaces on real servers, and ways to damage a server's files."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from onefold.cluster.servers import LocalServers
from onefold.codec import Op, Record, encode_record
from onefold.errors import AppendUnknown, Timeout, Unavailable
from onefold.log.api import Entry, Log
from onefold.log.jetstream import admin
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.engine import JetStreamLog
from onefold.log.jetstream.names import LogNames
from onefold.log.jetstream.spaces import SpaceInfo
from onefold.log.jetstream.streams import StreamState, stream_state

SOON_S = 60.0
"""Ends a test that hangs; nothing waits for it to pass."""
T = TypeVar("T")
_numbers = itertools.count()


def record(number: int, size: int = 20, client: str = "c0-aa") -> bytes:
    """A record that differs from others by its number."""
    return encode_record(Record(client, number, 1, (Op("x", b"%06d" % number + bytes(size)),)))


@contextmanager
def linked(servers: LocalServers, space: str) -> Iterator[Link]:
    """A link of its own, to any of the servers."""
    link = Link(parse_address(servers.url(space)))
    try:
        yield link
    finally:
        link.close()


class Ground:
    """Servers with a new space for each test."""

    def __init__(self, servers: LocalServers) -> None:
        self.servers = servers

    @contextmanager
    def space(self) -> Iterator[Shard]:
        """A new space. When it is left all servers run."""
        name = f"f{next(_numbers)}"
        with linked(self.servers, name) as link:
            info = until(lambda: admin.make_space(link, name))
            space = Shard(self.servers, link, info)
            try:
                yield space
            finally:
                self.heal()

    def heal(self) -> None:
        """All servers run and know a leader, whatever a test left."""
        dead = [index for index, server in enumerate(self.servers.servers) if server.pid is None]
        for index in range(len(self.servers.servers)):
            self.servers.cont(index)
        for index in dead:
            self.servers.restart(index, wait=index == dead[-1])  # one alone would wait for ever


class Shard:
    """A space of one shard, and its log."""

    def __init__(self, servers: LocalServers, link: Link, info: SpaceInfo) -> None:
        self.servers = servers
        self.link = link
        self.info = info
        self.names = LogNames(info.space, info.incarnation, 0)

    @contextmanager
    def log(self, link: Link | None = None) -> Iterator[JetStreamLog]:
        """Its log, reopened."""
        log = JetStreamLog(link or self.link, self.info, 0)
        try:
            yield log
        finally:
            log.close()

    def state(self) -> StreamState:
        """What the log's leader says."""
        return until(lambda: self.link.run(lambda: stream_state(self.link, self.names.stream), None))

    def leader(self) -> int:
        """The server that leads the log."""
        name = wait_for(lambda: self.state().leader)
        assert name is not None
        return self.index(name)

    def index(self, name: str) -> int:
        """The server of that name."""
        return [server.name for server in self.servers.servers].index(name)

    def wait_whole(self) -> None:
        """All copies are up to date."""
        wait_for(lambda: len(self.state().current) == 3 and not any(self.state().behind.values()))

    def block(self, index: int, number: int = 1) -> Path:
        """A file of one server with records of the log."""
        folder = self.servers.servers[index].dir
        return next(path for path in folder.glob(f"data/**/{number}.blk") if self.names.stream in str(path))


def until(work: Callable[[], T], timeout: float = SOON_S) -> T:
    """What ``work`` returns once it raises no Unavailable, Timeout or AppendUnknown any more."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return work()
        except (Unavailable, Timeout, AppendUnknown):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def wait_for(found: Callable[[], T], timeout: float = SOON_S) -> T:
    """The first true value of ``found``."""
    deadline = time.monotonic() + timeout
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
    return value


def read_all(log: Log, start: int = 1, upto: int | None = None, max_bytes: int = 1 << 20) -> list[Entry]:
    """All entries up to ``upto`` (default: what is delivered), contiguous."""
    entries: list[Entry] = []
    while upto is None or start <= upto:
        page = log.read(start, max_bytes)
        if not page:
            break
        entries += page
        start = page[-1].offset + 1
    return entries


def flip_in(path: Path, data: bytes) -> None:
    """Flip a bit in the middle of a record in a file."""
    at = place_of(path, data) + len(data) // 2
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))


def place_of(path: Path, data: bytes) -> int:
    """Where a record is in a file."""
    at = path.read_bytes().find(data)
    assert at >= 0, "the record is not in this file"
    return at
