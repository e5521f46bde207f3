"""Counters inside a transaction: additions are buffered, values are those of the snapshot with them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from onefold.arguments import check_whole
from onefold.available.kinds import places
from onefold.available.kinds.counts import Counter
from onefold.available.ops import INT_MAX
from onefold.errors import InvalidArgument, InvalidValue, TransactionError
from onefold.state.available.transactions.entries import Sum
from onefold.state.encoding.keys import decode_key, encode_key
from onefold.state.maps.methods import check_limit, encoded_range
from onefold.state.maps.reading import bounds_between

if TYPE_CHECKING:
    from onefold.available.kinds.shares import Shares
    from onefold.state.available.transactions.part import AvailablePart


class TxCounters:
    """Counters in a transaction: ``tx.counters("likes")``. As the plain handle, with these differences.

    Reads show the snapshot of this region and the transaction's own additions, and are recorded: the commit raises Conflict when
    something that was read has changed. ``add`` reads nothing, so on its own it never conflicts, and it returns None:
    ``tx.increments`` has the new value after the commit. Nobody waits for rights of a counter with a floor: if they are not all
    here at the commit, it raises BelowFloor, and nothing of the transaction is written.

    Every method raises TransactionError (after the block, from elsewhere, too old, of another shard, read-only), InvalidKey,
    InvalidArgument (the name stands for something else), TooLarge, TooOld and TooStale. All are definite.
    """

    def __init__(self, part: AvailablePart, name: str, floor: int | None) -> None:
        """Programs call ``tx.counters``."""
        self._part = part
        self.name = name
        self.floor = floor
        kind = places.COUNTER if floor is None else places.BOUNDED
        self._place = places.place_of(kind, name, floor)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def get(self, key: Any, default: int = 0) -> int:
        """The value, or ``default`` where nothing was counted."""
        row = cast("Counter | Shares", self._part.row(self._place, encode_key(key)))
        return row.value() if row.is_live() else default

    def __getitem__(self, key: Any) -> int:
        return self.get(key)

    def __contains__(self, key: object) -> bool:
        return self._part.row(self._place, encode_key(key)).is_live()

    def __len__(self) -> int:
        return sum(1 for _ in self.items())

    def __bool__(self) -> bool:
        """Whether there is any counter."""
        return next(self.items(limit=1), None) is not None

    def items(
        self, *, prefix: Any = None, start: Any = None, stop: Any = None, limit: int | None = None
    ) -> Iterator[tuple[Any, int]]:
        """Keys and values in key order; see ``TxMap.scan``. The transaction depends on what was taken only."""
        check_limit(limit)
        low, high = encoded_range(prefix, start, stop)
        part = self._part
        part.core.check_readable()
        shards = bounds_between(part.client, low, high).shards
        rows = heapq.merge(
            *(part.rows(self._place, shard, low, high, limit) for shard in shards), key=lambda pair: pair[0]
        )
        return _items(rows, limit)

    def add(self, key: Any, n: int = 1) -> None:
        """Add to a counter when the transaction commits.

        Raises:
            InvalidArgument: definite; ``n`` is not an integer of 64 bit.
            InvalidValue: definite; what this transaction adds would leave the integers of 64 bit.
            TransactionError: definite; the transaction has deleted this counter.
        """
        encoded = encode_key(key)
        check_whole("n", n, least=-INT_MAX, most=INT_MAX)
        before = cast("Sum | None", self._part.entry(self._place, encoded)) or Sum()
        if before.reset:
            raise TransactionError(
                f"counter {key!r:.100} of {self.name!r} was deleted in this transaction. Add to it in another one"
            )
        by = before.by + n
        if abs(by) > INT_MAX:
            raise InvalidValue(
                f"counter {key!r:.100} of {self.name!r} would leave the integers of 64 bit; nothing was added"
            )
        self._part.write(self._place, encoded, Sum(by))

    def delete(self, key: Any) -> bool:
        """Delete a counter when the transaction commits: what this region knows then is no longer counted. Whether anything was,
        which is a recorded read.

        Raises:
            InvalidArgument: definite; a counter with a floor, whose rights would be lost.
        """
        if self.floor is not None:
            raise InvalidArgument(
                f"counters({self.name!r}) have a floor, so they cannot be deleted: rights of other regions would be lost. Take "
                "what is there, with add"
            )
        self._part.core.check_writable()
        encoded = encode_key(key)
        there = self._part.row(self._place, encoded).is_live()
        self._part.write(self._place, encoded, Sum(reset=True))
        return there


def _items(rows: Iterator[tuple[bytes, Any]], limit: int | None) -> Iterator[tuple[Any, int]]:
    for given, (key, row) in enumerate(rows, 1):
        yield decode_key(key), row.value()
        if given == limit:
            return
