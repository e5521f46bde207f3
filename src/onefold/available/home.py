"""From requests to an effect: what a region's own programs ask for, checked against the region's state.

All requests of a ``Do`` are checked before the first of them is done, so a rejected one writes nothing.
"""

from __future__ import annotations

from collections import Counter as Tally
from typing import Any, cast

from onefold import config
from onefold.available import ops
from onefold.available.applying import Source, apply_write
from onefold.available.effects import (
    AnyWrite,
    Count,
    Mark,
    MarkNone,
    Send,
    SetCell,
    SetFields,
    Spend,
    Uncount,
    Want,
)
from onefold.available.kinds import places
from onefold.available.kinds.cells import Cells
from onefold.available.kinds.counts import Counter
from onefold.available.kinds.places import place_of
from onefold.available.kinds.shares import Shares
from onefold.available.ops import INT_MAX, AnyRequest, Committed, Do, Rejected
from onefold.available.out import finish, next_source
from onefold.available.reading import signature
from onefold.available.rows import Working, requested_decoder
from onefold.available.stamps import covers
from onefold.errors import TooOld

_ENDS_MAX = (1 << 62) - 1


def do(work: Working, op: Do) -> Committed | Rejected:
    """The one effect of these requests."""
    me = work.me
    if not me.number:
        return Rejected("no_region")
    if me.retired:
        return Rejected("evicted")
    if not me.writing:
        return Rejected("not_admitted")
    known = _requested(work)
    if known is not None:
        return known
    refused = _behind(work, op) or _changed(work, op) or refusal(work, op.requests)
    if refused is not None:
        return refused
    source = next_source(work, op.hlc)
    writes: list[AnyWrite] = []
    results: list[Any] = []
    for request in op.requests:
        made, result = _REQUESTS[type(request)](work, source, request)
        results.append(result)
        writes += made
    finish(work, source, tuple(writes), work.context.request_id, tuple(results))
    return Committed(source.origin, source.seq, source.hlc, tuple(results))


def _requested(work: Working) -> Committed | None:
    """The same request was done, here or in another region."""
    if work.context.request_id is None:
        return None
    data = work.store.get(work.tables.requests, work.context.request_id.encode())
    if data is None:
        return None
    kept = requested_decoder.decode(data)
    return Committed(kept.origin, kept.seq, kept.hlc, kept.results)


def _behind(work: Working, op: Do) -> Rejected | None:
    if not op.session:
        return None
    have = work.me.have()
    if covers(have, op.session):
        return None
    missing = next(number for number, seq in op.session.items() if have.get(number, 0) < seq)
    return Rejected("behind", here=missing)


def _changed(work: Working, op: Do) -> Rejected | None:
    """Whether something that was read is not as it was read: as a commit of the state fold is validated."""
    for read in op.reads:
        if not places.is_place(read.place):
            return Rejected("malformed", read.place[:100])
        if signature(work.row(read.place, read.key)) != read.seen:
            return Rejected("conflict", read.place, read.key)
    for span in op.spans:
        if not places.is_place(span.place):
            return Rejected("malformed", span.place[:100])
        if span.offset < work.me.switched:
            return Rejected("conflict", span.place, span.start)
        try:
            if work.store.changed_since(work.tables.rows + span.place, span.start, span.stop, span.offset):
                return Rejected("conflict", span.place, span.start)
        except TooOld:
            return Rejected("too_old", span.place, span.start)
        except ValueError:
            return Rejected("malformed", span.place)  # an offset that is not there yet
    return None


def place_of_request(request: AnyRequest) -> str:
    """Where it stands."""
    match request:
        case ops.Put() | ops.Delete():
            return place_of(request.kind, request.name)
        case ops.Replace() | ops.Patch():
            return place_of(places.FIELDS, request.name)
        case ops.Include() | ops.Exclude() | ops.Empty():
            return place_of(places.SET, request.name)
        case ops.Add() | ops.Reset():
            return place_of(places.COUNTER, request.name)
        case ops.Change() | ops.Move() | ops.Wish():
            return place_of(places.BOUNDED, request.name, request.floor)


def refusal(work: Working, requests: tuple[AnyRequest, ...]) -> Rejected | None:
    """Why one of them cannot be done, if so."""
    if not requests or len(requests) > config.TRANSACTION_OPERATIONS_MAX:
        return Rejected("malformed", "requests")
    added: Tally[tuple[str, bytes]] = Tally()
    new: dict[str, str] = {}
    for request in requests:
        place = place_of_request(request)
        if not request.name or len(place.encode()) > config.NAME_BYTES_MAX:
            return Rejected("malformed", place[:100])
        known = work.places_of(request.name) or [new.setdefault(request.name, place)]
        if place not in known:
            return Rejected("other_kind", known[0])
        match request:
            case ops.Reset(_, key):
                added[place + "/reset", key] = 1
            case ops.Add(_, key, by):
                if added[place + "/reset", key]:
                    return Rejected("malformed", "an addition after a reset of the same counter", key)
                added[place, key] += by
                counter = cast(Counter, work.row(place, key))
                part = counter.regions.get(work.me.number)
                if abs((part.total if part else 0) + added[place, key]) > INT_MAX:
                    return Rejected("too_large", place, key)
            case ops.Change(_, _, key, by):
                added[place, key] += by
                refused = _short(work, request, place, added[place, key])
                if refused is not None:
                    return refused
            case ops.Move(_, _, key, to, by):
                if to == work.me.number or to not in work.me.voters():
                    return Rejected("unknown_region", here=to)
                added[place, key] -= by
                refused = _short(work, request, place, added[place, key])
                if refused is not None:
                    return refused
            case _:
                pass
    return None


