"""The operations of a full sync, as they come: see the package."""

from __future__ import annotations

from typing import Final

import msgspec

from onefold.available.imports import is_ahead
from onefold.available.kinds import places
from onefold.available.ops import MORE, SYNC_ROWS_MAX, Answer, Rejected, SyncBegin, SyncEnd, SyncRows
from onefold.available.regions import Origin, Sync
from onefold.available.rows import Working, requested_decoder, row_key, tables_of
from onefold.available.stamps import Number
from onefold.available.sync.joining import join_some, switch

_origins: Final = msgspec.msgpack.Decoder(dict[Number, Origin])


def begin(work: Working, op: SyncBegin) -> Answer | Rejected:
    """Begin. What an earlier one has brought is dropped."""
    me = work.me
    origins = _decoded(op.origins)
    if origins is None:
        return Rejected("malformed", "origins")
    sync = Sync(op.id, op.source, op.hlc, origins, 0)
    refused = _refused(work, sync)
    if refused is not None:
        return refused
    me.drop_sync()
    have = me.have()
    needed = any(origin.seq > have.get(number, 0) for number, origin in origins.items())
    if needed:
        sync.generation = me.free_generation()
        me.sync = sync
    return Answer(needed)


def rows(work: Working, op: SyncRows) -> Answer | Rejected:
    """Stage some rows."""
    sync = work.me.sync
    if sync is None or sync.id != op.id or sync.joining:
        return Answer(False)
    if len(op.rows) > SYNC_ROWS_MAX:
        return Rejected("too_large", "rows")
    found: dict[bytes, bytes] = {}
    for place, key, data in op.rows:
        if place and not places.is_place(place):
            return Rejected("malformed", place[:100])
        try:
            if place:
                places.read_row(place, data)
            else:
                requested_decoder.decode(data)
        except (msgspec.MsgspecError, ValueError):
            return Rejected("malformed", place, key)
        found[row_key(place, key)] = data
    table = tables_of(sync.generation).staged
    sync.staged += len(found) - len(work.store.get_many(table, found))
    work.store.put_many(table, found.items())
    return Answer(True)


def end(work: Working, op: SyncEnd) -> Answer | Rejected:
    """All rows are here: join some more of them, and in the end know what the other region knew."""
    sync = work.me.sync
    if sync is None or sync.id != op.id or sync.staged != op.rows:
        return Answer(False)
    refused = _refused(work, sync)
    if refused is not None:
        return refused
    sync.joining = True
    if not join_some(work, sync) or work.me.later:
        return Answer(MORE)
    switch(work, sync)
    return Answer(True)


def _decoded(data: bytes) -> dict[int, Origin] | None:
    try:
        return _origins.decode(data)
    except (msgspec.MsgspecError, ValueError):
        return None


def _refused(work: Working, sync: Sync) -> Rejected | None:
    """Whether the other region is evicted, or knows what cannot be: own effects that are not here, or others in their place.

    What it knows of evicted regions is taken: it has a vote, and its vote is not below that."""
    me = work.me
    if not me.number:
        return Rejected("no_region")
    region = me.regions.get(sync.source)
    if region is None or region.round:
        return Rejected("unknown_region" if region is None else "evicted", here=sync.source)
    if is_ahead(work, region, sync.hlc):
        return Rejected("held", here=sync.source)
    for number, origin in sync.origins.items():
        known = me.origins.get(number, Origin())
        if number == me.number and origin.seq > known.seq:
            return Rejected("diverged", here=number)
        if origin.seq == known.seq and origin.chain != known.chain:
            return Rejected("diverged", here=number)
    return None
