"""How the fold keeps things: its tables, and the rows that one operation reads and changes.

An operation works on rows in memory (``Working``). What it changed is written at its end, each row once, together with what is
derived from rows: when a row ends, which gone rows wait for other regions, and the content hash. One that is rejected writes
nothing.

The *content hash* is a sum over the parts that readers see, so it does not depend on their order. It is by part since fields of
one item end at different fold times in different regions; what has an end is left out. Regions that know the same effects have
the same one; anything else is a bug, or damage.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from onefold.available import regions
from onefold.available.kinds import places
from onefold.available.kinds.cells import Register
from onefold.available.kinds.row import Row, encode
from onefold.available.kinds.shares import Shares
from onefold.available.ops import Natural
from onefold.available.stamps import Dot, Hlc
from onefold.fold.api import Context, Store, StoreView

ROWS: Final = "ap/c/"
"""Each collection is a table below this, by generation and place: row key -> row. Keeps history."""
NAMES: Final = "ap/names/"
"""By generation: name -> the places that have it. Keeps history."""
SHOWN: Final = "ap/shown"
"""``b""`` -> ``Shown``: the generation that readers see. Keeps history, so that what is read at an earlier offset is found."""
OUT: Final = "ap/out"
"""(origin, seq) -> chain digest up to it, effect."""
CONFLICTS: Final = "ap/conflicts"
"""Number -> ``Conflict``."""

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
    write: bytes = b""
    """Of what nobody took of an evicted region: the write, see ``effects.decode_write``. Then ``dropped`` is its value, if it is
    one of a register or a keep-both map, and ``kept`` what was here when it was listed (dot 0, 0: nothing)."""


class Requested(msgspec.Struct, frozen=True, array_like=True):
    """What an effect with a request id was."""

    origin: int
    seq: int
    hlc: Hlc
    until_ms: Natural
    results: tuple[Any, ...] = ()


class Shown(msgspec.Struct, frozen=True, array_like=True):
    """Which generation readers see."""

    generation: int = 0
    before: int = 0
    """The one until then."""


class Tables(NamedTuple):
    """Where one generation of a region's rows stands. A full sync makes the next one next to that which readers see."""

    rows: str
    """The collections' tables are below this."""
    names: str
    due: str
    """(ends_ms, place, row key) -> nothing."""
    gone: str
    """(region, seq, place, row key) -> nothing: something in that row is dropped once all know that dot."""
    requests: str
    """Request id -> ``Requested``."""
    requests_due: str
    """(until_ms, request id) -> nothing."""
    staged: str
    """(place, row key) -> the other region's row, or request, as it came."""
    later: str
    """What a full sync leaves to be done after its switch: (place, row key) of bounded counters with wishes -> nothing, and (no
    place, request id and dots) -> ``Conflict``."""


@lru_cache(maxsize=64)
def tables_of(generation: int) -> Tables:
    """Those of a generation."""
    kinds = ("due", "gone", "requests", "requests_due", "staged", "later")
    return Tables(
        f"{ROWS}{generation}/", f"{NAMES}{generation}", *(f"ap/{kind}/{generation}" for kind in kinds)
    )


names_decoder = msgspec.msgpack.Decoder(list[str])
conflict_decoder = msgspec.msgpack.Decoder(Conflict)
requested_decoder = msgspec.msgpack.Decoder(Requested)
_shown_decoder = msgspec.msgpack.Decoder(Shown)


def read_shown(view: StoreView) -> Shown:
    """What readers of the view see."""
    return decode_shown(view.get(SHOWN, b""))


def decode_shown(data: bytes | None) -> Shown:
    """What stands in ``SHOWN``."""
    return _FIRST if data is None else _shown_decoder.decode(data)


def shown_tables(view: StoreView) -> Tables:
    """The tables that readers of the view see."""
    return tables_of(read_shown(view).generation)


_FIRST: Final = Shown()


def table_of(view: StoreView, place: str) -> str:
    """The table of a collection that readers of the view see. After a full sync it is another one."""
    return shown_tables(view).rows + place


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
    """The place and the key in a key of ``Tables.due``."""
    return read_row_key(data[_TIME.size :])


def gone_row(data: bytes) -> tuple[str, bytes]:
    """The place and the key in a key of ``Tables.gone``."""
    return read_row_key(data[_DOT.size :])


def load_row(store: StoreView, place: str, key: bytes) -> Row:
    """The row as it is in the store."""
    return places.read_row(place, store.get(table_of(store, place), key))


def all_places(store: StoreView) -> list[str]:
    """The places of all collections."""
    names = store.scan(shown_tables(store).names)
    return sorted({place for _, data in names for place in names_decoder.decode(data)})


