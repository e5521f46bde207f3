"""Handles of shared maps, for reading: a ``Mapping`` over the space. ``map`` adds the writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Generic, TypeVar, cast, overload

from onefold.arguments import check_flag
from onefold.durations import wait_seconds
from onefold.errors import InvalidArgument, InvalidValue
from onefold.state.core.client import StateClient
from onefold.state.core.consistency import Consistency, Level, parse_level
from onefold.state.core.guard import check_plain
from onefold.state.encoding.items import Item, Version, utc
from onefold.state.encoding.keys import decode_key, encode_key
from onefold.state.encoding.names import check_name
from onefold.state.encoding.values import ValueCodec, encode_value
from onefold.state.fold.rows import Row
from onefold.state.maps import cache as map_cache
from onefold.state.maps import reading as map_reading
from onefold.state.maps.methods import ReadMethods, check_limit, encoded_range
from onefold.state.maps.scans import MapScan, unreadable
from onefold.state.maps.watch import Watch, open_watch
from onefold.state.maps.watched import WatchedMap

T = TypeVar("T")
D = TypeVar("D")
R = TypeVar("R")
Duration = float | timedelta | str


class MapReader(ReadMethods[T], Generic[T]):
    """The read-only half of ``Map``."""

    def __init__(
        self, client: StateClient, name: str, *, type: type[T] | None = None, level: Level | None = None
    ) -> None:
        """``type``: of the values (None: any). ``level``: of reads that name none (None: the connection's).

        Raises InvalidArgument for a name or type that cannot be.
        """
        self.name = check_name("map", name)
        self.client = client
        self.codec: ValueCodec[T] = ValueCodec(type)
        self.level = client.level if level is None else level
        self._encode: Callable[[Any], bytes] = encode_value if type is None else self.codec.encode
        self._decode: Callable[[bytes], T] = self.codec.decoder()
        self._what = f"map({name!r})"
        self._rows = map_reading.StateRows(client, name)
        self._table = self._rows.table
        self._cache: map_cache.SessionCache[Row] | None = map_cache.cache_of(
            client, lambda: map_cache.StateSource(client)
        )
        self._slot = map_cache.Slot() if self._cache is None else self._cache.slot(name)

    # -- reading

    def __getitem__(self, key: Any) -> T:
        row = self._row(key, None)
        if row is None:
            raise KeyError(key)
        try:
            return self._decode(row.value)
        except InvalidValue as error:
            raise unreadable(error, self.name, key) from None

    @overload
    def get(self, key: Any, default: None = None, *, consistency: Consistency | None = None) -> T | None: ...

    @overload
    def get(self, key: Any, default: D, *, consistency: Consistency | None = None) -> T | D: ...

    def get(self, key: Any, default: Any = None, *, consistency: Consistency | None = None) -> Any:
        """The value, or ``default`` when there is none.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            InvalidValue: definite; a value cannot be read. It names its map and key.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        row = self._row(key, consistency)
        try:
            return default if row is None else self._decode(row.value)
        except InvalidValue as error:
            raise unreadable(error, self.name, key) from None

    def get_item(self, key: Any, *, consistency: Consistency | None = None) -> Item[T] | None:
        """The value with its version and when it ends, or None.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            InvalidValue: definite; a value cannot be read. It names its map and key.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        row = self._row(key, consistency)
        if row is None:
            return None
        encoded = encode_key(key)
        version = Version(((self.client.shard_of(encoded), row.offset, row.index),))
        return Item(decode_key(encoded), self._value_of(key, row.value), version, utc(row.expires_ms))

    def get_many(self, keys: Iterable[Any], *, consistency: Consistency | None = None) -> dict[Any, T]:
        """The values of those keys that are there, under the keys as they were given. One snapshot; of several shards too
        at ``strong``, else of each of them.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            InvalidValue: definite; a value cannot be read. It names its map and key.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        self._check()
        level = self._level(consistency)
        if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
            raise InvalidArgument(f"get_many takes several keys, such as a list; got {keys!r:.100}")
        encoded = [(key, encode_key(key)) for key in keys]
        found = map_reading.read_items(self.client, self._table, [data for _, data in encoded], level)
        return {key: self._value_of(key, found[data].value) for key, data in encoded if data in found}

    def __contains__(self, key: object) -> bool:
        return self._row(key, None) is not None

    def count(self, prefix: Any = None, *, consistency: Consistency | None = None) -> int:
        """How many keys there are, or of those that begin with a prefix (see ``scan``). Looks at all of them.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        self._check()
        bounds = map_reading.bounds_of(self.client, prefix)
        return map_reading.count(self.client, self.name, bounds, self._level(consistency))

    def scan(
        self,
        *,
        prefix: Any = None,
        start: Any = None,
        stop: Any = None,
        limit: int | None = None,
        reverse: bool = False,
        consistency: Consistency | None = None,
    ) -> Iterator[tuple[Any, T]]:
        """(key, value) in key order; ``reverse``: from the end.

        ``prefix``: the first elements of the keys, as a tuple, or one of them bare. ``start``, ``stop``: keys, the first
        included, the last not. (None is not a bound: the key None, the lowest of all, is ``(None,)`` here.) ``limit``: how many.

        It reads page after page, all of them as of the moment of the first one (of each shard), and holds nothing in
        between; so one that continues until that moment is beyond the kept history raises TooOld (definite). A value that cannot
        be read raises InvalidValue, which names its key. After an error the iterator can be continued: behind that value, else
        where it stood.

        Raises:
            TooOld: definite, while reading; the moment of its first page has left the kept history.
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            InvalidValue: definite; a value cannot be read. It names its map and key.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        check_limit(limit)
        check_flag("reverse", reverse)
        low, high = encoded_range(prefix, start, stop)
        return self._scan_rows(low, high, limit, reverse, self._pair, consistency)

    def watch(
        self,
        prefix: Any = None,
        *,
        start: str | None = None,
        initial: bool = False,
        timeout: Duration | None = None,
    ) -> Watch[T]:
        """The changes from now on, as an iterator that waits for them: each as a ``Change`` of kind ``put``, ``delete`` or
        ``expire``. It is a context manager; ``close``, from any thread, ends it.

        ``prefix``: only of keys that begin so, see ``scan``. ``start``: a token (``Change.token``, ``db.session.token``):
        everything after it, nothing missed and nothing twice. ``initial``: first the present state, as changes of kind
        ``put`` in key order (of each shard), then the changes since, without a gap. ``timeout``: it ends when nothing came
        for so long (default: never). Changes of one shard are in order; several shards are merged as they come.

        Raises:
            TokenError: definite; the token is malformed or of another space.
            TokenAhead: definite; the token is from a future that does not come.
            TooOld: definite, now or while reading; what followed the token is no longer kept.
            InvalidValue: definite; a value cannot be read. It names its map and key.
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
        """
        return self._watch_since(None, prefix, start, initial, timeout)

    def _watch_since(
        self,
        begun: Mapping[int, int] | None,
        prefix: Any,
        start: str | None,
        initial: bool,
        timeout: Duration | None,
    ) -> Watch[T]:
        """``begun``: of ``watch.moment_of``, when the watch is opened later than it was asked for."""
        self._check()
        check_flag("initial", initial)
        timeout_s = None if timeout is None else wait_seconds(timeout)
        if start is not None and initial:
            raise InvalidArgument(
                "a watch begins at a token (start=) or with the present state (initial=True), not both"
            )
        bounds = map_reading.bounds_of(self.client, prefix)
        of = WatchedMap(self.client, self.name, self.codec)
        return open_watch(of, bounds, self.level, start, initial=initial, timeout=timeout_s, begun=begun)

    # -- shared

    def _pair(self, encoded: bytes, row: Row) -> tuple[Any, T]:
        key = decode_key(encoded)
        return key, self._value_of(key, row.value)

    def _check(self) -> None:
        check_plain(self.client, self._what)

    def _level(self, consistency: Consistency | None) -> Level:
        return self.level if consistency is None else parse_level(consistency)

    def _row(self, key: object, consistency: Consistency | None) -> Row | None:
        check_plain(self.client, self._what)
        level = self.level if consistency is None else parse_level(consistency)
        cache = self._cache
        if cache is None or level.kind != "session":
            return map_reading.read_item(self.client, self._table, encode_key(key), level)
        known = key if type(key) is str else encode_key(key)
        row = cache.lookup(self._slot, known)
        if row is map_cache.MISS:
            encoded = encode_key(key) if known is key else cast(bytes, known)
            row = cache.load(self.name, self._slot, known, encoded)
        return cast("Row | None", row)

    def _scan_rows(
        self,
        low: bytes,
        high: bytes,
        limit: int | None,
        reverse: bool,
        give: Callable[[bytes, Row], R],
        consistency: Consistency | None = None,
    ) -> MapScan[R]:
        self._check()
        level = self._level(consistency)
        bounds = map_reading.bounds_between(self.client, low, high)
        pins: dict[int, int] = {}

        def begin(after: bytes | None, given: int) -> Iterator[tuple[bytes, Row]]:
            left = bounds
            if after is not None:
                left = bounds._replace(stop=after) if reverse else bounds._replace(start=after + b"\x00")
            return map_reading.scan(
                self.client,
                self._rows,
                left,
                level,
                limit=None if limit is None else limit - given,
                reverse=bool(reverse),
                pins=pins,
            )

        return MapScan(begin, give)
