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

    __slots__ = ("_connection", "_error", "_gate", "_link", "_msg", "_token", "subject")

    def __init__(self, link: Link, subject: str) -> None:
        self.subject = subject
        self._link = link
        self._gate = threading.Lock()
        self._gate.acquire()
        self._msg: Msg | None = None
        self._error: OnefoldError | None = None
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
        self._gate.release()
        if self._error is not None:
            if self._error.definite:
                raise self._error
            return None
        return self._msg

    def take(self, data: bytes, headers: bytes | None) -> bool:
        if not data and nobody_answers(headers):
            self.fail(
                Unavailable(f"nobody takes {self.subject} now: it has no leader, or is not there. Try again")
            )
        elif self._gate.locked() and self._msg is None and self._error is None:
            self._msg = Msg("", "", parse_headers(headers), data)
            self._gate.release()
        return True

    def fail(self, error: OnefoldError) -> None:
        if self._gate.locked() and self._msg is None and self._error is None:
            self._error = error
            self._gate.release()

    def _sent(self, connection: Connection, token: str) -> None:
        self._connection, self._token = connection, token

    def _give_up(self) -> None:
        if self._connection is not None:
            self._connection.forget(self._token)
