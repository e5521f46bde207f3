"""One try of a transaction, under its handles: whether it may be used here and now, what it has read and written, and what of
that goes to which shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from onefold import config
from onefold.errors import TransactionError
from onefold.state.core import guard
from onefold.state.fold.kinds import Write
from onefold.state.fold.ops import Read, Span
from onefold.state.fold.outcomes import Committed
from onefold.state.transactions.buffer import OPERATION_BYTES, Buffer, Meter
from onefold.state.transactions.reads import Reads

if TYPE_CHECKING:
    from onefold.state.core.client import StateClient


class Part(NamedTuple):
    """What a transaction has to do with one shard."""

    reads: tuple[Read, ...]
    spans: tuple[Span, ...]
    writes: tuple[Write, ...]


class Earlier(dict[int, Committed]):
    """What an earlier transaction under the same request id has committed, by shard. Its writes may have been other ones."""


class TransactionCore:
    """Used by the thread and task of the block only."""

    def __init__(self, client: StateClient, *, read_only: bool) -> None:
        meter = Meter()
        self.client = client
        self.read_only = read_only
        # All of one moment needs no validation, so what a read-only transaction reads need not be known.
        self.reads = Reads(client, meter, read_only=read_only, keep=not read_only)
        self.buffer = Buffer(meter)
        self.meter = meter
        self.to_tell: list[Callable[[bool], None]] = []
        """Called once the transaction is known to have committed."""
        self.to_make: list[Callable[[], None]] = []
        """Called before it commits something."""
        self.partitions: dict[str, int] = {}
        """Of the streams to which it appends: among how many partitions it chooses."""
        self._extra: list[tuple[int, Write]] = []
        self._began_s = 0.0
        self._owner: tuple[int, object] | None = None
        self._state = "new"

    # -- its life

    def begin(self) -> None:
        """The block begins, in this thread and task. Raises TransactionError the second time."""
        if self._state != "new":
            raise TransactionError("a transaction is entered once; make another with db.transaction()")
        self._state = "open"
        self._owner = guard.here()
        self._began_s = self.client.env.boot_s()

    def end(self) -> None:
        """The block is over: from now on nothing of the transaction can be used."""
        self._state = "ended"

    @property
    def is_here(self) -> bool:
        """Whether this is the thread and task of the block."""
        return self._owner == guard.here()

    def check_readable(self) -> None:
        """Raises TransactionError when the transaction cannot be used here and now, SpaceError in a forked process."""
        self.client.check_process()
        if self._state == "new":
            raise TransactionError(
                "the transaction has not begun; use it inside `with db.transaction() as tx:`"
            )
        if self._state == "ended":
            raise TransactionError(
                "the transaction is over: its block has ended. Use the plain handles, or another one"
            )
        if not self.is_here:
            raise TransactionError(
                "a transaction belongs to the thread and task of its block; this is another one. Read and write in the block, "
                "or give each thread a transaction of its own"
            )
        self.check_age()

    def check_writable(self) -> None:
        """The same, and TransactionError when it is read-only."""
        self.check_readable()
        if self.read_only:
            raise TransactionError(
                "the transaction is read-only and writes nothing. Use db.transaction() without read_only=True"
            )

    def check_age(self) -> None:
        """Raises TransactionError when it has been open for too long."""
        age_s = self.client.env.boot_s() - self._began_s
        if age_s > config.TRANSACTION_AGE_S:
            raise TransactionError(
                f"the transaction has been open for {age_s:.0f} s; the limit is {config.TRANSACTION_AGE_S:g} s. Nothing was "
                "written. Do slow work before it or after it"
            )

    # -- what it does

    def add_write(self, shard: int, write: Write, size: int) -> None:
        """Buffer a write that is not to a map, to be done in the order of these calls. ``size``: its bytes, about.

        Raises TransactionError, TooLarge (definite).
        """
        self.add_writes([(shard, write)], size)

    def add_writes(self, writes: Sequence[tuple[int, Write]], size: int) -> None:
        """The same for several, all of them or none. ``size``: of all together."""
        self.check_writable()
        self.meter.add(len(writes), size + len(writes) * OPERATION_BYTES)
        self._extra += writes

    def when_committed(self, tell: Callable[[bool], None]) -> None:
        """Have this called once the transaction has committed, with whether it is certain that it was this one, and not an
        earlier one under the same request id, which may have written something else. It must not raise."""
        self.to_tell.append(tell)

    def parts(self) -> dict[int, Part]:
        """What goes to each shard that was read or is written, in order of shards."""
        writes = self.buffer.writes(self.client.shard_of, self.client.env.wall_ms())
        for shard, write in self._extra:
            writes.setdefault(shard, []).append(write)
        found: dict[int, Part] = {}
        for shard in sorted({*self.reads.shards, *writes}):
            part = Part(self.reads.reads(shard), self.reads.spans(shard), tuple(writes.get(shard, ())))
            if any(part):
                found[shard] = part
        return found