class Read:
    """A row that was read."""

    __slots__ = ("before", "data", "now")

    def __init__(self, before: Row, now: Row, data: bytes | None) -> None:
        self.before = before
        self.now = now
        """As the operation has left it."""
        self.data = data
        """As it is in the store."""


Change = tuple[str, bytes, Row, bytes | None, Row]
"""Place, key, the row before, its bytes, and the row after."""


class Tally(Protocol):
    """What is counted over the rows of one generation: of the one that readers see in ``Known``, of the next one in ``Sync``."""

    content: bytes
    gone_rows: int
    gone_bytes: int


class Working:
    """One operation at work: the row of the region, and the rows of collections that it has read or changed."""

    def __init__(self, store: Store, context: Context) -> None:
        self.store = store
        self.context = context
        self.me = regions.read_self(store)
        self.shares: dict[tuple[str, bytes], None] = {}
        """Rows of bounded counters that were changed: perhaps a wish can be met."""
        self.conflicts: list[Conflict] = []
        self.now_ms = context.now_ms
        """Fold time."""
        self.kept: list[tuple[bytes, bytes]] = []
        """Effects that are about to be kept for others: rows of ``OUT``."""
        self._rows: dict[tuple[str, bytes], Read] = {}
        self._places: set[str] = set()
        self._prefixes: dict[str, bytes] = {}

    @property
    def tables(self) -> Tables:
        """Those that readers see."""
        return tables_of(self.me.shown)

    @property
    def joining(self) -> regions.Sync | None:
        """A full sync whose rows are being joined: all that is written is joined there too, so that nothing is lost."""
        sync = self.me.sync
        return sync if sync is not None and sync.joining else None

    def row(self, place: str, key: bytes) -> Row:
        """A row as this operation has left it; an empty one where there is none."""
        found = self._rows.get((place, key))
        if found is None:
            data = self.store.get(self.tables.rows + place, key)
            row = places.read_row(place, data)
            found = self._rows[place, key] = Read(row, row, data)
        return found.now

    def size(self, place: str, key: bytes) -> int:
        """How long a row that was read was, with its key; 0: it was not there."""
        data = self._rows[place, key].data
        return 0 if data is None else len(key) + len(data)

    def fetch(self, wanted: Iterable[tuple[str, bytes]]) -> None:
        """Read many rows at once, which are about to be asked for."""
        keys: dict[str, dict[bytes, None]] = {}
        for at in wanted:
            if at not in self._rows:
                keys.setdefault(at[0], {})[at[1]] = None
        for place, some in keys.items():
            found, empty = self.store.get_many(self.tables.rows + place, some), places.empty(place)
            for key in some:
                data = found.get(key)
                row = empty if data is None else places.read_row(place, data)
                self._rows[place, key] = Read(row, row, data)

    def forget(self) -> None:
        """Forget what was read: readers see another generation from here on. Nothing of it was changed."""
        self._rows.clear()

    def set_row(self, place: str, key: bytes, row: Row) -> None:
        """Change a row that was read."""
        self._rows[place, key].now = row
        if place[0] == places.BOUNDED:
            self.shares[place, key] = None

    def keys(self, place: str, start: bytes, stop: bytes | None) -> Iterator[bytes]:
        """The keys of all rows in a range, those that this operation has made too."""
        found = {key for key, _ in self.store.scan(self.tables.rows + place, start, stop)}
        found |= {
            key for at, key in self._rows if at == place and key >= start and (stop is None or key < stop)
        }
        yield from sorted(found)

    def places_of(self, name: str) -> list[str]:
        """Where there are collections of this name."""
        data = self.store.get(self.tables.names, name.encode())
        return [] if data is None else names_decoder.decode(data)

    def note_place(self, place: str) -> None:
        """There is a collection."""
        if place in self._places:
            return
        self._places.add(place)
        self._note_place(self.tables, place)
        if (sync := self.joining) is not None:
            self._note_place(tables_of(sync.generation), place)

    def _note_place(self, tables: Tables, place: str) -> None:
        name = places.split_place(place)[1].encode()
        data = self.store.get(tables.names, name)
        known = [] if data is None else names_decoder.decode(data)
        if place not in known:
            self.store.put(tables.names, name, encode(sorted([*known, place])))

    def write_rows(self, stable: Mapping[int, int]) -> None:
        """Bring the changed rows into the store, with what is derived from them. Without what is gone and ``stable``."""
        changes = [
            (*at, read.before, read.data, self._settled(read.now, stable))
            for at, read in self._rows.items()
            if read.now is not read.before
        ]
        if changes:
            self._write_all(self.tables, self.me, changes)
            if self.joining is not None:
                self.join({(place, key): after for place, key, _, _, after in changes}, stable)
        self._rows.clear()

    def join(self, rows: Mapping[tuple[str, bytes], Row], stable: Mapping[int, int]) -> None:
        """Write what these rows of this region become in the next generation, together with those of the other region.

        A pure function of both, and of what both regions know. So it may be done again whenever this region's row has changed.
        """
        sync, store = self.me.sync, self.store
        if sync is None:
            return
        mine, theirs = self.me.joined_vectors()
        tables = tables_of(sync.generation)
        keys: dict[str, list[bytes]] = {}
        for place, key in rows:
            keys.setdefault(place, []).append(key)
        changes: list[Change] = []
        for place, some in keys.items():
            self._note_place(tables, place)
            prefix = self._prefix(place)
            staged = store.get_many(tables.staged, [prefix + key for key in some])
            found = store.get_many(tables.rows + place, some)
            for key in some:
                other = places.read_row(place, staged.get(prefix + key))
                after = self._settled(rows[place, key].joined(other, mine, theirs), stable)
                if isinstance(after, Shares) and after.wishes(self.now_ms):
                    store.put(tables.later, row_key(place, key), b"")
                data = found.get(key)
                before = places.read_row(place, data)
                if before != after:
                    changes.append((place, key, before, data, after))
        self._write_all(tables, sync, changes)

    def _settled(self, row: Row, stable: Mapping[int, int]) -> Row:
        end = row.ends_ms()
        if end is not None and end <= self.now_ms:
            row = row.expired(self.now_ms)  # it came in too late to be seen
        return row.collected(stable)  # type: ignore[no-any-return]

    def _write_all(self, tables: Tables, tally: Tally, changes: Iterable[Change]) -> None:
        """Write rows of a generation, and what is derived from them."""
        content = int.from_bytes(tally.content)
        found: defaultdict[str, list[tuple[bytes, bytes]]] = defaultdict(list)
        for place, key, before, old, after in changes:
            new = None if after.is_empty() else encode(after)
            if new is not None:
                found[place].append((key, new))
                if old is None and type(after) is Register and after.is_live() and after.ends_ms() is None:
                    content += part_hash(self._prefix(place) + key, new)  # nothing else is derived from it
                    continue
            elif old is not None:
                self.store.delete(tables.rows + place, key)
            content += self._derive(tables, tally, (place, key, before, old, after), new)
        for place, items in found.items():
            self.store.put_many(tables.rows + place, items)
        tally.content = (content & _HASH_MASK).to_bytes(_HASH_BYTES)

    def _derive(self, tables: Tables, tally: Tally, change: Change, new: bytes | None) -> int:
        """Write what is derived from a row. By how much the content hash changes."""
        place, key, before, old, after = change
        at = self._prefix(place) + key
        ended: int | None = None
        waited: Dot | None = None
        was: Collection[bytes] = ()
        now: Collection[bytes] = ()
        if old is not None:
            if not before.is_live():
                tally.gone_bytes -= len(key) + len(old)
            ended, waited, was = before.ends_ms(), before.waits(), before.parts(old)
        end, waits = after.ends_ms(), after.waits()
        if new is not None:
            if not after.is_live():
                tally.gone_bytes += len(key) + len(new)
            now = after.parts(new)
        if ended != end:
            if ended is not None:
                self.store.delete(tables.due, number_key(ended) + at)
            if end is not None:
                self.store.put(tables.due, number_key(end) + at, b"")
        if waited != waits:
            tally.gone_rows += (waits is not None) - (waited is not None)
            if waited is not None:
                self.store.delete(tables.gone, out_key(*waited) + at)
            if waits is not None:
                self.store.put(tables.gone, out_key(*waits) + at, b"")
        if not was:
            return sum([part_hash(at, part) for part in now])
        here, there = set(was), set(now)
        return sum([part_hash(at, part) for part in there - here]) - sum(
            [part_hash(at, part) for part in here - there]
        )

    def _prefix(self, place: str) -> bytes:
        found = self._prefixes.get(place)
        if found is None:
            found = self._prefixes[place] = row_key(place, b"")
        return found

    def save(self) -> None:
        """Write the region's own row."""
        self.store.put(regions.SELF, b"", regions.encode_self(self.me))


def part_hash(prefix: bytes, part: bytes) -> int:
    """What a part of a row adds to the content hash."""
    data = _LENGTH.pack(len(prefix) & 0xFFFF) + prefix + part
    return int.from_bytes(blake2b(data, digest_size=_HASH_BYTES).digest())
