"""Whether everything before a point is committed: what a wait for a live job asks again and again, from what is here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.streams import rows as stream_rows

if TYPE_CHECKING:
    from onefold.compute.live.client import LiveJob
    from onefold.compute.live.plan import LivePart

Point = tuple[dict[tuple[int, int], int], dict[int, int], dict[str, int]]
"""Ends of partitions; once they are read, also what was sent to other shards by then, and where hops ended by then, by the part
that reads them."""


def is_forwarded(job: LiveJob, generation: int, sent: dict[int, int]) -> bool:
    """Whether what waited for each other shard is done there. ``sent``: gets, the first time, up to where that is."""
    with job.local() as view:
        heads = dict(live_rows.outbox_heads(view, live_rows.generation_key(job.name, generation)))
    if not sent:
        sent |= {shard: head.next for shard, head in heads.items()}
    return all(heads[shard].first >= upto for shard, upto in sent.items())


def is_below(job: LiveJob, generation: int, parts: Sequence[LivePart], below: dict[str, int]) -> bool:
    """Whether the parts that read hops have committed what was in them, and their history. ``below``: gets, the first time,
    where each hop ends by then."""
    with job.local() as view:
        for part in parts[1:]:
            key = live_rows.part_key(job.name, generation, part.name)
            read = [one for row in live_rows.bundles(view, key) for one in row.row.positions]
            hop = live_rows.hop_stream(job.name, generation, part.inputs[0].hop_of)
            head = below.setdefault(part.name, stream_rows.head_of(view, hop, 0).next)
            if any(one.next < (1 if part.inputs[one.input].history else head) for one in read):
                return False
    return True
