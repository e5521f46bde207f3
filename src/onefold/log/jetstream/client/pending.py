"""A message that is on its way, for the thread that waits for its answer."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from onefold import config
from onefold.errors import OnefoldError, Unavailable
from onefold.log.jetstream.client.connection import Connection, Waiter
from onefold.log.jetstream.client.message import Msg, nobody_answers, parse_headers

if TYPE_CHECKING:
    from onefold.log.jetstream.client.link import Link


class Pending(Waiter):
    """A message that was sent, or is about to be. One thread waits."""

    __slots__ = ("_connection", "_found", "_gate", "_link", "_token", "subject")

    def __init__(self, link: Link, subject: str) -> None:
        self.subject = subject
        self._link = link
        self._gate = threading.Lock()
        self._gate.acquire()
        self._found: dict[int, Msg | OnefoldError] = {}
        """What came of it: the first of several, whichever thread brings it."""
        self._connection: Connection | None = None
        self._token = ""

    def wait(self, timeout: float) -> Msg | None:
        """The answer; None when there is none after ``timeout`` seconds or the connection broke: the outcome is unknown.

        Raises Unavailable (definite: never sent, or nobody took it) and SpaceError (not permitted; definite).
        """
        early = min(timeout, config.SUSPECT_AFTER_S)
        if not self._gate.acquire(timeout=max(early, 0.0)):
            self._link.post(self._link.suspect)
            if not self._gate.acquire(timeout=max(timeout - early, 0.0)):
                self._link.post(self._give_up)
                return None
        found = self._found[0]
        if not isinstance(found, OnefoldError):
            return found
        if found.definite:
            raise found
        return None

    def take(self, data: bytes, headers: bytes | None) -> bool:
        if not data and nobody_answers(headers):
            self.fail(
                Unavailable(f"nobody takes {self.subject} now: it has no leader, or is not there. Try again")
            )
        else:
            self._end(Msg("", "", parse_headers(headers), data))
        return True

    def fail(self, error: OnefoldError) -> None:
        self._end(error)

    def sent(self, connection: Connection, token: str) -> None:
        self._connection, self._token = connection, token

    def _end(self, found: Msg | OnefoldError) -> None:
        if self._found.setdefault(0, found) is found:
            self._gate.release()

    def _give_up(self) -> None:
        if self._connection is not None:
            self._connection.forget(self._token)
