"""What is in a space: its collections by kind and name, and a view of all shards at one instant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Literal

from onefold.shard.api import View
from onefold.space import cuts
from onefold.state.core import recovery
from onefold.state.core.client import StateClient
from onefold.state.encoding.keys import encode_key, shard_of
from onefold.state.fold import rows
from onefold.state.fold.locks import fold as lock_fold
from onefold.state.fold.queues import rows as queue_rows
from onefold.state.fold.shards import fold as shard_fold
from onefold.state.fold.streams import rows as stream_rows

CollectionKind = Literal["map", "queue", "stream", "lock", "table"]


@dataclass(frozen=True, slots=True)
class Collection:
    """One collection of a space."""

    kind: CollectionKind
    name: str
    count: int
    """Items of a map, messages of a queue that are not yet acknowledged, records kept of a stream, finished tasks of a table, and
    of a lock that somebody has: who waits for it."""
    shards: tuple[int, ...] = (0,)
    """Where it lives; of a map and a stream those that hold some of it."""


def cut(client: StateClient) -> AbstractContextManager[list[View]]:
    """A view of every shard, all of one instant, and no transaction in them that is decided and not carried out.

    Raises as ``space.cuts.cut``.
    """

    def settle() -> None:
        for shard_id in range(client.shard_count):
            recovery.settle(client, shard_id)

    def retry(views: Sequence[View]) -> Callable[[], None] | None:
        return settle if any(_is_undone(views, view) for view in views) else None

    return cuts.cut(client.shards, lambda shard: shard.view(), lambda view: view.offset, retry=retry)


def _is_undone(views: Sequence[View], view: View) -> bool:
    if len(views) == 1:
        return False
    return any(
        0 <= prepared.home < len(views)
        and shard_fold.standing(views[prepared.home], transaction) == "committed"
        for transaction, prepared in shard_fold.prepared_in(view)
    )


def collections(client: StateClient) -> list[Collection]:
    """Maps, queues, streams and locks that hold something, by kind and name. Counts every item: the time grows with them."""
    with ExitStack() as stack:
        views = [stack.enter_context(client.view(shard_id)) for shard_id in range(client.shard_count)]
        found = [_map(views, name) for name in map_names(views)]
        found += [_queue(client, views, name) for name in queue_names(views)]
        found += [_stream(views, name) for name in stream_names(views)]
        for shard_id, view in enumerate(views):
            for key, _ in view.scan(lock_fold.LOCKS):
                name = key.decode()
                row = lock_fold.read_row(view, name)
                found.append(Collection("lock", name, 0 if row is None else row.waiting, (shard_id,)))
    return [collection for collection in found if collection.count or collection.kind != "map"]


def map_names(views: Sequence[View]) -> list[str]:
    """Names of the maps that ever held something."""
    return _names(views, rows.MAPS)


def queue_names(views: Sequence[View]) -> list[str]:
    """Names of the queues that ever held something."""
    return _names(views, queue_rows.QUEUES)


def stream_names(views: Sequence[View]) -> list[str]:
    """Names of the streams that were made."""
    return sorted({key.decode() for view in views for key, _ in view.scan(stream_rows.STREAMS)})


def stream_row(views: Sequence[View], name: str) -> stream_rows.StreamRow | None:
    """What a stream is like, by its newest word."""
    found = [stream_rows.read_stream(view.get(stream_rows.STREAMS, name.encode())) for view in views]
    return max((row for row in found if row is not None), key=lambda row: row.version, default=None)


def partition_shard(shards: int, name: str, partition: int) -> int:
    """Where a partition of a stream lives; see ``state.streams.layout``."""
    return shard_of(encode_key(((name, partition),)), shards)


def _names(views: Sequence[View], prefix: str) -> list[str]:
    return sorted({table.removeprefix(prefix) for view in views for table in view.tables(prefix)})


def _map(views: Sequence[View], name: str) -> Collection:
    counts = [view.count(rows.map_table(name)) for view in views]
    return Collection("map", name, sum(counts), tuple(shard for shard, count in enumerate(counts) if count))


def _queue(client: StateClient, views: Sequence[View], name: str) -> Collection:
    shard = client.shard_of(encode_key(name))
    counts = queue_rows.read_counts(views[shard], queue_rows.queue_table(name))
    return Collection("queue", name, counts.live, (shard,))


def _stream(views: Sequence[View], name: str) -> Collection:
    row = stream_row(views, name)
    partitions = 0 if row is None else row.partitions
    where = [partition_shard(len(views), name, partition) for partition in range(partitions)]
    heads = [stream_rows.head_of(views[shard], name, partition) for partition, shard in enumerate(where)]
    return Collection(
        "stream", name, sum(head.next - head.first for head in heads), tuple(sorted(set(where)))
    )
