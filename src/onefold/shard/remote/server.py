"""What answers programs without a replica: one shard's replica, asked in ``shard.remote.protocol``.

``Server`` is the part without threads and network: bytes in, bytes out. It trusts nobody: what is asked is checked, only tables
of known folds can be read, and every answer is bounded. A replica that cannot serve says so, and that another one may.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from onefold import config
from onefold.backoff import Deadline
from onefold.errors import (
    InvalidArgument,
    LogCorrupt,
    OnefoldError,
    SpaceError,
    Timeout,
    TooOld,
    TooStale,
    Unavailable,
)
from onefold.log.api import Log
from onefold.shard.api import Shard, View
from onefold.shard.freshness import Freshness
from onefold.shard.remote import protocol
from onefold.shard.remote.protocol import Answer, Ask, Page, Refusal, Standing
from onefold.shard.replica.awaited_records import Told
from onefold.shard.requirements import Behind
from onefold.store import exactly_once
from onefold.store.replica import Applied

TABLES = ("state/", "jobs/", "nodes/", "ap/", "onefold/")
"""Beginnings of the names of the tables that can be asked for."""
_FIRST_ROWS = 16
"""So many rows are read at first, before it is known how long they are."""
_NEXT_ROWS_MAX = 512
_ROW_BYTES = 16
"""What a row costs in an answer besides its bytes, about."""


class Served(Shard, Protocol):
    """A replica that answers others."""

    @property
    def log(self) -> Log:
        """The log itself, for reading."""
        ...

    @property
    def freshness(self) -> Freshness:
        """How fresh it is known to be."""
        ...

    @property
    def fold_version(self) -> int:
        """In force as far as is applied here."""
        ...

    def known(self, client: str) -> exactly_once.ClientRow | None:
        """The client's exactly-once row."""
        ...


@runtime_checkable
class TellsWritten(Protocol):
    """A replica that tells what became of a record in the moment in which it is applied."""

    def when_written(self, client: str, number: int, wait_s: float, told: Told) -> None:
        """Have ``told`` called once, from any thread: when this process applies the client's record, or with None."""
        ...


Exchanging = Callable[[View, bytes, bool], bytes | None]
"""Given a view, what another region asks (``protocol.Exchange``), and whether its time is over: the result. None: there is
nothing to say yet. Raises InvalidArgument."""


