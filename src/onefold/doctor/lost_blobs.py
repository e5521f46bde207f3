"""What it means that blobs are lost, which are missing or damaged: who made them, and whether anything can make them again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from onefold.folds import all_blob_tables
from onefold.state.streams.large_frames import records_in

if TYPE_CHECKING:
    from onefold.shard.api import Shard

_SHOWN: Final = 20


def records_of(shards: Iterable[Shard], blobs: Collection[str]) -> list[str]:
    """Which records of streams these blobs have. Raises as ``Shard.view``."""
    found = []
    if blobs:
        for shard in shards:
            with shard.view() as view:
                found += list(records_in(view, blobs))
    return [
        f"stream {one.stream!r}, partition {one.partition}, offsets {one.first} to {one.next - 1}"
        for one in sorted(found)
    ]


def what_is_lost(shards: Sequence[Shard], blobs: Collection[str]) -> tuple[str, ...]:
    """Of lost blobs, what nothing computes again by itself, in words. Empty: nothing is. Raises as ``Shard.view``."""
    kept = set[str]()
    for shard in shards:
        with shard.view() as view:
            for table in all_blob_tables():
                if table.live and not table.garbage:
                    kept |= {name for name in blobs if view.get(table.name, name.encode()) is not None}
    records = records_of(shards, kept)
    said = [f"{one}: lost, nothing can compute them again" for one in records[:_SHOWN]]
    if len(records) > _SHOWN:
        said.append(f"and those of {len(records) - _SHOWN} more blobs")
    others = len(kept) - len(records)
    if others > 0:
        said.append(
            f"{others} blobs with the state or the results of live jobs: job.replay(), then run.swap(), computes them again "
            "from the streams"
        )
    return tuple(said)
