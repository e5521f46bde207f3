"""Rows of two regions joined, some in each record, and the switch to them: see the package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from onefold.available.kinds import places
from onefold.available.kinds.row import Row, encode
from onefold.available.out import join_request, pass_over
from onefold.available.regions import Sync
from onefold.available.rows import (
    SHOWN,
    Shown,
    Working,
    names_decoder,
    read_row_key,
    requested_decoder,
    row_key,
    tables_of,
)

JOINED_ROWS_MAX: Final = 1000
"""So many rows are joined in one record ..."""
JOINED_BYTES_MAX: Final = 1_000_000
"""... or as many as have this many bytes."""

Found = tuple[bytes, str, bytes, bytes]
"""Where to continue behind it, place, key, data."""


def join_some(work: Working, sync: Sync) -> bool:
    """Join the next rows, up to a bound. Whether that was all."""
    size = 0
    here: dict[tuple[str, bytes], Row] = {}
    for rows, (behind, place, key, data) in enumerate(_next(work, sync), 1):
        sync.after = behind
        size += len(behind) + len(data)
        if place:
            here[place, key] = work.row(place, key)
            size += work.size(place, key)
        elif data:
            join_request(work, sync, key, requested_decoder.decode(data))
        if rows >= JOINED_ROWS_MAX or size >= JOINED_BYTES_MAX:
            break
    work.join(here, work.me.stable())
    return sync.part == len(_PARTS)


def _next(work: Working, sync: Sync) -> Iterator[Found]:
    """All that is left to be joined."""
    while sync.part < len(_PARTS):
        yield from _PARTS[sync.part](work, sync)
        sync.part += 1
        sync.after = b""


def _staged(work: Working, sync: Sync) -> Iterator[Found]:
    """What has come."""
    for at, data in work.store.scan(tables_of(sync.generation).staged, sync.after):
        yield at + b"\x00", *read_row_key(at), data


def _here(work: Working, sync: Sync) -> Iterator[Found]:
    """Rows that have not come. In order of the names, so that what is made meanwhile is met, or was joined when it was made."""
    store, tables, staged = work.store, work.tables, tables_of(sync.generation).staged
    place, start = read_row_key(sync.after) if sync.after else ("", b"")
    name = places.split_place(place)[1].encode() if place else b""
    for at, data in store.scan(tables.names, name):
        for one in names_decoder.decode(data):
            if at == name and one < place:
                continue
            if one != place:
                start = b""
                work.note_place(one)
                yield row_key(one, b""), "", b"", b""  # counts, since there may be many without rows
            for key, row in store.scan(tables.rows + one, start):
                behind = row_key(one, key + b"\x00")
                if store.get(staged, row_key(one, key)) is None:
                    yield behind, one, key, row
                else:
                    yield behind, "", b"", b""


def _requests(work: Working, sync: Sync) -> Iterator[Found]:
    """Requests that are known here."""
    for id, data in work.store.scan(work.tables.requests, sync.after):
        yield id + b"\x00", "", id, data


_PARTS: Final[tuple[Callable[[Working, Sync], Iterator[Found]], ...]] = (_staged, _here, _requests)


def switch(work: Working, sync: Sync) -> None:
    """Readers see the joined rows from here on, and what the other region knew is known."""
    me = work.me
    work.store.put(SHOWN, b"", encode(Shown(sync.generation, me.shown)))
    me.cleared.append(me.shown)
    work.forget()
    me.shown, me.switched = sync.generation, work.context.offset
    me.content, me.gone_rows, me.gone_bytes = sync.content, sync.gone_rows, sync.gone_bytes
    me.collected = {}
    have = me.have()
    for number, origin in sync.origins.items():
        if origin.seq > have.get(number, 0):
            pass_over(work, number, origin)
            me.origins[number] = origin
            if number in me.regions:
                me.regions[number].held = 0
    me.hlc = max(me.hlc, sync.hlc)
    me.owes = me.later = me.staged = True
    me.sync = None