class NothingYet(Exception):
    """There is nothing to tell as of this offset."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"nothing to tell as of offset {offset}")
        self.offset = offset


class Server:
    """Answers questions about one shard from a replica. Thread-safe."""

    def __init__(
        self,
        shard: Served,
        *,
        reply_bytes: int = config.ASK_REPLY_BYTES_MAX,
        tables: Sequence[str] = TABLES,
        exchanging: Exchanging | None = None,
    ) -> None:
        """``space``: with the history of all tables, since views of several questions are read at one offset. ``reply_bytes``:
        how long the body of an answer may be. ``exchanging``: what answers other regions; None where the log does not belong to
        a region."""
        self.shard = shard
        self._exchanging = exchanging
        self._reply_bytes = reply_bytes
        self._tables = tuple(tables)
        self._reads: dict[type, Callable[[View, Any], object]] = {
            protocol.Get: self._get,
            protocol.Scan: self._scan,
            protocol.Count: _count,
            protocol.Changes: self._changes,
            protocol.Tables: self._names,
            protocol.HeadOf: _head,
        }

    def answer(self, request: bytes) -> bytes:
        """The reply to a question. Waits in the calling thread until it can be given, up to the question's ``wait_s``."""
        try:
            ask = self.parse(request)
            deadline = Deadline.after(min(ask.wait_s, config.ASK_WAIT_S_MAX), self.shard.env)
            self._wait_for(ask)
            while True:
                try:
                    return self.run(ask, late=deadline.passed)
                except NothingYet as found:
                    self.shard.reach(found.offset + 1, deadline.left_s)
        except Exception as error:
            return self.refusal(error)

    # -- in parts, for who has better to do than to wait

    def parse(self, request: bytes) -> Ask:
        """The question, checked. Raises InvalidArgument, and SpaceError when it is about another space."""
        try:
            ask = protocol.decode_ask(request)
        except protocol.Garbled as error:
            raise InvalidArgument(f"the node does not understand the question: {error}") from error
        if ask.protocol > protocol.PROTOCOL:
            raise InvalidArgument(
                f"the question is of protocol {ask.protocol}, and this node knows {protocol.PROTOCOL}. Upgrade the node"
            )
        if ask.incarnation != self.shard.incarnation:
            raise SpaceError(
                f"the space was recreated or restored: this node has {self.shard.incarnation}, and {ask.incarnation} was asked "
                "for. Open it again"
            )
        table = getattr(ask.what, "table", None)
        if table is not None and not table.startswith(self._tables):
            raise InvalidArgument(f"there is no table {table[:100]!r} to ask for")
        return ask

    def unmet(self, ask: Ask) -> bool:
        """Whether a barrier has to come before the answer."""
        shard = self.shard
        if shard.strong_reads:
            return False
        if ask.barrier:
            return True
        return ask.fresh_s is not None and not shard.freshness.within(ask.fresh_s, shard.env.boot_s())

    def offset_of(self, ask: Ask) -> int:
        """The offset that must be applied here before it can be answered."""
        needed = max(ask.after, ask.at or 0)
        if isinstance(ask.what, protocol.Known):
            needed = max(needed, ask.what.offset or 0)
        if isinstance(ask.what, protocol.Beyond):
            needed = max(needed, ask.what.offset + 1)
        return needed

    def is_patient(self, ask: Ask) -> bool:
        """Whether it is answered in the end though nothing came."""
        return isinstance(ask.what, protocol.Beyond | protocol.Exchange)

    def written(self, ask: Ask, applied: Applied | None) -> bytes:
        """The answer when this was applied."""
        if applied is None:
            return self.refusal(self._not_applied())
        standing = Standing(applied.number, applied.offset, applied.outcomes, None)
        return self._answer(ask, applied.offset, standing)

    def run(self, ask: Ask, late: bool = False) -> bytes:
        """The answer, now. Raises what reading raises, and NothingYet, unless it is ``late``: then the answer says that
        there is nothing."""
        if isinstance(ask.what, protocol.Exchange):
            return self._answer(ask, *self._exchange(ask, ask.what, late))
        return self._answer(ask, *self._result(ask))

    def _answer(self, ask: Ask, offset: int, result: object) -> bytes:
        body = protocol.encode_body(result)
        whole = len(body)
        if ask.skip > whole:
            raise InvalidArgument(f"the answer has {whole} bytes, and {ask.skip} were to be left out")
        digest = protocol.digest_of(body) if whole > self._reply_bytes else b""
        piece = body[ask.skip : ask.skip + self._reply_bytes]
        version = self.shard.fold_version
        return protocol.encode(Answer(self.shard.incarnation, offset, version, piece, whole, digest))

    def offset_answer(self, applied: int) -> bytes:
        """The answer that says nothing but an offset that is applied here."""
        body = protocol.encode_body(None)
        return protocol.encode(
            Answer(self.shard.incarnation, applied, self.shard.fold_version, body, len(body))
        )

    def refusal(self, error: Exception) -> bytes:
        """The reply that tells of an error."""
        kind, message = type(error).__name__, str(error)
        elsewhere = isinstance(error, (Unavailable, Timeout, TooOld))
        if not isinstance(error, OnefoldError) or isinstance(error, LogCorrupt) or not self._is_usable():
            # It is this replica that has failed; what was asked is not to blame.
            kind, message, elsewhere = "Unavailable", f"a node cannot serve: {kind}: {error}", True
        return protocol.encode(Refusal(self.shard.incarnation, self._applied(), kind, message, elsewhere))

    def behind(self, ask: Ask, applied: int) -> Behind:
        """The error when ``offset_of`` did not come in time."""
        return Behind(
            f"a replica of {self.shard.url} is at offset {applied}, and {self.offset_of(ask)} was asked for",
            applied,
        )

    def stale(self, ask: Ask, error: Unavailable) -> Unavailable:
        """The error when no barrier came in time."""
        shard = self.shard
        if ask.barrier or ask.fresh_s is None:
            return error
        age = shard.freshness.age(shard.env.boot_s())
        known = (
            f"is known to be complete only as of {age:.3g} s ago"
            if age < float("inf")
            else "may be of any age"
        )
        return TooStale(
            f"what a replica has of {shard.url} {known}, and {ask.fresh_s:g} s are allowed: {error}",
            definite=True,
        )

    # -- inside

    def _is_usable(self) -> bool:
        try:
            _ = self.shard.applied
        except OnefoldError:
            return False
        return True

    def _applied(self) -> int:
        try:
            return self.shard.applied
        except OnefoldError:
            return 0

    def _wait_for(self, ask: Ask) -> None:
        shard = self.shard
        wait_s = min(ask.wait_s, config.ASK_WAIT_S_MAX)
        deadline = Deadline.after(wait_s, shard.env)
        if self.unmet(ask):
            try:
                shard.barrier(wait_s)
            except Unavailable as error:
                raise self.stale(ask, error) from error
        needed = self.offset_of(ask)
        reached = not needed or shard.reach(needed, deadline.within(wait_s))
        if not reached and not self.is_patient(ask):
            raise self.behind(ask, shard.applied)

    def _result(self, ask: Ask) -> tuple[int, object]:
        """What is asked for, and the offset that it shows."""
        shard, what = self.shard, ask.what
        read = self._reads.get(type(what))
        if read is None:
            result: object = self._look_up(what)
            return shard.applied, result  # in this order: it shows no more than that
        if isinstance(what, protocol.Get) and ask.at is None and len(what.keys) == 1:
            value, offset = shard.peek(what.table, what.keys[0])
            result = [value]
        else:
            with shard.view(ask.at) as view:
                offset, result = view.offset, read(view, what)
        if offset < ask.after:
            raise self.behind(ask, offset)
        return offset, result

    def _exchange(self, ask: Ask, what: protocol.Exchange, late: bool) -> tuple[int, bytes]:
        if self._exchanging is None:
            raise InvalidArgument("this log does not belong to a region: nothing is exchanged with others")
        with self.shard.view(ask.at) as view:
            offset = view.offset
            result = self._exchanging(view, what.question, late)
        if result is None:
            raise NothingYet(offset)
        return offset, result

    def _look_up(self, what: protocol.What) -> object:
        match what:
            case protocol.Requested(request_id):
                return self.shard.outcome(request_id)
            case protocol.Known(client, offset):
                return self._standing(client, offset)
            case protocol.Written(client, number):
                _ = self.shard.applied  # where nothing applies by itself it is applied now
                standing = self._standing(client, None)
                if standing.number != number:
                    raise self._not_applied()
                return standing
        return None

    def _standing(self, client: str, offset: int | None) -> Standing:
        known = self.shard.known(client)
        digest = None
        if offset is not None and (known is None or known.offset != offset):
            # The client's last applied record is another one: this one is a copy of it, or not there.
            try:
                digest = protocol.digest_of(self.shard.log.read(offset, 1)[0].data)
            except TooOld:
                pass
        if known is None:
            return Standing(0, 0, (), digest)
        return Standing(known.number, known.offset, known.outcomes, digest)

    def _not_applied(self) -> Behind:
        applied = self._applied()
        return Behind(f"a replica of {self.shard.url} has not applied the record", applied)

    def _get(self, view: View, what: protocol.Get) -> list[bytes | None]:
        room = _Room(self._reply_bytes)
        values: list[bytes | None] = []
        while len(values) < len(what.keys):
            keys = what.keys[len(values) : len(values) + room.rows]
            found = view.get_many(what.table, keys)
            for key in keys:
                value = found.get(key)
                if not room.take(len(value or b"")):
                    return values
                values.append(value)
        return values

    def _scan(self, view: View, what: protocol.Scan) -> Page:
        room = _Room(self._reply_bytes)
        start, stop, rows = what.start, what.stop, list[Any]()
        while len(rows) < what.limit:
            want = min(room.rows, what.limit - len(rows))
            page = list(view.scan(what.table, start, stop, limit=want, reverse=what.reverse))
            for key, value in page:
                if not room.take(len(key) + len(value)):
                    return Page(rows, True)
                rows.append((key, value))
            if len(page) < want:
                return Page(rows, False)
            if what.reverse:
                stop = page[-1][0]
            else:
                start = page[-1][0] + b"\x00"
        return Page(rows, True)

    def _changes(self, view: View, what: protocol.Changes) -> Page:
        room = _Room(self._reply_bytes)
        after, within, rows = what.after, what.within, list[Any]()
        while len(rows) < what.limit:
            want = min(room.rows, what.limit - len(rows))
            page = view.changes(
                what.table, after, within=within, start=what.start, stop=what.stop, limit=want
            )
            for change in page:
                if change.offset > view.offset:
                    return Page(rows, False)
                if not room.take(len(change.key) + len(change.value or b"")):
                    return Page(rows, True)
                rows.append(tuple(change))
            if len(page) < want:
                return Page(rows, False)
            after, within = page[-1].offset - 1, (page[-1].place, page[-1].key)
        return Page(rows, True)

    def _names(self, view: View, what: protocol.Tables) -> Page:
        room, names = _Room(self._reply_bytes), list[Any]()
        for name in view.tables(what.prefix):
            if name > what.beyond and name.startswith(self._tables):
                if not room.take(4 * len(name)):
                    return Page(names, True)
                names.append(name)
        return Page(names, False)


class _Room:
    """How much still fits into an answer, and so how many rows are worth reading."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._bytes = 0
        self._rows = 0

    @property
    def rows(self) -> int:
        """How many rows to read next, going by those that were taken; at least one."""
        if not self._rows:
            return _FIRST_ROWS
        left = self._limit - self._bytes
        return max(1, min(_NEXT_ROWS_MAX, left * self._rows // self._bytes))

    def take(self, size: int) -> bool:
        """Make room for a row; False when it does not fit. The first one always does."""
        size += _ROW_BYTES
        if self._rows and self._bytes + size > self._limit:
            return False
        self._rows += 1
        self._bytes += size
        return True


def _count(view: View, what: protocol.Count) -> int:
    return view.count(what.table, what.start, what.stop)


def _head(view: View, what: protocol.HeadOf) -> tuple[Any, ...]:  # noqa: ARG001
    return tuple(view.head())
