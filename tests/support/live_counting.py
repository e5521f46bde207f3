"""A live job that writes each number to a stream once, by hand: as much of a worker as tests of commits need."""

from __future__ import annotations

import msgspec

from onefold.compute.live.bundles import Delta, HeldBundle, Worker
from onefold.compute.live.client import LiveJob
from onefold.state.core.client import StateClient
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import PartSpec, Position
from onefold.state.fold.live.rows import Run
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.fold.streams.ops import Append, MakeStream

ALL, LANES = range(20), 4
PART = PartSpec("count", LANES, (("keys", "n"),), ((0, 0, 0),))


class Blobs(dict[str, bytes]):
    """A store of blobs."""

    def put(self, data: bytes) -> str:
        self[str(len(self))] = bytes(data)
        return str(len(self) - 1)


def begun(client: StateClient, name: str = "job") -> LiveJob:
    """A job whose output goes to the stream of its name."""
    job = LiveJob(client, name)
    job.start("plan", [PART])
    client.submit(0, MakeStream(name, 1, None))
    return job


def runs_of(held: HeldBundle) -> list[Run]:
    """The runs that cover some of its lanes, in order."""
    with held.worker.job.local() as view:
        found = live_rows.runs(view, held.part_key)
        return [run for run in found if lane_sets.unpack(run.row.lanes) & held.lanes]


def count(held: HeldBundle, upto: int) -> Delta:
    """Numbers up to there: each goes to the output once."""
    (at,) = held.row.positions
    numbers = [number for number in range(at.next, upto) if held.lanes >> number % LANES & 1]
    frame = msgspec.msgpack.encode(numbers)
    runs = (held.run("state", frame, len(numbers), Blobs()),) if numbers else ()
    writes = (Append(held.worker.job.name, 0, 1, frame),) if numbers else ()
    return Delta((Position(0, 0, upto, upto * 10),), upto * 10, runs, writes=writes)


def work(worker: Worker, upto: int = len(ALL)) -> None:
    """Everything that is left of the bundles that it can get."""
    for held in worker.claim("count"):
        while held.row.positions[0].next < upto:
            held.commit(count(held, min(upto, held.row.positions[0].next + 5)))


def output(client: StateClient, name: str = "job") -> list[int]:
    """What came out, from the rows of the stream."""
    found: list[int] = []
    with client.view(0) as view:
        for key, row in view.scan(stream_rows.segment_table(name, 0), stream_rows.FIRST_KEY):
            for run in stream_rows.read_segment(key, row).runs:
                found += msgspec.msgpack.decode(run.frame)
    return found
