"""A map inside a transaction: reads its snapshot and the transaction's own writes, and writes to its buffer."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

from onefold.arguments import check_flag
from onefold.errors import InvalidArgument, InvalidValue, TransactionError
from onefold.state.encoding.items import Item, Version, utc
from onefold.state.encoding.keys import decode_key, encode_key
from onefold.state.encoding.lifetimes import ttl_ms as to_ttl_ms
from onefold.state.encoding.values import ValueCodec, decode_value
from onefold.state.maps.methods import WriteMethods, check_function, check_limit, encoded_range
from onefold.state.maps.reading import bounds_between
from onefold.state.maps.scans import MapScan
from onefold.state.maps.writing import Pairs, encode_pairs
from onefold.state.transactions.buffer import Added, Gone, Stored, overlay, value_over
from onefold.state.transactions.retries import Unmet

if TYPE_CHECKING:
    from collections.abc import Callable

    from onefold.state.transactions.attempt import TransactionCore

T = TypeVar("T")
R = TypeVar("R")

PENDING = Version(())
"""The version of what the transaction itself has written: it gets a real one when it commits."""


class _Found(NamedTuple):
    """An item as the transaction sees it."""

    value: bytes
    version: Version
    expires_ms: int | None


class TxMap(WriteMethods[T], Generic[T]):
    """A map of shared state in a transaction: ``tx.map("accounts")``. As ``Map``, with these differences.

    Reads show the snapshot and the transaction's own writes, and are recorded: the commit raises Conflict when something read has
    changed, keys that were not there and ranges included. ``m[k] = v``, ``put``, ``put_many``, ``update`` and ``increment`` read
    nothing, so on their own they never conflict. Nothing is written before the commit, so writes return no ``Version``.

    Every method raises TransactionError after the block, from another thread or task, when the transaction is too old, and for
    writes in a read-only one; InvalidKey and InvalidValue; TooLarge when the transaction becomes larger than
    ``config.TRANSACTION_OPERATIONS_MAX`` keys or ``config.TRANSACTION_BYTES_MAX`` bytes; TooOld when so much was written since
    it began that its snapshot is gone. All are definite.
    """

    def __init__(self, tx: TransactionCore, name: str, codec: ValueCodec[T]) -> None:
        """Programs call ``tx.map``."""
        self._tx = tx
        self.name = name
        self._codec = codec
        self._decode = codec.decode

    # -- reading

    def __getitem__(self, key: Any) -> T:
        value = self._value(encode_key(key))
        if value is None:
            raise KeyError(key)
        return self._value_of(key, value)

    def get(self, key: Any, default: Any = None) -> Any:
        """The value, or ``default``."""
        value = self._value(encode_key(key))
        return default if value is None else self._value_of(key, value)

    def get_item(self, key: Any) -> Item[T] | None:
        """The value with its version and end; None when it is not there.

        Of what this transaction has written the version is ``PENDING``, and ``expires_at`` is what this machine's clock expects.
        """
        encoded = encode_key(key)
        found = self._find(encoded)
        if found is None:
            return None
        return Item(
            decode_key(encoded), self._value_of(key, found.value), found.version, utc(found.expires_ms)
        )

    def get_many(self, keys: Iterable[Any]) -> dict[Any, T]:
        """The values of those of the keys that are there, in the order of ``keys``."""
        tx = self._tx
        tx.check_readable()
        if isinstance(keys, str | bytes):
            raise InvalidArgument(f"get_many takes several keys, such as a list; got {keys!r:.100}")
        wanted = [(key, encode_key(key)) for key in keys]
        asked: dict[int, list[bytes]] = {}
        for _, encoded in wanted:
            if isinstance(tx.buffer.get(self.name, encoded), Added | None):
                asked.setdefault(tx.client.shard_of(encoded), []).append(encoded)
        below: dict[bytes, bytes] = {}
        for shard, of_shard in asked.items():
            rows = tx.reads.get_many(shard, self.name, of_shard)
            below.update((encoded, row.value) for encoded, row in rows.items())
        found: dict[Any, T] = {}
        for key, encoded in wanted:
            entry = tx.buffer.get(self.name, encoded)
            value = below.get(encoded) if entry is None else value_over(entry, below.get(encoded))
            if value is not None:
                found[key] = self._value_of(key, value)
        return found

    def __contains__(self, key: object) -> bool:
        encoded = encode_key(key)
        self._tx.check_readable()
        entry = self._tx.buffer.get(self.name, encoded)
        if entry is not None:
            return not isinstance(entry, Gone)
        return self._tx.reads.get(self._tx.client.shard_of(encoded), self.name, encoded) is not None

    def scan(
        self,
        *,
        prefix: Any = None,
        start: Any = None,
        stop: Any = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[Any, T]]:
        """Keys and values in key order (``reverse``: from the end), with ``start <= key < stop`` and the first elements of
        ``prefix``, at most ``limit`` of them. None means no bound; for the key None itself write ``(None,)``.

        Lazy, and the transaction depends on what was taken from it only: on the keys given out, and on there being no others
        between them. It shows the writes made before its first step; later ones do not disturb it.
        """
        check_limit(limit)
        check_flag("reverse", reverse)
        low, high = encoded_range(prefix, start, stop)
        return self._scan_rows(low, high, limit, reverse, self._pair)

    def count(self, prefix: Any = None) -> int:
        """How many keys there are, or of those that begin with a prefix (see ``scan``). The transaction then depends on all of
        them."""
        low, high = encoded_range(prefix, None, None)
        return sum(1 for _ in self._scan(low, high, None, False))

    # -- writing

    def __setitem__(self, key: Any, value: T) -> None:
        self._tx.check_writable()
        self._tx.buffer.put_many(self.name, [(encode_key(key), self._codec.encode(value))])

    def put(
        self,
        key: Any,
        value: T,
        *,
        ttl: float | timedelta | str | None = None,
        if_version: Version | str | None = None,
        if_absent: bool = False,
    ) -> None:
        """Set the key. ``ttl``: how long it lives from the commit on. ``if_version``, ``if_absent``: only if it is there in that
        version, or not there; else Conflict at once, which ``run_transaction`` does not try again. Both are recorded reads."""
        tx = self._tx
        tx.check_writable()
        if if_absent is not False:
            check_flag("if_absent", if_absent)
        encoded, data, ttl_ms = encode_key(key), self._codec.encode(value), to_ttl_ms(ttl)
        if if_version is not None and if_absent:
            raise InvalidArgument("if_version and if_absent contradict each other; give one of them")
        if if_absent and key in self:
            raise Unmet(f"{key!r} is in {self.name!r} already; if_absent was asked for")
        if if_version is not None:
            self._demand(key, encoded, Version.of(if_version))
        tx.buffer.put_many(self.name, [(encoded, data)], ttl_ms)

    def put_many(self, items: Pairs, *, ttl: float | timedelta | str | None = None) -> None:
        """Set several keys, of a mapping or of (key, value) pairs: nothing of it is buffered when one of them is refused."""
        self._tx.check_writable()
        ttl_ms = to_ttl_ms(ttl)
        encoded = [pair for chunk in encode_pairs(items, self._codec.encode) for pair in chunk]
        self._tx.buffer.put_many(self.name, encoded, ttl_ms)

    def increment(self, key: Any, by: float = 1, *, ttl: float | timedelta | str | None = None) -> None:
        """Add to a number; a key that is not there counts as 0, and gets ``ttl``.

        Reads nothing, so it never conflicts; and so it returns None. ``tx.increments`` has the new value after the commit;
        reading the key gives it before, and makes the transaction depend on it.

        Raises:
            InvalidValue: definite, from the commit; the key holds no number.
        """
        self._tx.check_writable()
        self._tx.buffer.increment(self.name, encode_key(key), by, to_ttl_ms(ttl))

    def __delitem__(self, key: Any) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def delete(self, key: Any, *, if_version: Version | str | None = None) -> bool:
        """Remove the key; whether it was there, which is a recorded read.

        Raises:
            Conflict: definite; ``if_version`` does not hold.
        """
        tx = self._tx
        tx.check_writable()
        encoded = encode_key(key)
        if if_version is not None:
            self._demand(key, encoded, Version.of(if_version))
        there = key in self
        if there:
            tx.buffer.delete(self.name, [encoded])
        return there

    def clear(self) -> None:
        """Remove every key. Reads the whole map."""
        self._tx.check_writable()
        self._tx.buffer.delete(self.name, [key for key, _ in self._scan(b"", b"\xff", None, False)])

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """The value of a key, which is set to ``default`` first if it is not there."""
        self._tx.check_writable()
        encoded = encode_key(key)
        value = self._value(encoded)
        if value is None:
            value = self._codec.encode(default)
            self._tx.buffer.put_many(self.name, [(encoded, value)])
        return self._value_of(key, value)

    def modify(
        self,
        key: Any,
        fn: Callable[[Any], T],
        default: Any = None,
        *,
        ttl: float | timedelta | str | None = None,
    ) -> T:
        """Replace the value by ``fn(value)``; the new value. ``fn`` gets a copy of its own, of ``default`` when the key is not
        there. ``ttl``: as of ``put``; without it an item keeps the end that it has, to within the milliseconds that the commit
        takes."""
        self._tx.check_writable()
        check_function(fn)
        encoded, ttl_ms = encode_key(key), to_ttl_ms(ttl)
        found = self._find(encoded)
        data = self._codec.encode(self._modified(key, fn, default, None if found is None else found.value))
        if ttl is None and found is not None:
            self._tx.buffer.replace(self.name, encoded, data, found.expires_ms)
        else:
            self._tx.buffer.put_many(self.name, [(encoded, data)], ttl_ms)
        return self._codec.decode(data)

    # -- inside

    def _pair(self, encoded: bytes, data: bytes) -> tuple[Any, T]:
        key = decode_key(encoded)
        return key, self._value_of(key, data)

    def _scan_rows(
        self, low: bytes, high: bytes, limit: int | None, reverse: bool, give: Callable[[bytes, bytes], R]
    ) -> MapScan[R]:
        self._tx.check_readable()
        return MapScan(self._once(self._scan(low, high, limit, reverse)), give)

    def _once(
        self, pairs: Iterator[tuple[bytes, bytes]]
    ) -> Callable[[bytes | None, int], Iterator[tuple[bytes, bytes]]]:
        """A scan that failed does not know what it depends on, so it is not continued."""
        begun = iter((pairs,))

        def begin(after: bytes | None, given: int) -> Iterator[tuple[bytes, bytes]]:  # noqa: ARG001
            for scan in begun:
                return scan
            raise TransactionError(
                f"this scan of map {self.name!r} has failed before. Run the transaction again"
            )

        return begin

    def _value(self, key: bytes) -> bytes | None:
        tx = self._tx
        tx.check_readable()
        entry = tx.buffer.get(self.name, key)
        if isinstance(entry, Stored):
            return entry.value
        if isinstance(entry, Gone):
            return None
        row = tx.reads.get(tx.client.shard_of(key), self.name, key)
        below = None if row is None else row.value
        return below if entry is None else value_over(entry, below)

    def _find(self, key: bytes) -> _Found | None:
        tx = self._tx
        tx.check_readable()
        entry = tx.buffer.get(self.name, key)
        if isinstance(entry, Gone):
            return None
        if isinstance(entry, Stored):
            kept = entry.expires_ms
            return _Found(entry.value, PENDING, self._expected_end(entry.ttl_ms) if kept is None else kept)
        shard = tx.client.shard_of(key)
        row = tx.reads.get(shard, self.name, key)
        if entry is None:
            if row is None:
                return None
            return _Found(row.value, Version(((shard, row.offset, row.index),)), row.expires_ms)
        value = cast(bytes, value_over(entry, None if row is None else row.value))
        return _Found(value, PENDING, self._expected_end(entry.ttl_ms) if row is None else row.expires_ms)

    def _expected_end(self, ttl_ms: int | None) -> int | None:
        return None if ttl_ms is None else self._tx.client.env.wall_ms() + ttl_ms

    def _demand(self, key: Any, encoded: bytes, version: Version) -> None:
        found = self._find(encoded)
        if found is not None and found.version != version:
            # A version of several shards is the item's own version in one of them.
            shard = self._tx.client.shard_of(encoded)
            if found.version.in_shard(shard) is None or found.version.in_shard(shard) != version.in_shard(
                shard
            ):
                raise Unmet(f"{key!r} in {self.name!r} is at version {found.version}, not at {version}")
        if found is None:
            raise Unmet(f"{key!r} is not in {self.name!r}, so not at version {version}")

    def _scan(
        self, start: bytes, stop: bytes, limit: int | None, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        """The encoded pairs. Records while it is consumed."""
        if limit == 0 or start >= stop:
            return
        tx = self._tx
        tx.check_readable()
        shards = bounds_between(tx.client, start, stop).shards
        own = tx.buffer.range(self.name, start, stop, reverse=reverse)
        spans = [tx.reads.span(shard, self.name, start, stop, reverse=reverse) for shard in shards]
        page = None if limit is None else limit + len(own)
        found = [tx.reads.scan(span, tx.check_readable, page) for span in spans]
        below = found[0] if len(found) == 1 else heapq.merge(*found, key=_key, reverse=reverse)
        for given, (key, value) in enumerate(overlay(below, own, reverse=reverse), 1):
            tx.check_readable()
            for span in spans:
                span.reach(key)
            yield key, value
            if given == limit:
                return
        tx.check_readable()
        for span in spans:
            span.reach_end()


def _key(pair: tuple[bytes, bytes]) -> bytes:
    return pair[0]


def decode_number(data: object) -> int | float | None:
    """The result of an increment; None when it is not a number."""
    if not isinstance(data, bytes):
        return None
    try:
        value = decode_value(data)
    except InvalidValue:
        return None
    return value if isinstance(value, int | float) else None
