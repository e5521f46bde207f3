"""Maps in the state fold: what each write does, and what ends by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from onefold import config
from onefold.fold.api import NEVER, Context, Store, StoreView
from onefold.state.encoding import values
from onefold.state.fold import lock_table, rows
from onefold.state.fold.kind import Kind
from onefold.state.fold.maps.ops import Clear, Delete, Increment, MapWrite, Put
from onefold.state.fold.outcomes import Rejected


def refusal(store: StoreView, write: MapWrite) -> Rejected | None:
    """Why the write cannot be done, if so. Looked at before any write of the same operation is done."""
    if len(write.map.encode()) > config.NAME_BYTES_MAX:
        return Rejected("malformed", write.map[:100])
    if isinstance(write, Increment):
        found = store.get(rows.map_table(write.map), write.key)
        if _added(None if found is None else rows.read_row(found).value, write.by) is None:
            return Rejected("not_a_number", write.map, write.key)
    return None


def apply(store: Store, context: Context, write: MapWrite) -> object:
    """Do the write; its result."""
    match write:
        case Put():
            _put(store, context, write)
            return None
        case Delete():
            return _delete(store, write)
        case Clear():
            store.delete_range(rows.map_table(write.map), write.start, write.stop)
            return None
        case Increment():
            return _increment(store, context, write)


def want(found: lock_table.Wants, write: MapWrite) -> None:
    """The locks that the write calls for. Increments lock like other writes although they commute: each answers with the new
    value, and so reads."""
    place = lock_table.map_place(write.map)
    match write:
        case Put():
            for key, _ in write.items:
                lock_table.want_key(found, place, key, lock_table.EXCLUSIVE)
        case Delete():
            for key in write.keys:
                lock_table.want_key(found, place, key, lock_table.EXCLUSIVE)
        case Clear():
            found.ranges.append((place, write.start, write.stop, lock_table.EXCLUSIVE))
        case Increment():
            lock_table.want_key(found, place, write.key, lock_table.EXCLUSIVE)


def expire(store: Store, context: Context) -> int:
    """Remove what fold time has reached, oldest first, up to a bound for each record. When there is something to do next."""
    first = store.first(rows.DUE)
    if first is None:
        return NEVER
    stop = rows.due_before(context.now_ms)
    if first >= stop:
        return rows.due_at(first)
    due = list(store.scan(rows.DUE, stop=stop, limit=config.EXPIRATIONS_PER_RECORD_MAX))
    any_locks = bool(due) and lock_table.is_any_held(store)
    locked: list[tuple[bytes, bytes]] = []
    for entry, nothing in due:
        expires_ms, name, key = rows.read_due_key(entry)
        if any_locks and lock_table.is_held(store, name, key):
            # A prepared transaction has read it or will write it: it stays as it is and ends at a later record.
            locked.append((entry, nothing))
            continue
        table = rows.map_table(name)
        found = store.get(table, key)
        # The item may have been rewritten since: its entry then stands for nothing.
        if found is not None and rows.read_row(found).expires_ms == expires_ms:
            store.delete(table, key)
    if due:
        store.delete_range(rows.DUE, b"", due[-1][0] + b"\x00")
    if locked:
        store.put_many(rows.DUE, locked)
    return context.now_ms  # perhaps there was more of it than one record removes


def _put(store: Store, context: Context, write: Put) -> None:
    expires_ms = None if write.ttl_ms is None else rows.ends_at(context.now_ms, write.ttl_ms)
    head = rows.row_head(context.offset, context.index, expires_ms)
    table = rows.map_table(write.map)
    if expires_ms is not None:
        # What is renewed again and again would else leave an entry each time, until all those times have come.
        _forget_due(store, write.map, store.get_many(table, [key for key, _ in write.items]))
    if len(write.items) == 1:
        key, value = write.items[0]
        store.put(table, key, head + value)
    else:
        store.put_many(table, [(key, head + value) for key, value in write.items])
    if expires_ms is not None:
        store.put_many(rows.DUE, [(rows.due_key(expires_ms, write.map, key), b"") for key, _ in write.items])


def _delete(store: Store, write: Delete) -> int:
    table = rows.map_table(write.map)
    found = store.get_many(table, write.keys)
    for key in found:
        store.delete(table, key)
    _forget_due(store, write.map, found)
    return len(found)


def _forget_due(store: Store, name: str, found: Mapping[bytes, bytes]) -> None:
    """These rows of a map are about to go, and with them the times at which they would have ended."""
    for key, data in found.items():
        expires_ms = rows.read_row(data).expires_ms
        if expires_ms is not None:
            store.delete(rows.DUE, rows.due_key(expires_ms, name, key))


def _increment(store: Store, context: Context, write: Increment) -> bytes | None:
    table = rows.map_table(write.map)
    found = store.get(table, write.key)
    row = None if found is None else rows.read_row(found)
    added = _added(None if row is None else row.value, write.by)
    if added is None:
        return None  # an earlier write of the same operation made it no number; clients merge such writes
    expires_ms = rows.ends_at(context.now_ms, write.ttl_ms) if row is None else row.expires_ms
    store.put(table, write.key, rows.row_head(context.offset, context.index, expires_ms) + added)
    if row is None and expires_ms is not None:
        store.put(rows.DUE, rows.due_key(expires_ms, write.map, write.key), b"")
    return added


def _added(old: bytes | None, by: bytes) -> bytes | None:
    number = values.decode_number(by)
    added = None if number is None else values.add(old, number)
    return None if added is None else added[0]


KIND = Kind(
    writes=get_args(MapWrite),
    refusal=refusal,
    apply=apply,
    want=want,
    advance=expire,
    history=frozenset({rows.MAPS}),
)
