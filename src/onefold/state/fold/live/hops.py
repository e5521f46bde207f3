"""The streams between the parts of a job: written by the commits of one part, read by the next.

A hop has one partition, which is in the home shard whatever its name says, so it is written by the same record as the commit that
makes its rows. Nobody else reads it: what the reading part has committed in all of its bundles is removed.
"""

from __future__ import annotations

import msgspec

from onefold.fold.api import Context, Store
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import TrimHop
from onefold.state.fold.streams import fold as stream_fold
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.fold.streams.rows import StreamRow


def make(store: Store, job: str, generation: int, part: str) -> None:
    """The stream that the part writes."""
    name = live_rows.hop_stream(job, generation, part)
    store.put(stream_rows.STREAMS, name.encode(), msgspec.msgpack.encode(StreamRow(1, None, 1)))


def drop(store: Store, job: str, generation: int, part: str) -> None:
    """Forget it with all of its records."""
    name = live_rows.hop_stream(job, generation, part)
    for table in (stream_rows.segment_table(name, 0), stream_rows.frame_table(name, 0)):
        store.delete_range(table, b"", None)
    store.delete(stream_rows.STREAMS, name.encode())


def trim(store: Store, context: Context, op: TrimHop) -> int:
    """Remove what every bundle that reads it has committed."""
    part = live_rows.part_of(store, live_rows.part_key(op.job, op.generation, op.part))
    if part is None or not part.spec.hop:
        return 0
    key = live_rows.part_key(op.job, op.generation, part.spec.hop)
    done = [
        one.next for bundle in live_rows.bundles(store, key) for one in bundle.row.positions if one.input == 0
    ]
    if not done:
        return 0
    return stream_fold.trim(
        store, context, live_rows.hop_stream(op.job, op.generation, op.part), 0, min(done)
    )
