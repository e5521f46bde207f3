"""Clients over a log that loses answers, from a seed: every operation at most once, every acknowledgement true."""

import random

import pytest

from kit.ledger import Ledger, entry, lines, receipt
from onefold.codec import Record, encode_record
from onefold.env import SeededEnv
from onefold.errors import AppendUnknown, Expired, Unavailable
from onefold.fold.system import Register, system_op
from onefold.ids import client_id
from onefold.log.memory import Faults, MemoryLog
from onefold.shard.memory import MemoryShard
from onefold.store import exactly_once
from onefold.store.exactly_once import Verdict

SEEDS = range(240)
FAULTS = Faults(refused=0.05, lost_answer=0.1, late=0.1, vanished=0.1)


class Violation(Exception):
    """An invariant does not hold."""


class World:
    """One run: a log with faults, clients that are killed and come back, and a record of what they were told."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.env = SeededEnv(seed)
        self.log = MemoryLog(seed=seed, faults=FAULTS, env=self.env)
        self.told = {}  # token -> its outcome | "failed" | "unknown"
        self.made = 0

    def token(self):
        self.made += 1
        return b"t%d" % self.made

    def open(self):
        return MemoryShard(self.log, [Ledger()], self.env, pause=self.env.advance)

    def check(self):
        self.log.faults = Faults()
        self.log.surface_all()
        replicas = [self.open(), self.open()]
        if len({replica.state_digest() for replica in replicas}) != 1:
            raise Violation("replicas of one log differ")
        with replicas[0].view() as view:
            ledger = lines(view)
        for token, line in ledger.items():
            if line.times != 1:
                raise Violation(f"{token} was applied {line.times} times")
        for token, told in self.told.items():
            line = ledger.get(token)
            if told == "failed" and line is not None:
                raise Violation(f"{token} failed definitely and was applied")
            if isinstance(told, bytes) and line is None:
                raise Violation(f"{token} was acknowledged and is lost")
            if isinstance(told, bytes) and told != b"ok" and told != receipt(line.offset, line.place):
                raise Violation(f"{token} was acknowledged at {told} and is at {line}")


def run_appenders(seed):
    """Clients that use the real appender, are killed at any time, and whose old appends are repeated by zombies."""
    world = World(seed)
    spaces = [world.open() for _ in range(3)]
    for _ in range(40):
        at = world.random.randrange(3)
        chance = world.random.random()
        if chance < 0.1:
            spaces[at] = world.open()
        elif chance < 0.2 and world.log.last:
            try:
                world.log.append(world.log.read(world.random.randint(1, world.log.last))[0].data)
            except (Unavailable, AppendUnknown):
                pass
        else:
            tokens = [world.token() for _ in range(world.random.randint(1, 3))]
            try:
                outcomes = spaces[at].submit([entry(token) for token in tokens])
            except Unavailable:
                world.told.update(dict.fromkeys(tokens, "failed"))
            except AppendUnknown:
                world.told.update(dict.fromkeys(tokens, "unknown"))
            else:
                world.told.update(zip(tokens, outcomes, strict=True))
        world.env.advance(world.random.random())
    world.check()


def run_pipelines(seed):
    """A client with two records in flight, as another implementation might be: the fold must not believe its order."""
    world = World(seed)
    replica = world.open()
    client, acknowledged = client_id(0, world.env), 0
    sent = []
    for _ in range(60):
        if len(sent) < acknowledged + 2:
            sent.append(world.token())
            number = len(sent)
        else:
            number = world.random.randint(acknowledged + 1, len(sent))
        ops = (system_op(Register(("ledger",))), entry(sent[number - 1]))
        try:
            world.log.append(encode_record(Record(client, number, world.env.wall_ms(), ops)))
        except (Unavailable, AppendUnknown):
            pass
        replica.applied  # noqa: B018 - catches up
        known = exactly_once.load(replica._con, client)
        while known is not None and acknowledged < known.number:
            world.told[sent[acknowledged]] = b"ok"
            acknowledged += 1
    world.check()


@pytest.mark.parametrize("start", range(0, len(SEEDS), 40))
@pytest.mark.parametrize("run", [run_appenders, run_pipelines])
@pytest.mark.moving(2)
def test_exactly_once(run, start):
    for seed in SEEDS[start : start + 40]:
        try:
            run(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error


def no_dedupe(client, number, known, *, offset, floor):
    return Verdict.APPLY


def dedupe_by_maximum_only(client, number, known, *, offset, floor):
    return Verdict.APPLY if known is None or number > known.number else Verdict.DUPLICATE


@pytest.mark.parametrize(
    ("planted", "run"),
    [(no_dedupe, run_appenders), (no_dedupe, run_pipelines), (dedupe_by_maximum_only, run_pipelines)],
)
def test_planted_bugs_are_caught(planted, run, monkeypatch):
    monkeypatch.setattr(exactly_once, "judge", planted)
    for seed in SEEDS[:30]:
        try:
            run(seed)
        except (Violation, Expired):  # a client that meets a foreign number calls itself forgotten
            return
    pytest.fail(f"{planted.__name__} was not noticed in 30 seeds")
