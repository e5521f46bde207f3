"""A bundle as a fold of its input: what a batch makes of its state, and the commit that says so.

``step`` gives the next state and the commit without changing anything, so a refused commit is dropped at no cost. ``accepted``
takes the step as happened. After a takeover ``recover`` reads the state from the runs, and positions and watermark from the
bundle's row: nothing of what a former owner had read and not committed exists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import polars as pl

from onefold import config
from onefold.compute.aggregates import ORDER_COLUMN
from onefold.compute.blobs.sweeping import Remembered
from onefold.compute.frames.columns import bounds_us, micros
from onefold.compute.live.bundles import Delta, Meeting
from onefold.compute.live.event_time import advanced, operator_watermark
from onefold.compute.live.inputs.preparing import RECORD, Dead, Prepared, located, with_origins, with_reasons
from onefold.compute.live.operators.running import RunningAggregate
from onefold.compute.live.output.outputs import Changes, Output, output
from onefold.compute.live.plan import HopSink, TableSink
from onefold.compute.live.runs.merging import merged
from onefold.compute.live.runs.open_state import OpenState
from onefold.compute.live.runs.rows import LANE, Layout, side_by_side, with_lanes
from onefold.compute.live.runs.run_store import RunReader, new_run
from onefold.compute.live.worker import compaction, sifting
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import WATERMARK_END_US, Counters, Position

if TYPE_CHECKING:
    from onefold.compute.blobs.store import BlobStore
    from onefold.compute.live.bundles import HeldBundle, Puts
    from onefold.compute.live.inputs.reading import Piece
    from onefold.compute.live.output.writers import Writer, Written
    from onefold.compute.live.plan import LivePart
    from onefold.state.fold.live.ops import NewRun
    from onefold.state.streams import large_frames

LATE_REASON = "late"
SWEEPS_PER_TTL = 8
"""How often groups past their time are looked for while the watermark moves by a ``ttl``."""


@dataclass(frozen=True)
class Step:
    """A commit that may happen, and the state after it."""

    delta: Delta
    state: OpenState
    swept_us: int | None = None
    """The watermark at which groups past their time were looked for last."""
    refused: str = ""
    """Why rows cannot be given to the sink; empty: all can."""
    too_large: int = 0
    """The bytes of its writes, if they do not fit into a record; 0: they do."""
    plan: compaction.Plan = compaction.NO_PLAN
    """What it compacts and drops."""
    broken: str = ""
    """The first record that a key or an aggregate fails for, and why; empty: none."""
    stored: _Stored | None = None
    """Its blobs."""


@dataclass(frozen=True)
class _Stored:
    """Blobs of a commit, until it has named them."""

    runs: Remembered
    at_ms: int
    frames: large_frames.Stored | None = None

    def keep(self, now_ms: int) -> None:
        """After the commit: store those again that were removed as nobody's, since this process stood still for so long."""
        if now_ms - self.at_ms >= config.ORPHAN_BLOB_AGE_S * 1000 / 2:
            self.runs.keep()
            if self.frames is not None:
                self.frames.keep()


@dataclass
class _Made:
    """What the pieces of a commit have made so far."""

    state: OpenState
    deltas: list[pl.DataFrame] = field(default_factory=list)
    late: list[pl.DataFrame] = field(default_factory=list)
    dead: list[pl.DataFrame] = field(default_factory=list)
    plain: list[pl.DataFrame] = field(default_factory=list)
    rows: int = 0
    ahead: int = 0
    left_out: int = 0
    before_seam: int = 0
    broken: str = ""
    """The first record that a key or an aggregate fails for, and why."""

    @property
    def counted(self) -> Counters:
        """What the commit counts."""
        late, dead = (sum(frame.height for frame in frames) for frames in (self.late, self.dead))
        return Counters(
            self.rows, late, dead, self.ahead, left_out=self.left_out, before_seam=self.before_seam
        )


