"""Simulated regions: logs of their own, and a relay in each that pulls from the others and answers them.

The relay is to its region what the nodes of a cluster are: it runs the steps of ``onefold.regions.runner`` over replicas of its
own, and can be cut off, held back, suspended, and crash like everybody else. Where it dies its appends may arrive none the less.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from onefold.available import exchange, ops
from onefold.available.exchange import Ask, Reply
from onefold.available.regions import Known, read_self
from onefold.errors import LogCorrupt, OnefoldError
from onefold.folds import region_folds
from onefold.regions import questions
from onefold.regions.beginning import first_ops, founders
from onefold.regions.peers import LinkIs, LinkState
from onefold.regions.questions import Question
from onefold.regions.runner import Beating, Runner, append
from onefold.shard.memory import MemoryShard
from onefold.shard.requirements import ReadRequirement
from onefold.state.core.consistency import STRONG
from onefold.testing.sim.env import SimMachine
from onefold.testing.sim.links import Call
from onefold.testing.sim.network import Endpoint, LogServer
from onefold.testing.sim.process import Process
from onefold.testing.sim.scheduler import Killed

if TYPE_CHECKING:
    from onefold.testing.sim.world import Simulation

T = TypeVar("T")
POLL_S: Final = 1.0
"""So long the answer to a question waits for something to tell."""
_ANSWER_S: Final = 1.5
"""How long an answer is waited for, beyond that."""
_PAUSE_S: Final = 0.2
"""Between two questions where nothing can be taken as things are."""
_REPEATED: Final = 3
"""So many of the latest answers may come again."""


class Zone:
    """What the machines and the logs of a region have in common: how far their clocks are off together."""

    def __init__(self) -> None:
        self.skew_s = 0.0


class SimRegion:
    """One of the regions."""

    def __init__(
        self, simulation: Simulation, name: str, number: int, make: Callable[[Zone, int], LogServer]
    ) -> None:
        """``make``: the log of each of its shards."""
        self.name = name
        self.number = number
        self.zone = Zone()
        self.servers = [make(self.zone, shard) for shard in range(len(simulation.servers))]
        self.relay = Relay(simulation, self)

    def begin(self, simulation: Simulation, names: Sequence[str]) -> None:
        """The first record of each log."""
        machine = SimMachine(simulation.scheduler, f"first of {self.name}", simulation.seed)
        for index, server in enumerate(self.servers):
            shard = open_shard(simulation, self, index, Endpoint(server, machine), machine)
            try:
                shard.submit(first_ops(founders(names), self.number, index))
            finally:
                shard.close()


def open_shard(
    simulation: Simulation, region: SimRegion, index: int, endpoint: Endpoint, machine: SimMachine
) -> MemoryShard:
    """A replica of one of a region's logs."""
    from onefold.testing.sim.scheduler import Turn

    return MemoryShard(
        endpoint,
        region_folds(index, len(region.servers)),
        machine,
        url=f"simulated://{simulation.seed}@{region.name}",
        pause=machine.pause,
        replica=True,
        turns=lambda: Turn(simulation.scheduler),
    )


class OpenedRegion:
    """A region that a simulated program has open: ``state.available.client.Region``."""

    def __init__(self, region: SimRegion, shards: Sequence[MemoryShard], peers: SimPeers | None) -> None:
        self.name = region.name
        self.shards = shards
        self.peers = peers

    def look(self) -> None:
        """All regions are there from the beginning."""

    def close(self) -> None:
        """Release its replicas."""
        for shard in self.shards:
            shard.close()


