"""Session reads of maps from memory, for spaces whose state is read in this process: embedded ones and local replicas.

A session read needs no more than what the session has seen, so it may be answered from a row read before, as long as nothing
that the session has seen since changed it. The cache is *valid at* an offset: every entry is as it was there, or newer. It
answers when that offset is at or above the session's, and it was compared with the space less than
``config.SESSION_CACHE_FRESH_S`` ago. Comparing means: drop the entries that changed beyond the offset, and be valid at the
newest one. So others' writes are seen within that time, one's own at once: every read and write of the client notes its
offset in the session, and thereby outdates the cache.

On a replica that is behind, the newest offset is the newest one *here*, which is all that a session read promises; where the
session has seen more, comparing waits for it. What was read is noted in the session by the offset at which it was loaded: until
the offset that the cache is valid at it has not changed, so the session has seen nothing else.

Only spaces of one shard have a cache: a transaction over several is seen in all of them or in none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

from onefold import config
from onefold.errors import InvalidArgument, InvalidKey, TooOld
from onefold.shard.api import View
from onefold.state.core.client import StateClient
from onefold.state.core.consistency import SESSION
from onefold.state.core.shards_client import ShardsClient
from onefold.state.encoding.keys import decode_key
from onefold.state.fold.rows import Row, map_table, read_row
from onefold.state.maps import reading as map_reading
from onefold.store.paged_view import Version

R = TypeVar("R", bound="Cached")
R_co = TypeVar("R_co", bound="Cached", covariant=True)


class Cached(Protocol):
    """An item as a handle reads it."""

    @property
    def expires_ms(self) -> int | None:
        """When it ends, or the first part of it."""
        ...


class Miss:
    """Stands for: not in the cache."""

    expires_ms = None


MISS: Final = Miss()
_MAPS_COMPARED_MAX = 32
_ENTRY_BYTES = 200
_NAME = "map_cache"


class Source(Protocol[R_co]):
    """Where rows come from. Maps are called by any text of their own."""

    @property
    def client(self) -> ShardsClient: ...

    def peek(self, name: str, key: bytes) -> tuple[bytes | None, int]:
        """One row as a session read sees it, and the offset that it is of."""
        ...

    def read(self, name: str, data: bytes) -> R_co | None:
        """The row in these bytes; None: nothing is there."""
        ...

    def ended(self, name: str, key: bytes) -> R_co | None:
        """The row of an item whose time is over, read again when that is done."""
        ...

    def changes(self, view: View, name: str, after: int, limit: int) -> Sequence[Version]:
        """What changed beyond an offset. Raises TooOld, InvalidArgument."""
        ...


class StateSource:
    """Consistent maps, by their names."""

    def __init__(self, client: StateClient) -> None:
        self.client = client

    def peek(self, name: str, key: bytes) -> tuple[bytes | None, int]:
        return self.client.peek_with_offset(0, map_table(name), key, SESSION)

    def read(self, name: str, data: bytes) -> Row | None:  # noqa: ARG002
        return read_row(data)

    def ended(self, name: str, key: bytes) -> Row | None:
        return map_reading.read_item(self.client, map_table(name), key, SESSION)

    def changes(self, view: View, name: str, after: int, limit: int) -> Sequence[Version]:
        return view.changes(map_table(name), after, limit=limit)


class Slot(dict[Hashable, Any]):
    """The cached rows of one map, None for keys that are not there. A key that is a str is itself, others are encoded."""

    __slots__ = ("__weakref__",)


def cache_of(client: ShardsClient, source: Callable[[], Source[R]]) -> SessionCache[R] | None:
    """The cache that all maps of the client share, over a source; None where there is none."""
    if client.shard_count > 1 or not (client.always_strong or client.shards[0].reads_here):
        return None
    cache = client.shared.get(_NAME)
    if cache is None:
        cache = client.shared.setdefault(_NAME, SessionCache(source()))
    return cache if isinstance(cache, SessionCache) else None


class SessionCache(Generic[R]):
    """Thread-safe. Readers take no lock: they look at the offset first and at the entry second, writers change them in the other
    order, so what is read is at least as new as the offset that was looked at."""

    def __init__(self, source: Source[R]) -> None:
        self._source = source
        self._client = client = source.client
        self._shard = shard = client.shards[0]
        self._check = shard.check_usable
        self._floor = client.session.floor
        self._boot_s = client.env.boot_s
        self._lock = threading.Lock()
        self._state = (-1, 0.0)
        """The offset that the entries are valid at, and until when that is believed."""
        self._slots: WeakValueDictionary[str, Slot] = WeakValueDictionary()
        self._entries = 0
        self._bytes = 0
        """How much was put in since it was last empty."""

    def slot(self, name: str) -> Slot:
        """The rows of a map."""
        with self._lock:
            slot = self._slots.get(name)
            if slot is None:
                slot = self._slots[name] = Slot()
            return slot

    def lookup(self, slot: Slot, key: Hashable) -> R | Miss | None:
        """The row, None when the cache knows that there is none, or MISS. Raises what says that the space is closed or has
        halted, and as ``StateClient.view``."""
        self._check()
        valid, until_s = self._state
        if valid < self._floor(0) or self._boot_s() >= until_s:
            if key not in slot:
                return MISS
            self._compare()
        row: R | Miss | None = slot.get(key, MISS)
        if row is None or row.expires_ms is None or row.expires_ms > self._client.env.wall_ms():
            return row
        return MISS

    def load(self, name: str, slot: Slot, key: Hashable, encoded: bytes) -> R | None:
        """Read the row from the space and keep it."""
        source = self._source
        now_s = self._boot_s()
        data, offset = source.peek(name, encoded)
        row = None if data is None else source.read(name, data)
        ends_ms = None if row is None else row.expires_ms
        if ends_ms is not None and ends_ms <= self._client.env.wall_ms():
            return source.ended(name, encoded)
        size = len(data or b"")
        if size <= config.SESSION_CACHE_ROW_BYTES_MAX:
            self._keep(slot, key, row, size + len(encoded) + _ENTRY_BYTES, offset, now_s)
        return row

    def _keep(self, slot: Slot, key: Hashable, row: R | None, size: int, offset: int, now_s: float) -> None:
        with self._lock:
            if offset < self._state[0]:
                return  # the cache has moved on: whether this changed since is no longer looked at
            if (
                self._entries >= config.SESSION_CACHE_ENTRIES_MAX
                or self._bytes + size > config.SESSION_CACHE_BYTES_MAX
            ):
                self._clear()
            if self._entries == 0:
                self._state = (offset, now_s + config.SESSION_CACHE_FRESH_S)
            slot[key] = row
            self._entries += 1
            self._bytes += size

    def _compare(self) -> None:
        """Make the cache valid at the newest offset."""
        now_s = self._boot_s()
        with self._client.view(0, SESSION) as view, self._lock:
            valid, until_s = self._state
            if view.offset < valid or (valid >= self._floor(0) and self._boot_s() < until_s):
                return  # another thread was faster, and has seen at least as much
            if view.offset != valid:
                self._drop_changed(view, valid)
            self._state = (view.offset, now_s + config.SESSION_CACHE_FRESH_S)

    def _drop_changed(self, view: View, valid: int) -> None:
        slots = [(name, slot) for name, slot in list(self._slots.items()) if slot]
        if valid < 0 or len(slots) > _MAPS_COMPARED_MAX:
            self._clear()
            return
        for name, slot in slots:
            try:
                changes = self._source.changes(view, name, valid, config.SESSION_CACHE_CHANGES_MAX)
            except (TooOld, InvalidArgument):  # too long ago, or the space was replaced by an older one
                slot.clear()
                continue
            if len(changes) == config.SESSION_CACHE_CHANGES_MAX:
                slot.clear()
                continue
            for change in changes:
                slot.pop(change.key, None)
                slot.pop(_as_str(change.key), None)

    def _clear(self) -> None:
        for slot in list(self._slots.values()):
            slot.clear()
        self._entries = self._bytes = 0


def _as_str(encoded: bytes) -> Hashable:
    """The key as the slot knows it when it is a str."""
    try:
        key = decode_key(encoded)
    except InvalidKey:
        return None
    return key if type(key) is str else None
