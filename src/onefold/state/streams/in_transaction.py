"""A stream inside a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onefold.errors import Conflict
from onefold.state.fold.streams.ops import Append
from onefold.state.streams.appending import Appending, StreamCodec
from onefold.state.streams.layout import Layout, check_partitions

if TYPE_CHECKING:
    from onefold.state.transactions.attempt import TransactionCore


class TxStream:
    """A stream inside a transaction: records are appended when it commits, together with all else it wrote. Large frames
    become blobs then too."""

    def __init__(
        self,
        core: TransactionCore,
        name: str,
        partitions: int | None,
        codec: StreamCodec,
        retention_ms: int | None = None,
    ) -> None:
        """``partitions``: how many it gets if it is not there; it is then made when the transaction commits, also if that is
        refused. ``retention_ms``: what it then has, if that is given."""
        self._core = core
        self._layout = Layout(core.client, name)
        self._partitions = check_partitions(partitions)
        self._codec = codec
        self._retention_ms = retention_ms
        self._shards: set[int] = set()
        """Where what was appended goes."""

    def append(self, value: object, key: object = None) -> None:
        """Append a record when the transaction commits; see ``Stream.append``."""
        appending = self._appending()
        self._add(appending, [appending.one(value, key)])

    def append_many(self, records: object, key: str | None = None) -> None:
        """Append records when the transaction commits; see ``Stream.append_many``."""
        appending = self._appending()
        self._add(appending, appending.many(records, key))

    def __repr__(self) -> str:
        return f"<TxStream {self._layout.name!r}>"

    def _appending(self) -> Appending:
        self._core.check_writable()
        count = self._core.partitions.get(self._layout.name)
        if count is None:
            row = self._layout.known()
            count = (self._partitions or 1) if row is None else row.partitions
        return Appending(self._core.client, self._layout.name, count, self._codec, None)

    def _add(self, appending: Appending, writes: Sequence[Append]) -> None:
        if not writes:
            return
        placed = [(self._layout.shard(write.partition), write) for write in writes]
        self._core.add_writes(placed, sum(len(write.frame) for write in writes))
        self._core.partitions[self._layout.name] = appending.partitions
        if not self._shards:
            self._core.to_make.append(self._make)
        self._shards.update(shard for shard, _ in placed)

    def _make(self) -> None:
        """Before the transaction commits: a block that raises, and what is refused in it, leaves no stream."""
        row = self._layout.make(self._partitions, self._retention_ms)
        count = self._core.partitions[self._layout.name]
        if row.partitions != count:
            raise Conflict(
                f"the stream {self._layout.name!r} was made meanwhile, with {row.partitions} partitions, and the transaction "
                f"chose among {count}; nothing was written. Try again"
            )
        if self._retention_ms is not None and row.retention_ms != self._retention_ms:
            row = self._layout.set_retention(self._retention_ms)  # as the plain handle does
        for shard in sorted(self._shards):
            self._layout.copy_to(shard, row)
