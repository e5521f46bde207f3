"""Handles of available maps, for reading: a ``Mapping`` over what this region knows. ``map`` adds the writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from onefold import config
from onefold.arguments import check_flag
from onefold.available.kinds.row import Row
from onefold.durations import wait_seconds
from onefold.errors import InvalidArgument, InvalidValue, MergeFailed
from onefold.state.available.client import check_level
from onefold.state.available.collection import Collection
from onefold.state.available.maps import merges
from onefold.state.available.maps import reading as map_reading
from onefold.state.available.maps.caching import Kept, RegionSource
from onefold.state.available.maps.watching import WatchedAvailableMap
from onefold.state.core.consistency import Consistency, Level, parse_level
from onefold.state.core.guard import check_plain
from onefold.state.encoding.items import Item, utc
from onefold.state.encoding.keys import decode_key, encode_key
from onefold.state.encoding.names import check_name
from onefold.state.encoding.values import ValueCodec
from onefold.state.maps import cache as map_cache
from onefold.state.maps import reading as rows_reading
from onefold.state.maps.methods import ReadMethods, check_limit, encoded_range
from onefold.state.maps.scans import MapScan, unreadable
from onefold.state.maps.watch import Watch, open_watch

if TYPE_CHECKING:
    from onefold.state.available.client import RegionClient

R = TypeVar("R")
T = TypeVar("T")
D = TypeVar("D")
S = TypeVar("S")
Duration = float | timedelta | str


def check_arguments(
    name: object, merge: object, type: type[Any] | None, consistency: Consistency | None
) -> Level | None:
    """The level, if all of these can be a map's, before a region is opened. Raises InvalidArgument, UnsupportedConsistency."""
    kind = merges.kind_of(check_name("map", name), merge, ValueCodec(type))
    if len(kind.place.encode()) > config.NAME_BYTES_MAX:
        raise InvalidArgument(
            f"the name of an available map takes at most {config.NAME_BYTES_MAX - 2} bytes; got {kind.name[:60]!r}..."
        )
    return None if consistency is None else check_level(parse_level(consistency))


