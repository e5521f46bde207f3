"""What live jobs have not read yet is kept past the retention of its stream, for a bounded time.

A row in the shard of a partition says how far a part of a generation has committed it. Workers move it forward periodically, so
it may lag, and then more is kept: never less. Nothing else moves it: it stays while the job is stopped, and is removed when the
generation is over. A worker that was stopped for a while may set one after that: where the job's own rows are, that is refused.
In other shards nothing is known of the job, and a process that finds such a row removes it (``compute.live.holds``).
"""

from __future__ import annotations

from onefold import config
from onefold.fold.api import Store, StoreView
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import HOLDS_VERSION, HoldInput
from onefold.state.fold.outcomes import Answer, Outcome, Rejected
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.fold.streams.rows import Hold, Holder


def is_over(view: StoreView, job: str, generation: int) -> bool:
    """Whether a generation never reads again, in a view of the job's home shard."""
    row = live_rows.generation_of(view, job, generation)
    return live_rows.job_of(view, job) is None or row is None or row.state in live_rows.OVER


def _is_known_over(view: StoreView, op: HoldInput) -> bool:
    """The same in a view of any shard: only that of the job has a number of its newest generation, also after it was dropped."""
    return op.generation <= live_rows.newest_of(view, op.job) and is_over(view, op.job, op.generation)


def hold(store: Store, op: HoldInput, fold_version: int) -> Outcome:
    """Set the rows of these partitions, or remove them."""
    if (
        not 0 < len(op.stream.encode()) <= config.NAME_BYTES_MAX
        or len(op.offsets) > config.LIVE_POSITIONS_MAX
    ):
        return Rejected("malformed", op.job)
    known = stream_rows.read_stream(store.get(stream_rows.STREAMS, op.stream.encode()))
    if known is None:
        return Rejected("no_stream", op.stream)
    if any(partition >= known.partitions for partition, _ in op.offsets):
        return Rejected("malformed", op.stream)
    if op.hold_ms and fold_version >= HOLDS_VERSION and _is_known_over(store, op):
        return Rejected("over", f"{op.job} (generation {op.generation}) is over")
    changed = 0
    for partition, offset in op.offsets:
        holder = Holder(op.stream, partition, op.job, op.generation, op.part)
        before, after = stream_rows.hold_of(store, holder), Hold(offset, op.hold_ms)
        if op.hold_ms and before != after:
            store.put(stream_rows.HOLDS, stream_rows.hold_key(holder), stream_rows.write_hold(after))
            changed += 1
        elif not op.hold_ms and before is not None:
            store.delete(stream_rows.HOLDS, stream_rows.hold_key(holder))
            changed += 1
    return Answer(changed)
