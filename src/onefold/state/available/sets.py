"""Sets that every region can change at any time: what is added anywhere stays, unless a discard has seen it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import groupby, islice
from typing import Any, cast

from onefold.available import ops
from onefold.available.kinds.dots import Dots
from onefold.available.kinds.places import SET, joined_key, key_range, place_of, read_row, split_key
from onefold.available.rows import table_of
from onefold.errors import SpaceError, Unavailable
from onefold.fold.api import StoreView
from onefold.machine.undisturbed import let_pass
from onefold.state.available.client import RegionClient
from onefold.state.available.collection import Collection
from onefold.state.available.counters import bool_result, int_result
from onefold.state.available.settling import settle_due
from onefold.state.core.consistency import Consistency, Level
from onefold.state.encoding.keys import decode_key, encode_key
from onefold.state.encoding.lifetimes import ttl_ms
from onefold.state.encoding.names import check_request_id
from onefold.state.maps import reading as map_reading
from onefold.state.maps.methods import check_limit, encoded_range
from onefold.state.maps.reading import Bounds
from onefold.state.maps.scans import MapScan

Duration = float | timedelta | str


class Sets(Collection):
    """Sets by key. Elements are what keys may be. An element that one region adds while another discards it stays.

    ``1`` and ``True`` are two elements, as they are two keys, though a set of Python takes them for one.
    """

    def __init__(
        self,
        client: RegionClient | Callable[[], RegionClient],
        name: str,
        *,
        level: Level | None = None,
    ) -> None:
        """``client``: or what opens it, at the first use. ``level``: of reads that name none (None: ``session``).

        Raises InvalidArgument for a name that cannot be, UnsupportedConsistency for ``strong``.
        """
        super().__init__(client, "sets", name, place_of(SET, str(name)), level)

    # -- reading

    def get(self, key: Any, *, consistency: Consistency | None = None) -> set[Any]:
        """The elements; the empty set when there is nothing under the key.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, or the name stands for something else.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            UnsupportedConsistency: definite; ``strong``, which no region can give.
            Unavailable, TooStale, TokenError: definite; it cannot be read at this consistency level now.
        """
        self._check()
        encoded = encode_key(key)
        found = self._rows(self.client.shard_of(encoded), *key_range(encoded), self._level(consistency))
        return {decode_key(split_key(at)[1]) for at in found}

    def contains(self, key: Any, element: Any, *, consistency: Consistency | None = None) -> bool:
        """Whether the element is in the set under the key.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, or the name stands for something else.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            UnsupportedConsistency: definite; ``strong``, which no region can give.
            Unavailable, TooStale, TokenError: definite; it cannot be read at this consistency level now.
        """
        self._check()
        encoded = encode_key(key)
        at = joined_key(encoded, encode_key(element))
        level = self._level(consistency)
        return bool(self._rows(self.client.shard_of(encoded), at, at + b"\x00", level))

    def __contains__(self, key: Any) -> bool:
        """Whether there is anything under the key."""
        return bool(self.get(key))

    def __len__(self) -> int:
        """How many sets have elements."""
        return sum(1 for _ in self.items())

    def __bool__(self) -> bool:
        """Whether any set has elements."""
        return next(iter(self.items(limit=1)), None) is not None

    def items(
        self,
        *,
        prefix: Any = None,
        start: Any = None,
        stop: Any = None,
        limit: int | None = None,
        consistency: Consistency | None = None,
    ) -> Iterator[tuple[Any, set[Any]]]:
        """(key, set) of those that have elements, in key order, as of one moment in each shard. ``prefix``: keys that begin with
        these elements; ``start``, ``stop``: keys from the first up to, without, the second; ``limit``: so many at most. When a
        step raises, the next one continues there.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, or the name stands for something else.
            TooOld: definite; it took so long that its moment has left the kept history. Start behind the last key.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            UnsupportedConsistency: definite; ``strong``, which no region can give.
            Unavailable, TooStale, TokenError: definite; it cannot be read at this consistency level now.
        """
        self._check()
        check_limit(limit)
        low, high = encoded_range(prefix, start, stop)
        level, pins = self._level(consistency), dict[int, int]()

        def begin(last: bytes | None, given: int) -> Iterator[tuple[bytes, set[Any]]]:
            left = None if limit is None else limit - given
            start = low if last is None else last + b"\x00"
            if start >= high or left == 0:
                return iter(())
            return islice(self._grouped(start, high, level, pins), left)

        return MapScan(begin, lambda key, elements: (decode_key(key), elements))

    # -- writing

    def add(
        self, key: Any, *elements: Any, ttl: Duration | None = None, request_id: str | None = None
    ) -> int:
        """Add elements to the set under the key, at once; how many were not in it here. ``ttl``: they leave it by themselves
        after so long, unless they are added again. ``request_id``: it happens once under this name, in this region at once, in
        others when they have heard of it. Without elements nothing is written.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, or the name stands for something else.
            TooLarge: definite; too many elements for one record.
            TooStale, TokenError: definite; what this session has seen elsewhere is not here yet.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        check_request_id(request_id)
        encoded, lasts_ms = encode_key(key), ttl_ms(ttl)
        encoded_elements = tuple(map(encode_key, elements))
        if not encoded_elements:
            return 0
        request = ops.Include(self.name, encoded, encoded_elements, ttl_of(lasts_ms))
        return int_result(self._do(encoded, (request,), request_id=request_id), request_id)

    def discard(self, key: Any, *elements: Any, request_id: str | None = None) -> int:
        """Take elements out of the set under the key, at once; how many were in it here. What another region adds at the same
        time stays. ``request_id``: as of ``add``. Without elements nothing is written.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, or the name stands for something else.
            TooLarge: definite; too many elements for one record.
            TooStale, TokenError: definite; what this session has seen elsewhere is not here yet.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        check_request_id(request_id)
        encoded = encode_key(key)
        encoded_elements = tuple(map(encode_key, elements))
        if not encoded_elements:
            return 0
        request = ops.Exclude(self.name, encoded, encoded_elements)
        return int_result(self._do(encoded, (request,), request_id=request_id), request_id)

    def delete(self, key: Any, *, request_id: str | None = None) -> bool:
        """Take all elements out of the set under the key that are in it here; whether there were any. ``request_id``: as of
        ``add``.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, or the name stands for something else.
            TooStale, TokenError: definite; what this session has seen elsewhere is not here yet.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        check_request_id(request_id)
        encoded = encode_key(key)
        committed = self._do(encoded, (ops.Empty(self.name, encoded),), request_id=request_id)
        return bool_result(committed, request_id)

    # -- shared

    def _rows(self, shard: int, start: bytes, stop: bytes, level: Level) -> list[bytes]:
        """The rows of elements in the range that have not ended. What has by this clock is ended for everybody, if possible."""
        client, ticked = self.client, False
        while True:
            with client.view(shard, level) as view:
                found = list(view.scan(table_of(view, self.place), start, stop))
            wall_ms = client.env.wall_ms()
            lasting = [at for at, data in found if lasts(self.place, data, wall_ms)]
            if len(lasting) == len(found) or ticked or not map_reading.tick(client, shard, level):
                return lasting
            ticked = True

    def _grouped(
        self, low: bytes, high: bytes, level: Level, pins: dict[int, int]
    ) -> Iterator[tuple[bytes, set[Any]]]:
        """Encoded keys ``low <= key < high`` with their elements. Each element has a row; those of a key are in one shard."""
        shards = map_reading.bounds_between(self.client, low, high).shards
        rows = Bounds(joined_key(low, b""), joined_key(high, b""), shards)
        found = map_reading.scan(self.client, _Rows(self.client, self.name), rows, level, pins=pins)
        for key, group in groupby(found, lambda row: split_key(row[0])[0]):
            yield key, {decode_key(split_key(at)[1]) for at, _ in group}


class _Rows(map_reading.Rows[bytes]):
    """Their rows, for scans."""

    def __init__(self, client: RegionClient, name: str) -> None:
        self._place = place_of(SET, name)
        super().__init__(name)
        self._client = client

    def table_in(self, view: StoreView) -> str:
        return table_of(view, self._place)

    def shown(self, data: bytes, wall_ms: int) -> bytes | None:
        return data if lasts(self._place, data, wall_ms) else None

    def settle(self, shard: int, level: Level) -> None:  # noqa: ARG002
        try:
            settle_due(self._client, shard)
        except (SpaceError, Unavailable) as error:
            let_pass(error)  # what has ended is left out by this clock


def lasts(place: str, data: bytes, wall_ms: int) -> bool:
    """Whether the element in this row has not ended by that clock."""
    row = cast(Dots, read_row(place, data))
    return any(not cell.is_over(wall_ms) for cell in row.cells)


def ttl_of(lasts_ms: int | None) -> int | None:
    """A lifetime as it can be stored."""
    return None if lasts_ms is None else min(lasts_ms, ops.NATURAL_MAX)