class AvailableReader(Collection, ReadMethods[R], Generic[R, T]):
    """The read-only half of ``AvailableMap``."""

    def __init__(
        self,
        client: RegionClient,
        name: str,
        *,
        merge: merges.Merge = merges.LAST_WRITER_WINS,
        type: type[T] | None = None,
        level: Level | None = None,
    ) -> None:
        """``merge``: what becomes of concurrent writes. ``type``: of the values that are put (None: any). ``level``: of reads
        that name none (None: ``session``).

        Raises InvalidArgument for a name, type or merge that cannot be, UnsupportedConsistency for ``strong``.
        """
        self.codec: ValueCodec[T] = ValueCodec(type)
        self.merge = merge
        self.kind: merges.Kind[R, T] = merges.kind_of(name, merge, self.codec)
        super().__init__(client, "map", name, self.kind.place, level)
        self._rows = map_reading.RegionRows(client, self.kind)
        self._cache: map_cache.SessionCache[Kept] | None = map_cache.cache_of(
            client, lambda: RegionSource(client)
        )
        self._slot = map_cache.Slot() if self._cache is None else self._cache.slot(self.place)

    # -- reading

    def __getitem__(self, key: Any) -> R:
        row = self._row(key, None)
        if row is None:
            raise KeyError(key)
        return self._shown(key, row)

    @overload
    def get(self, key: Any, default: None = None, *, consistency: Consistency | None = None) -> R | None: ...

    @overload
    def get(self, key: Any, default: D, *, consistency: Consistency | None = None) -> R | D: ...

    def get(self, key: Any, default: Any = None, *, consistency: Consistency | None = None) -> Any:
        """The value, or ``default`` when there is none.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            InvalidValue: definite; a value cannot be read. It names its map and key.
            MergeFailed: definite; the merge function raised. It has the siblings.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        row = self._row(key, consistency)
        return default if row is None else self._shown(key, row)

    def get_item(self, key: Any, *, consistency: Consistency | None = None) -> Item[R] | None:
        """The value with its version, when it ends, the region of its latest write, and its siblings where both are kept; or
        None.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            InvalidValue: definite; a value cannot be read. It names its map and key.
            MergeFailed: definite; the merge function raised. It has the siblings.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        row = self._row(key, consistency)
        if row is None:
            return None
        kind, encoded = self.kind, encode_key(key)
        return Item(
            decode_key(encoded),
            self._shown(key, row),
            kind.version(self.client.shard_of(encoded), row),
            utc(kind.ends_ms(row)),
            kind.siblings(row),
            self.client.name_of(kind.latest(row)),
        )

    def get_many(self, keys: Iterable[Any], *, consistency: Consistency | None = None) -> dict[Any, R]:
        """The values of those keys that are there, under the keys as they were given. One snapshot of each shard.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            InvalidValue: definite; a value cannot be read. It names its map and key.
            MergeFailed: definite; the merge function raised. It has the siblings.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        self._check()
        level = self._level(consistency)
        if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
            raise InvalidArgument(f"get_many takes several keys, such as a list; got {keys!r:.100}")
        encoded = [(key, encode_key(key)) for key in keys]
        found = map_reading.read_items(self.client, self._rows, [data for _, data in encoded], level)
        return {key: self._shown(key, found[data]) for key, data in encoded if data in found}

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
        bounds = rows_reading.bounds_of(self.client, prefix)
        return map_reading.count(self.client, self._rows, bounds, self._level(consistency))

    def scan(
        self,
        *,
        prefix: Any = None,
        start: Any = None,
        stop: Any = None,
        limit: int | None = None,
        reverse: bool = False,
        consistency: Consistency | None = None,
    ) -> Iterator[tuple[Any, R]]:
        """(key, value) in key order; ``reverse``: from the end.

        ``prefix``: the first elements of the keys, as a tuple, or one of them bare. ``start``, ``stop``: keys, the first
        included, the last not. (None is not a bound: the key None, the lowest of all, is ``(None,)`` here.) ``limit``: how many.

        It reads page after page, all of them as of the moment of the first one (of each shard), and holds nothing in
        between; so one that continues until that moment is beyond the kept history raises TooOld (definite). A value that cannot
        be read raises InvalidValue, one that cannot be merged MergeFailed; both name the key. After an error the iterator can be
        continued: behind that value, else where it stood.

        Raises:
            TooOld: definite, while reading; the moment of its first page has left the kept history.
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            InvalidValue: definite; a value cannot be read. It names its map and key.
            MergeFailed: definite; the merge function raised. It has the siblings.
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
    ) -> Watch[R]:
        """The changes from now on, as this region comes to know them: see ``Map.watch``. ``Change.region`` is where a write was
        made, if that is known. What comes from another region at once are as many changes as it has keys. A token holds the
        region: in another one it says nothing.

        Raises:
            TokenError: definite; the token is malformed, of another space or region, or from before it was restored.
            TokenAhead: definite; the token is from a future that does not come.
            TooOld: definite, now or while reading; what followed the token is no longer kept.
            InvalidValue: definite; a value cannot be read. It names its map and key.
            MergeFailed: definite; the merge function raised. It has the siblings.
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
    ) -> Watch[R]:
        """``begun``: of ``watch.moment_of``, when the watch is opened later than it was asked for."""
        self._check()
        check_flag("initial", initial)
        timeout_s = None if timeout is None else wait_seconds(timeout)
        if start is not None and initial:
            raise InvalidArgument(
                "a watch begins at a token (start=) or with the present state (initial=True), not both"
            )
        bounds = rows_reading.bounds_of(self.client, prefix)
        of = WatchedAvailableMap(self.client, self.kind, self._rows, self._shown)
        return open_watch(of, bounds, self.level, start, initial=initial, timeout=timeout_s, begun=begun)

    # -- shared

    def _shown(self, key: object, row: Row) -> R:
        """What is read of a row. Raises InvalidValue and MergeFailed, which name the map and the key."""
        kind = self.kind
        try:
            return kind.value(row)
        except InvalidValue as error:
            raise unreadable(error, self.name, key) from None
        except MergeFailed as error:
            error.map, error.key, error.siblings = self.name, key, kind.siblings(row) or []
            raise

    def _current(self, key: object, row: Row) -> Any:
        try:
            return self.kind.current(row)
        except InvalidValue as error:
            raise unreadable(error, self.name, key) from None

    def _pair(self, encoded: bytes, row: Row) -> tuple[Any, R]:
        key = decode_key(encoded)
        return key, self._shown(key, row)

    def _row(self, key: object, consistency: Consistency | None) -> Row | None:
        client = self._opened
        if client is None or not self._is_checked:
            self._check()
            client = self.client
        else:
            check_plain(client.space, self._what)
        level = self.level if consistency is None else self._level(consistency)
        cache = self._cache
        if cache is None or level.kind != "session" or client.unmet:
            return map_reading.read_item(client, self.place, encode_key(key), level)
        known = key if type(key) is str else encode_key(key)
        kept: Any = cache.lookup(self._slot, known)
        if kept is map_cache.MISS:
            encoded = encode_key(key) if known is key else cast(bytes, known)
            kept = cache.load(self.place, self._slot, known, encoded)
        return None if kept is None else kept.row

    def _scan_rows(
        self,
        low: bytes,
        high: bytes,
        limit: int | None,
        reverse: bool,
        give: Callable[[bytes, Row], S],
        consistency: Consistency | None = None,
    ) -> MapScan[S]:
        self._check()
        level = self._level(consistency)
        bounds = rows_reading.bounds_between(self.client, low, high)
        pins: dict[int, int] = {}

        def begin(after: bytes | None, given: int) -> Iterator[tuple[bytes, Row]]:
            left = bounds
            if after is not None:
                left = bounds._replace(stop=after) if reverse else bounds._replace(start=after + b"\x00")
            return rows_reading.scan(
                self.client,
                self._rows,
                left,
                level,
                limit=None if limit is None else limit - given,
                reverse=bool(reverse),
                pins=pins,
            )

        return MapScan(begin, give)
