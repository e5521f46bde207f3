"""Own effects, and the effects that are kept for other regions.

Imported effects are kept like own ones, so any region passes on any other's: what only one of them has heard of a region that
burnt reaches all. An effect is dropped once it is stable, or beyond bounds of age, size and number. A region that needs dropped
ones gets a full sync.
"""

from __future__ import annotations

from typing import Any, Final

from onefold import config
from onefold.available import effects, regions
from onefold.available.applying import Source, apply_write
from onefold.available.effects import AnyWrite, Effect
from onefold.available.kinds.row import encode
from onefold.available.regions import Dropped
from onefold.available.rows import (
    OUT,
    Conflict,
    Requested,
    Tables,
    Working,
    number_key,
    out_key,
    requested_decoder,
    row_key,
    tables_of,
)
from onefold.available.stamps import CLOCK_AHEAD_MAX_MS, HLC_MAX, clock_at, ms_of

KEPT_MS: Final = 7 * 86_400_000
"""Effects that some region is not known to know are kept for so long in fold time ..."""
OUT_BYTES_MAX: Final = 10 * 1000**3
"""... up to this many bytes ..."""
OUT_EFFECTS_MAX: Final = 20_000_000
"""... and up to so many. A region that was away for longer gets the rows instead."""
DROPPED_PER_OPERATION_MAX: Final = 1000
"""One operation drops at most so many effects that all know, and collects at most so many gone rows."""


def next_source(work: Working, session_hlc: int = 0) -> Source:
    """The stamp of the next own effect: above all that was seen here or by the session, unless that clock is far ahead."""
    me = work.me
    now_ms = work.now_ms
    if now_ms < me.cap_until_ms:
        now_ms = min(now_ms, me.cap_ms)
    hlc = max(me.hlc + 1, clock_at(now_ms))
    if session_hlc and ms_of(session_hlc) <= work.now_ms + CLOCK_AHEAD_MAX_MS:
        hlc = max(hlc, session_hlc + 1)
    hlc = min(hlc, HLC_MAX)
    have = me.have()
    seq = have.get(me.number, 0) + 1
    return Source(me.number, seq, hlc, {**have, me.number: seq})


def finish(
    work: Working,
    source: Source,
    writes: tuple[AnyWrite, ...],
    request_id: str | None = None,
    results: tuple[Any, ...] = (),
) -> None:
    """The own effect is whole; its writes are applied already. With a request id its results travel with it."""
    deps = {number: seq for number, seq in source.past.items() if number != source.origin}
    effect = Effect(
        source.origin, source.seq, deps, source.hlc, writes, request_id, results if request_id else ()
    )
    record(work, effect, effects.encode_effect(effect))
    work.me.owes = False


def emit(work: Working, writes: tuple[AnyWrite, ...]) -> None:
    """An own effect that nobody has asked for: a beat, grants, or what is decided on regions."""
    source = next_source(work)
    for write in writes:
        apply_write(work, source, write)
    finish(work, source, writes)


def record(work: Working, effect: Effect, data: bytes) -> None:
    """An effect, own or imported, has been applied: it is known from now on, and kept for others."""
    me, hlc = work.me, effect.hlc
    origin = me.origin(effect.origin)
    origin.seq, origin.hlc, origin.seen = effect.seq, hlc, effect.deps
    origin.chain = chain = effects.next_chain(origin.chain, data)
    me.hlc = max(me.hlc, hlc)
    work.kept.append((out_key(effect.origin, effect.seq), chain + data))
    me.out_count += 1
    me.out_bytes += len(data)
    if effect.request_id is not None:
        until_ms = work.now_ms + int(config.REQUEST_ID_RETENTION_S * 1000)
        kept = Requested(effect.origin, effect.seq, effect.hlc, until_ms, effect.results)
        keep_request(work, effect.request_id.encode(), kept)


def write_kept(work: Working) -> None:
    """Write the effects that are to be kept, before any is looked for."""
    if work.kept:
        work.store.put_many(OUT, work.kept)
        work.kept = []


def keep_request(work: Working, name: bytes, kept: Requested) -> None:
    """For a retry here. A request that was done in two regions, which a cut allows, is a conflict; the earlier one is kept."""
    conflict = _keep_request(work, work.tables, name, kept)
    if conflict is not None:
        work.conflicts.append(conflict)
    sync = work.joining
    if sync is not None:
        join_request(work, sync, name, kept, conflict)


