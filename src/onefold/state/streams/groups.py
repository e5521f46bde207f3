"""The consumer groups of a stream, and how far each of them is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onefold.state.core.consistency import STRONG
from onefold.state.encoding.keys import decode_key, encode_prefix
from onefold.state.fold.streams import rows as stream_rows

if TYPE_CHECKING:
    from onefold.state.streams.stream import Stream


@dataclass(frozen=True, slots=True)
class GroupPartition:
    """How far a group is in one partition."""

    partition: int
    next: int | None
    """The offset of the first record that it has not committed; None: it has committed nothing."""
    lag: int
    """Records that are kept and not committed."""


@dataclass(frozen=True, slots=True)
class GroupStanding:
    """A consumer group at one moment."""

    name: str
    members: int
    partitions: tuple[GroupPartition, ...]

    @property
    def lag(self) -> int:
        """Records of all partitions that are kept and not committed."""
        return sum(one.lag for one in self.partitions)


def groups_of(stream: Stream[Any]) -> list[GroupStanding]:
    """The groups of a stream that ever had a member, by name. Of a stream that is not there: none. Raises as
    ``Stream.positions``."""
    layout = stream.layout
    if layout.find() is None:
        return []
    kept = stream.positions()
    with layout.client.view(layout.home, STRONG) as view:
        found = []
        start, stop = encode_prefix((stream.name,))
        for key, data in view.scan(stream_rows.GROUPS, start, stop):
            name = decode_key(key)
            if not isinstance(name, tuple) or len(name) != 2:
                continue
            group = str(name[1])
            committed = {
                partition: stream_rows.read_offset(
                    view.get(stream_rows.OFFSETS, stream_rows.offset_key(stream.name, group, partition))
                )
                for partition in kept
            }
            found.append(
                GroupStanding(
                    group, len(stream_rows.read_group(data).members), tuple(_standing(committed, kept))
                )
            )
    return found


def _standing(committed: dict[int, int], kept: dict[int, tuple[int, int]]) -> Iterator[GroupPartition]:
    for partition, (first, end) in sorted(kept.items()):
        offset = committed[partition]
        yield GroupPartition(partition, None if offset < 0 else offset, max(0, end - max(first, offset)))
