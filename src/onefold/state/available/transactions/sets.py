"""Sets inside a transaction: additions and removals are buffered, elements are those of the snapshot with them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any

from onefold.available.kinds import places
from onefold.available.kinds.places import joined_key, key_range, split_key
from onefold.errors import InvalidArgument
from onefold.state.available.sets import ttl_of
from onefold.state.available.transactions.entries import Member
from onefold.state.encoding.keys import decode_key, encode_key
from onefold.state.encoding.lifetimes import ttl_ms as to_ttl_ms
from onefold.state.maps.methods import check_limit, encoded_range
from onefold.state.maps.reading import bounds_between

if TYPE_CHECKING:
    from onefold.state.available.transactions.part import AvailablePart


class TxSets:
    """Sets in a transaction: ``tx.sets("tags")``. As the plain handle, with these differences.

    Reads show the snapshot of this region and the transaction's own changes, and are recorded: the commit raises Conflict when
    something that was read has changed. ``contains`` depends on that element only, ``get`` on the whole set. ``add`` and
    ``discard`` read nothing, so on their own they never conflict, and they return None.

    Every method raises TransactionError (after the block, from elsewhere, too old, of another shard, read-only), InvalidKey,
    InvalidArgument (the name stands for something else), TooLarge, TooOld and TooStale. All are definite.
    """

    def __init__(self, part: AvailablePart, name: str) -> None:
        """Programs call ``tx.sets``."""
        self._part = part
        self.name = name
        self._place = places.place_of(places.SET, name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def get(self, key: Any) -> set[Any]:
        """The elements of a set; none for one that is not there."""
        return set(self._elements(encode_key(key), None))

    def __getitem__(self, key: Any) -> set[Any]:
        return self.get(key)

    def contains(self, key: Any, element: Any) -> bool:
        """Whether an element is in a set."""
        encoded = encode_key(key)
        return self._part.row(self._place, encoded, joined_key(encoded, encode_key(element))).is_live()

    def __contains__(self, key: object) -> bool:
        return any(True for _ in self._elements(encode_key(key), 1))

    def __len__(self) -> int:
        return sum(1 for _ in self.items())

    def __bool__(self) -> bool:
        """Whether there is any set with elements."""
        return next(self.items(limit=1), None) is not None

    def items(
        self, *, prefix: Any = None, start: Any = None, stop: Any = None, limit: int | None = None
    ) -> Iterator[tuple[Any, set[Any]]]:
        """Keys and their sets, without empty ones, in key order. The transaction depends on what was taken only."""
        check_limit(limit)
        low, high = encoded_range(prefix, start, stop)
        part = self._part
        part.core.check_readable()
        shards = bounds_between(part.client, low, high).shards
        first, last = key_range(low)[0], key_range(high)[0]
        rows = heapq.merge(
            *(part.rows(self._place, shard, first, last) for shard in shards), key=lambda pair: pair[0]
        )
        return _items(rows, limit)

    def add(self, key: Any, *elements: Any, ttl: float | timedelta | str | None = None) -> None:
        """Add elements when the transaction commits. ``ttl``: how long they stay from then on."""
        encoded, ttl_ms = encode_key(key), ttl_of(to_ttl_ms(ttl))
        self._write(encoded, elements, Member(True, ttl_ms))

    def discard(self, key: Any, *elements: Any) -> None:
        """Remove elements, as far as they are in the set, when the transaction commits."""
        self._write(encode_key(key), elements, Member(False))

    def delete(self, key: Any) -> bool:
        """Remove all elements when the transaction commits; whether there were any, which is a recorded read."""
        self._part.core.check_writable()
        there = key in self
        self._part.empty(self._place, encode_key(key))
        return there

    def _write(self, key: bytes, elements: tuple[Any, ...], entry: Member) -> None:
        if not elements:
            raise InvalidArgument(f"name the elements: sets({self.name!r}).add(key, element, ...)")
        self._part.write_many(
            self._place, key, {joined_key(key, encode_key(element)): entry for element in elements}
        )

    def _elements(self, key: bytes, limit: int | None) -> Iterator[Any]:
        part = self._part
        part.core.check_readable()
        shard = part.shard_of(self._place, key)
        for at, _ in part.rows(self._place, shard, *key_range(key), limit):
            yield decode_key(split_key(at)[1])


def _items(rows: Iterator[tuple[bytes, Any]], limit: int | None) -> Iterator[tuple[Any, set[Any]]]:
    if limit == 0:
        return
    of_key = groupby((split_key(at) for at, _ in rows), key=lambda pair: pair[0])
    for given, (key, pairs) in enumerate(of_key, 1):
        yield decode_key(key), {decode_key(element) for _, element in pairs}
        if given == limit:
            return