def join_request(
    work: Working, sync: regions.Sync, name: bytes, kept: Requested, noted: Conflict | None = None
) -> None:
    """Keep it in the next generation. A conflict is shown after the switch, unless it was ``noted`` already."""
    tables = tables_of(sync.generation)
    conflict = _keep_request(work, tables, name, kept)
    if conflict is not None and conflict != noted:
        dots = out_key(*conflict.kept_dot) + out_key(*conflict.dropped_dot)
        work.store.put(tables.later, row_key("", name + dots), encode(conflict))


def _keep_request(work: Working, tables: Tables, name: bytes, kept: Requested) -> Conflict | None:
    store, conflict = work.store, None
    data = store.get(tables.requests, name)
    if data is not None:
        other, dropped = requested_decoder.decode(data), kept
        if (other.origin, other.seq) == (kept.origin, kept.seq):
            return None
        if (other.hlc, other.origin) < (kept.hlc, kept.origin):
            kept = other
        else:
            dropped = other
        dots = (kept.origin, kept.seq), (dropped.origin, dropped.seq)
        conflict = Conflict("", name, "", None, None, *dots, work.now_ms)
        if kept is other:
            return conflict
        store.delete(tables.requests_due, number_key(other.until_ms) + name)
    store.put(tables.requests, name, encode(kept))
    store.put(tables.requests_due, number_key(kept.until_ms) + name, b"")
    return conflict


def drop_known(work: Working, stable: dict[int, int]) -> None:
    """Drop effects that all live regions know, and the oldest beyond the bounds."""
    me = work.me
    left = _drop_passed(work, DROPPED_PER_OPERATION_MAX)
    for number, seq in stable.items():
        dropped = me.dropped.get(number, Dropped())
        while dropped.seq < seq and left:
            dropped = drop_next(work, number)
            left -= 1
    oldest = clock_at(work.now_ms - KEPT_MS)
    while left and (me.out_count > OUT_EFFECTS_MAX or me.out_bytes > OUT_BYTES_MAX):
        drop_next(work, min(_heads(work))[1])
        left -= 1
    if me.out_count and not me.retired and work.context.offset % config.HISTORY_PRUNE_EVERY_OFFSETS == 0:
        for hlc, number in sorted(_heads(work)):
            while left and hlc < oldest:
                drop_next(work, number)
                left -= 1
                hlc = _head(work, number)


def drop_next(work: Working, number: int) -> Dropped:
    """Drop the first effect of an origin that is kept. Where its effects end there, the digest is remembered."""
    me = work.me
    seq = me.dropped.get(number, Dropped()).seq + 1
    data = work.store.get(OUT, out_key(number, seq))
    chain = b"" if data is None else data[: effects.CHAIN_BYTES]
    if data is not None:
        work.store.delete(OUT, out_key(number, seq))
        me.out_count -= 1
        me.out_bytes -= len(data) - effects.CHAIN_BYTES
    found = me.dropped[number] = Dropped(seq, chain)
    return found


def pass_over(work: Working, number: int, origin: regions.Origin) -> None:
    """A full sync has passed over effects of an origin: none of it is kept up to there. What was kept goes bit by bit."""
    me = work.me
    me.passed[number] = me.origin(number).seq
    me.dropped[number] = Dropped(origin.seq, origin.chain)


def _drop_passed(work: Working, left: int) -> int:
    """How much is left of a bound."""
    me, store = work.me, work.store
    for number, seq in list(me.passed.items()):
        for key, data in list(store.scan(OUT, out_key(number, 0), out_key(number, seq + 1), limit=left)):
            store.delete(OUT, key)
            me.out_count -= 1
            me.out_bytes -= len(data) - effects.CHAIN_BYTES
            left -= 1
        if not left:
            break
        del me.passed[number]
    return left


def _heads(work: Working) -> list[tuple[int, int]]:
    """(clock, origin) of the first effect that is kept of each origin."""
    found = [(_head(work, number), number) for number in work.me.origins]
    return [one for one in found if one[0] < _NONE]


_NONE = 1 << 63


def _head(work: Working, number: int) -> int:
    seq = work.me.dropped.get(number, Dropped()).seq + 1
    data = work.store.get(OUT, out_key(number, seq))
    effect = None if data is None else effects.decode_effect(data[effects.CHAIN_BYTES :])
    return _NONE if effect is None else effect.hlc
