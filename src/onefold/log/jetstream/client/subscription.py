"""Interest in the messages of a subject, over reconnections."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from onefold.log.jetstream.client.connection import Connection
from onefold.machine import forks

if TYPE_CHECKING:
    from onefold.log.jetstream.client.link import Link

RawHandler = Callable[[bytes, bytes, bytes, bytes | None], None]
"""Takes subject, reply subject, payload and header block, on the loop's thread."""


class Subscription:
    """Interest in a subject, until ``close``."""

    def __init__(self, link: Link, subject: str, handler: RawHandler, queue: str | None) -> None:
        self.subject = subject
        self._link = link
        self._handler = handler
        self._queue = queue
        self._at: list[tuple[Connection, int]] = []
        """Where it is known: on one connection, and while a link moves to another one on both."""
        self._ended = False

    async def _begin(self, connection: Connection) -> None:
        if any(at is connection for at, _ in self._at):
            return
        sid = await connection.listen(self.subject, self._handler, self._queue)
        if self._ended:  # meanwhile
            connection.unlisten(sid)
        self._at = [(at, number) for at, number in self._at if not at.over] + [(connection, sid)]

    def close(self) -> None:
        """Receive no more. Does not wait."""
        link = self._link
        if link._process == forks.process and not link._closed:
            link.post(self._end)

    def _end(self) -> None:
        self._ended = True
        self._link._subscriptions.discard(self)
        for connection, sid in self._at:
            connection.unlisten(sid)
