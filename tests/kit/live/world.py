"""The world that live workers run in: one log, folded by the real state fold, whose answers get lost; input that keeps
arriving; a clock; and blobs."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from kit.live.kept import Kept
from kit.live.stress import PROFILES, Stress
from onefold.compute.live.client import LiveJob
from onefold.compute.plan.windows import WindowSpec
from onefold.env import SeededEnv
from onefold.errors import AppendUnknown
from onefold.fold.api import Context
from onefold.state.core.client import StateClient
from onefold.state.fold.kind import Operation
from onefold.state.fold.live.ops import LIVE_VERSION, HoldInput, LaneCommit, PartSpec
from onefold.state.fold.machine import StateFold
from onefold.state.fold.ops import Commit, StateOp, decode_op, state_op
from onefold.state.fold.outcomes import Committed, Outcome, decode_outcome
from onefold.state.fold.streams.ops import MakeStream
from onefold.testing.memory_store import MemoryStore

JOB, PART = "job", "count"
US = 1_000_000
RETENTIONS = 5
"""One seed in so many has input that does not stay."""
HISTORIES = 3
"""One seed in so many has a history, and others whose profile says so."""


def out_of(generation: int) -> str:
    """The stream that a generation writes to."""
    return f"out{generation}"


class Killed(BaseException):
    """The process that made this call was killed in it."""


class Event(NamedTuple):
    """A record of the input."""

    time_us: int
    key: int
    appended_us: int


@dataclass
class Settings:
    """What a seed decides before anything happens."""

    partitions: int
    lanes: int
    by_partition: bool
    window_us: int
    delay_us: int
    lateness_us: int
    keys: int
    rates: tuple[float, ...]
    """How often something comes to each partition."""
    cluster: bool
    """Nobody knows of a process whether it lives."""
    idle_s: float
    rows_max: int
    """Of one partition in one batch."""
    retention_s: float = 0.0
    """Older input is removed unless it is held; 0: never."""
    history: bool = False
    """There is a batch job over what happened before a time; live rows before that are left out."""
    lease_s: float = 15.0
    max_ahead_us: int = 60 * US

    @property
    def window(self) -> WindowSpec:
        """The windows of the job."""
        return WindowSpec("tumbling", self.window_us, lateness_us=self.lateness_us)


def settings_of(seed: int, chance: random.Random, stress: Stress) -> Settings:
    """Drawn from a seed, as far as its profile leaves it to it."""

    def drawn(what: str, *usual: Any) -> Any:
        return chance.choice(stress.choices.get(what, usual))

    history = seed % HISTORIES == HISTORIES - 1 or drawn("history", False)
    partitions = drawn("partitions", 1, 2, 3)
    by_partition = drawn("by_partition", True, False, False, False) and not history
    return Settings(
        partitions=partitions,
        lanes=partitions if by_partition else drawn("lanes", 2, 3, 4, 5, 6),
        by_partition=by_partition,
        window_us=drawn("window_s", 5, 10, 30) * US,
        delay_us=drawn("delay_s", 0, 2, 8) * US,
        lateness_us=drawn("lateness_s", 0, 0, 5) * US,
        keys=drawn("keys", 1, 2, 3, 4, 5, 6),
        rates=tuple(drawn("rate", 0.9, 0.9, 0.1) for _ in range(partitions)),
        cluster=drawn("cluster", True, False),
        idle_s=drawn("idle_s", 3.0, 10.0),
        rows_max=drawn("rows_max", 6, 20),
        history=history,
        retention_s=chance.choice((5.0, 10.0)) if seed % RETENTIONS == RETENTIONS - 1 else 0.0,
    )


@dataclass
class World:
    """One run of a seed."""

    seed: int
    chance: random.Random = field(init=False)
    settings: Settings = field(init=False)
    stress: Stress = field(init=False)
    faults: bool = True

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.stress = PROFILES[self.seed % len(PROFILES)]
        self.settings = settings_of(self.seed, self.chance, self.stress)
        self.env = SeededEnv(self.seed)
        self.store = MemoryStore()
        self.fold = StateFold()
        self.offset = 0
        self.input: list[list[Event]] = [[] for _ in range(self.settings.partitions)]
        self.blobs: dict[str, bytes] = {}
        self.late_copies: list[bytes] = []
        """Appends without an answer that may surface yet."""
        self.alive: dict[str, bool] = {}
        self.began_us = self.now_us
        self.frozen: set[int] = set()
        """Partitions that get nothing at the moment."""
        self.operator = Client(self, "operator", faults=False)
        for generation in (1, 2):
            self.operator.submit(0, MakeStream(out_of(generation), 1, None))
        starts = tuple((0, partition, 0) for partition in range(self.settings.partitions))
        self.seam_us: int | None = None
        self.history: list[Event] = []
        self.history_done_s = 0.0
        if self.settings.history:
            self._before(random.Random(f"history {self.seed}"))
            starts = (*starts, (1, self.settings.partitions, 0))
        self.spec = PartSpec(PART, self.settings.lanes, (), starts, self.settings.by_partition)
        self.job = LiveJob(cast("StateClient", self.operator), JOB)
        self.job.start("plan", [self.spec])
        self.kept = Kept(self, PART) if self.settings.retention_s else None

    def _before(self, chance: random.Random) -> None:
        """A seam somewhere in the first windows, rows before it, and when the batch job over them is done."""
        settings = self.settings
        self.seam_us = seam_us = self.began_us + chance.randint(0, 2 * settings.window_us)
        for _ in range(chance.randint(1, 80)):
            when = seam_us - 1 - chance.randrange(3 * settings.window_us)
            self.history.append(Event(when, chance.randrange(settings.keys), when))
        self.history_done_s = self.env.boot_s() + chance.choice((0, 40, 80, 1000, 1000))

    @property
    def history_is_done(self) -> bool:
        """Whether the batch job is; it is at the latest when the faults end."""
        return not self.faults or self.env.boot_s() >= self.history_done_s

    # -- time and input

    @property
    def now_us(self) -> int:
        """The wall clock, which is fold time too."""
        return self.env.wall_ms() * 1000

    def pass_time(self) -> None:
        """A little, and sometimes much."""
        self.env.advance(self.chance.choice((0.05, 0.2, 0.5, 1.0, 3.0)))

    def produce(self) -> None:
        """Some events come; some of them late, some a year ahead."""
        if self.chance.random() < self.stress.freezes:
            self.frozen ^= {self.chance.randrange(self.settings.partitions)}
        for partition, events in enumerate(self.input):
            if partition in self.frozen or self.chance.random() > self.settings.rates[partition]:
                continue
            before = len(events)
            for _ in range(self.chance.randint(1, 4)):
                disorder = self.chance.randint(0, self.settings.delay_us)
                when = self.now_us - disorder
                luck = self.chance.random()
                if luck < 0.03:
                    when -= self.settings.delay_us + self.chance.randint(0, 3) * self.settings.window_us
                elif luck < 0.05:
                    when += 365 * 86_400 * US
                key = self.chance.randrange(self.settings.keys)
                events.append(Event(when, key, self.now_us))
            if self.kept is not None:
                self.kept.append(partition, len(events) - before)

    def heads(self) -> tuple[int, ...]:
        """The ends of the partitions, as a barriered view shows them. A history is one record, once it is done."""
        found = tuple(len(events) for events in self.input)
        return (*found, int(self.history_is_done)) if self.settings.history else found

    # -- the log

    def append(self, body: bytes) -> Outcome:
        """One record with one operation, folded."""
        self.offset += 1
        context = Context(self.offset, 0, self.env.wall_ms(), "c0-0", None)
        self.fold.advance(self.store, context)
        outcome = decode_outcome(self.fold.apply(self.store, context, body, LIVE_VERSION))
        if isinstance(outcome, Committed):
            self._has_what_it_names(body)
        return outcome

    def _has_what_it_names(self, body: bytes) -> None:
        """A reader finds the runs of a commit as soon as it sees it."""
        op = decode_op(body)
        for write in op.writes if isinstance(op, Commit) else ():
            for run in write.runs if isinstance(write, LaneCommit) else ():
                assert run.blob in self.blobs, f"a commit names {run.blob}, which was swept"

    def surface(self) -> None:
        """An append of which nobody had an answer comes, or is lost for ever."""
        if self.late_copies and self.chance.random() < self.stress.surfaces:
            body = self.late_copies.pop(self.chance.randrange(len(self.late_copies)))
            if self.chance.random() < 0.8:
                self.append(body)

    # -- blobs

    def put(self, data: bytes) -> str:
        """Store bytes under their hash. What is there is not stored again."""
        name = hashlib.blake2b(data, digest_size=16).hexdigest()
        self.blobs.setdefault(name, data)
        return name

    @contextmanager
    def viewing(self) -> Iterator[MemoryStore]:
        """What a strong read sees."""
        yield self.store


class Client:
    """As much of a ``StateClient`` as live jobs use, for one process. Its answers get lost when ``faults``."""

    def __init__(self, world: World, member: str, *, faults: bool) -> None:
        self.world = world
        self.member = member
        self.faults = faults
        self.env = world.env
        self.shards = (self,)
        self.shard_count = 1
        self.always_strong = False
        self.incarnation = "space"
        world.alive[member] = True

    def shard_of(self, key: bytes) -> int:
        """There is one."""
        return 0

    def reach_version(self, shard: int, version: int) -> bool:
        """It is in force."""
        return version <= LIVE_VERSION

    def member_alive(self, member: str) -> bool | None:
        """What the kernel knows."""
        return None if self.world.settings.cluster else self.world.alive.get(member, False)

    def view(self, shard: int, level: object = None) -> Any:
        """A barriered view."""
        return self.world.viewing()

    def submit(self, shard: int, op: StateOp | Operation) -> Outcome:
        """Append it. Raises AppendUnknown when the answer is lost, Killed when the process dies meanwhile."""
        world, luck = self.world, self.world.chance.random()
        body = state_op(op).body
        if not (self.faults and world.faults):
            return world.append(body)
        stress = world.stress
        if luck < stress.killed:
            if luck < stress.killed / 3:
                world.append(body)
            elif luck < stress.killed * 2 / 3:
                world.late_copies.append(body)
            raise Killed
        if luck < stress.killed + (stress.doubts if isinstance(op, Commit) else stress.unknown):
            if world.chance.random() < stress.happens:
                world.append(body)
            if isinstance(op, Commit | HoldInput) and world.chance.random() < stress.copies:
                world.late_copies.append(body)  # a copy of it is still on its way
            raise AppendUnknown("no answer")
        return world.append(body)
