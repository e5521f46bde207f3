"""A full sync: the rows of another region, joined with those that are here.

For a region that is new, or was away for so long that effects it lacks are not kept any more. The rows are those of one offset of
the other region's log, where it knew the vector V. They are staged next to the own ones, of which readers see the old state
until one operation joins and switches all. A row, or a part of one, that only one side has is taken or kept if the other side
cannot know its effect yet; else the other side has removed it. A union would bring back what was deleted.

What had ended in the other region is missing in its rows, so it ends here too: early, if that region's clock is ahead, by no more
than effects may be.
"""

from __future__ import annotations

import struct

import msgspec

from onefold.available.imports import is_ahead
from onefold.available.kinds import places
from onefold.available.ops import Answer, Rejected, SyncBegin, SyncEnd, SyncRows
from onefold.available.out import drop_all, keep_request
from onefold.available.regions import Origin
from onefold.available.rows import ROWS, SYNC, Working, all_places, read_row_key, requested_decoder, row_key

_origins = msgspec.msgpack.Decoder(dict[int, Origin])
_begin = msgspec.msgpack.Decoder(SyncBegin)
_encode = msgspec.msgpack.Encoder().encode
_COUNT = struct.Struct(">Q")
_HEAD = b"\x00"
_ROW = b"\x01"
_CHUNK = 1000


def begin(work: Working, op: SyncBegin) -> Answer | Rejected:
    """Forget what an earlier one has staged."""
    origins = _decoded(op)
    if origins is None:
        return Rejected("malformed", "origins")
    refused = _refused(work, op, origins)
    if refused is not None:
        return refused
    have = work.me.have()
    needed = any(origin.seq > have.get(number, 0) for number, origin in origins.items())
    work.store.delete_range(SYNC, b"", None)
    if needed:
        work.store.put(SYNC, _HEAD, _COUNT.pack(0) + _encode(op))
    return Answer(needed)


def rows(work: Working, op: SyncRows) -> Answer | Rejected:
    """Stage some rows."""
    staged = _staged(work, op.id)
    if staged is None:
        return Answer(False)
    count, head = staged
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
    for place, key, data in op.rows:
        at = _ROW + row_key(place, key)
        count += work.store.get(SYNC, at) is None
        work.store.put(SYNC, at, data)
    work.store.put(SYNC, _HEAD, _COUNT.pack(count) + _encode(head))
    return Answer(True)


def end(work: Working, op: SyncEnd) -> Answer | Rejected:
    """Join everything, and know what the other region knew."""
    staged = _staged(work, op.id)
    if staged is None or staged[0] != op.rows:
        return Answer(False)
    head = staged[1]
    origins = _decoded(head) or {}
    refused = _refused(work, head, origins)
    if refused is not None:
        return refused
    me = work.me
    mine, theirs = me.have(), {number: origin.seq for number, origin in origins.items()}
    _join_rows(work, mine, theirs)
    for number, origin in origins.items():
        if origin.seq > mine.get(number, 0):
            drop_all(work, number, origin)
            me.origins[number] = origin
            if number in me.regions:
                me.regions[number].held = 0
    me.hlc = max(me.hlc, head.hlc)
    me.owes = True
    work.store.delete_range(SYNC, b"", None)
    return Answer(True)


def _join_rows(work: Working, mine: dict[int, int], theirs: dict[int, int]) -> None:
    """The staged rows, then those that are only here."""
    start = _ROW
    while page := list(work.store.scan(SYNC, start, limit=_CHUNK)):
        for at, data in page:
            place, key = read_row_key(at[1:])
            if not place:
                keep_request(work, key, requested_decoder.decode(data))
                continue
            work.note_place(place)
            joined = work.row(place, key).joined(places.read_row(place, data), mine, theirs)
            work.set_row(place, key, joined.expired(work.now_ms))
        work.write_rows(work.me.stable())
        start = page[-1][0] + b"\x00"
    for place in all_places(work.store):
        start = b""
        while page := list(work.store.scan(ROWS + place, start, limit=_CHUNK)):
            for key, _ in page:
                if work.store.get(SYNC, _ROW + row_key(place, key)) is None:
                    row = work.row(place, key)
                    work.set_row(place, key, row.joined(places.empty(place), mine, theirs))
            work.write_rows(work.me.stable())
            start = page[-1][0] + b"\x00"


def _staged(work: Working, id: str) -> tuple[int, SyncBegin] | None:
    data = work.store.get(SYNC, _HEAD)
    if data is None:
        return None
    head = _begin.decode(data[_COUNT.size :])
    return (_COUNT.unpack_from(data)[0], head) if head.id == id else None


def _decoded(op: SyncBegin) -> dict[int, Origin] | None:
    try:
        return _origins.decode(op.origins)
    except (msgspec.MsgspecError, ValueError):
        return None


def _refused(work: Working, op: SyncBegin, origins: dict[int, Origin]) -> Rejected | None:
    """Whether the other region is evicted, or knows what cannot be: own effects that are not here, or others in their place.

    What it knows of evicted regions is taken: it has a vote, and its vote is not below that."""
    me = work.me
    if not me.number:
        return Rejected("no_region")
    region = me.regions.get(op.source)
    if region is None or region.round:
        return Rejected("unknown_region" if region is None else "evicted", here=op.source)
    if is_ahead(work, region, op.hlc):
        return Rejected("held", here=op.source)
    for number, origin in origins.items():
        known = me.origins.get(number, Origin())
        if number == me.number and origin.seq > known.seq:
            return Rejected("diverged", here=number)
        if origin.seq == known.seq and origin.chain != known.chain:
            return Rejected("diverged", here=number)
    return None
