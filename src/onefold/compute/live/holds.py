"""What a job has not read is kept past the retention of its streams, for as long as ``read_stream(hold=)`` says.

The shards of a stream's partitions have rows that say how far each part has committed them (``state.fold.live.holds``). Every
worker looks periodically whether they are there, and moves them forward when retention waits for that: otherwise it appends
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onefold import config
from onefold.compute.live.client import LiveJob, now_or_later, refused
from onefold.state.core.consistency import SESSION
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.holds import is_over
from onefold.state.fold.live.ops import HoldInput
from onefold.state.fold.outcomes import Answer
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.fold.streams.rows import Holder
from onefold.state.streams.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from onefold.compute.live.plan import LivePart
    from onefold.shard.api import View
    from onefold.state.core.client import StateClient


class Holding:
    """Keeps what a generation has not read. For one thread."""

    def __init__(self, job: LiveJob, generation: int, parts: Sequence[LivePart]) -> None:
        self._job, self._generation, self._parts = job, generation, parts
        self._layouts: dict[str, Layout] = {}
        self._looked_s: float | None = None

    def look(self, *, now: bool = False) -> int:
        """Set what rows are to be set; how many operations that took. ``now``: also if it has looked a moment ago.

        Raises as ``Shard.submit``.
        """
        clock_s = self._job.client.env.boot_s()
        if not now and self._looked_s is not None and clock_s - self._looked_s < config.LIVE_HOLD_LOOK_S:
            return 0
        self._looked_s = clock_s
        return sum(self._look(part) for part in self._parts)

    def look_if_it_can(self) -> None:
        """The same at the start of a job. What cannot be done now is done by its workers."""
        with now_or_later:
            self.look(now=True)

    def _look(self, part: LivePart) -> int:
        done = 0
        for (stream, hold_ms), unread in self._unread(part).items():
            layout = self._layouts.get(stream) or self._layouts.setdefault(
                stream, Layout(self._job.client, stream)
            )
            for shard, partitions in layout.by_shard(sorted(unread)).items():
                with self._job.client.view(shard, SESSION) as view:
                    due = self._due(
                        view, part.name, stream, hold_ms, {one: unread[one] for one in partitions}
                    )
                if not due:
                    continue
                op = HoldInput(self._job.name, self._generation, part.name, stream, due, hold_ms)
                outcome = self._job.client.submit(shard, op)
                if not isinstance(outcome, Answer):
                    raise refused(outcome)
                done += 1
        return done

    def _unread(self, part: LivePart) -> dict[tuple[str, int], dict[int, int]]:
        """Of each stream and its hold in ms the first offset of each partition that is not committed."""
        with self._job.local() as view:
            key = live_rows.part_key(self._job.name, self._generation, part.name)
            positions = [one for bundle in live_rows.bundles(view, key) for one in bundle.row.positions]
        found: dict[str, dict[int, int]] = {}
        longest: dict[str, int] = {}
        for one in positions:
            source = part.inputs[one.input]
            if source.hop_of or source.history:
                continue
            unread = found.setdefault(source.stream, {})
            unread[one.partition] = min(one.next, unread.get(one.partition, one.next))
            hold_ms = source.hold_us // 1000
            longest[source.stream] = max(hold_ms, longest.get(source.stream, 0))
        return {(stream, longest[stream]): unread for stream, unread in found.items()}

    def _due(
        self, view: View, part: str, stream: str, hold_ms: int, unread: Mapping[int, int]
    ) -> tuple[tuple[int, int], ...]:
        """The partitions whose row is not there, or keeps what is read and past its retention."""
        row = stream_rows.read_stream(view.get(stream_rows.STREAMS, stream.encode()))
        if row is None:
            return ()  # nothing was appended in this shard
        now_ms = self._job.client.env.wall_ms()
        due: list[tuple[int, int]] = []
        for partition, offset in unread.items():
            holder = Holder(stream, partition, self._job.name, self._generation, part)
            held = stream_rows.hold_of(view, holder)
            if (0 if held is None else held.hold_ms) != hold_ms:
                due.append((partition, offset))
            elif held is not None and row.retention_ms is not None and held.next < offset:
                head = stream_rows.head_of(view, stream, partition)
                if head.first < head.next and head.oldest_ms < now_ms - row.retention_ms:
                    due.append((partition, offset))
        return tuple(due)


def release(client: StateClient) -> int:
    """Keep nothing any more for generations that are over; for how many of their parts that was. Raises as ``Shard.submit``."""
    released = 0
    for shard, rows in _left(client):
        for (name, generation, part, stream), partitions in rows.items():
            places = tuple((partition, 0) for partition in partitions)
            outcome = client.submit(shard, HoldInput(name, generation, part, stream, places, 0))
            if not isinstance(outcome, Answer):
                raise refused(outcome)
            released += 1
    return released


def release_if_it_can(client: StateClient) -> None:
    """The same after the end of a job. What cannot be done now is done by the next to look: a program that opens the space, and
    ``compute.upkeep``."""
    with now_or_later:
        release(client)


def release_if_over(job: LiveJob, generation: int) -> None:
    """The same, as far as this replica shows that the generation is over. Costs nothing otherwise."""
    with job.local() as view:
        if not _over_in(view, job.name, generation):
            return
    release_if_it_can(job.client)


def left_over(client: StateClient) -> int:
    """How many parts of generations that are over still have records kept for them. Raises as reading."""
    return sum(len(rows) for _, rows in _left(client))


_Rows = dict[tuple[str, int, str, str], list[int]]
"""Partitions by (job, generation, part, stream)."""


def _left(client: StateClient) -> Iterator[tuple[int, _Rows]]:
    """By shard, what is held for generations that are over."""
    over: dict[tuple[str, int], bool] = {}
    for shard in range(client.shard_count):
        held: _Rows = {}
        with client.view(shard, SESSION) as view:
            for one in stream_rows.holders(view):
                held.setdefault((one.job, one.generation, one.part, one.stream), []).append(one.partition)
        for which in {key[:2] for key in held} - over.keys():
            over[which] = _is_over(client, *which)
        yield shard, {key: partitions for key, partitions in held.items() if over[key[:2]]}


def _is_over(client: StateClient, name: str, generation: int) -> bool:
    """Whether a generation reads no more, unless somebody starts it again that was replaced."""
    job = LiveJob(client, name)
    with job.local() as view:
        if not _over_in(view, name, generation):
            return False
    with job.view() as view:  # where this replica is behind, a job that is new would look gone
        return _over_in(view, name, generation)


def _over_in(view: View, name: str, generation: int) -> bool:
    if is_over(view, name, generation):
        return True
    job, row = live_rows.job_of(view, name), live_rows.generation_of(view, name, generation)
    assert job is not None
    assert row is not None
    return generation not in (job.current, job.replaying) and row.state not in live_rows.ACTIVE