class SimPeers:
    """See ``onefold.regions.peers.Peers``: the relays of other regions are asked."""

    def __init__(
        self, simulation: Simulation, machine: SimMachine, region: SimRegion, shards: Sequence[MemoryShard]
    ) -> None:
        self._simulation = simulation
        self._machine = machine
        self._region = region
        self._shards = shards
        self._began_s = machine.boot_s()
        self._heard_s: dict[int, float] = {}

    def latest(self, timeout_s: float) -> Mapping[int, Mapping[int, int]]:
        """See ``Peers``."""
        found: dict[int, Mapping[int, int]] = {}
        end_s = self._machine.boot_s() + timeout_s
        for other in self._others():
            left_s = max(0.0, end_s - self._machine.boot_s())
            try:
                found[other.number] = self._call(other, other.relay.latest, left_s)
            except OnefoldError:
                continue
        return found

    def links(self) -> Sequence[LinkState]:
        """See ``Peers``."""
        return [self._link(other) for other in self._others()]

    def clocks(self, number: int) -> Mapping[int, int]:
        """See ``Peers``."""
        for other in self._others():
            if other.number == number:
                try:
                    return self._call(other, other.relay.clocks, POLL_S)
                except OnefoldError:
                    break
        return {}

    def _others(self) -> list[SimRegion]:
        return [one for one in self._simulation.regions if one is not self._region]

    def _call(self, other: SimRegion, work: Callable[[], T], timeout_s: float) -> T:
        call: Call[T] = Call(self._simulation.links, self._machine, self._region, other)
        found = call.ask(work, timeout_s)
        self._heard_s[other.number] = self._machine.boot_s()
        return found

    def _link(self, other: SimRegion) -> LinkState:
        state: LinkIs = "linked"
        for index, shard in enumerate(self._shards):
            with shard.view() as view:
                data = questions.encode_question(Question(exchange.ask(view), 1, waits=False))
            try:
                reply = self._call(other, lambda at=index, asked=data: other.relay.answer(at, asked), POLL_S)  # type: ignore[misc]
            except OnefoldError:
                silent_s = self._machine.boot_s() - self._heard_s.get(other.number, self._began_s)
                return LinkState(other.number, other.name, silent_s, "cut")
            told = questions.decode_reply(reply).state
            if told in ("lost", "diverged", "differs"):
                return LinkState(other.number, other.name, 0.0, told)
            if told == "sync":
                state = "behind"
        return LinkState(other.number, other.name, 0.0, state)


