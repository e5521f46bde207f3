"""How the fold keeps things: its tables, and the rows that one operation reads and changes.

An operation works on rows in memory (``Working``). What it changed is written at its end, each row once, together with what is
derived from rows: when a row ends, which gone rows wait for other regions, and the content hash. One that is rejected writes
nothing.

The *content hash* is a sum over the parts that readers see, so it does not depend on their order. It is by part since fields of
one item end at different fold times in different regions; what has an end is left out. Regions that know the same effects have
the same one; anything else is a bug, or damage.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from onefold.available import regions
from onefold.available.kinds import places
from onefold.available.kinds.row import Row, encode
from onefold.available.ops import Natural
from onefold.available.stamps import Dot, Hlc
from onefold.fold.api import Context, Store, StoreView

ROWS: Final = "ap/c/"
"""Each collection is a table below this, by its place: row key -> row. Keeps history."""
NAMES: Final = "ap/names"
"""Name -> the places that have it."""
DUE: Final = "ap/due"
"""(ends_ms, place, row key) -> nothing."""
GONE: Final = "ap/gone"
"""(region, seq, place, row key) -> nothing: something in that row is dropped once all know that dot."""
OUT: Final = "ap/out"
"""(origin, seq) -> chain digest up to it, effect."""
REQUESTS: Final = "ap/requests"
"""Request id -> ``Requested``."""
REQUESTS_DUE: Final = "ap/requests_due"
"""(until_ms, request id) -> nothing."""
CONFLICTS: Final = "ap/conflicts"
"""Number -> ``Conflict``."""
SYNC: Final = "ap/sync"
"""What has come of a full sync: ``b""`` -> ``SyncBegin``; (place, row key) -> row."""

_DOT = struct.Struct(">HQ")
_TIME = struct.Struct(">Q")
_LENGTH = struct.Struct(">H")
_HASH_BYTES = 16
_HASH_MASK = (1 << 128) - 1


class Conflict(msgspec.Struct, frozen=True, array_like=True):
    """Two effects that did not know each other wrote the same thing. The pair of dots names it, the same in all regions."""

    place: str
    """Empty: a request that was done in two regions; the key is its id."""
    key: bytes
    field: str
    """Of a map by fields; empty: the whole item."""
    kept: bytes | None
    """None: a delete. In a keep-both map the other one is kept too."""
    dropped: bytes | None
    kept_dot: Dot
    dropped_dot: Dot
    time_ms: int


class Requested(msgspec.Struct, frozen=True, array_like=True):
    """What an effect with a request id was."""

    origin: int
    seq: int
    hlc: Hlc
    until_ms: Natural
    results: tuple[Any, ...] = ()


names_decoder = msgspec.msgpack.Decoder(list[str])
conflict_decoder = msgspec.msgpack.Decoder(Conflict)
requested_decoder = msgspec.msgpack.Decoder(Requested)


def table_of(place: str) -> str:
    """The table of a collection."""
    return ROWS + place


def out_key(origin: int, seq: int) -> bytes:
    """Sorts by origin, then by seq."""
    return _DOT.pack(origin, seq)


def number_key(number: int) -> bytes:
    """Sorts by number, or by time."""
    return _TIME.pack(number)


def row_key(place: str, key: bytes) -> bytes:
    """A row of any collection."""
    encoded = place.encode()
    return _LENGTH.pack(len(encoded)) + encoded + key


def read_row_key(data: bytes) -> tuple[str, bytes]:
    """The place and the key."""
    end = 2 + _LENGTH.unpack_from(data)[0]
    return data[2:end].decode(), data[end:]


def due_row(data: bytes) -> tuple[str, bytes]:
    """The place and the key in a key of ``DUE``."""
    return read_row_key(data[_TIME.size :])


def gone_row(data: bytes) -> tuple[str, bytes]:
    """The place and the key in a key of ``GONE``."""
    return read_row_key(data[_DOT.size :])


def load_row(store: StoreView, place: str, key: bytes) -> Row:
    """The row as it is in the store."""
    return places.read_row(place, store.get(table_of(place), key))


def all_places(store: StoreView) -> list[str]:
    """The places of all collections."""
    return sorted({place for _, data in store.scan(NAMES) for place in names_decoder.decode(data)})


class Working:
    """One operation at work: the row of the region, and the rows of collections that it has read or changed."""

    def __init__(self, store: Store, context: Context) -> None:
        self.store = store
        self.context = context
        self.me = regions.read_self(store)
        self.shares: dict[tuple[str, bytes], None] = {}
        """Rows of bounded counters that were changed: perhaps a wish can be met."""
        self.conflicts: list[Conflict] = []
        self._before: dict[tuple[str, bytes], tuple[Row, int]] = {}
        self._rows: dict[tuple[str, bytes], Row] = {}
        self._places: set[str] = set()
        self._prefixes: dict[str, bytes] = {}

    @property
    def now_ms(self) -> int:
        """Fold time."""
        return self.context.now_ms

    def row(self, place: str, key: bytes) -> Row:
        """A row as this operation has left it; an empty one where there is none."""
        found = self._rows.get((place, key))
        if found is None:
            data = self.store.get(table_of(place), key)
            found = self._rows[place, key] = places.read_row(place, data)
            self._before[place, key] = found, 0 if data is None else len(key) + len(data)
        return found

    def fetch(self, wanted: Iterable[tuple[str, bytes]]) -> None:
        """Read many rows at once, which are about to be asked for."""
        keys: dict[str, dict[bytes, None]] = {}
        for place, key in wanted:
            if (place, key) not in self._rows:
                keys.setdefault(place, {})[key] = None
        for place, some in keys.items():
            found = self.store.get_many(table_of(place), some)
            for key in some:
                data = found.get(key)
                row = self._rows[place, key] = places.read_row(place, data)
                self._before[place, key] = row, 0 if data is None else len(key) + len(data)

    def set_row(self, place: str, key: bytes, row: Row) -> None:
        """Change a row that was read."""
        self._rows[place, key] = row
        if place[0] == places.BOUNDED:
            self.shares[place, key] = None

    def keys(self, place: str, start: bytes, stop: bytes | None) -> Iterator[bytes]:
        """The keys of all rows in a range, those that this operation has made too."""
        found = {key for key, _ in self.store.scan(table_of(place), start, stop)}
        found |= {
            key for at, key in self._rows if at == place and key >= start and (stop is None or key < stop)
        }
        yield from sorted(found)

    def places_of(self, name: str) -> list[str]:
        """Where there are collections of this name."""
        data = self.store.get(NAMES, name.encode())
        return [] if data is None else names_decoder.decode(data)

    def note_place(self, place: str) -> None:
        """There is a collection."""
        if place in self._places:
            return
        self._places.add(place)
        name = places.split_place(place)[1]
        known = self.places_of(name)
        if place not in known:
            self.store.put(NAMES, name.encode(), encode(sorted([*known, place])))

    def write_rows(self, stable: Mapping[int, int]) -> None:
        """Bring the changed rows into the store, with what is derived from them. Without what is gone and ``stable``."""
        changed = [at for at, row in self._rows.items() if row is not self._before[at][0]]
        content = int.from_bytes(self.me.content)
        for at in changed:
            before, size = self._before[at]
            after = self._rows[at]
            end = after.ends_ms()
            if end is not None and end <= self.now_ms:
                after = after.expired(self.now_ms)  # it came in too late to be seen
            after = after.collected(stable)
            content += self._write(*at, before, size, after)
        self.me.content = (content & _HASH_MASK).to_bytes(_HASH_BYTES)
        self._rows.clear()
        self._before.clear()

    def _write(self, place: str, key: bytes, before: Row, size: int, after: Row) -> int:
        """Write one row. By how much the content hash changes."""
        store, me, table = self.store, self.me, table_of(place)
        lives, at = after.is_live(), self._prefix(place) + key
        if size and not before.is_live():
            me.gone_bytes -= size
        if not lives and after.is_empty():
            store.delete(table, key)
        else:
            data = encode(after)
            store.put(table, key, data)
            if not lives:
                me.gone_bytes += len(key) + len(data)
        ends, end = before.ends_ms(), after.ends_ms()
        if ends != end:
            if ends is not None:
                store.delete(DUE, number_key(ends) + at)
            if end is not None:
                store.put(DUE, number_key(end) + at, b"")
        waited, waits = before.waits(), after.waits()
        if waited != waits:
            if waited is not None:
                store.delete(GONE, out_key(*waited) + at)
                me.gone_rows -= 1
            if waits is not None:
                store.put(GONE, out_key(*waits) + at, b"")
                me.gone_rows += 1
        was, now = before.parts(), after.parts()
        if was == now:
            return 0
        here, there = set(was), set(now)
        return sum([_hash(at, part) for part in there - here]) - sum(
            [_hash(at, part) for part in here - there]
        )

    def _prefix(self, place: str) -> bytes:
        found = self._prefixes.get(place)
        if found is None:
            found = self._prefixes[place] = row_key(place, b"")
        return found

    def save(self) -> None:
        """Write the region's own row."""
        self.store.put(regions.SELF, b"", regions.encode_self(self.me))


def _hash(prefix: bytes, part: bytes) -> int:
    data = b"".join((_LENGTH.pack(len(prefix) & 0xFFFF), prefix, part))
    return int.from_bytes(hashlib.blake2b(data, digest_size=_HASH_BYTES).digest())