class BundleFold:
    """One bundle of a worker. Used by one thread at a time."""

    def __init__(
        self, held: HeldBundle, part: LivePart, blobs: BlobStore, reader: RunReader, writer: Writer | None
    ) -> None:
        """``writer``: makes writes of rows for another sink than a table."""
        self.held = held
        self.part = part
        self.blobs = blobs
        self.reader = reader
        self._writer = writer
        self._swept_us: int | None = None
        self._mine: frozenset[int] | None = None
        self.compactor = compaction.Compactor(self)
        self.state = OpenState(self.layout)
        self.recover()

    @property
    def layout(self) -> Layout:
        """The rows of its state."""
        operator = self.part.operator
        return Layout(()) if operator is None else operator.layout

    @property
    def watermark_us(self) -> int | None:
        """As committed."""
        return self.held.row.watermark_us

    @property
    def keep_us(self) -> int | None:
        """How long closed windows are kept, in event time; None: for as long as the job is there."""
        sink = self.part.sink
        return sink.keep_us if isinstance(sink, TableSink) else None

    @property
    def positions(self) -> dict[tuple[int, int], Position]:
        """How far each partition is committed."""
        return {(one.input, one.partition): one for one in self.held.row.positions}

    def recover(self) -> None:
        """Read the state of its lanes from the runs."""
        lanes = self.held.lanes
        everything = lanes == lane_sets.all_lanes(self.part.lanes)
        self._mine = None if everything else frozenset(lane_sets.numbers_of(lanes))
        if self.part.operator is None:
            return
        part_key = self.held.part_key
        with self.held.worker.job.local() as view:
            runs = [
                run
                for run in live_rows.runs(view, part_key)
                if run.row.kind == "state" and lane_sets.unpack(run.row.lanes) & lanes
            ]
            inline = self.reader.inline(view, part_key, runs)
        state = OpenState.of_runs(
            self.layout, (self.reader.frame(part_key, run, inline) for run in runs), self.closed_us()
        )
        self.state = state if self._mine is None else state.of_lanes(self._mine)

    def step(
        self,
        pieces: Sequence[tuple[Piece, Prepared]],
        idle: Sequence[Position] = (),
        *,
        watermark_us: int | None = None,
        schema: tuple[int, bytes] | None = None,
        meeting: Meeting | None = None,
        history: pl.DataFrame | None = None,
    ) -> Step:
        """The commit of these pieces, of different partitions or in order. ``idle``: partitions found idle, or read to their head
        at a time, and not in a piece. ``watermark_us``: at least this, where more is known than times of rows.
        ``schema``: what the commit says of the inputs' columns. ``meeting``: where it is to be fused with others: once it has
        read up to those positions it takes on what the others know of idleness, and the watermark. ``history``: the partial of
        what was before the seam and is still open, which enters with this commit."""
        positions = self.positions
        moved: dict[tuple[int, int], Position] = {}
        made = _Made(self.state)
        for piece, prepared in pieces:
            before = moved.get(piece.place, positions[piece.place])
            if self.part.inputs[piece.place[0]].hop_of:
                moved[piece.place] = Position(*piece.place, piece.next)
                self._take(made, piece, prepared, 0)
                continue
            times, appended = prepared.times_us, micros(prepared.records["_time"])
            if times.null_count():
                known = times.is_not_null()
                times, appended = times.filter(known), appended.filter(known)
            bound = self.part.inputs[piece.place[0]].max_ahead_us
            after = advanced(before, piece.next, times.to_numpy(), appended.to_numpy(), bound)
            moved[piece.place] = after.position
            self._take(made, piece, prepared, after.ahead)
        if history is not None:
            self._enter(made, moved, history)
        for position in idle:
            moved.setdefault((position.input, position.partition), position)
        watermark = operator_watermark(
            self.watermark_us, [*(positions | moved).values()], self.part.delays_us
        )
        if meeting is not None and _is_at(positions | moved, meeting):
            moved |= {(one.input, one.partition): one for one in meeting[0]}
            watermark = max((mark for mark in (watermark, meeting[1]) if mark is not None), default=None)
        if watermark_us is not None:
            watermark = watermark_us if watermark is None else max(watermark, watermark_us)
        return self._committing(made, moved, watermark, schema)

    @property
    def result_layout(self) -> Layout:
        """The rows of its results."""
        operator = self.part.operator
        if operator is None or isinstance(operator, RunningAggregate):
            return Layout(())
        return operator.result_layout

    def of_lanes(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The rows of the bundle's lanes."""
        if self._mine is None or not frame.height:
            return frame
        return frame.filter(pl.col(LANE).is_in(sorted(self._mine)))

    def closed_us(self, watermark_us: int | None = None) -> int | None:
        """Windows that end at or before this are closed, at a watermark (default: the committed one)."""
        mark = self.watermark_us if watermark_us is None else watermark_us
        return self.part.closed_us(mark)

    def accepted(self, step: Step) -> None:
        """The step's commit happened."""
        self.state = step.state
        self._swept_us = step.swept_us
        self.compactor.published(step.plan)
        if step.stored is not None:
            step.stored.keep(self.held.worker.job.client.env.wall_ms())

    # -- pieces

    def _take(self, made: _Made, piece: Piece, prepared: Prepared, ahead: int) -> None:
        operator = self.part.operator
        owns = self._owns_partition(piece.place[1])
        if owns:
            made.ahead += ahead
            made.left_out += prepared.left_out
            made.before_seam += prepared.before_seam
            if prepared.dead:
                made.dead.append(prepared.set_aside())
        rows = prepared.rows
        if operator is None:
            if isinstance(self.part.sink, HopSink):
                rows = with_origins(rows, prepared.records)
            else:
                made.rows += rows.height
            if rows.height:
                lane = lane_sets.of_partition(piece.place[1], self.part.lanes)
                made.plain.append(rows.with_columns(pl.lit(lane, dtype=pl.UInt16).alias(LANE)))
            return
        if any(aggregate.needs_order for _, aggregate in operator.aggregates):
            rows = _ordered(rows, prepared.records, piece.place[0])
        batches, broken = sifting.taken(
            rows,
            made.state,
            lambda some, state: operator.batch(some, state, self.watermark_us, self._mine),
        )
        for batch in batches:
            made.state = batch.state
            made.rows += batch.rows
            made.deltas += [] if batch.delta is None else [batch.delta]
            if batch.late is not None:
                made.late.append(prepared.of_records(batch.late[RECORD], LATE_REASON))
        if broken:
            self._set_broken_aside(made, piece, prepared, broken)

    def _set_broken_aside(
        self, made: _Made, piece: Piece, prepared: Prepared, broken: Mapping[int, str]
    ) -> None:
        """Records that a key or an aggregate fails for: in the bundle of their group, or without a group in that of the
        partition."""
        operator = self.part.operator
        assert operator is not None
        rows = prepared.rows
        dead: list[Dead] = []
        for number, reason in sorted(broken.items()):
            row = rows.filter(pl.col(RECORD) == number)
            owns = sifting.lanes_own(row, operator.keys, operator.lanes, self._mine)
            if self._owns_partition(piece.place[1]) if owns is None else owns:
                dead.append(Dead(number, reason))
        if dead:
            made.broken = made.broken or located(dead[0], prepared, self.part.inputs[piece.place[0]].stream)
            made.dead.append(replace(prepared, dead=tuple(dead)).set_aside())

    @property
    def waits_for_history(self) -> bool:
        """Whether a history has not entered. Until then nothing closes: its position has no watermark."""
        found = self.part.history
        return found is not None and self.positions[found[0], 0].next == 0

    def _enter(self, made: _Made, moved: dict[tuple[int, int], Position], history: pl.DataFrame) -> None:
        """Take in the groups of a history that are of the bundle's lanes; once, since its position says so."""
        operator, found = self.part.operator, self.part.history
        assert operator is not None
        assert found is not None
        moved[found[0], 0] = Position(found[0], 0, 1, None, True)
        if not history.height:
            return
        delta = self.of_lanes(with_lanes(history, operator.key_names, self.part.lanes))
        if delta.height:
            delta = operator.with_history(delta, made.state)
            made.deltas.append(delta)
            made.state = made.state.with_batch(delta)

    def _owns_partition(self, partition: int) -> bool:
        """Whether this bundle counts what is of no lane: each partition's in one bundle."""
        return self._mine is None or lane_sets.of_partition(partition, self.part.lanes) in self._mine

    # -- the commit

    def _committing(
        self,
        made: _Made,
        moved: Mapping[tuple[int, int], Position],
        watermark: int | None,
        schema: tuple[int, bytes] | None,
    ) -> Step:
        stored, at_ms = Remembered(self.blobs), self.held.worker.job.client.env.wall_ms()
        out, state, swept_us = self._closing(made, watermark)
        runs: list[NewRun] = []
        if made.deltas:
            delta = (
                made.deltas[0] if len(made.deltas) == 1 else merged(made.deltas, self.layout, complete=False)
            )
            delta = self._still_open(delta, watermark)
            if delta.height:
                runs.append(self._run("state", delta, stored))
        written = self._written(out)
        made.dead += [] if written is None else [_set_aside(*one) for one in written.refused]
        for kind, frames in (("late", made.late), ("dead", made.dead)):
            if frames:
                runs.append(self._aside(kind, side_by_side(frames), stored))
        if out.result is not None and out.result.height:
            runs.append(self._run("result", out.result, stored))
        kept = self.held.row
        changed = watermark if watermark != kept.watermark_us else None
        plan = self.compactor.planned(watermark) if runs else compaction.NO_PLAN
        return Step(
            Delta(
                tuple(
                    position for place, position in sorted(moved.items()) if position != self.positions[place]
                ),
                changed,
                (*runs, *plan.runs),
                plan.dropped,
                made.counted,
                () if written is None else tuple(written.outbox),
                () if written is None else tuple(written.writes),
                schema,
            ),
            state,
            swept_us,
            "" if written is None or not written.refused else written.refused[0][1],
            0 if written is None else written.too_large,
            plan,
            made.broken,
            _Stored(stored, at_ms, None if written is None else written.stored),
        )

    def _closing(self, made: _Made, watermark: int | None) -> tuple[Output, OpenState, int | None]:
        """What goes out with a commit that moves the watermark there, the state after it, and at which watermark groups past
        their time were looked for."""
        operator, state = self.part.operator, made.state
        final: pl.DataFrame | None = None
        expired: pl.DataFrame | None = None
        forgotten: pl.DataFrame | None = None
        swept_us = self._swept_us
        if isinstance(operator, RunningAggregate):
            if watermark is not None and self._sweeps(operator, watermark):
                found = operator.forget(state, watermark)
                swept_us = watermark
                if found is not None:
                    state, forgotten, expired = found
        elif operator is not None and watermark is not None:
            closed = operator.close(state, self.watermark_us, watermark)
            state, final = closed.state, closed.final
        changes = Changes(
            made.plain, tuple(made.deltas), self.state, made.state, final, expired, self.watermark_us
        )
        made.deltas += [] if forgotten is None else [forgotten]
        return output(self.part, changes), state, swept_us

    def _written(self, out: Output) -> Written | None:
        if self._writer is None or (out.rows is None and out.gone is None):
            return None
        return self._writer.write(out.rows, out.gone)

    def _sweeps(self, operator: RunningAggregate, watermark: int) -> bool:
        """Whether to look for groups past their time: all groups are read for it, so only from time to time."""
        if operator.ttl_us is None or watermark >= WATERMARK_END_US:
            return False
        return self._swept_us is None or watermark - self._swept_us >= operator.ttl_us // SWEEPS_PER_TTL

    def _run(self, kind: str, frame: pl.DataFrame, blobs: Puts) -> NewRun:
        end = self.layout.window_end
        return new_run(self.held, kind, frame, blobs, window_end=end)  # type: ignore[arg-type]

    def _aside(self, kind: str, frame: pl.DataFrame, blobs: Puts) -> NewRun:
        """Records that are set aside at the watermark, which says how long they are kept."""
        mark = self.watermark_us
        ends = None if mark is None else (mark, mark)
        return new_run(self.held, kind, frame, blobs, ends_us=ends)  # type: ignore[arg-type]

    def _still_open(self, delta: pl.DataFrame, watermark_us: int | None) -> pl.DataFrame:
        """Without windows that this commit closes: their state is needed no more."""
        end = self.layout.window_end
        closed = self.closed_us(watermark_us)
        if end is None or closed is None:
            return delta
        ends = bounds_us(delta[end])
        if ends is None or ends[0] > closed:
            return delta
        keep = (pl.col(end).dt.epoch("us") > closed).fill_null(True)
        return delta.filter(keep)


def _is_at(positions: Mapping[tuple[int, int], Position], meeting: Meeting) -> bool:
    """Whether the positions are those of the meeting, but for idleness."""
    return len(positions) == len(meeting[0]) and all(
        positions[one.input, one.partition].next == one.next for one in meeting[0]
    )


def _ordered(rows: pl.DataFrame, records: pl.DataFrame, number: int) -> pl.DataFrame:
    """Rows with the order of their arrival: by the time of the append, then input, partition and offset."""
    at = rows[RECORD]
    appended = records["_time"].gather(at).dt.epoch("ms").cast(pl.String).str.zfill(20)
    partition = records["_partition"].gather(at).cast(pl.Int64) + number * (1 << 32)
    offset = records["_offset"].gather(at)
    order = pl.struct(path=appended, start=partition, row=offset).alias(ORDER_COLUMN)
    return rows.with_columns(pl.select(order).to_series())


def _set_aside(rows: pl.DataFrame, reason: str) -> pl.DataFrame:
    """Rows that the sink cannot take, with the reason."""
    return with_reasons(rows, [reason] * rows.height)
