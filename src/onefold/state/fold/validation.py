"""Whether a transaction may do what it wants, and doing it: the same in one shard (``Commit``) and over several (``Prepare``)."""

from __future__ import annotations

from onefold.errors import TooOld
from onefold.fold.api import Context, Store, StoreView
from onefold.state.fold import maps as map_fold
from onefold.state.fold import rows
from onefold.state.fold.ops import Clear, Delete, Increment, Put, Read, Rejected, Span, Write
from onefold.state.fold.queues import fold as queue_fold
from onefold.state.fold.queues.ops import QueueWrite
from onefold.state.fold.streams import fold as stream_fold

_MAP_WRITES = (Put, Delete, Clear, Increment)


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
    for write in writes:
        if isinstance(write, _MAP_WRITES):
            refused = map_fold.refusal(store, write)
        elif isinstance(write, QueueWrite):
            refused = queue_fold.refusal(store, write)
        else:
            refused = stream_fold.refusal(store, write)
        if refused is not None:
            return refused
    return None


def apply_writes(store: Store, context: Context, writes: tuple[Write, ...]) -> tuple[object, ...]:
    """Do the writes, in order; their results. None of them may have been refused."""
    results: list[object] = []
    for write in writes:
        if isinstance(write, _MAP_WRITES):
            results.append(map_fold.apply(store, context, write))
        elif isinstance(write, QueueWrite):
            results.append(queue_fold.apply(store, context, write))
        else:
            results.append(stream_fold.apply(store, context, write))
    return tuple(results)
