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
    me, store, tables, next_ms = work.me, work.store, work.tables, NEVER
    joined = tables_of(me.sync.generation).due if me.sync is not None else tables.due
    for table in (tables.due, tables.requests_due, joined):
        first = store.first(table)
        if first is not None:
            next_ms = min(next_ms, int.from_bytes(first[:8]))
    if next_ms > work.now_ms:
        return next_ms
    left, stop, stable = config.EXPIRATIONS_PER_RECORD_MAX, number_key(work.now_ms + 1), me.stable()
    for entry, _ in list(store.scan(tables.requests_due, stop=stop, limit=left)):
        store.delete(tables.requests_due, entry)
        store.delete(tables.requests, entry[8:])
    for entry, _ in list(store.scan(tables.due, stop=stop, limit=left)):
        place, key = due_row(entry)
        work.set_row(place, key, work.row(place, key).expired(work.now_ms))
    work.write_rows(stable)
    if joined != tables.due:
        ended = [due_row(entry) for entry, _ in store.scan(joined, stop=stop, limit=left)]
        work.join({(place, key): work.row(place, key) for place, key in ended}, stable)
    work.save()
    return work.now_ms  # perhaps there was more of it than one record ends
