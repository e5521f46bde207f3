"""Counters that every region can add to at any time, with or without a floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar, overload

from onefold.arguments import check_whole
from onefold.available import ops, reading
from onefold.available.kinds import places
from onefold.available.kinds.places import BOUNDED, COUNTER, place_of
from onefold.available.ops import INT_MAX, Committed
from onefold.available.rows import table_of
from onefold.errors import InvalidArgument
from onefold.fold.api import StoreView
from onefold.machine.undisturbed import let_pass
from onefold.state.available import bounded
from onefold.state.available.client import RegionClient
from onefold.state.available.collection import Collection
from onefold.state.core.consistency import Consistency, Level
from onefold.state.encoding.keys import decode_key, encode_key
from onefold.state.encoding.names import check_request_id
from onefold.state.maps import reading as map_reading
from onefold.state.maps.methods import check_limit, encoded_range
from onefold.state.maps.scans import MapScan

D = TypeVar("D")
_MOVES: Final = (
    "only counters with a floor have rights, which move from region to region: db.counters(name, floor=0)"
)


class Counters(Collection):
    """Integers by key. What regions add at the same time is all counted, wherever and in whatever order it arrives.

    With a ``floor`` no counter falls below it, in any region and at any moment. For this, each region may take only what it has
    rights to: what was added there, and what other regions gave it.
    """

    def __init__(
        self,
        client: RegionClient | Callable[[], RegionClient],
        name: str,
        *,
        floor: int | None = None,
        level: Level | None = None,
    ) -> None:
        """``client``: or what opens it, at the first use. ``level``: of reads that name none (None: ``session``).

        Raises InvalidArgument for a name or floor that cannot be, UnsupportedConsistency for ``strong``.
        """
        check_floor(floor)
        self.floor = floor
        kind = COUNTER if floor is None else BOUNDED
        super().__init__(client, "counters", name, place_of(kind, str(name), floor), level)

    # -- reading

    @overload
    def get(self, key: Any, default: int = 0, *, consistency: Consistency | None = None) -> int: ...

    @overload
    def get(self, key: Any, default: D, *, consistency: Consistency | None = None) -> int | D: ...

    def get(self, key: Any, default: Any = 0, *, consistency: Consistency | None = None) -> Any:
        """The value as far as it is known in this region, or ``default`` when nothing was ever added.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, or the name stands for something else.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            UnsupportedConsistency: definite; ``strong``, which no region can give.
            Unavailable, TooStale, TokenError: definite; it cannot be read at this consistency level now.
        """
        self._check()
        encoded, level = encode_key(key), self._level(consistency)
        data, _ = self.client.peek_row(self.client.shard_of(encoded), self.place, encoded, level)
        value = None if data is None else value_of(self.place, data)
        return default if value is None else value

    def __contains__(self, key: Any) -> bool:
        return self.get(key, None) is not None

    def __len__(self) -> int:
        return sum(1 for _ in self.items())

    def __bool__(self) -> bool:
        """Whether there is any counter."""
        return next(iter(self.items(limit=1)), None) is not None

    def items(
        self,
        *,
        prefix: Any = None,
        start: Any = None,
        stop: Any = None,
        limit: int | None = None,
        consistency: Consistency | None = None,
    ) -> Iterator[tuple[Any, int]]:
        """(key, value) in key order, as of one moment in each shard. ``prefix``: keys that begin with these elements; ``start``,
        ``stop``: keys from the first up to, without, the second; ``limit``: so many at most. When a step raises, the next one
        continues there.

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

        def begin(last: bytes | None, given: int) -> Iterator[tuple[bytes, int]]:
            left = None if limit is None else limit - given
            start = low if last is None else last + b"\x00"
            if start >= high or left == 0:
                return iter(())
            bounds = map_reading.bounds_between(self.client, start, high)
            return map_reading.scan(
                self.client, _Rows(self.name, self.place), bounds, level, limit=left, pins=pins
            )

        return MapScan(begin, lambda key, value: (decode_key(key), value))

    def here(self, key: Any, *, consistency: Consistency | None = None) -> int:
        """How much of a counter with a floor this region may take by itself now, without asking others.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, or the counters have no floor.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            UnsupportedConsistency: definite; ``strong``, which no region can give.
            Unavailable, TooStale, TokenError: definite; it cannot be read at this consistency level now.
        """
        self._check()
        floor, encoded = self._with_floor(), encode_key(key)
        with self.client.view(self.client.shard_of(encoded), self._level(consistency)) as view:
            return reading.here(view, self.name, floor, encoded)

    # -- writing

    def add(self, key: Any, n: int = 1, *, request_id: str | None = None) -> int:
        """Add ``n``, which may be negative; the new value as far as it is known in this region.

        Below a floor nothing is taken: if this region may not take so much, the others are asked for rights, and they are waited
        for until the time limit of the connection (20 seconds without one). If they cannot have as much between them,
        ``BelowFloor`` comes at once. What was refused may be tried again, under the same ``request_id`` too.
        ``request_id``: it happens once under this name, in this region at once, in others when they have heard of it.

        Raises:
            BelowFloor: definite; nothing was taken. ``value`` and ``here`` say how much there is, and how much of it here.
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, or the name stands for something else.
            InvalidValue: definite; the counter would leave the integers of 64 bit.
            TooStale, TokenError: definite; what this session has seen elsewhere is not here yet.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        taking = self._taking(key, n, request_id)
        if taking is not None:
            return bounded.take(taking)
        encoded = encode_key(key)
        request = (
            ops.Add(self.name, encoded, n)
            if self.floor is None
            else ops.Change(self.name, self.floor, encoded, n)
        )
        return int_result(self._do(encoded, (request,), request_id=request_id), request_id)

    def _taking(self, key: Any, n: int, request_id: str | None) -> bounded.Taking | None:
        """For what is taken from a counter with a floor; None for what needs no waiting. Checks the arguments."""
        self._check()
        check_request_id(request_id)
        check_whole("n", n, least=-INT_MAX, most=INT_MAX)
        encoded = encode_key(key)
        if self.floor is None or n >= 0:
            return None
        return bounded.Taking(self.client, self.name, self.floor, encoded, -n, request_id)

    def move(self, key: Any, n: int, to: str, *, request_id: str | None = None) -> int:
        """Give the region ``to`` the rights to take ``n``; how much is left here. It may use them as soon as it has heard of it.
        ``request_id``: as of ``add``.

        Raises:
            BelowFloor: definite; more than this region may take, so nothing was moved.
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, the counters have no floor, or there is
                no such region to give something to.
            TooStale, TokenError: definite; what this session has seen elsewhere is not here yet.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        check_request_id(request_id)
        check_whole("n", n, least=1, most=INT_MAX)
        floor, encoded = self._with_floor(), encode_key(key)
        number = bounded.region_to_give(self.client, self.client.shard_of(encoded), to)
        request = ops.Move(self.name, floor, encoded, number, n)
        return int_result(self._do(encoded, (request,), request_id=request_id), request_id)

    def delete(self, key: Any, *, request_id: str | None = None) -> bool:
        """Remove a counter; whether there was one here. What other regions add at the same time counts from 0. One with a floor
        cannot be removed. ``request_id``: as of ``add``.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, or the counters have a floor.
            TooStale, TokenError: definite; what this session has seen elsewhere is not here yet.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        check_request_id(request_id)
        encoded = encode_key(key)
        if self.floor is not None:
            raise InvalidArgument(
                f"a counter with a floor cannot be deleted ({key!r:.100} of {self._what}): what other regions may take would be "
                "lost with it. Take what is left: add(key, -here(key)) in each region"
            )
        committed = self._do(encoded, (ops.Reset(self.name, encoded),), request_id=request_id)
        return bool_result(committed, request_id)

    def _with_floor(self) -> int:
        if self.floor is None:
            raise InvalidArgument(f"{self._what}: {_MOVES}")
        return self.floor


class _Rows(map_reading.Rows[int]):
    """Their rows, for scans."""

    def __init__(self, name: str, place: str) -> None:
        super().__init__(name)
        self._place = place

    def table_in(self, view: StoreView) -> str:
        return table_of(view, self._place)

    def shown(self, data: bytes, wall_ms: int) -> int | None:  # noqa: ARG002
        return value_of(self._place, data)

    def settle(self, shard: int, level: Level) -> None:
        """Counters have no lifetimes."""


def value_of(place: str, data: bytes) -> int | None:
    """The value in a row; None if nothing counts in it."""
    value = reading.visible(places.read_row(place, data), place)
    return value if isinstance(value, int) else None


def check_floor(floor: object) -> None:
    """Raises InvalidArgument for what cannot be the floor of counters."""
    try:
        check_whole("floor", floor, least=-INT_MAX, most=0, or_none=True)
    except InvalidArgument as error:
        let_pass(error)
        if not isinstance(floor, int) or isinstance(floor, bool) or floor < 0:
            raise
        raise InvalidArgument(
            f"{error}. Counters begin at 0: count what there is above the floor with floor=0, and add the rest when it is shown"
        ) from None


def int_result(committed: Committed, request_id: str | None) -> int:
    """The number that a write has given. Raises InvalidArgument if another operation had this request id."""
    (result,) = committed.results or (None,)
    if isinstance(result, bool) or not isinstance(result, int):
        raise used_before(request_id)
    return result


def bool_result(committed: Committed, request_id: str | None) -> bool:
    """Likewise of a write that says whether there was something."""
    (result,) = committed.results or (None,)
    if not isinstance(result, (bool, int)):
        raise used_before(request_id)
    return bool(result)


def used_before(request_id: str | None) -> InvalidArgument:
    """The error for an answer of another operation."""
    return InvalidArgument(f"request_id {request_id!r} was used by another operation before. Use a new one")
