"""How a program without a replica reaches nodes: questions over the link, to its own region first, hedged.

The calling thread waits on a lock and sends the next try itself: a task of the event loop for each try costs more than the
question does.
"""

from __future__ import annotations

from _queue import Empty, SimpleQueue  # as ``queue`` has it, without what that imports: connecting is quick
from typing import TYPE_CHECKING

from onefold import config
from onefold.backoff import Deadline
from onefold.errors import OnefoldError, SpaceError, Timeout, Unavailable
from onefold.log.jetstream.client.connection import Connection, Waiter
from onefold.log.jetstream.client.message import nobody_answers

if TYPE_CHECKING:
    from onefold.log.jetstream.client.link import Link
    from onefold.log.jetstream.names import LogNames


class LinkAsking:
    """See ``onefold.shard.remote.shard.Asking``. Thread-safe."""

    def __init__(self, link: Link, names: LogNames, region: str | None = None) -> None:
        """``region``: its nodes are asked first."""
        self._link = link
        self._anywhere = names.ask
        self._near = names.ask if region is None else names.ask_region(region)

    def __call__(self, request: bytes, timeout: float, *, hedge_s: float) -> bytes:
        self._link.check_may_wait()
        question = Question(self._link, request)
        try:
            return self._ask(question, timeout, hedge_s)
        finally:
            question.close()

    def begin(self, request: bytes) -> Question:
        """Ask once, and do not wait. Close what it returns."""
        question = Question(self._link, request)
        question.ask(self._near)
        return question

    def _ask(self, question: Question, timeout: float, hedge_s: float) -> bytes:
        link = self._link
        deadline = Deadline.after(timeout, link.env)
        problem: OnefoldError | None = None
        tries, pause_s, due = 0, hedge_s, True
        while True:
            link.check_usable()
            left = deadline.within(timeout)
            if left <= 0:
                link.post(link.suspect)
                raise problem or Timeout(f"no node answered within {timeout:g} s", definite=True)
            if due or tries < config.ASK_HEDGES_MAX + 1:
                question.ask(self._near if tries == 0 else self._anywhere)
                tries += 1
                if tries > config.ASK_HEDGES_MAX:
                    # What went into a connection that was cut is lost without an error. So it is asked again, ever rarer.
                    pause_s = max(pause_s, config.ASK_AGAIN_S * 2 ** (tries - config.ASK_HEDGES_MAX - 1))
            came = question.wait(min(left, pause_s))
            due = came is None
            if isinstance(came, bytes):
                return came
            if isinstance(came, SpaceError):
                raise came
            if came is not None:
                problem = _of_question(came, link)
            nobody_near = tries == 1 and self._near != self._anywhere
            if problem is not None and not question.open_tries and not nobody_near:
                raise problem


class Question:
    """One question, asked once or several times. One thread asks and waits; the answers come on the loop's thread."""

    def __init__(self, link: Link, request: bytes) -> None:
        self._link = link
        self._request = request
        self._came: SimpleQueue[bytes | OnefoldError] = SimpleQueue()
        self._tries: list[_Try] = []
        self.open_tries = 0
        """How many have neither an answer nor an error."""
        self.closed = False

    def ask(self, subject: str) -> None:
        """Ask a node that listens there."""
        one = _Try(self, subject)
        self._tries.append(one)
        self.open_tries += 1
        self._link.question(one, self._request)

    def wait(self, timeout: float) -> bytes | OnefoldError | None:
        """What has come next: an answer, or why one of the tries has none. None: nothing within so many seconds."""
        try:
            came = self._came.get(timeout=timeout)
        except Empty:
            return None
        self.open_tries -= 1
        return came

    def came(self, what: bytes | OnefoldError) -> None:
        """For the tries: called once by each."""
        self._came.put(what)

    def close(self) -> None:
        """Want no more answers."""
        self.closed = True
        for one in self._tries:
            one.forget()


class _Try(Waiter):
    """A question that was sent once."""

    __slots__ = ("_connection", "_over", "_question", "_token", "subject")

    def __init__(self, question: Question, subject: str) -> None:
        self.subject = subject
        self._question = question
        self._over: dict[int, object] = {}
        self._connection: Connection | None = None
        self._token = ""

    def take(self, data: bytes, headers: bytes | None) -> bool:
        if not data and nobody_answers(headers):
            self._end(Unavailable(f"nobody answers at {self.subject} now. Try again"))
        else:
            self._end(data)
        return True

    def fail(self, error: OnefoldError) -> None:
        self._end(error)

    def sent(self, connection: Connection, token: str) -> None:
        self._connection, self._token = connection, token
        if self._question.closed:  # an interrupted caller has left before the loop came to send it
            self.forget()

    def forget(self) -> None:
        if not self._over and self._connection is not None:
            self._connection.forget(self._token)

    def _end(self, what: bytes | OnefoldError) -> None:
        if self._over.setdefault(0, what) is what:
            self._question.came(what)


def _of_question(error: OnefoldError, link: Link) -> OnefoldError:
    """The error of a try, as the question's: that changes nothing, so what became of it is not in doubt."""
    if isinstance(error, Unavailable):
        return Unavailable(f"no node answers for {link.address}: {error}", definite=True)
    return Timeout(f"no node answered: {error}", definite=True)
