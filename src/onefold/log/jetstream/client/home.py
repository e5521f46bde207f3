"""A link stays with the servers of its region: it tries them first, and goes back to them when it had to go elsewhere.

Which server is where is known from its name, once a connection to it was made. A region that answers no more costs no time: the
first server that answers is taken, and the region's are looked for while that one is used. It is used on the loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final

from onefold import config
from onefold.backoff import jittered
from onefold.env import SYSTEM, Env
from onefold.errors import OnefoldError
from onefold.log.jetstream.client.connection import Connection
from onefold.log.jetstream.regions import region_of

_LEAVE_LOOK_S: Final = 0.02
_LEAVE_LOOKS: Final = 50
"""For so many looks a connection that is left is waited for: for answers to what was asked on it."""


class Home:
    """What is known of where servers are. ``region``: of the link; None: no server is preferred."""

    def __init__(self, region: str | None, env: Env = SYSTEM) -> None:
        self._region = region
        self._env = env
        self._preferred = False
        self._regions: dict[str, str | None] = {}

    def prefer(self) -> bool:
        """From here on the region's servers come first. False when it was so before, or there is no region."""
        first = self._region is not None and not self._preferred
        self._preferred = self._region is not None
        return first

    def note(self, connection: Connection) -> None:
        """The server of a connection is where its name says."""
        self._regions[connection.server] = region_of(connection.server_name)

    def is_here(self, connection: Connection) -> bool:
        """Whether it is a connection to a server of the region."""
        return region_of(connection.server_name) == self._region

    def in_order(self, servers: Iterable[str]) -> list[str]:
        """The servers (``host:port``) in the order in which they are tried: at random, the region's first."""
        found = list(servers)
        random.shuffle(found)
        return sorted(found, key=self._distance) if self._preferred else found

    def attempts(self, servers: Iterable[str]) -> Iterator[str]:
        """The servers in that order; but once an attempt took long, as with a region that is cut off, others come before the rest
        of the region's."""
        left = self.in_order(servers)
        while left:
            began_s = self._env.boot_s()
            yield left.pop(0)
            if self._preferred and self._env.boot_s() - began_s >= config.CONNECT_SERVER_TIMEOUT_S / 2:
                left.sort(key=self._distance, reverse=True)

    def candidates(self, servers: Iterable[str]) -> list[str]:
        """Those that are in the region, or may be."""
        return [server for server in self.in_order(servers) if self._distance(server) < _ELSEWHERE]

    def _distance(self, server: str) -> int:
        if server not in self._regions:
            return 1
        return 0 if self._regions[server] == self._region else _ELSEWHERE


_ELSEWHERE: Final = 2


async def stay(
    home: Home,
    current: Callable[[], Connection | None],
    servers: Callable[[], Iterable[str]],
    open_: Callable[[str], Awaitable[Connection]],
    move: Callable[[Connection, Connection], Awaitable[bool]],
) -> None:
    """Until it is cancelled: whenever ``current`` is elsewhere, look for a server of the region and ``move`` there."""
    while True:
        connection = current()
        with contextlib.suppress(Exception):  # whatever it was: nobody else would ever look again
            if connection is not None and not home.is_here(connection):
                found = await _find(home, servers(), open_)
                if found is not None:
                    await _move(connection, found, move)
        await asyncio.sleep(jittered(config.HOME_LOOK_S))


async def _find(
    home: Home, servers: Iterable[str], open_: Callable[[str], Awaitable[Connection]]
) -> Connection | None:
    for server in home.candidates(servers):
        try:
            connection = await open_(server)
        except OnefoldError:
            continue
        home.note(connection)
        if home.is_here(connection):
            return connection
        connection.close()
    return None


async def _move(
    old: Connection, new: Connection, move: Callable[[Connection, Connection], Awaitable[bool]]
) -> None:
    moved = False
    try:
        moved = await move(old, new)
    finally:
        if not moved:
            new.close()
    if moved:
        try:
            await answered(old)
        finally:
            old.close()


async def answered(connection: Connection) -> None:
    """Wait until what was asked on a connection is answered, for a second at most."""
    for _ in range(_LEAVE_LOOKS):
        if not connection.open_questions:
            return
        await asyncio.sleep(_LEAVE_LOOK_S)
