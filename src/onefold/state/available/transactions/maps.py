"""An available map inside a transaction: reads its snapshot and the transaction's own writes, and writes to its entries."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar

from onefold.arguments import check_flag
from onefold.available.kinds import places
from onefold.errors import InvalidArgument, TransactionError
from onefold.state.available.maps import patching
from onefold.state.available.maps.merges import split_fields
from onefold.state.available.sets import ttl_of
from onefold.state.available.transactions.entries import PENDING, Entry, Parts, Whole
from onefold.state.encoding.items import Item, RegionVersion, Version, utc
from onefold.state.encoding.keys import decode_key, encode_key
from onefold.state.encoding.lifetimes import ttl_ms as to_ttl_ms
from onefold.state.maps.methods import WriteMethods, check_function, check_limit, encoded_range
from onefold.state.maps.reading import bounds_between
from onefold.state.maps.scans import MapScan
from onefold.state.maps.writing import Pairs, encode_pairs
from onefold.state.transactions.retries import Unmet

if TYPE_CHECKING:
    from onefold.available.kinds.row import Row
    from onefold.state.available.maps.map import AvailableMap
    from onefold.state.available.transactions.part import AvailablePart

R = TypeVar("R")
T = TypeVar("T")
S = TypeVar("S")
Duration = float | timedelta | str
PENDING_VERSION: Final = RegionVersion(())
"""The version of what the transaction itself has written: it gets a real one when it commits."""


class TxAvailableMap(WriteMethods[R], Generic[R, T]):
    """An available map in a transaction: ``tx.map(cart)``. As ``AvailableMap``, with these differences.

    Reads show the snapshot of this region and the transaction's own writes, and are recorded: the commit raises Conflict when
    something that was read has changed in this region, keys that were not there and ranges included. ``m[k] = v``, ``put``,
    ``put_many``, ``update`` and ``patch`` of an untyped map read nothing, so on their own they never conflict. Nothing is written
    before the commit, so writes return no version. All keys are of one shard.

    Every method raises TransactionError (after the block, from elsewhere, too old, of another shard, read-only), InvalidKey,
    InvalidValue, InvalidArgument (the name stands for something else), MergeFailed, TooLarge, TooOld and TooStale. All are
    definite.
    """

    def __init__(self, part: AvailablePart, plain: AvailableMap[R, T]) -> None:
        """Programs call ``tx.map``."""
        self._part = part
        self._plain = plain
        self._kind = plain.kind
        self._place = plain.kind.place
        self.name = plain.name

    # -- reading

    def __getitem__(self, key: Any) -> R:
        row = self._row(key)
        if row is None:
            raise KeyError(key)
        return self._shown(key, row)

    def get(self, key: Any, default: Any = None) -> Any:
        """The value, or ``default``."""
        row = self._row(key)
        return default if row is None else self._shown(key, row)

    def get_item(self, key: Any) -> Item[R] | None:
        """The value with its version, end and siblings; None when it is not there.

        Of what this transaction has written the version is ``PENDING_VERSION``, and ``expires_at`` is what this machine's clock
        expects.
        """
        row = self._row(key)
        if row is None:
            return None
        kind, encoded = self._kind, encode_key(key)
        region = kind.latest(row)
        return Item(
            decode_key(encoded),
            self._shown(key, row),
            self._version(encoded, row),
            utc(kind.ends_ms(row)),
            kind.siblings(row),
            self._part.client.region.name if region == PENDING else self._part.client.name_of(region),
        )

    def get_many(self, keys: Iterable[Any]) -> dict[Any, R]:
        """The values of those of the keys that are there, in the order of ``keys``."""
        self._part.core.check_readable()
        if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
            raise InvalidArgument(f"get_many takes several keys, such as a list; got {keys!r:.100}")
        wanted = [(key, encode_key(key)) for key in keys]
        rows = self._part.rows_of(self._place, [encoded for _, encoded in wanted])
        return {key: self._shown(key, rows[encoded]) for key, encoded in wanted if encoded in rows}

    def __contains__(self, key: object) -> bool:
        return self._row(key) is not None

    def scan(
        self,
        *,
        prefix: Any = None,
        start: Any = None,
        stop: Any = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[Any, R]]:
        """Keys and values in key order: see ``TxMap.scan``. A transaction that is not read-only scans one shard: give a prefix in
        a space of several."""
        check_limit(limit)
        check_flag("reverse", reverse)
        low, high = encoded_range(prefix, start, stop)
        return self._scan_rows(low, high, limit, reverse, self._pair)

    def count(self, prefix: Any = None) -> int:
        """How many keys there are, or of those that begin with a prefix. The transaction then depends on all of them."""
        low, high = encoded_range(prefix, None, None)
        return sum(1 for _ in self._scan(low, high, None, False))

    # -- writing

    def __setitem__(self, key: Any, value: T) -> None:  # type: ignore[override]  # what is put may differ from what is read
        self._put(encode_key(key), self._kind.encode(value))

    def put(
        self,
        key: Any,
        value: T,
        *,
        ttl: Duration | None = None,
        if_version: Version | str | None = None,
        if_absent: bool = False,
    ) -> None:
        """Set the key; it replaces all that the region holds at the commit. ``ttl``: how long it lives from then on.
        ``if_version``, ``if_absent``: only if it is there in that version, or not there; else Conflict at once, which
        ``run_transaction`` does not try again. Both are recorded reads."""
        self._part.core.check_writable()
        if if_absent is not False:
            check_flag("if_absent", if_absent)
        encoded, data, ttl_ms = encode_key(key), self._kind.encode(value), ttl_of(to_ttl_ms(ttl))
        if if_version is not None and if_absent:
            raise InvalidArgument("if_version and if_absent contradict each other; give one of them")
        if if_absent and key in self:
            raise Unmet(f"{key!r} is in {self.name!r} already; if_absent was asked for")
        if if_version is not None:
            self._demand(key, encoded, if_version)
        self._put(encoded, data, ttl_ms)

    def put_many(self, items: Pairs, *, ttl: Duration | None = None) -> None:
        """Set several keys, of a mapping or of (key, value) pairs: nothing of it is buffered when one of them is refused."""
        self._part.core.check_writable()
        ttl_ms = ttl_of(to_ttl_ms(ttl))
        encoded = dict(pair for chunk in encode_pairs(items, self._kind.encode) for pair in chunk)
        for key in encoded:
            self._part.shard_of(self._place, key)
        if encoded:
            first = next(iter(encoded))
            new = {key: self._entry(data, ttl_ms) for key, data in encoded.items()}
            self._part.write_many(self._place, first, new)

    def update(self, other: Any = (), /, **more: T) -> None:  # type: ignore[override]  # as __setitem__
        """As of a dict: see ``put_many``."""
        super().update(other, **more)  # type: ignore[arg-type]

    def patch(
        self,
        key: Any,
        set: Mapping[str, Any] | None = None,
        *,
        unset: Iterable[str] | str | None = None,
        inc: object = None,
        push: object = None,
        if_version: object = None,
    ) -> None:
        """Set and remove some top-level fields of an item of a map with ``merge="fields"``: see ``AvailableMap.patch``. It reads
        nothing, so it never conflicts, and returns None. Of a typed map the item is read, to check it."""
        self._part.core.check_writable()
        kind = patching.by_fields(self._kind)
        patching.check_absent(inc=inc, push=push, if_version=if_version)
        fields = patching.encode_patch(set, unset)
        encoded = encode_key(key)
        if kind.codec.typed:
            patching.check_patched(kind, self._row(key), fields)
        before = self._part.entry(self._place, encoded)
        if not isinstance(before, Parts):
            before = Parts("below", {})
        self._part.write(self._place, encoded, before.patched(dict(fields)))

    def increment(self, key: Any, by: float = 1, *, ttl: Duration | None = None) -> NoReturn:
        """Raises InvalidArgument: available maps have no increment.

        Raises:
            InvalidArgument: definite; always.
        """
        self._plain.increment(key, by, ttl=ttl)

    def __delitem__(self, key: Any) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def delete(self, key: Any, *, if_version: Version | str | None = None) -> bool:
        """Remove the key, in other regions too; whether it was there, which is a recorded read.

        Raises:
            Conflict: definite; ``if_version`` does not hold.
        """
        self._part.core.check_writable()
        encoded = encode_key(key)
        if if_version is not None:
            self._demand(key, encoded, if_version)
        there = key in self
        self._part.write(self._place, encoded, self._gone())
        return there

    def clear(self) -> None:
        """Remove every key that the region has. Reads the whole map."""
        self._part.core.check_writable()
        for key, _ in list(self._scan(b"", b"\xff", None, False)):
            self._part.write(self._place, key, self._gone())

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """The value of a key, which is set to ``default`` first if it is not there."""
        self._part.core.check_writable()
        row = self._row(key)
        if row is None:
            data = self._kind.encode(default)
            self._put(encode_key(key), data)
            row = self._kind.row_of(data)
        return self._shown(key, row)

    def modify(
        self, key: Any, fn: Callable[[Any], T], default: Any = None, *, ttl: Duration | None = None
    ) -> R:
        """Replace the value by ``fn(value)``; the new value. See ``AvailableMap.modify`` for what ``fn`` gets. ``ttl``: as of
        ``put``; without it an item keeps the end that it has, to within the milliseconds that the commit takes."""
        self._part.core.check_writable()
        check_function(fn)
        encoded, ttl_ms = encode_key(key), ttl_of(to_ttl_ms(ttl))
        row = self._row(key)
        data = self._kind.encode(fn(self._plain._to_modify(key, row, default)))
        ends_ms = self._kind.ends_ms(row) if ttl is None and row is not None else None
        before = self._part.entry(self._place, encoded)
        if ends_ms is not None and isinstance(before, Whole | Parts) and before.ttl_ms is not None:
            ttl_ms, ends_ms = (
                before.ttl_ms,
                None,
            )  # what this transaction has put keeps the lifetime that it was put with
        self._put(encoded, data, ttl_ms, ends_ms)
        return self._shown(key, self._kind.row_of(data))

    # -- inside

    def _row(self, key: object) -> Row | None:
        row = self._part.row(self._place, encode_key(key))
        return row if row.is_live() else None

    def _shown(self, key: object, row: Row) -> R:
        return self._plain._shown(key, row)

    def _version(self, encoded: bytes, row: Row) -> RegionVersion:
        version = self._kind.version(self._part.client.shard_of(encoded), row)
        return PENDING_VERSION if any(cell.region == PENDING for cell in self._kind.cells(row)) else version

    def _demand(self, key: Any, encoded: bytes, version: Version | str) -> None:
        given = RegionVersion.of(version)
        row = self._row(key)
        if row is None:
            raise Unmet(f"{key!r} is not in {self.name!r}, so not at version {given}")
        found = self._version(encoded, row)
        if found != given:
            raise Unmet(f"{key!r} in {self.name!r} is at version {found}, not at {given}")

    def _put(self, key: bytes, data: bytes, ttl_ms: int | None = None, ends_ms: int | None = None) -> None:
        self._part.write(self._place, key, self._entry(data, ttl_ms, ends_ms))

    def _entry(self, data: bytes, ttl_ms: int | None, ends_ms: int | None = None) -> Entry:
        if self._place[0] == places.FIELDS:
            return Parts("put", dict(split_fields(data)), ttl_ms, ends_ms)
        return Whole(data, ttl_ms, ends_ms)

    def _gone(self) -> Entry:
        return Parts("gone", {}) if self._place[0] == places.FIELDS else Whole(None)

    def _pair(self, encoded: bytes, row: Row) -> tuple[Any, R]:
        key = decode_key(encoded)
        return key, self._shown(key, row)

    def _scan_rows(
        self, low: bytes, high: bytes, limit: int | None, reverse: bool, give: Callable[[bytes, Any], S]
    ) -> MapScan[S]:
        self._part.core.check_readable()
        return MapScan(self._once(self._scan(low, high, limit, reverse)), give)

    def _once(
        self, pairs: Iterator[tuple[bytes, Row]]
    ) -> Callable[[bytes | None, int], Iterator[tuple[bytes, Row]]]:
        """A scan that failed does not know what it depends on, so it is not continued."""
        begun = iter((pairs,))

        def begin(after: bytes | None, given: int) -> Iterator[tuple[bytes, Row]]:  # noqa: ARG001
            for scan in begun:
                return scan
            raise TransactionError(
                f"this scan of map {self.name!r} has failed before. Run the transaction again"
            )

        return begin

    def _scan(self, low: bytes, high: bytes, limit: int | None, reverse: bool) -> Iterator[tuple[bytes, Row]]:
        shards = bounds_between(self._part.client, low, high).shards
        found = [self._part.rows(self._place, shard, low, high, limit, reverse=reverse) for shard in shards]
        rows = found[0] if len(found) == 1 else heapq.merge(*found, key=_key, reverse=reverse)
        if limit == 0:
            return
        for given, pair in enumerate(rows, 1):
            yield pair
            if given == limit:
                return


def _key(pair: tuple[bytes, Any]) -> bytes:
    return pair[0]
