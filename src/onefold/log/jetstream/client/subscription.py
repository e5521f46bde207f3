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
        self._at: tuple[Connection, int] | None = None

    async def _begin(self, connection: Connection) -> None:
        if self._at is None or self._at[0] is not connection:
            self._at = (connection, await connection.listen(self.subject, self._handler, self._queue))

    def close(self) -> None:
        """Receive no more. Does not wait."""
        link = self._link
        if link._process == forks.process and not link._closed:
            link.post(self._end)

    def _end(self) -> None:
        self._link._subscriptions.discard(self)
        if self._at is not None:
            self._at[0].unlisten(self._at[1])
