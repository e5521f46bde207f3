"""A stream inside a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onefold.state.fold.streams.ops import Append
from onefold.state.fold.streams.rows import StreamRow
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
        """``partitions``: how many it gets if it is not there; it is then made at the first append, whatever becomes of the
        transaction. ``retention_ms``: what it then has, if that is given."""
        self._core = core
        self._layout = Layout(core.client, name)
        self._partitions = check_partitions(partitions)
        self._codec = codec
        self._retention_ms = retention_ms

    def append(self, value: object, key: object = None) -> None:
        """Append a record when the transaction commits; see ``Stream.append``."""
        row, appending = self._appending()
        self._add([appending.one(value, key)], row)

    def append_many(self, records: object, key: str | None = None) -> None:
        """Append records when the transaction commits; see ``Stream.append_many``."""
        row, appending = self._appending()
        self._add(appending.many(records, key), row)

    def __repr__(self) -> str:
        return f"<TxStream {self._layout.name!r}>"

    def _appending(self) -> tuple[StreamRow, Appending]:
        self._core.check_writable()
        row = self._layout.make(self._partitions, self._retention_ms)
        if self._retention_ms is not None and row.retention_ms != self._retention_ms:
            row = self._layout.set_retention(self._retention_ms)  # as the plain handle does
        return row, Appending(self._core.client, self._layout.name, row.partitions, self._codec, None)

    def _add(self, writes: Sequence[Append], row: StreamRow) -> None:
        for write in writes:
            shard = self._layout.shard(write.partition)
            self._layout.copy_to(shard, row)
            self._core.add_write(shard, write, len(write.frame))
