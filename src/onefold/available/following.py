"""What follows from an operation, in the same record: votes are counted, wishes granted, rows end, and what all know is dropped.

**Gone rows.** A tombstone is dropped when all live regions are known to know it, by an effect of theirs that is in this log. All
effects that they made before that are here too, and all later ones are stamped above it, so nothing can bring the row back. Age
proves nothing: a region may have been cut off for longer. A region that holds collection back is visible in ``status``, and
evicting it frees what waits.
"""

from __future__ import annotations

from typing import cast

from onefold import config
from onefold.available import regions
from onefold.available.applying import write_conflicts
from onefold.available.effects import Send
from onefold.available.kinds import places
from onefold.available.kinds.shares import Shares
from onefold.available.out import DROPPED_PER_OPERATION_MAX, drop_known, emit, write_kept
from onefold.available.rows import (
    Tables,
    Working,
    due_row,
    gone_row,
    number_key,
    out_key,
    tables_of,
)
from onefold.available.sync.leaving import do_later, drop_generations
from onefold.fold.api import NEVER


def follow(work: Working) -> None:
    """Bring an operation to its end, and write what it changed."""
    while regions.settle(work.me):
        pass
    do_later(work)
    grant(work)
    stable = work.me.stable()
    work.write_rows(stable)
    collect(work, stable)
    write_kept(work)
    drop_known(work, stable)
    drop_generations(work)
    write_conflicts(work)
    work.save()


def grant(work: Working) -> None:
    """Give rights to regions that wish for them, as far as this one has some.

    The oldest wish comes first, and nobody gives while an own wish is older: two that wish for the same would else swap what they
    have for ever. A wish ends when it is used, not when it is met, so that nobody takes away what has just arrived.
    """
    me = work.me
    if not work.shares or not me.may_write():
        return
    heirs, voters = me.heirs(), me.voters()
    sends: list[Send] = []
    for place, key in work.shares:
        floor = places.split_place(place)[2] or 0
        shares = cast(Shares, work.row(place, key))
        here = shares.rights(me.number, floor, heirs)
        for _, region, need in shares.wishes(work.now_ms):
            if region == me.number or here <= 0:
                break
            missing = need - shares.rights(region, floor, heirs)
            if region in voters and missing > 0:
                by = amount(here, missing)
                sends.append(Send(place, key, region, by))
                here -= by
    work.shares.clear()
    if sends:
        emit(work, tuple(sends))
        work.shares.clear()


def amount(here: int, missing: int) -> int:
    """How many of the rights that are here are given: what is missing, or half of them, so that it need not be asked for soon."""
    return min(here, max(missing, here // 2))


def collect(work: Working, stable: dict[int, int]) -> None:
    """Drop what is gone and stable, up to a bound for each operation."""
    me = work.me
    if not me.gone_rows or stable == me.collected:
        return
    left = DROPPED_PER_OPERATION_MAX
    for number, seq in stable.items():
        for entry, _ in list(
            work.store.scan(work.tables.gone, out_key(number, 0), out_key(number, seq + 1), limit=left)
        ):
            left -= 1
            place, key = gone_row(entry)
            work.set_row(place, key, work.row(place, key).collected(stable))
    work.write_rows(stable)
    if left > 0:
        me.collected = stable


def expire(work: Working) -> int:
    """End what fold time has reached, oldest first, up to a bound for each record. When there is something to do next."""
    me, next_ms = work.me, NEVER
    shown = [work.tables]
    if me.sync is not None:
        shown.append(tables_of(me.sync.generation))
    for tables in shown:
        for table in (tables.due, tables.requests_due):
            first = work.store.first(table)
            if first is not None:
                next_ms = min(next_ms, int.from_bytes(first[:8]))
    if next_ms > work.now_ms:
        return next_ms
    left, stable = config.EXPIRATIONS_PER_RECORD_MAX, me.stable()
    for tables in shown:
        left = _forget_requests(work, tables, left)
    for entry, _ in list(work.store.scan(work.tables.due, stop=number_key(work.now_ms + 1), limit=left)):
        place, key = due_row(entry)
        work.set_row(place, key, work.row(place, key).expired(work.now_ms))
        left -= 1
    work.write_rows(stable)
    if len(shown) > 1:
        ended = list(work.store.scan(shown[1].due, stop=number_key(work.now_ms + 1), limit=left))
        work.join(
            {(place, key): work.row(place, key) for place, key in (due_row(at) for at, _ in ended)}, stable
        )
    work.save()
    return work.now_ms  # perhaps there was more of it than one record ends


def _forget_requests(work: Working, tables: Tables, left: int) -> int:
    """How much is left of a bound."""
    ended = list(work.store.scan(tables.requests_due, stop=number_key(work.now_ms + 1), limit=left))
    for entry, _ in ended:
        work.store.delete(tables.requests_due, entry)
        work.store.delete(tables.requests, entry[8:])
    return left - len(ended)
