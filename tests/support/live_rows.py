"""A live job over a store in memory, operation by operation."""

from __future__ import annotations

from typing import Any

from onefold.fold.api import NEWEST_VERSION, Context
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import (
    LIVE_VERSION,
    AddInputs,
    Beat,
    Cancel,
    Claim,
    Counters,
    Cover,
    Drain,
    DropCursors,
    DropJob,
    Expire,
    FenceStart,
    Forwarded,
    Fuse,
    Give,
    HoldInput,
    LaneCommit,
    Leave,
    MoveCursor,
    NewRun,
    Outgoing,
    PartSpec,
    Position,
    Replay,
    RunId,
    StartJob,
    Stop,
    Swap,
    Sweep,
    TrimHop,
)
from onefold.state.fold.machine import StateFold
from onefold.state.fold.ops import Commit, StateOp, state_op
from onefold.state.fold.outcomes import Outcome, decode_outcome
from onefold.testing.memory_store import MemoryStore


def spec(name: str = "p", lanes: int = 4, partitions: int = 2, **changed: Any) -> PartSpec:
    starts = tuple((0, partition, 0) for partition in range(partitions))
    return PartSpec(name, lanes, (("window", "tumbling 1m"), ("keys", "page")), starts, **changed)


def packed(*lanes: int) -> bytes:
    return lane_sets.pack(lane_sets.lanes_of(lanes))


def at(partition: int, offset: int, max_us: int | None = None, idle: bool = False) -> Position:
    return Position(0, partition, offset, max_us, idle)


def run_of(*lanes: int, kind: Any = "state", blob: str = "", replaces: tuple[Cover, ...] = ()) -> NewRun:
    inline = b"" if blob else b"rows"
    return NewRun(kind, packed(*lanes), 1, 4, blob, inline, replaces=replaces)


class LiveRows:
    """The state fold, and a job ``j`` with one part ``p``."""

    def __init__(self, *parts: PartSpec, version: int = NEWEST_VERSION) -> None:
        self.store = MemoryStore()
        self.fold = StateFold()
        self.version = version
        self.offset = 0
        self.now_ms = 1_000_000
        self.part = live_rows.part_key("j", 1, "p")
        if version >= LIVE_VERSION:
            self.do(StartJob("j", "plan", parts or (spec(),)))

    def do(self, op: StateOp) -> Outcome:
        """Submit an operation."""
        self.offset += 1
        self.now_ms += 1
        context = Context(self.offset, 0, self.now_ms, "c", None)
        return decode_outcome(self.fold.apply(self.store, context, state_op(op).body, self.version))

    def claim(self, worker: str, part: str = "p", generation: int = 1, *, standby: bool = False) -> Any:
        """The ids of what it owns."""
        outcome: Any = self.do(Claim("j", generation, part, worker, f"m-{worker}", standby))
        return getattr(outcome, "value", outcome)

    def commit(self, bundle: int = 0, writes: tuple[Any, ...] = (), **changed: Any) -> Outcome:
        """A commit of the bundle's owner that follows its last one, unless ``changed`` says otherwise."""
        return self.commit_of(bundle, writes, changed)

    def commit_of(self, bundle: int, writes: tuple[Any, ...], changed: dict[str, Any]) -> Outcome:
        """The same. ``changed`` may name another bundle."""
        row = self.bundle(bundle)
        fields: dict[str, Any] = {
            "job": "j",
            "generation": 1,
            "part": "p",
            "bundle": bundle,
            "owner": row.owner,
            "epoch": row.epoch,
            "seq": row.seq + 1,
            "lanes": row.lanes,
            "nonce": self.offset,
        }
        return self.do(Commit((), (), (LaneCommit(**(fields | changed)), *writes)))

    def bundle(self, number: int = 0) -> live_rows.BundleRow:
        """Its row."""
        found = live_rows.bundle_of(self.store, self.part, number)
        assert found is not None
        return found

    def bundles(self) -> dict[int, tuple[str, list[int]]]:
        """Of each bundle its owner and its lanes."""
        found = live_rows.bundles(self.store, self.part)
        return {
            one.id: (one.row.owner, [*lane_sets.numbers_of(lane_sets.unpack(one.row.lanes))]) for one in found
        }

    def runs(self) -> list[tuple[int, list[int]]]:
        """Of each run its place in the order and its lanes."""
        found = live_rows.runs(self.store, self.part)
        return [(run.id.offset, [*lane_sets.numbers_of(lane_sets.unpack(run.row.lanes))]) for run in found]

    def workers(self) -> set[str]:
        """Those that are known."""
        return set(live_rows.workers(self.store, "j", 1))

    def sharing(self) -> set[str]:
        """Those of them that do not stand by."""
        return set(live_rows.sharing_workers(self.store, "j", 1))

    def wanted(self) -> int:
        """Lanes that are waited for."""
        row = live_rows.part_of(self.store, self.part)
        assert row is not None
        return row.wanted


