"""Every error that Onefold raises, in one tree.

Each error has ``definite``: ``True`` means that the operation certainly did not happen and may be tried again;
``False`` means that it may have happened. Messages say what happened, to what, and what to do.
"""

from __future__ import annotations

from typing import Any, Final


class OnefoldError(Exception):
    """Base of all errors of Onefold."""

    definite: bool = True
    """True: the operation certainly did not happen. False: it may have happened."""

    def __init__(self, message: str, *, definite: bool | None = None) -> None:
        super().__init__(message)
        if definite is not None:
            self.definite = definite


class Conflict(OnefoldError):
    """Somebody else changed what this operation was conditional on; nothing was written. Read again and retry."""


class Unavailable(OnefoldError):
    """The operation cannot be served at its consistency level now.

    About large records of a stream that are kept apart, and cannot be had, it says which; else these are None.
    """

    stream: str | None = None
    """The stream ..."""
    partition: int | None = None
    """... the partition ..."""
    offset: int | None = None
    """... and the first of the records."""
    next_offset: int | None = None
    """The offset behind them, when they are lost, and not only out of reach now."""


class TooStale(Unavailable):
    """No copy fresh enough for the asked bound can be reached, or what this session has seen in another region is not here."""

    regions: tuple[str, ...] = ()
    """The regions from which something is missing, if it is about regions."""


class TooOld(OnefoldError):
    """The asked version is older than the history that is kept."""


class Timeout(OnefoldError, TimeoutError):
    """The operation did not end in time. Writes: indefinite unless ``definite`` says otherwise."""

    definite = False


ASK_LATER = "Ask db.outcome(request_id) later, if it had a request_id; else read what it was to write"
"""What to do about a write of which nobody knows whether it happened."""


class AppendUnknown(OnefoldError):
    """An append whose outcome is unknown: the record may be in the log, or may surface later."""

    definite = False


class LogCorrupt(OnefoldError):
    """The log has a hole, a bad checksum or disagreeing copies. The replica halts rather than serve it."""


class Expired(OnefoldError):
    """The client's exactly-once record has been forgotten: the outcome of its last request is unknown."""

    definite = False


class InvalidKey(OnefoldError, ValueError):
    """A key that cannot be stored."""


class InvalidValue(OnefoldError, ValueError):
    """A value that cannot be stored or read: a broken line of a file, a type that has no encoding.

    About a stored value it says where that is, as far as it applies; else these are None.
    """

    map: str | None = None
    """The map ..."""
    key: Any = None
    """... and the key."""
    stream: str | None = None
    """The stream ..."""
    partition: int | None = None
    """... the partition ..."""
    offset: int | None = None
    """... the record's offset ..."""
    next_offset: int | None = None
    """... and the one behind it, and behind those that were stored together and cannot be read either."""
    queue: str | None = None
    """The queue ..."""
    id: int | None = None
    """... and the message's id."""


class InvalidArgument(OnefoldError, ValueError):
    """An argument that makes no sense; the message names it."""


class InvalidPlan(OnefoldError):
    """A job that would not mean the same on every split, or whose parts do not fit together."""


class TooLarge(OnefoldError):
    """A key, value, record or request over its limit (see ``onefold.config``)."""


class UnsupportedConsistency(OnefoldError):
    """The asked consistency level does not exist for this collection."""


class TransactionError(OnefoldError):
    """A transaction used in a way that it cannot work."""


class BelowFloor(OnefoldError):
    """More would be taken from a bounded counter than this region may take; nothing was. Other regions may have more."""

    value: int | None = None
    """The counter's value in all regions, as far as it is known here ..."""
    here: int | None = None
    """... and how much of it this region may take."""


class MergeFailed(OnefoldError):
    """A merge function raised. What is stored is as it was."""

    siblings: list[Any]
    """The values as they are kept, in the order in which they were written ..."""
    map: str | None = None
    """... of this map ..."""
    key: Any = None
    """... and key."""

    def __init__(self, message: str, siblings: list[Any] | None = None) -> None:
        super().__init__(message)
        self.siblings = siblings or []


class TokenError(OnefoldError):
    """A session token that is malformed, foreign, or from another incarnation of the space."""


class TokenAhead(TokenError, Unavailable):
    """A session token from a future that did not come in time: nothing here has seen as much as it."""


class SpaceError(OnefoldError):
    """A space that cannot be opened: wrong format, newer version, read-only folder, no such place."""


class JobFailed(OnefoldError):
    """A job that cannot finish: shows the record, where it stands, and the traceback of the function.

    What had been finished stays; fix the function and run again, or ``on_error="skip"``.
    """

    definite = False

    def __init__(
        self,
        message: str,
        *,
        run_id: str | None = None,
        record: object | None = None,
        location: str | None = None,
        traceback: str | None = None,
    ) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.record = record
        self.location = location
        self.traceback = traceback


PASSING: Final = (Unavailable, Timeout, AppendUnknown, Expired)
"""What says nothing of the work itself: it passes, and then the work continues. After one that is not definite the state says
what became of it."""