class Relay(Process):
    """Pulls for its region, and answers others. When it has crashed it comes back with fresh replicas."""

    serves = True

    def __init__(self, simulation: Simulation, region: SimRegion) -> None:
        super().__init__(simulation, f"relay {region.name}", (), STRONG, None)
        self.machine.zone = region.zone
        self.region: SimRegion = region
        self.accepts = False
        """Whether an operator accepts effects whose clock is too far ahead."""
        self._up = False

    @property
    def is_open(self) -> bool:
        return self._up

    def start(self) -> None:
        self._dead = False
        self.incarnation += 1
        self._tasks.append(self._scheduler.spawn(self.name, self._guarded(self._boot), self.machine))

    def crash(self, back_after: float) -> None:
        self._up = False
        super().crash(back_after)

    def stop(self) -> None:
        """Its replicas and its tasks stay: regions must become equal after all programs have ended."""

    def close(self) -> None:
        self._up = False
        self._acknowledged = self.acknowledged
        self._endpoints = []
        shards, self.shards = self.shards, []
        for shard in shards:
            shard.close()

    def replicas(self) -> Iterator[tuple[MemoryShard, LogServer]]:
        yield from zip(self.shards, self.region.servers, strict=True)

    def serve(self, work: Callable[[], T], reply: Callable[[T], None]) -> None:
        """A question has arrived: do this, and reply what it returns. Nobody hears of what failed."""
        if not self._up or self.machine.cut:
            return
        self._spawn_task("answers", lambda: reply(work()))

    # -- what it answers

    def answer(self, index: int, data: bytes) -> bytes:
        """See ``questions.answer``; it waits until there is something to tell."""
        shard = self.shards[index]
        end_s = self.machine.boot_s() + POLL_S
        sure = False
        while True:
            applied = shard.applied
            with shard.view() as view:
                late = self.machine.boot_s() >= end_s
                found = questions.answer(view, data, self.machine.wall_ms(), late=late)
            if found is not None:
                if sure or questions.decode_reply(found).state != "lost":
                    return found
                shard.barrier(POLL_S)  # or this replica is behind its log
                sure = True
            else:
                shard.wait(applied, max(0.0, end_s - self.machine.boot_s()))

    def latest(self) -> Mapping[int, int]:
        """By shard, the last effect of its region as of a moment after this was asked."""
        found = {}
        for index, shard in enumerate(self.shards):
            with shard.view(need=ReadRequirement(barrier=True, timeout=POLL_S)) as view:
                found[index] = read_self(view).have().get(self.region.number, 0)
        return found

    def clocks(self) -> Mapping[int, int]:
        """By shard, the hybrid clock of the last effect of its region."""
        return {index: me.origin(self.region.number).hlc for index, me in enumerate(self.known())}

    # -- what it does

    def _boot(self) -> None:
        region = self.region
        self._endpoints = [Endpoint(server, self.machine) for server in region.servers]
        for index, endpoint in enumerate(self._endpoints):
            self.shards.append(open_shard(self._simulation, region, index, endpoint, self.machine))
        self._up = True
        for index, shard in enumerate(self.shards):
            self._spawn_task("beats", lambda one=shard: self._beat(one))  # type: ignore[misc]
            for other in self._simulation.regions:
                if other is not region:
                    self._spawn_task(
                        f"pulls from {other.name}",
                        lambda one=shard, at=index, there=other: self._pull(one, at, there),  # type: ignore[misc]
                    )

    def _pull(self, shard: MemoryShard, index: int, other: SimRegion) -> None:
        transport = SimTransport(self._simulation, self, other)
        runner = Runner(shard, index, other.number, transport)
        while self._up:
            heard_s = runner.heard_s
            try:
                again_s = runner.step()
                if self.accepts:
                    self._accept(shard)
            except LogCorrupt:
                raise
            except OnefoldError:
                again_s = runner.pull.again_s
            if runner.pull.state != "linked" or (again_s is None and runner.heard_s == heard_s):
                self._scheduler.sleep(_PAUSE_S)  # nothing was taken, or its replica knows no regions yet
            elif again_s is not None:
                self._scheduler.sleep(max(0.0, again_s - self.machine.boot_s()))

    def _accept(self, shard: MemoryShard) -> None:
        with shard.view() as view:
            me = read_self(view)
        for number, region in me.regions.items():
            if region.held:
                append(shard, ops.Accept(number, region.held))

    def _beat(self, shard: MemoryShard) -> None:
        beating = Beating(shard)
        while self._up:
            applied = shard.applied
            due_s: float | None
            try:
                due_s = beating.step()
            except LogCorrupt:
                raise
            except OnefoldError:
                due_s = self.machine.boot_s() + _PAUSE_S
            pause_s = POLL_S if due_s is None else min(POLL_S, max(0.001, due_s - self.machine.boot_s()))
            shard.wait(applied, pause_s)

    def known(self) -> list[Known]:
        """By shard, what its replicas know of regions."""
        found = []
        for shard in self.shards:
            with shard.view() as view:
                found.append(read_self(view))
        return found

    # -- tasks

    def _spawn_task(self, what: str, work: Callable[[], None]) -> None:
        self._tasks = [task for task in self._tasks if not task.done]
        self._tasks.append(self._scheduler.spawn(f"{self.name} {what}", self._guarded(work), self.machine))

    def _guarded(self, work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except Killed:
                raise
            except LogCorrupt as error:
                self._simulation.fail(self, error)
            except OnefoldError as error:
                self._simulation.log(f"{self.name}: {type(error).__name__}: {error}")
                if not self._up:  # it could not begin
                    self.crash(self.machine.random.uniform(0.05, 0.5))
            except BaseException as error:
                self._simulation.fail(self, error)

        return run


class SimTransport:
    """See ``onefold.regions.runner.Transport``. An earlier answer may come again instead of a new one."""

    def __init__(self, simulation: Simulation, relay: Relay, other: SimRegion) -> None:
        self._simulation = simulation
        self._relay = relay
        self._other = other
        self._random = random.Random(
            f"{relay.name} {relay.incarnation} pulls from {other.name} {simulation.seed}"
        )
        self._earlier: list[list[Reply]] = [[] for _ in simulation.servers]

    def ask(self, shard: int, asked: Ask, bytes_max: int) -> Reply:
        """See ``Transport``."""
        earlier = self._earlier[shard]
        faults = self._other.servers[0].faults
        if earlier and self._random.random() < faults.late:
            return self._random.choice(earlier)
        data = questions.encode_question(Question(asked, bytes_max))
        found = self._call(lambda: self._other.relay.answer(shard, data), POLL_S + _ANSWER_S)
        reply = questions.decode_reply(found)
        if reply.state == "effects":
            self._earlier[shard] = [*earlier[1 - _REPEATED :], reply]
        return reply

    @contextmanager
    def sync(self, shard: int, id: str) -> Iterator[Iterator[ops.AvailableOp]]:
        """See ``Transport``. All rows come at once."""
        yield iter(self._call(lambda: self._rows(shard, id), POLL_S + _ANSWER_S))

    def _rows(self, shard: int, id: str) -> list[ops.AvailableOp]:
        with self._other.relay.shards[shard].view() as view:
            return list(exchange.sync_ops(view, id))

    def _call(self, work: Callable[[], T], timeout: float) -> T:
        call: Call[T] = Call(self._simulation.links, self._relay.machine, self._relay.region, self._other)
        return call.ask(work, timeout)


def differences(regions: Sequence[SimRegion]) -> str:
    """What regions do not have in common; empty: they are equal."""
    known = {region.name: region.relay.known() if region.relay.is_open else None for region in regions}
    down = [name for name, by_shard in known.items() if by_shard is None]
    if down:
        return f"{', '.join(down)} cannot be asked"
    for shard in range(len(regions[0].servers)):
        at = {name: by_shard[shard] for name, by_shard in known.items() if by_shard is not None}
        haves = {name: me.have() for name, me in at.items()}
        if len({tuple(sorted(have.items())) for have in haves.values()}) > 1:
            return f"they know different effects (shard {shard}): {haves}"
        if len({me.content for me in at.values()}) > 1:
            return f"they know the same effects and show different rows (shard {shard})"
    return ""