COMMIT = LaneCommit(
    "j",
    2,
    "p",
    3,
    "w_1",
    4,
    5,
    packed(0, 9),
    1 << 62,
    (Position(0, 1, 700, -5, True),),
    1_700_000_000_000_000,
    (
        NewRun("state", packed(9), 3, 99, "blob", b"", 1, 2, (Cover(RunId(7, 0, 8, 9), packed(9)),)),
        NewRun("late", packed(0), 1, 4, inline=b"rows"),
    ),
    (Cover(RunId(6, 1, 6, 65536), packed(0)),),
    Counters(1, 2, 3, 4, 5, 6),
    (Outgoing(1, b"writes"),),
)
OPS: dict[str, StateOp] = {
    "lane commit": Commit((), (), (COMMIT,)),
    "move cursor": Commit((), (), (MoveCursor("j", 2, 0, 4, 5, 7),)),
    "start live job": StartJob("j", "blob", (spec(by_partition=True),)),
    "add inputs": AddInputs("j", 2, "p", ((0, 1, 700),)),
    "claim lanes": Claim("j", 2, "p", "w_1", "m_1"),
    "beat of a live worker": Beat("j", 2, "w_1"),
    "give lanes": Give("j", 2, "p", 3, "w_1", 4, 5, packed(9), "w_2"),
    "fuse bundles": Fuse("j", 2, "p", "w_1", (3, 4, 5), (6, 1, 0)),
    "expire a live worker": Expire("j", 2, "w_1", 3, 99, True),
    "leave a live job": Leave("j", 2, "w_1"),
    "stop live job": Stop("j", 2, "failed", "why"),
    "drain live job": Drain("j", 2, (("p", 0, 1, 700),)),
    "replay live job": Replay("j", "blob", (spec(),)),
    "swap live job": Swap("j", 3, (("p", 0, 1, 700),), True),
    "cancel live job": Cancel("j", 2, ("p",)),
    "drop live job": DropJob("j", 2),
    "sweep live blobs": Sweep(("blob",)),
    "forwarded": Forwarded("j", 2, 1, 7),
    "trim hop": TrimHop("j", 2, "p"),
    "fence a start": FenceStart("j", 7),
    "drop cursors": DropCursors("j", 1, 3),
    "hold input": HoldInput("j", 2, "p", "s", ((1, 700),), 86_400_000),
}
"""Each operation, for the bytes that it is stored as."""
ROWS: dict[str, Any] = {
    "live job": live_rows.JobRow(2, 3, 3),
    "live generation": live_rows.GenerationRow("draining", "blob", 9, "why", (("p", 0, 1, 700),)),
    "live part": live_rows.PartRow(spec(), 7, 2),
    "live worker": live_rows.WorkerRow("m_1", 3),
    "live bundle": live_rows.BundleRow(
        packed(0, 9), "w_1", 4, 5, 6, (Position(0, 1, 700, -5, True),), 7, Counters(1, 2, 3, 4, 5, 6), 2
    ),
    "live run": live_rows.RunRow("late", packed(9), 3, 99, "blob", 1, 2),
    "live outbox head": live_rows.OutboxHead(1, 2, 3),
}
"""Each row, likewise."""