def _short(work: Working, request: ops.Change | ops.Move, place: str, by: int) -> Rejected | None:
    """Whether more would be taken than this region has a right to. Whatever the value is: others may be taking at this moment."""
    shares = cast(Shares, work.row(place, request.key))
    rights = shares.rights(work.me.number, request.floor, work.me.heirs())
    if by < 0 and rights + by < 0:
        return Rejected("below_floor", place, request.key, shares.value(), rights)
    share = shares.regions.get(work.me.number)
    if abs((share.net if share else 0) + by) > INT_MAX or rights + by > INT_MAX:
        return Rejected("too_large", place, request.key)
    return None


def _ends(work: Working, ttl_ms: int | None) -> int | None:
    return None if ttl_ms is None else min(work.now_ms + ttl_ms, _ENDS_MAX)


Made = tuple[list[AnyWrite], Any]


def _put(work: Working, source: Source, request: ops.Put) -> Made:
    place, ends_ms = place_of_request(request), _ends(work, request.ttl_ms)
    return _applied(work, source, [SetCell(place, key, value, ends_ms) for key, value in request.items], None)


def _replace(work: Working, source: Source, request: ops.Replace) -> Made:
    place = place_of_request(request)
    write = SetFields(place, request.key, 1, request.fields, _ends(work, request.ttl_ms))
    return _applied(work, source, [write], None)


def _patch(work: Working, source: Source, request: ops.Patch) -> Made:
    place = place_of_request(request)
    base = cast(Cells, work.row(place, request.key)).base
    ends_ms = None if base is None or base.value is None else base.ends_ms
    return _applied(work, source, [SetFields(place, request.key, 0, request.fields, ends_ms)], None)


def _delete(work: Working, source: Source, request: ops.Delete) -> Made:
    place = place_of_request(request)
    keys = list(dict.fromkeys(request.keys))
    held = sum(work.row(place, key).is_live() for key in keys)
    if request.kind == places.FIELDS:
        return _applied(work, source, [SetFields(place, key, 2) for key in keys], held)
    return _applied(work, source, [SetCell(place, key, None) for key in keys], held)


def _include(work: Working, source: Source, request: ops.Include) -> Made:
    place, ends_ms = place_of_request(request), _ends(work, request.ttl_ms)
    elements = list(dict.fromkeys(request.elements))
    held = sum(work.row(place, places.joined_key(request.key, element)).is_live() for element in elements)
    writes: list[AnyWrite] = [Mark(place, request.key, element, True, ends_ms) for element in elements]
    return _applied(work, source, writes, len(elements) - held)


def _exclude(work: Working, source: Source, request: ops.Exclude) -> Made:
    """Elements that are not held are named too: what has ended here may not have ended in another region."""
    place = place_of_request(request)
    elements = list(dict.fromkeys(request.elements))
    held = sum(work.row(place, places.joined_key(request.key, element)).is_live() for element in elements)
    return _applied(work, source, [Mark(place, request.key, element, False) for element in elements], held)


def _empty(work: Working, source: Source, request: ops.Empty) -> Made:
    place = place_of_request(request)
    held = sum(work.row(place, at).is_live() for at in work.keys(place, *places.key_range(request.key)))
    return _applied(work, source, [MarkNone(place, request.key)], held)


def _add(work: Working, source: Source, request: ops.Add) -> Made:
    place = place_of_request(request)
    birth = cast(Counter, work.row(place, request.key)).birth(source.origin, source.seq)
    made, _ = _applied(work, source, [Count(place, request.key, birth, request.by)], None)
    return made, cast(Counter, work.row(place, request.key)).value()


def _reset(work: Working, source: Source, request: ops.Reset) -> Made:
    place = place_of_request(request)
    counter = cast(Counter, work.row(place, request.key))
    seen = {
        region: (part.birth, part.seq, part.total)
        for region, part in counter.regions.items()
        if counter.counts(region)
    }
    return _applied(work, source, [Uncount(place, request.key, seen)] if seen else [], bool(seen))


def _change(work: Working, source: Source, request: ops.Change) -> Made:
    place = place_of_request(request)
    made, _ = _applied(work, source, [Spend(place, request.key, request.by)], None)
    return made, cast(Shares, work.row(place, request.key)).value()


def _move(work: Working, source: Source, request: ops.Move) -> Made:
    place = place_of_request(request)
    made, _ = _applied(work, source, [Send(place, request.key, request.to, request.by)], None)
    return made, _rights(work, place, request)


def _wish(work: Working, source: Source, request: ops.Wish) -> Made:
    place = place_of_request(request)
    until_ms = min(work.now_ms + request.ttl_ms, ops.NATURAL_MAX)
    made, _ = _applied(work, source, [Want(place, request.key, request.need, until_ms)], None)
    return made, _rights(work, place, request)


def _rights(work: Working, place: str, request: ops.Move | ops.Wish) -> int:
    shares = cast(Shares, work.row(place, request.key))
    return shares.rights(work.me.number, request.floor, work.me.heirs())


def _applied(work: Working, source: Source, writes: list[AnyWrite], result: Any) -> Made:
    for write in writes:
        apply_write(work, source, write)
    return writes, result


_REQUESTS: dict[type, Any] = {
    ops.Put: _put,
    ops.Replace: _replace,
    ops.Patch: _patch,
    ops.Delete: _delete,
    ops.Include: _include,
    ops.Exclude: _exclude,
    ops.Empty: _empty,
    ops.Add: _add,
    ops.Reset: _reset,
    ops.Change: _change,
    ops.Move: _move,
    ops.Wish: _wish,
}
