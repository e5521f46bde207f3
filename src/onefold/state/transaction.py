"""Transactions: optimistic, serializable, one record in the log.

A transaction reads at a snapshot, buffers its writes, and when its block ends becomes one operation: what it read (versions of
keys, also of those that were not there, and ranges), and what it writes. The fold does the writes iff nothing that was read has
changed since (see ``state.fold.validation``), so every replica decides alike and nobody holds locks. In a space of several shards
one that touches more than one of them goes through ``state.transactions.over_shards``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from onefold import config
from onefold.arguments import check_flag
from onefold.errors import ASK_LATER, Conflict, InvalidArgument, OnefoldError, TransactionError
from onefold.machine.undisturbed import is_interrupt, let_pass
from onefold.state.core import guard
from onefold.state.core.client import rejection
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
from onefold.state.transactions.retries import Retries

if TYPE_CHECKING:
    from onefold.state.core.client import StateClient
    from onefold.state.maps.map import Map
    from onefold.state.queues.queue import Queue, TxQueue
    from onefold.state.streams.stream import Stream, TxStream

T = TypeVar("T")
R = TypeVar("R")

_UNTYPED: ValueCodec[Any] = ValueCodec(None)
_NO_PART = Part((), (), ())


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

    def map(self, name: str | Map[Any], type: type[Any] | None = None) -> TxMap[Any]:
        """A map inside this transaction, by its name or its plain handle. ``type``: of its values, as for ``db.map``.

        Raises:
            TransactionError: definite; a handle of another database, or outside of the block.
        """
        self._core.check_readable()
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

        self._core.check_readable()
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

        self._core.check_readable()
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
        add(self._core)

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

    def _own(self, kind: str, handle: Any) -> Any:
        if not isinstance(handle, _handle_type(kind)):
            raise InvalidArgument(f"tx.{kind} takes the name of a {kind} or its handle; got {handle!r:.100}")
        client = getattr(handle, "client", None)
        if client is not self._core.client:
            raise TransactionError(
                f"{handle!r} belongs to another connection than the transaction; use tx.{kind}({handle.name!r})"
            )
        return handle

    def _commit(self) -> None:
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
        except Conflict as error:
            let_pass(error)
            if self._request_id is None or not self._last_try:
                raise
            raise Conflict(
                f"{error}. The request {self._request_id!r} stays rejected: try again under another request_id, or use "
                "db.run_transaction, which tries again under the same one"
            ) from error
        except OnefoldError as error:
            if self._request_id is not None and not error.definite and not is_interrupt(error):
                what = str(error).removesuffix(f". {ASK_LATER}")
                error.args = (
                    f"{what}. db.outcome({self._request_id!r}) tells what became of it, and running it again under this "
                    "request_id cannot make it happen twice",
                )
            raise
        self._version = Version(tuple((shard, done.offset, done.index) for shard, done in committed.items()))
        if isinstance(committed, Earlier):
            return  # which may have been something else
        # In one shard only the offset tells the answer of an earlier transaction under the request id from a new one.
        fresh = {shard: done for shard, done in committed.items() if done.offset > before.get(shard, 0)}
        self._note_increments(parts, fresh)
        for tell in self._core.to_tell:
            tell(self._request_id is None or len(parts) > 1)

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


def run_transaction(
    client: StateClient,
    fn: Callable[[Transaction], R],
    *,
    attempts: int = config.TRANSACTION_ATTEMPTS,
    request_id: str | None = None,
    read_only: bool = False,
) -> R:
    """Run ``fn(tx)`` in a transaction, commit, and return what ``fn`` returned; see ``Database.run_transaction``.

    When it loses it is tried again, with exponential backoff and jitter, up to ``attempts`` times, and then Conflict is raised.
    Nothing else is tried again, nor is an ``if_version`` or ``if_absent`` that did not hold. With a ``request_id`` only the last
    try's rejection is kept under it. If the id was committed by an earlier call, ``fn`` runs on the present state and its result
    is returned, without effect; ask ``db.outcome`` first when that matters.
    """
    _check_fn(fn)
    with limited(client) if client.limited else nullcontext():
        return _run(client, fn, attempts, request_id, read_only)


def _run(
    client: StateClient,
    fn: Callable[[Transaction], R],
    attempts: int,
    request_id: str | None,
    read_only: bool,
) -> R:
    retries = Retries(client, attempts, request_id)
    while True:
        last = retries.begin()
        try:
            with Transaction(client, request_id=request_id, read_only=read_only, last_try=last) as tx:
                result = _call(fn, tx)
            return result  # noqa: RET504 - not inside: the commit comes first
        except Conflict as error:
            let_pass(error)
            if retries.ended_by(error):
                raise
            retries.check_request(error)
        client.shards[0].pause(retries.pause_s())


def _handle_type(kind: str) -> type[Any]:
    if kind == "map":
        from onefold.state.maps.map import Map

        return Map
    if kind == "queue":
        from onefold.state.queues.queue import Queue

        return Queue
    from onefold.state.streams.stream import Stream

    return Stream


def _call(fn: Callable[[Transaction], R], tx: Transaction) -> R:
    result = fn(tx)
    if inspect.isawaitable(result):
        _drop(result)
        raise TransactionError(
            "fn returned an awaitable: its reads and writes would come too late. Use onefold.aio for async functions"
        )
    return result


def _shard_parts(parts: dict[int, Part]) -> Any:
    from onefold.state.transactions.over_shards import ShardPart

    return {shard: ShardPart(*part) for shard, part in parts.items()}


def _check_fn(fn: object) -> None:
    if not callable(fn):
        raise InvalidArgument(f"run_transaction takes a function of the transaction; got {fn!r}")
    if inspect.iscoroutinefunction(fn):
        raise TransactionError("run_transaction takes a plain function; for async functions use onefold.aio")
    if inspect.isgeneratorfunction(fn):
        raise TransactionError("run_transaction takes a plain function; a generator would never be run")


def _drop(awaitable: object) -> None:
    close = getattr(awaitable, "close", None)
    if close is not None:
        close()  # or Python warns of a coroutine that was never awaited
