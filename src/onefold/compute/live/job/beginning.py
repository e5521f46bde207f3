"""What a live job begins with: its plan as bytes, and where each partition of its inputs begins."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from onefold.compute.code import functions
from onefold.compute.code import needs as requirements
from onefold.compute.live.plan import HopSink
from onefold.compute.live.run_bytes import plan_note
from onefold.compute.tasks.failures import of_machine
from onefold.errors import InvalidArgument, OnefoldError, Unavailable
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import PartSpec
from onefold.state.streams.layout import Layout
from onefold.state.streams.reading import start_offsets

if TYPE_CHECKING:
    from onefold.compute.blobs.sweeping import Blobs
    from onefold.compute.live.client import LiveJob
    from onefold.compute.live.plan import LivePart, LivePlan, StreamInput
    from onefold.state.core.client import StateClient


def stored_plan(plan: LivePlan, space: str) -> bytes:
    """The plan with its functions, what they need of a process that runs them, and the incarnation of the space that it is for.
    Raises InvalidArgument."""
    return requirements.seal(functions.dump(plan, plan_note(space)), requirements.of_job(plan))


def put_plan(blobs: Blobs, plan: LivePlan, space: str) -> str:
    """Store the plan (``stored_plan``); the name of its blob. Raises InvalidArgument, Unavailable where the machine refuses it;
    definite."""
    data = stored_plan(plan, space)
    try:
        return blobs.put(data)
    except OSError as error:
        if isinstance(error, OnefoldError):
            raise
        raise Unavailable(
            f"live job {plan.job!r} was not started: {of_machine(error)}, and start it again"
        ) from error


def part_spec(part: LivePart, starts: Sequence[tuple[int, int, int]]) -> PartSpec:
    """A part as it is started. ``starts``: where its inputs begin, unless it reads a hop, which begins empty."""
    begins = tuple(starts)
    if part.inputs[0].hop_of:
        begins = ((0, 0, 0), *((number, 0, 0) for number, one in enumerate(part.inputs) if one.history))
    hop = part.sink.reader if isinstance(part.sink, HopSink) else ""
    return PartSpec(part.name, part.lanes, part.signature, begins, part.operator is None, hop)


def add_inputs(job: LiveJob, generation: int, part: LivePart, numbers: Collection[int] | None = None) -> bool:
    """Make inputs of the part of those streams that were not there when it began (default: all). Whether any is still missing.

    Raises as ``start_places`` and ``LiveJob.submit``.
    """
    with job.local() as view:
        row = live_rows.part_of(view, live_rows.part_key(job.name, generation, part.name))
    known = set() if row is None else {number for number, _, _ in row.spec.starts}
    missing = [number for number in range(len(part.inputs)) if number not in known]
    asked = missing if numbers is None else [number for number in missing if number in numbers]
    starts = start_places(job.client, part.inputs, asked, local=True) if asked else []
    if starts:
        job.add_inputs(generation, part.name, starts)
    return len(missing) > len({number for number, _, _ in starts})


def offsets_of(client: StateClient, stream: str, position: str) -> tuple[tuple[int, int], ...]:
    """(partition, offset) of a position of a stream. Raises InvalidArgument and TooOld; definite."""
    layout = Layout(client, stream)
    row = layout.find()
    if row is None:
        raise InvalidArgument(f"there is no stream {stream!r} yet, which the position would be of")
    heads, _ = layout.heads(range(row.partitions))
    return tuple(sorted(start_offsets(layout, position, heads, row.partitions, whole=True).items()))


def start_places(
    client: StateClient, inputs: Sequence[StreamInput], numbers: Iterable[int], *, local: bool = False
) -> list[tuple[int, int, int]]:
    """(input, partition, offset to begin at) of these inputs, as far as their streams are there.

    ``local``: of streams that a job waits for, by what is here, which costs nothing to ask again and again. Where ``"latest"`` is
    asked for, all their records are later than that.
    Raises InvalidArgument and TooOld for a start that cannot be; definite.
    """
    found: list[tuple[int, int, int]] = []
    for number in numbers:
        source = inputs[number]
        if source.history:
            found.append((number, 0, 0))
            continue
        layout = Layout(client, source.stream)
        row = layout.find(layout.local if local else None)
        if row is None:
            continue
        beyond = [one for one in source.partitions or () if one >= row.partitions]
        if beyond:
            raise InvalidArgument(
                f"stream {source.stream!r} has {row.partitions} partitions, from 0 on, and none with number {beyond[0]}: correct "
                "partitions= of read_stream"
            )
        heads, _ = layout.heads(source.partitions or range(row.partitions))
        start = "earliest" if local and source.start == "latest" else source.start
        offsets = start_offsets(layout, start, heads, row.partitions, whole=False)
        found += [(number, partition, offset) for partition, offset in sorted(offsets.items())]
    return found
