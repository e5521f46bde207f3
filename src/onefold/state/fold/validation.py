"""Whether a transaction may do what it wants, and doing it: the same in one shard (``Commit``) and over several (``Prepare``)."""

from __future__ import annotations

from collections.abc import Sequence

from onefold.errors import TooOld
from onefold.fold.api import Context, Store, StoreView
from onefold.state.fold import lock_table, rows
from onefold.state.fold.kinds import BY_WRITE, SINGLE, Write
from onefold.state.fold.ops import Read, Span
from onefold.state.fold.outcomes import Rejected


def validate(store: StoreView, reads: tuple[Read, ...], spans: tuple[Span, ...]) -> Rejected | None:
    """Whether everything that was read is still as it was read.

    Optimistic concurrency control by backward validation: Kung and Robinson, "On Optimistic Methods for Concurrency Control",
    ACM TODS 6(2), 1981. Reads are validated too, so there is no write skew; ranges, so there are no phantoms.
    """
    for read in reads:
        found = store.get(rows.map_table(read.map), read.key)
        if found is None:
            if read.offset != 0:
                return Rejected("conflict", read.map, read.key)
            continue
        row = rows.read_row(found)
        if (row.offset, row.index) != (read.offset, read.index):
            return Rejected("conflict", read.map, read.key)
    for span in spans:
        try:
            if store.changed_since(rows.map_table(span.map), span.start, span.stop, span.offset):
                return Rejected("conflict", span.map, span.start)
        except TooOld:
            return Rejected("too_old", span.map, span.start)
        except ValueError:
            return Rejected("malformed", span.map)  # an offset that is not there yet
    return None


def first_refusal(store: StoreView, writes: tuple[Write, ...]) -> Rejected | None:
    """Why one of the writes cannot be done, if so."""
    if len(writes) > 1 and sum(map(SINGLE.__contains__, map(type, writes))) > 1:
        return Rejected("malformed", "more than one")
    for write in writes:
        refused = BY_WRITE[type(write)].refusal(store, write)
        if refused is not None:
            return refused
    return None


def apply_writes(store: Store, context: Context, writes: tuple[Write, ...]) -> tuple[object, ...]:
    """Do the writes, in order; their results. None of them may have been refused."""
    results: list[object] = []
    for write in writes:
        results.append(BY_WRITE[type(write)].apply(store, context, write))
    return tuple(results)


def wants(reads: Sequence[Read], spans: Sequence[Span], writes: Sequence[Write]) -> lock_table.Wants:
    """The locks that a prepared transaction takes for these."""
    found = lock_table.Wants({}, [])
    for read in reads:
        lock_table.want_key(found, lock_table.map_place(read.map), read.key, lock_table.SHARED)
    for span in spans:
        found.ranges.append((lock_table.map_place(span.map), span.start, span.stop, lock_table.SHARED))
    for write in writes:
        BY_WRITE[type(write)].want(found, write)
    return found
