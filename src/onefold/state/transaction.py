"""Transactions: optimistic, serializable, one record in the log.

A transaction reads at a snapshot, buffers its writes, and when its block ends becomes one operation: what it read (versions of
keys, also of those that were not there, and ranges), and what it writes. The fold does the writes iff nothing that was read has
changed since (see ``state.fold.validation``), so every replica decides alike and nobody holds locks. In a space of several shards
one that touches more than one of them goes through ``state.transactions.over_shards``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from onefold.arguments import check_flag
from onefold.errors import ASK_LATER, BelowFloor, Conflict, InvalidArgument, OnefoldError, TransactionError
from onefold.machine.undisturbed import is_interrupt
from onefold.state.core import guard
from onefold.state.core.client import rejection
from onefold.state.core.outcomes import outcome
from onefold.state.core.time_limits import limited
from onefold.state.encoding.items import Version
from onefold.state.encoding.keys import Key, decode_key, encode_key
from onefold.state.encoding.names import check_name, check_request_id
from onefold.state.encoding.values import ValueCodec
from onefold.state.fold.maps.ops import Increment
from onefold.state.fold.ops import Commit
from onefold.state.fold.outcomes import Committed, Decided
from onefold.state.maps.in_transaction import TxMap, decode_number
from onefold.state.transactions.attempt import Earlier, Part, TransactionCore

if TYPE_CHECKING:
    from onefold.state.available.counters import Counters
    from onefold.state.available.maps.map import AvailableMap
    from onefold.state.available.sets import Sets
    from onefold.state.available.transactions.counters import TxCounters
    from onefold.state.available.transactions.maps import TxAvailableMap
    from onefold.state.available.transactions.part import AvailablePart
    from onefold.state.available.transactions.sets import TxSets
    from onefold.state.core.client import StateClient
    from onefold.state.maps.map import Map
    from onefold.state.queues.queue import Queue, TxQueue
    from onefold.state.streams.stream import Stream, TxStream

R = TypeVar("R")
T = TypeVar("T")
OneValue = Literal["last_writer_wins", "fields"]

_UNTYPED: ValueCodec[Any] = ValueCodec(None)
_NO_PART = Part((), (), ())
_MIXED = (
    "collections for every region: those are in the region's own log, so one transaction cannot have both. Use a transaction for "
    "each kind: watch the one, and write the other with request_id=str(change.version), which happens once"
)


class Transaction:
    """One try of a serializable transaction, for a ``with`` block: ``with db.transaction() as tx``.

    It commits when the block ends, and raises Conflict (nothing was written) when somebody changed what it had read. When the
    block raises, nothing is written and the exception propagates. All that it reads in one shard is of one moment. In a space of
    several shards each has its own moment; if they do not fit together, the commit raises Conflict, so a block should not act
    on what it reads there before it has committed.

    One that is ``read_only`` reads one moment of the whole space, that of its first read, over all shards. It never raises
    Conflict, whatever others write. What was acknowledged before it began is in it. On a connection that was itself opened
    read-only it cannot hold up writers, so where they write all the time its first read raises Unavailable.

    Leaving the block may also raise: TransactionError (open for longer than ``config.TRANSACTION_AGE_S``), TooOld, InvalidValue
    (an increment of what is not a number), Unavailable, all definite; AppendUnknown and Timeout as their ``definite`` says.

    With a ``request_id`` it happens at most once under this name: committing again what has been committed succeeds, without
    effect. If it lost, it stays rejected under the name. A transaction that writes nothing leaves no trace, nor its name.
    """

    _guard: guard.Block | None = None

    def __init__(
        self,
        client: StateClient,
        *,
        request_id: str | None = None,
        read_only: bool = False,
        last_try: bool = True,
    ) -> None:
        """Programs call ``db.transaction``. ``last_try``: whether a rejection is kept under the request id."""
        if read_only is not False:
            check_flag("read_only", read_only)
        if request_id is not None:
            check_request_id(request_id)
            if read_only:
                raise InvalidArgument("a read-only transaction writes nothing, so it takes no request_id")
        self._core = TransactionCore(client, read_only=read_only)
        self._request_id = request_id
        self._may_append = False
        self._last_try = last_try
        self._version: Version | None = None
        self._increments: dict[tuple[str, Key], int | float] = {}
        self._part: AvailablePart | None = None
        """What it does with collections for every region."""
        self._consistent = ""
        """What it has used of the others, if anything."""

    # -- the block

    def __enter__(self) -> Self:
        """The block begins. Raises TransactionError inside another transaction of this database, and the second time."""
        block = guard.enter(self._core.client, self)
        try:
            self._core.begin()
        except BaseException:
            guard.leave(block)
            raise
        self._guard = block
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        core = self._core
        here = core.is_here
        try:
            if kind is None and not here:
                raise TransactionError(
                    "a transaction's block must end in the thread and task in which it began; nothing was written"
                )
            if kind is None:
                core.check_age()
        finally:
            core.end()
            if self._guard is not None:
                guard.leave(self._guard)  # also from elsewhere: the thread in which it began is free again
        if kind is not None:
            return
        if core.client.shard_count == 1:
            self._commit()  # one append, with a deadline of its own
        else:
            with limited(core.client):
                self._commit()

    def __repr__(self) -> str:
        name = "" if self._request_id is None else f" {self._request_id!r}"
        return f"<Transaction{name}>"

    # -- what is in it

    @overload
    def map(self, name: str) -> TxMap[Any]: ...

    @overload
    def map(self, name: str, type: type[T]) -> TxMap[T]: ...

    @overload
    def map(self, name: Map[T]) -> TxMap[T]: ...

    @overload
    def map(self, name: AvailableMap[R, T]) -> TxAvailableMap[R, T]: ...

    @overload
    def map(
        self, name: str, *, mode: Literal["available"], merge: OneValue = "last_writer_wins"
    ) -> TxAvailableMap[Any, Any]: ...

    @overload
    def map(
        self, name: str, type: type[T], *, mode: Literal["available"], merge: OneValue = "last_writer_wins"
    ) -> TxAvailableMap[T, T]: ...

    @overload
    def map(
        self, name: str, *, mode: Literal["available"], merge: Literal["keep_both"]
    ) -> TxAvailableMap[list[Any], Any]: ...

    @overload
    def map(
        self, name: str, type: type[T], *, mode: Literal["available"], merge: Literal["keep_both"]
    ) -> TxAvailableMap[list[T], T]: ...

    @overload
    def map(
        self, name: str, *, mode: Literal["available"], merge: Callable[[list[Any]], R]
    ) -> TxAvailableMap[R, Any]: ...

    @overload
    def map(
        self, name: str, type: type[T], *, mode: Literal["available"], merge: Callable[[list[T]], R]
    ) -> TxAvailableMap[R, T]: ...

    def map(
        self,
        name: str | Map[Any] | AvailableMap[Any, Any],
        type: type[Any] | None = None,
        *,
        mode: Literal["consistent", "available"] | None = None,
        merge: str | Callable[[list[Any]], Any] | None = None,
    ) -> TxMap[Any] | TxAvailableMap[Any, Any]:
        """A map inside this transaction, by its name or its plain handle. ``type``: of its values, as for ``db.map``. ``mode``,
        ``merge``: as for ``db.map``, of an available map that is given by its name; a handle has its own.

        Raises:
            TransactionError: definite; a handle of another database, a map of the other mode than what the transaction has
                used, or outside of the block.
            InvalidArgument: definite; an argument is not valid, or not what the handle has.
        """
        is_consistent = isinstance(name, str) or name.__class__ is _handle_type("map")
        if mode == "available" or not is_consistent:
            from onefold.state.available.transactions import handles

            if handles.is_available(name, mode):
                return handles.map(self._use_available("map", name), name, type, merge)
        if mode not in (None, "consistent"):
            raise InvalidArgument(f"mode must be 'consistent' or 'available'; got {mode!r:.100}")
        if merge is not None:
            raise InvalidArgument("merge is of available maps: give mode='available' too")
        self._core.check_readable()
        if self._part is not None:
            raise _mixed("map")
        self._consistent = self._consistent or "map"
        if isinstance(name, str):
            return TxMap(self._core, check_name("map", name), _UNTYPED if type is None else ValueCodec(type))
        handle = self._own("map", name)
        return TxMap(self._core, handle.name, handle.codec if type is None else ValueCodec(type))

    def queue(self, name: str | Queue[Any]) -> TxQueue:
        """A queue inside this transaction: what is put into it is there once the transaction has committed. Given by its plain
        handle, it takes values of that one's type.

        Raises:
            TransactionError: definite; a handle of another database, or outside of the block.
        """
        from onefold.state.queues.queue import TxQueue

        self._use_consistent("queue")
        if isinstance(name, str):
            return TxQueue(self._core, check_name("queue", name), _UNTYPED)
        handle = self._own("queue", name)
        return TxQueue(self._core, handle.name, handle.codec)

    def stream(self, name: str | Stream[Any]) -> TxStream:
        """A stream inside this transaction: what is appended to it is there once the transaction has committed. Given by its
        plain handle, it takes records of that one's type, and is made with its partitions and retention.

        Raises:
            TransactionError: definite; a handle of another database, or outside of the block.
        """
        from onefold.state.streams.appending import StreamCodec
        from onefold.state.streams.layout import check_stream_name
        from onefold.state.streams.stream import TxStream

        self._use_consistent("stream")
        self._may_append = True
        if isinstance(name, str):
            return TxStream(self._core, check_stream_name(name), None, StreamCodec(None))
        handle = self._own("stream", name)
        return TxStream(self._core, handle.name, handle.partitions, handle.codec, handle.wanted_retention_ms)

    def commit(self, consumer: Any) -> None:
        """Make a stream consumer's progress part of this transaction: it moves on iff the transaction commits.

        Raises:
            Conflict: definite; partitions were given to another member.
            TransactionError: definite; a consumer of another connection, or outside of the block.
        """
        self._core.check_writable()
        add = getattr(consumer, "add_commit_to", None)
        if add is None:
            raise InvalidArgument(
                f"tx.commit takes a stream's consumer; got {consumer!r}. The transaction itself commits when its block ends"
            )
        self._use_consistent("commit")
        add(self._core)

    def counters(self, name: str | Counters, *, floor: int | None = None) -> TxCounters:
        """Counters for every region inside this transaction, by their name (and ``floor``, as for ``db.counters``) or plain
        handle. All collections of the transaction are then for every region, and all keys in one shard.

        Raises:
            TransactionError: definite; it has used consistent collections; a handle of another database, or outside of the block.
            InvalidArgument: definite; another floor than the handle's, or no region that could be meant.
        """
        from onefold.state.available.transactions import handles

        return handles.counters(self._use_available("counters", name), name, floor)

    def sets(self, name: str | Sets) -> TxSets:
        """Sets for every region inside this transaction, by their name or plain handle: see ``counters``.

        Raises:
            TransactionError: definite; it has used consistent collections; a handle of another database, or outside of the block.
            InvalidArgument: definite; no region that could be meant.
        """
        from onefold.state.available.transactions import handles

        return handles.sets(self._use_available("sets", name), name)

    @property
    def client(self) -> StateClient:
        """The database that it belongs to."""
        return self._core.client

    # -- afterwards

    @property
    def version(self) -> Version | None:
        """After the block: the version of what it wrote (for a ``request_id`` that had been committed before: of what was written
        then). None: it wrote nothing, or did not commit."""
        return self._version

    @property
    def increments(self) -> Mapping[tuple[str, Key], int | float]:
        """After the block: the new value of every key that was incremented blindly, by (name of the map, key). Empty when the
        ``request_id`` had been committed before."""
        return self._increments

    # -- committing

    def _use_consistent(self, what: str) -> None:
        self._core.check_readable()
        if self._part is not None:
            raise _mixed(what)
        self._consistent = self._consistent or what

    def _use_available(self, what: str, handle: object) -> AvailablePart:
        """``handle``: a name, or a handle."""
        self._core.check_readable()
        if self._consistent:
            raise TransactionError(
                f"this transaction has used tx.{self._consistent}, which is consistent, and now {_MIXED}"
            )
        from onefold.state.available.transactions.part import AvailablePart, region_of

        region = region_of(self._core.client, what, handle)
        if self._part is None:
            self._part = AvailablePart(self._core, region)
        return self._part

    def _own(self, kind: str, handle: Any) -> Any:
        if not isinstance(handle, _handle_type(kind)):
            raise InvalidArgument(f"tx.{kind} takes the name of a {kind} or its handle; got {handle!r:.100}")
        client = getattr(handle, "client", None)
        if client is not self._core.client:
            raise TransactionError(
                f"{handle!r} belongs to another connection than the transaction; use tx.{kind}({handle.name!r})"
            )
        return handle

    def kept(self, request_id: str) -> Literal["committed", "rejected"] | None:
        """What is kept under a request id, as ``Database.outcome``, where the transaction writes.

        Raises:
            Unavailable: definite; a shard cannot be asked now.
        """
        if self._part is None:
            return outcome(self._core.client, request_id)
        from onefold.state.available.outcomes import region_outcome

        return region_outcome(self._part.client, request_id)

    def _commit(self) -> None:
        if self._part is not None:
            self._commit_in_region(self._part)
            return
        client, parts = self._core.client, self._core.parts()
        if not any(part.writes for part in parts.values()):
            if len(parts) > 1:
                from onefold.state.transactions.over_shards import validate_cut

                validate_cut(client, _shard_parts(parts))
            return
        for make in self._core.to_make:
            make()
        before: Mapping[int, int] = {}
        if self._request_id is not None:
            parts.setdefault(client.shard_of(encode_key(self._request_id)), _NO_PART)
            before = client.present(parts)
        try:
            committed = self._submit_stored(parts) if self._may_append else self._submit(parts)
        except OnefoldError as error:
            self._explain(error)
            raise
        self._version = Version(tuple((shard, done.offset, done.index) for shard, done in committed.items()))
        if isinstance(committed, Earlier):
            return  # which may have been something else
        # In one shard only the offset tells the answer of an earlier transaction under the request id from a new one.
        fresh = {shard: done for shard, done in committed.items() if done.offset > before.get(shard, 0)}
        self._note_increments(parts, fresh)
        for tell in self._core.to_tell:
            tell(self._request_id is None or len(parts) > 1)

    def _commit_in_region(self, part: AvailablePart) -> None:
        """Everything is one effect of the region. A transaction that only read has seen one moment, and validates nothing."""
        requests = part.requests()
        if not requests:
            return
        before = part.last_own() if self._request_id is not None else 0
        try:
            committed = part.commit(requests, self._request_id, last_try=self._last_try)
        except OnefoldError as error:
            self._explain(error)
            raise
        self._version = part.version(committed)
        self._increments.update(part.new_values(requests, committed, before))

    def _explain(self, error: OnefoldError) -> None:
        """Say in the error of a commit what it means for the request id."""
        name = self._request_id
        if name is None or is_interrupt(error):
            return
        if isinstance(error, Conflict | BelowFloor) and self._last_try:
            error.args = (
                f"{error}. The request {name!r} stays rejected: try again under another request_id, or use "
                "db.run_transaction, which tries again under the same one",
            )
        elif not error.definite:
            what = str(error).removesuffix(f". {ASK_LATER}")
            error.args = (
                f"{what}. db.outcome({name!r}) tells what became of it, and running it again under this "
                "request_id cannot make it happen twice",
            )

    def _submit_stored(self, parts: dict[int, Part]) -> dict[int, Committed]:
        """Submit them, with large frames in blobs."""
        from onefold.state.streams import large_frames

        writes = {shard: part.writes for shard, part in parts.items()}
        with large_frames.stored(self._core.client, writes) as stored:
            committed = self._submit(
                {shard: part._replace(writes=tuple(stored.parts[shard])) for shard, part in parts.items()}
            )
        if self._request_id is not None:
            stored.drop_unnamed()
        return committed

    def _submit(self, parts: dict[int, Part]) -> dict[int, Committed]:
        client, request_id = self._core.client, self._request_id
        if len(parts) > 1:
            from onefold.state.transactions.over_shards import commit_over_shards

            done = commit_over_shards(client, _shard_parts(parts), request_id, self._last_try)
            wrote = (shard for shard in sorted(done) if shard in parts and parts[shard].writes)
            written = type(done)((shard, done[shard]) for shard in wrote)
            return written or done
        ((shard, part),) = parts.items()
        operation = Commit(part.reads, part.spans, part.writes, self._last_try)
        answer = client.submit(shard, operation, request_id)
        if isinstance(
            answer, Decided
        ):  # under this request id, by an earlier transaction over several shards
            from onefold.state.transactions.coordinator import earlier

            return earlier(client, shard, answer)
        if not isinstance(answer, Committed):
            raise rejection(answer)
        return {shard: answer}

    def _note_increments(self, parts: dict[int, Part], committed: dict[int, Committed]) -> None:
        for shard, done in committed.items():
            writes = parts[shard].writes if shard in parts else ()
            if len(writes) != len(done.results):
                continue  # of an earlier commit under this request id, in a moment when nobody could know
            for write, result in zip(writes, done.results, strict=True):
                number = decode_number(result)
                if isinstance(write, Increment) and number is not None:
                    self._increments[write.map, decode_key(write.key)] = number


def _mixed(what: str) -> TransactionError:
    return TransactionError(f"tx.{what} is consistent, and this transaction uses {_MIXED}")


def _handle_type(kind: str) -> type[Any]:
    if kind == "map":
        from onefold.state.maps.map import Map

        return Map
    if kind == "queue":
        from onefold.state.queues.queue import Queue

        return Queue
    from onefold.state.streams.stream import Stream

    return Stream


def _shard_parts(parts: dict[int, Part]) -> Any:
    from onefold.state.transactions.over_shards import ShardPart

    return {shard: ShardPart(*part) for shard, part in parts.items()}
