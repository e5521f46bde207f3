"""What wakes those who wait for records of a stream: its making, more records in their partitions, a change of their group."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping

from onefold.shard.api import View
from onefold.shard.waiters import ALL, NOTHING, Notice
from onefold.state.core.waiting import Awaited
from onefold.state.fold import lock_table
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.streams.layout import Layout


def awaited(
    layout: Layout, seen: Mapping[int, int], partitions: Iterable[int], group: str | None = None
) -> tuple[Awaited, ...]:
    """What those who have seen the shards as of these offsets wait for."""
    by_shard = layout.by_shard(sorted(partitions))
    return tuple(
        Awaited(shard, _StreamNews(layout, shard, tuple(by_shard.get(shard, ())), group), offset)
        for shard, offset in seen.items()
    )


class _StreamNews:
    """News of a stream in one shard."""

    def __init__(self, layout: Layout, shard: int, partitions: tuple[int, ...], group: str | None) -> None:
        self._name = layout.name
        self._partitions = partitions
        self._is_home = shard == layout.home
        self._group = group if self._is_home else None
        self._sharded = layout.client.shard_count > 1
        self._found: object = None

    @property
    def key(self) -> Hashable:
        return "stream", self._name, self._partitions, self._group

    @property
    def members(self) -> Collection[str]:
        return ()

    def check(self, view: View, after: int) -> Notice:  # noqa: ARG002
        found: list[object] = [
            view.get(stream_rows.segment_table(self._name, partition), stream_rows.HEAD_KEY)
            for partition in self._partitions
        ]
        if self._is_home and not self._partitions:
            found.append(view.get(stream_rows.STREAMS, self._name.encode()))
        if self._group is not None:
            key = stream_rows.group_key(self._name, self._group)
            found.append(stream_rows.read_generation(view.get(stream_rows.GROUPS, key)))
        # What a transaction over several shards has prepared is settled by those who look, if nobody else does it.
        if found == self._found and not (self._sharded and lock_table.is_any_held(view)):
            return NOTHING
        self._found = found
        return ALL
