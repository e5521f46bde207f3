"""Reading the partitions of a part's inputs, a bounded piece at a time, each row with its place and its append's time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl

from onefold import config
from onefold.compute.live.idleness import Place
from onefold.errors import InvalidValue
from onefold.machine.undisturbed import let_pass
from onefold.state.core.consistency import STRONG
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.streams.batches import frames_of_runs, reason_alone, unreadable_row
from onefold.state.streams.large_frames import with_frames
from onefold.state.streams.layout import Layout
from onefold.state.streams.pages import read_page

if TYPE_CHECKING:
    from onefold.compute.live.plan import StreamInput
    from onefold.state.core.client import StateClient
    from onefold.state.fold.streams.rows import Run

UNREADABLE: Final = "__onefold_unreadable"
"""The column that says why a record has no other columns."""
_PAGE_BYTES_MIN: Final = 64 * 1024
"""A page of a partition is about so large, even if nothing of it can be kept."""


@dataclass(frozen=True)
class Piece:
    """Some records of one partition, in order."""

    place: Place
    first: int
    next: int
    """The offset behind the last of them."""
    frames: tuple[pl.DataFrame, ...]
    """Their rows, with ``_partition``, ``_offset``, ``_time`` and ``_key``; columns may differ from frame to frame."""

    @property
    def rows(self) -> int:
        """How many records these are."""
        return self.next - self.first

    def between(self, first: int, stop: int) -> Piece | None:
        """The records with ``first <= offset < stop``, of which this piece has all; None without any."""
        if first >= stop:
            return None
        frames: list[pl.DataFrame] = []
        base = self.first
        for frame in self.frames:
            low, high = max(0, first - base), min(stop - base, frame.height)
            if low < high:
                frames.append(frame.slice(low, high - low))
            base += frame.height
        return replace(self, first=first, next=stop, frames=tuple(frames))


class Hop(NamedTuple):
    """A stream between two parts of a job."""

    stream: str
    home: int
    """The shard that its one partition is in, whatever its name says."""


class _HopLayout(Layout):
    """Where a hop lives."""

    def __init__(self, client: StateClient, hop: Hop) -> None:
        super().__init__(client, hop.stream, internal=True)
        self.home = hop.home

    def shard(self, partition: int) -> int:  # noqa: ARG002
        return self.home


class Inputs:
    """The inputs of a part, for one worker. For one thread.

    What was decoded and not taken in stays for the next read: a partition that is ahead in event time is read a little at a time.
    """

    def __init__(
        self, client: StateClient, inputs: Sequence[StreamInput], hops: Mapping[int, Hop] | None = None
    ) -> None:
        """``hops``: inputs that are not streams of the space."""
        self._client = client
        self._inputs = tuple(inputs)
        self._env = client.env
        hops = hops or {}
        self._layouts = [
            _HopLayout(client, hops[number]) if number in hops else Layout(client, one.stream)
            for number, one in enumerate(inputs)
        ]
        self._ahead: dict[Place, tuple[Piece, int]] = {}
        """What is kept of a partition, and its bytes."""

    def heads(
        self, places: Iterable[Place], *, barrier: bool = False
    ) -> tuple[dict[Place, int], dict[int, int]]:
        """(the end of each partition, the offset of each shard at which that was seen).

        ``barrier``: all that was acknowledged before the call is in it; otherwise what is here is.
        """
        by_input: dict[int, list[int]] = {}
        found: dict[Place, int] = {}
        for number, partition in places:
            if self._inputs[number].history:
                found[number, partition] = 1
                continue
            by_input.setdefault(number, []).append(partition)
        seen: dict[int, int] = {}
        for number, partitions in by_input.items():
            layout = self._layouts[number]
            heads, offsets = layout.heads(partitions, STRONG if barrier else layout.local)
            found |= {(number, partition): head.next for partition, head in heads.items()}
            for shard, offset in offsets.items():
                seen[shard] = min(seen.get(shard, offset), offset)
        return found, seen

    def firsts(self, places: Iterable[Place]) -> dict[Place, int]:
        """The first record that is kept of each partition, as far as it is known here. Those of a history have none."""
        found: dict[Place, int] = {}
        for number, partition in places:
            if not self._inputs[number].history:
                layout = self._layouts[number]
                with layout.client.shards[layout.shard(partition)].view() as view:
                    found[number, partition] = stream_rows.head_of(view, layout.name, partition).first
        return found

    def read(self, place: Place, offset: int, stop: int) -> Piece | None:
        """Records from ``offset`` on, before ``stop``: about as many as a batch may have (``config.LIVE_BATCH_BYTES_MAX``,
        ``LIVE_BATCH_ROWS_MAX``); None without any.

        Raises TooOld when retention has removed the record at ``offset``, and InvalidValue for records that cannot be read.
        """
        kept = self._kept(place, offset, stop)
        if kept is not None:
            return kept
        number, partition = place
        layout = self._layouts[number]
        shard = layout.client.shards[layout.shard(partition)]
        high = min(stop, offset + config.LIVE_BATCH_ROWS_MAX)
        # What cannot be kept is decoded again for each slice of time that is taken of it.
        room = (config.LIVE_READ_AHEAD_BYTES_MAX - self._held_bytes(place)) // 2
        most = min(config.LIVE_BATCH_BYTES_MAX, max(room, _PAGE_BYTES_MIN))
        with shard.view() as view:
            page = read_page(view, layout.name, partition, offset, high, most)
        if not page.runs:
            return None
        runs = list(with_frames(layout, partition, page.runs))
        end = min(page.next, high)
        return Piece(place, offset, end, tuple(_frames(layout.name, partition, runs, offset, end)))

    def keep(self, read: Piece, upto: int) -> None:
        """What of a piece that was read is behind ``upto`` is not taken in: keep it for the next read."""
        self._ahead.pop(read.place, None)
        rest = read.between(upto, read.next)
        if rest is None:
            return
        size = sum(int(frame.estimated_size()) for frame in rest.frames)
        if size + self._held_bytes(read.place) <= config.LIVE_READ_AHEAD_BYTES_MAX:
            self._ahead[read.place] = (rest, size)

    def _held_bytes(self, but: Place) -> int:
        """What is kept of other partitions."""
        return sum(size for place, (_, size) in self._ahead.items() if place != but)

    def _kept(self, place: Place, offset: int, stop: int) -> Piece | None:
        found = self._ahead.get(place)
        if found is None or not found[0].first <= offset < found[0].next:
            return None
        return found[0].between(offset, min(stop, found[0].next))

    def heads_now(self, places: Iterable[Place]) -> dict[Place, tuple[int, int]]:
        """(the end of each partition, the fold time in µs) in views of each shard in which this process's clock is in the log:
        whatever is appended later has that time or a later one."""
        found: dict[Place, tuple[int, int]] = {}
        by_shard: dict[int, list[Place]] = {}
        for number, partition in places:
            by_shard.setdefault(self._layouts[number].shard(partition), []).append((number, partition))
        for shard, members in by_shard.items():
            self._client.tick(shard)
            with self._client.view(shard, STRONG) as view:
                now_us = view.head().now_ms * 1000
                for number, partition in members:
                    head = stream_rows.head_of(view, self._layouts[number].name, partition)
                    found[number, partition] = (head.next, now_us)
        return found

    def places(self) -> list[Place]:
        """All partitions that are read, of those inputs whose stream is there."""
        found: list[Place] = []
        for number, (layout, source) in enumerate(zip(self._layouts, self._inputs, strict=True)):
            row = None if source.history else layout.find()
            if source.history:
                found.append((number, 0))
            elif row is not None:
                found += [(number, partition) for partition in source.partitions or range(row.partitions)]
        return found

    def appended_ms(self, place: Place, offset: int) -> int | None:
        """When a record was appended, in ms since 1970; None: it is not there. Raises TooOld."""
        number, partition = place
        layout = self._layouts[number]
        with layout.client.shards[layout.shard(partition)].view() as view:
            page = read_page(view, layout.name, partition, offset, offset + 1, 0)
        return page.runs[0].time_ms if page.runs else None

    @property
    def now_ms(self) -> int:
        """The wall clock, in ms since 1970."""
        return self._env.wall_ms()


def _frames(stream: str, partition: int, runs: Sequence[Run], low: int, high: int) -> list[pl.DataFrame]:
    """The records between two offsets, those apart that do not fit into one frame: what becomes of them is decided by the schema.

    A record that cannot be a row by itself either is a row with the reason (``UNREADABLE``) instead of its columns.
    """
    try:
        return list(frames_of_runs(stream, partition, runs, low, high, joined=True))
    except InvalidValue as error:
        let_pass(error)
        if high - low <= 1:
            return [
                unreadable_row(partition, low, runs[0].time_ms).with_columns(
                    pl.lit(reason_alone(error, stream, partition, low)).alias(UNREADABLE)
                )
            ]
        middle = (low + high) // 2
        first = [run for run in runs if run.offset < middle]
        second = [run for run in runs if run.offset + run.count > middle]
        return [
            *_frames(stream, partition, first, low, middle),
            *_frames(stream, partition, second, middle, high),
        ]
