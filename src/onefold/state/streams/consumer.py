"""Consumers: members of a group that share a stream's partitions, and remember together how far they are."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar

from onefold import config
from onefold.durations import Duration, wait_seconds
from onefold.errors import Conflict, InvalidArgument, InvalidValue, SpaceError, TransactionError, Unavailable
from onefold.machine.undisturbed import let_pass
from onefold.state.core import guard
from onefold.state.core.consistency import PREFIX
from onefold.state.core.waiting import Looking, Pause, wait_any
from onefold.state.encoding.names import check_name
from onefold.state.encoding.positions import Position
from onefold.state.fold.streams.ops import CommitOffsets
from onefold.state.streams.layout import check_offset
from onefold.state.streams.membership import Membership, Share, rebalanced
from onefold.state.streams.news import awaited
from onefold.state.streams.pages import StreamRecord, merged
from onefold.state.streams.reading import Start, check_start, start_offsets

if TYPE_CHECKING:
    from onefold.state.core.client import StateClient
    from onefold.state.streams.stream import Stream
    from onefold.state.transactions.attempt import TransactionCore

T = TypeVar("T")
_NONE = -1


class Consumer(Looking, Generic[T]):
    """An iterator of the records of its share of a stream's partitions. For one thread; close it, or use it as a context manager.
    (Another thread may commit and close while it waits.)

    - **At least once**: ``commit`` records that everything given so far is dealt with. A group continues from what it committed.
    - **Exactly once** for what is kept in the same space: ``tx.commit(consumer)`` makes the offsets part of a transaction.
      If that transaction does not commit, the next record that iteration gives is the first one after the last commit again; so
      to try a transaction again for the same records, do it before continuing (``db.run_transaction`` does). A transaction that
      failed before ``tx.commit(consumer)`` is unknown here: ``rewind`` before continuing, or the next commit covers its records.

    A member that comes, leaves, dies or does not iterate for ``config.CONSUMER_SESSION_S`` changes the shares. A partition
    that is lost is given no more; when records of it were given and not committed, the next commit raises Conflict, nothing
    is committed, and iteration continues with the new share from what was committed last.

    A record whose value does not fit the stream's type raises InvalidValue, which names its stream, partition and offset, at each
    step until ``skip`` passes it. So do large records whose blob is damaged; of one that is missing it is Unavailable. Iterating
    is allowed inside a transaction's block: what counts is the commit.
    """

    def __init__(
        self,
        stream: Stream[T],
        group: str,
        *,
        start: Literal["earliest", "latest"] = "earliest",
        timeout: Duration | None = None,
    ) -> None:
        """Programs call ``Stream.consumer``. Raises InvalidArgument."""
        self._stream = stream
        self._layout = stream.layout
        self._client = stream.client
        self._group = check_name("consumer group", group)
        if start not in ("earliest", "latest"):
            raise InvalidArgument(f"a group starts at 'earliest' or 'latest'; got start={start!r:.80}")
        self._timeout = None if timeout is None else wait_seconds(timeout)
        self._members = Membership(self._layout, self._group)
        self._new_group_start: str = start
        self._closed = False
        self._committed: dict[int, int] = {}
        self._next: dict[int, int] = {}
        self._given: set[int] = set()
        """Partitions of which records were given and not committed."""
        self._lost = False
        """Whether partitions of which records were given and not committed are another's now."""
        self._rewind_next = False
        self._pending: dict[int, int] | None = None
        """What a transaction was asked to commit, by partition."""
        self._confirmed: dict[int, int] | None = None
        """That of the last transaction that said it had committed."""
        self._certain = False
        """Whether it was that one, and not an earlier one under its request id."""
        self._round: Iterator[StreamRecord[Any]] = iter(())
        self._ahead: StreamRecord[Any] | None = None
        """Found by ``poll``, and not given."""
        self._has_waited = False
        """Whether there was a wait after the last ``look``."""
        self._unreadable: tuple[int, int, int] | None = None
        """Partition and offset of what raised, and the offset behind it."""
        self._mutex = threading.Lock()
        """Held over every change of the share and of what is committed; not while it waits."""
        self._giving = threading.Lock()
        """Held over every change of what was given, for no longer than that: an event loop gives while another thread commits."""
        self._join()

    # -- iterating

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamRecord[T]:
        """The next record; waits for one, and raises StopIteration when none came within the timeout.

        Raises TooOld when retention has removed records that the group has not had: ``seek("earliest")`` continues with the
        first that is left. InvalidValue for a record that cannot be read, Unavailable for large ones that are lost: ``skip()``
        passes them. Iteration may be continued after any error.
        """
        with self._mutex:  # one that is at hand, as nearly all are
            if not (self._closed or self._rewind_next) and self._ahead is None and self._pending is None:
                if not self._members.joined or self._members.is_due():
                    self._keep_share()
                try:
                    record = self._ahead = next(self._round, None)
                except (InvalidValue, Unavailable) as error:
                    self._note_unreadable(error)
                    raise
                if record is not None:
                    positions, partition, offset = self._next, record.partition, record.offset
                    if positions.get(partition) == offset:
                        self._ahead = None
                        positions[partition] = offset + 1
                        self._given.add(partition)
                        record.tagged(self._layout.tag)
                        return record
        while True:
            if not self.poll():
                raise StopIteration
            record = self.give()
            if record is not None:
                return record

    def poll(self) -> bool:
        """Find the next record, without giving it: that is ``give``'s. False when none came within the timeout. Raises as
        iterating."""
        seen = self._find()
        deadline = None
        while seen is not None:
            if deadline is None and self._timeout is not None:
                deadline = self._client.env.boot_s() + self._timeout
            if not self._wait(seen, deadline):
                return False
            with self._mutex:
                if self._closed:
                    return False  # while it waited
                seen = self._look()
        return True

    def look(self) -> Pause | None:
        """Find the next record without waiting for one; None: it is found. Raises as iterating."""
        if self._has_waited:
            self._has_waited = False
            self._members.look_now()
        seen = self._find()
        if seen is None:
            return None
        self._has_waited = True
        return Pause(awaited(self._layout, seen, self._next, self._group), in_s=config.CONSUMER_WATCH_S)

    def _find(self) -> dict[int, int] | None:
        """See ``_look``. First, what a transaction was to commit is settled."""
        with self._mutex:
            self._check_open()
            if self._pending is not None or self._rewind_next:
                self._settle()
            if self._ahead is not None and self._is_next(self._ahead):
                return None
            return self._look()

    def give(self) -> StreamRecord[T] | None:
        """The record that ``poll`` or ``look`` has found; from now on it counts as given. None: it is no longer the next one."""
        with self._giving:
            record = self._ahead
            if record is None or self._pending is not None or self._rewind_next or not self._is_next(record):
                return None
            self._ahead = None
            self._next[record.partition] = record.offset + 1
            self._given.add(record.partition)
        record.tagged(self._layout.tag)
        return record

    def skip(self) -> bool:
        """Pass the record that the last step could not read, or all of a lost blob: they count as given, and the next commit
        covers them. False when there is none."""
        with self._mutex:
            self._check_open()
            (partition, first, behind), self._unreadable = self._unreadable or (_NONE, 0, 0), None
            if not first <= self._next.get(partition, _NONE) < behind:
                return False
            with self._giving:
                self._next[partition] = behind
                self._given.add(partition)
            self._round = iter(())
            return True

    @property
    def client(self) -> StateClient:
        """The core under this handle."""
        return self._client

    @property
    def timeout(self) -> float | None:
        """How many seconds a step waits at most."""
        return self._timeout

    @property
    def assignment(self) -> tuple[int, ...]:
        """The partitions that are this member's, as far as it knows."""
        return tuple(sorted(self._committed))

    @property
    def position(self) -> Position:
        """The next record to give, of each of these partitions."""
        return Position(self._layout.tag, self._next)

    @property
    def committed(self) -> dict[int, int]:
        """What the group has committed, by partition, of these partitions; without those for which nothing was."""
        return {partition: offset for partition, offset in self._committed.items() if offset != _NONE}

    # -- committing

    def commit(self) -> None:
        """Commit the offsets of all that was given.

        Raises:
            Conflict: definite; partitions were given to another member meanwhile.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        guard.check_plain(self._client, "commit(consumer)")
        with self._mutex:
            self._commit()

    def _commit(self) -> None:
        self._check_open()
        if self._is_done():
            self._note_pending()
        self._pending = None
        write = self._commit_write()
        if write is None:
            return
        try:
            self._client.commit(self._layout.home, (write,))
        except Conflict as error:
            let_pass(error)
            self._lost = self._rewind_next = True
            raise rebalanced(self._group, self._layout.name) from error
        self._note_committed({partition: to for partition, _, to in write.moves})

    def add_commit_to(self, core: TransactionCore) -> None:
        """What ``tx.commit(consumer)`` does. Raises Conflict (definite) when partitions were lost meanwhile,
        TransactionError when it is a transaction of another connection."""
        if core.client is not self._client:
            raise TransactionError(f"{self!r} belongs to another connection than the transaction")
        with self._mutex:
            self._check_open()
            # Offsets that moved as the one before would have moved them prove nothing here: somebody else may have moved them,
            # and then what is in this transaction has been done already. The fold refuses to move them twice.
            if self._is_confirmed():
                self._note_pending()
            write = self._commit_write()
            if write is not None:
                moved = {partition: to for partition, _, to in write.moves}
                core.add_write(self._layout.home, write, 64 + 32 * len(write.moves))
                core.when_committed(lambda certain: self._confirm(moved, certain))
                self._pending = moved

    def rewind(self) -> None:
        """Forget what was given and not committed: iteration continues from what was committed last."""
        with self._mutex:
            self._check_open()
            self._rewind()

    def _rewind(self) -> None:
        self._take_share(self._members.refresh(), fresh=True)
        # Not before it succeeded: what was given and not committed must not count as given afterwards.
        self._pending = None
        self._rewind_next = False

    def seek(self, start: Start) -> None:
        """Continue from ``start`` (as ``Stream.read`` takes it) in this member's partitions, with the next record.

        Raises:
            TooOld: definite; retention has removed what the position names.
            InvalidArgument: definite; an argument is not valid.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        start = check_start(start)
        with self._mutex:
            self._check_open()
            self._settle()
            self._seek(start)

    def _seek(self, start: Start) -> None:
        row = self._layout.find()
        if row is None or not self._committed:
            return
        heads, _ = self._layout.heads(self._committed)
        offsets = start_offsets(self._layout, start, heads, row.partitions, whole=True)
        with self._giving:
            self._next = offsets
            self._given.update(offsets)
        self._round = iter(())

    def close(self) -> None:
        """Leave the group; others take over what was not committed."""
        if not self._closed:
            self._closed = True
            with self._mutex:
                self._members.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Consumer {self._group!r} of stream {self._layout.name!r}>"

    # -- the share

    def _check_open(self) -> None:
        if self._closed:
            raise SpaceError(f"{self!r} is closed. Make another")

    def _join(self) -> None:
        """Become a member, as soon as the stream is there."""
        if self._layout.wanted is not None:
            self._layout.make()
        row = self._layout.find()
        if row is None:
            self._new_group_start = "earliest"  # all that comes after the call is all that will ever be there
            return
        start: tuple[tuple[int, int], ...] = ()
        if self._new_group_start == "latest":
            heads, _ = self._layout.heads(range(row.partitions))
            start = tuple((partition, head.next) for partition, head in sorted(heads.items()))
        self._take_share(self._members.join(start), fresh=True)

    def _keep_share(self) -> None:
        """Show to be alive, look after the others, and see whether the shares have changed."""
        if not self._members.joined:
            if self._layout.find(PREFIX) is not None:
                self._join()
            return
        share = self._members.keep()
        if share is not None:
            self._take_share(share, fresh=False)

    def _take_share(self, share: Share | None, *, fresh: bool) -> None:
        """Continue with this share: from what was committed, except where this member stays the owner of what it has been
        reading."""
        if share is None:
            return
        row = self._layout.find()
        heads = {} if row is None else self._layout.kept(row, share.committed)
        with self._giving:
            old_next, old_committed, given = self._next, self._committed, self._given
            self._committed = dict(share.committed)
            self._round = iter(())
            self._next = {}
            self._given = set()
            for partition, committed in share.committed.items():
                stays = not fresh and old_committed.get(partition) == committed
                if stays:
                    self._next[partition] = old_next[partition]
                    self._given |= given & {partition}
                else:
                    self._next[partition] = heads[partition].first if committed == _NONE else committed
            self._lost = not fresh and (self._lost or bool(given - self._given))

    # -- rounds

    def _look(self) -> dict[int, int] | None:
        """Have the record that comes next, and None; or what was seen, when there is none."""
        while True:
            self._keep_share()
            self._ahead = self._read_next()
            if self._ahead is not None:
                return None
            seen = self._begin_round()
            if seen is not None:
                return seen

    def _read_next(self) -> StreamRecord[Any] | None:
        """The next one of the round, if there is one."""
        try:
            return next(self._round, None)
        except (InvalidValue, Unavailable) as error:
            self._note_unreadable(error)
            raise

    def _note_unreadable(self, error: InvalidValue | Unavailable) -> None:
        if error.partition is not None and error.offset is not None and error.next_offset is not None:
            self._unreadable = error.partition, error.offset, error.next_offset

    def _is_next(self, record: StreamRecord[Any] | None) -> bool:
        """Whether it is what follows what was given. Not after a rewind, or when its partition was lost."""
        return record is not None and self._next.get(record.partition) == record.offset

    def _begin_round(self) -> dict[int, int] | None:
        """Have something to give, and None; or what was seen, by shard, when there is nothing."""
        home = self._layout.home
        seen = {home: self._client.shards[home].applied}
        heads, offsets = self._layout.heads(self._next, self._layout.local)
        seen.update(offsets)
        spans = {partition: (offset, heads[partition].next) for partition, offset in self._next.items()}
        if not any(low < high for low, high in spans.values()):
            return seen
        for partition, (low, _) in spans.items():
            check_offset(heads[partition], self._layout.name, partition, low)
        self._round = merged(self._layout, self._stream.codec, spans)
        return None

    def _wait(self, seen: Mapping[int, int], deadline: float | None) -> bool:
        """Until there may be something new, or for a while; False when the time is over."""
        wait_s = config.CONSUMER_WATCH_S
        if deadline is not None:
            wait_s = min(wait_s, deadline - self._client.env.boot_s())
            if wait_s <= 0:
                return False
        wait_any(self._client, seen, wait_s)
        self._members.look_now()
        return True

    # -- commits

    def _commit_write(self) -> CommitOffsets | None:
        if self._lost:
            # Iteration rewinds, not this: anyone who commits again without continuing must get the error again.
            self._rewind_next = True
            raise rebalanced(self._group, self._layout.name)
        with self._giving:
            moves = tuple(
                (partition, self._committed[partition], self._next[partition])
                for partition in sorted(self._given)
                if self._committed[partition] != self._next[partition]
            )
        if not moves:
            return None
        return CommitOffsets(
            self._layout.name, self._group, self._members.id, self._members.generation, moves
        )

    def _note_committed(self, offsets: Mapping[int, int]) -> None:
        with self._giving:
            for partition, offset in offsets.items():
                self._committed[partition] = offset
                if self._next.get(partition) == offset:
                    self._given.discard(partition)

    def _confirm(self, moved: dict[int, int], certain: bool) -> None:
        """The transaction that was to move the offsets has committed. In any thread. ``certain``: see ``when_committed``."""
        self._certain = certain
        self._confirmed = moved

    def _is_confirmed(self) -> bool:
        """Whether the transaction that was to commit offsets has said that it did, and has moved them."""
        pending = self._pending
        if pending is None or pending is not self._confirmed:
            return False
        return self._certain or self._members.has_committed(pending)

    def _is_done(self) -> bool:
        """Whether the offsets that a transaction was to commit are committed, by it or by another."""
        pending = self._pending
        return pending is not None and (self._is_confirmed() or self._members.has_committed(pending))

    def _note_pending(self) -> None:
        self._note_committed(self._pending or {})
        self._pending = None

    def check_settled(self) -> None:
        """Raises TransactionError inside the block of a transaction that is to commit what was given."""
        if self._pending is None:
            return
        try:
            guard.check_plain(self._client, "consumer")
        except TransactionError:
            raise TransactionError(
                "tx.commit(consumer) was called in this block; continue iterating when the block has ended"
            ) from None

    def _settle(self) -> None:
        """Before continuing: if a transaction was to commit offsets and did not, or a commit was refused, go back to what was
        committed."""
        self.check_settled()
        if self._pending is not None and self._is_done():
            self._note_pending()
        elif self._pending is not None:
            self._rewind_next = True
        if self._rewind_next:
            self._rewind()
