"""Asking what becomes of a record while it is being appended, so that the answer comes with the acknowledgement.

It saves the time of one question. What it brings counts only when it agrees with the acknowledgement; whatever else comes, or
nothing, the writer asks as if it had not asked before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from onefold import config
from onefold.codec import Record
from onefold.errors import InvalidArgument, OnefoldError
from onefold.log.api import Log
from onefold.shard.remote import protocol
from onefold.shard.remote.protocol import Answer, Ask, Standing


class Question(Protocol):
    """A question that was asked."""

    def wait(self, timeout: float) -> bytes | OnefoldError | None:
        """The reply, or why there is none; None: there was none within so many seconds."""
        ...

    def close(self) -> None:
        """Want no more answers."""
        ...


@runtime_checkable
class AsksEarly(Protocol):
    """A way of asking with which a question can be asked before its answer is waited for."""

    def begin(self, request: bytes) -> Question:
        """Ask once, and do not wait. Close what it returns."""
        ...


class EarlyOutcome:
    """For one writer: one record at a time."""

    def __init__(self, asking: object, log: Log, read: Callable[[bytes], Answer | OnefoldError]) -> None:
        """Without effect unless ``asking`` is ``AsksEarly``. ``read``: see ``RemoteShard._read``."""
        self._asking = asking if isinstance(asking, AsksEarly) else None
        self._log = log
        self._read = read
        self._question: Question | None = None

    def begin(self, record: Record, wait_s: float) -> None:
        """It is about to be appended, within so many seconds."""
        self.forget()
        if self._asking is not None:
            what = protocol.Written(record.client, record.number)
            wait_s = min(config.ASK_EARLY_S, max(0.0, wait_s))
            ask = Ask(protocol.PROTOCOL, self._log.incarnation, what, wait_s=wait_s)
            self._question = self._asking.begin(protocol.encode(ask))

    def outcome(self, record: Record, offset: int, timeout: float) -> Standing | None:
        """What a node has told of it, now that it was acknowledged at that offset. None: it has to be asked again.

        Raises what ``read`` does.
        """
        question = self._question
        if question is None:
            return None
        try:
            came = question.wait(min(timeout, config.ASK_HEDGE_S))
            answer = self._read(came) if isinstance(came, bytes) else None
            if not isinstance(answer, Answer) or answer.total > len(answer.body):
                return None
            what = protocol.Written(record.client, record.number)
            standing = Standing(*protocol.decode_body(what, answer.body))
        except (InvalidArgument, protocol.Garbled):
            self._asking = None  # a node of an earlier release, which does not know the question
            return None
        finally:
            self.forget()
        # One that stands elsewhere may be another copy of the record, or be in its place: then the bytes are compared.
        here = (standing.number, standing.offset) == (record.number, offset)
        return standing if here else None

    def forget(self) -> None:
        """Want no answer any more."""
        question, self._question = self._question, None
        if question is not None:
            question.close()
