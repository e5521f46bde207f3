"""What nobody took of an evicted region, in the conflict feed: for a person to decide on.

Its effects beyond the final number are in its old log alone. A node that has that log appends them here, mostly to the log of the
same region under its new number. They change no row.
"""

from __future__ import annotations

from typing import cast

from onefold.available import effects
from onefold.available.applying import is_sound, rows_of
from onefold.available.effects import AnyWrite, Effect, decode_effect
from onefold.available.kinds import places
from onefold.available.kinds.cells import Cells, Register
from onefold.available.kinds.dots import Dots
from onefold.available.kinds.row import Cell
from onefold.available.ops import Answer, Rejected, Unseen
from onefold.available.rows import Conflict, Working


def note(work: Working, op: Unseen) -> Answer | Rejected:
    """List what is not listed yet."""
    me = work.me
    if not me.number:
        return Rejected("no_region")
    region = me.regions.get(op.origin)
    if region is None or not region.round:
        return Rejected("unknown_region", here=op.origin)
    if not region.final:
        return Rejected("not_final", here=op.origin)
    decoded = [decode_effect(data) for data in op.effects]
    sound = [one for one in decoded if one is not None and one.origin == op.origin and is_sound(one)]
    if len(sound) < len(op.effects):
        return Rejected("malformed", "effects")
    before = len(work.conflicts)
    work.fetch(rows_of(sound))
    for effect in sound:
        if effect.seq > max(region.limit, region.listed):
            for write in effect.writes:
                if not isinstance(write, effects.CONTROL):
                    work.conflicts.append(_conflict(work, effect, write))
            region.listed = effect.seq
    return Answer(len(work.conflicts) - before)


def _conflict(work: Working, effect: Effect, write: AnyWrite) -> Conflict:
    assert not isinstance(write, effects.CONTROL)
    here = _here(work, write)
    value = write.value if isinstance(write, effects.SetCell) else None
    return Conflict(
        write.place,
        write.key,
        "",
        None if here is None or not isinstance(write, effects.SetCell) else here.value,
        value,
        (0, 0) if here is None else (here.region, here.seq),
        (effect.origin, effect.seq),
        work.now_ms,
        effects.encode_write(write),
    )


def _here(work: Working, write: AnyWrite) -> Cell | None:
    """The latest value that is here in the place of a write; of counters there is none."""
    match write:
        case effects.SetCell(place, key) if place[0] == places.REGISTER:
            return cast(Register, work.row(place, key)).base
        case effects.SetCell(place, key):
            return max(cast(Dots, work.row(place, key)).cells, key=lambda cell: cell.stamp, default=None)
        case effects.SetFields(place, key):
            return max(cast(Cells, work.row(place, key)).all(), key=lambda cell: cell.stamp, default=None)
        case effects.Mark(place, key, element):
            cells = cast(Dots, work.row(place, places.joined_key(key, element))).cells
            return max(cells, key=lambda cell: cell.stamp, default=None)
        case _:
            return None
