"""Effects of other regions come in.

Each effect is taken or left by itself: what is known already is skipped, and what cannot be taken yet waits where it came from.
So repeats and several importers at once are harmless, and one region's effects that wait hold up only those that depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping

from onefold.available.applying import apply_write, is_sound, rows_of, source_of
from onefold.available.effects import Effect, decode_effect
from onefold.available.ops import Import, Imported, Rejected
from onefold.available.out import record
from onefold.available.regions import Known, Region
from onefold.available.rows import Working
from onefold.available.stamps import CLOCK_AHEAD_MAX_MS, COUNT_BITS

KNOWN = "known"


def take_in(work: Working, op: Import) -> Imported | Rejected:
    """Take those effects that can be taken."""
    me = work.me
    if not me.number:
        return Rejected("no_region")
    source = me.regions.get(op.source)
    if source is None or source.round:
        return Rejected("unknown_region" if source is None else "evicted", here=op.source)
    decoded = [decode_effect(data) for data in op.effects]
    sound = [effect for effect in decoded if effect is not None and is_sound(effect)]
    if len(sound) < len(op.effects):
        return Rejected("malformed", "effects")
    differ = _other_chain(work, sound, op)
    if differ:
        return Rejected("diverged", here=differ)
    have = me.have()
    new = [effect for effect in sound if effect.seq > have.get(effect.origin, 0)]
    work.fetch(rows_of(new))
    taken = 0
    waiting: dict[int, str] = {}
    for effect, data in zip(sound, op.effects, strict=True):
        reason = why_not(work, effect)
        if reason is None:
            take(work, effect, data)
            taken += 1
            if waiting:
                waiting.pop(effect.origin, None)
        elif reason != KNOWN:
            waiting.setdefault(effect.origin, reason)
            if reason == "held":
                me.regions[effect.origin].held = effect.hlc
    return Imported(me.have(), taken, waiting)


def _other_chain(work: Working, effects: list[Effect], op: Import) -> int:
    """An origin whose effects before these are others than those that are known here; 0: none."""
    firsts: dict[int, int] = {}
    for effect in effects:
        firsts.setdefault(effect.origin, effect.seq)
    for number, seq in firsts.items():
        origin = work.me.origins.get(number)
        chain = op.chains.get(number)
        if origin is not None and origin.seq == seq - 1 and chain not in (None, origin.chain):
            return number
    return 0


def why_not(work: Working, effect: Effect) -> str | None:
    """Why an effect is not taken now; None: it is."""
    me, number = work.me, effect.origin
    origin = me.origins.get(number)
    seq = 0 if origin is None else origin.seq
    if effect.seq <= seq:
        return KNOWN
    if number == me.number:
        return "unknown"  # an own effect that this log does not have: it lost its end
    region = me.regions.get(number)
    if region is None:
        return "unknown"
    if effect.seq > seq + 1:
        return "gap"
    if not has(me, effect.deps):
        return "deps"
    if region.final and effect.seq > region.limit:
        return "evicted"
    return "held" if is_ahead(work, region, effect.hlc) else None


def has(me: Known, deps: Mapping[int, int]) -> bool:
    """Whether all of this is known here."""
    origins = me.origins
    for number, seq in deps.items():
        origin = origins.get(number)
        if origin is None or origin.seq < seq:
            return False
    return True


def is_ahead(work: Working, region: Region, hlc: int) -> bool:
    """Whether a clock of that region is so far ahead that what has it waits: its stamps would win everywhere for so long."""
    return hlc >> COUNT_BITS > work.now_ms + CLOCK_AHEAD_MAX_MS and hlc > region.accepted


def take(work: Working, effect: Effect, data: bytes) -> None:
    """Apply an effect of another region, whole."""
    me, source = work.me, source_of(effect)
    for write in effect.writes:
        apply_write(work, source, write)
        me.owes = True
    record(work, effect, data)
    me.regions[effect.origin].held = 0
