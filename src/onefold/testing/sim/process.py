"""A simulated client: a process on a machine of its own, with its programs, its database and its deaths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from onefold import config
from onefold.db import Database
from onefold.errors import AppendUnknown, Expired, LogCorrupt, OnefoldError, Timeout, Unavailable
from onefold.shard.memory import MemoryShard
from onefold.state.core.consistency import Level
from onefold.state.fold.machine import StateFold
from onefold.testing.sim.env import SimMachine
from onefold.testing.sim.network import Endpoint
from onefold.testing.sim.scheduler import Killed, Task, Turn

if TYPE_CHECKING:
    from onefold.testing.sim.network import LogServer
    from onefold.testing.sim.regions import OpenedRegion, SimRegion
    from onefold.testing.sim.world import Simulation

Program = Callable[[Database], object]
"""What a client does, as ordinary blocking code."""
_OF_FAULTS = (Unavailable, Timeout, AppendUnknown, Expired)
"""What faults bring about. A program that does not catch them ends, and its process is started again."""


class Process:
    """Runs its programs, each in a thread of its own, on one database. When it has crashed, it starts again with a fresh replica;
    programs that had not ended then begin again from their beginning, as a supervisor would start them."""

    has_replicas = True
    """Whether its spaces hold the state."""
    serves = False
    """Whether it is there for others, and so comes back though it has no program."""

    def __init__(
        self,
        simulation: Simulation,
        name: str,
        programs: Sequence[Program],
        level: Level | None,
        timeout: float | None,
        region: SimRegion | None = None,
    ) -> None:
        self.name = name
        self.machine = SimMachine(simulation.scheduler, name, simulation.seed)
        self.database: Database | None = None
        """None while it is dead."""
        self.shards: list[MemoryShard] = []
        """Its shards of the space."""
        self.region_shards: list[MemoryShard] = []
        """Those of its region."""
        self.unfinished = list(range(len(programs)))
        self.incarnation = 0
        self._simulation = simulation
        self._scheduler = simulation.scheduler
        self._programs = programs
        self._level = level
        self._timeout = timeout
        self._region = region
        self.machine.zone = None if region is None else region.zone
        self._endpoints: list[Endpoint] = []
        self._tasks: list[Task] = []
        self._dead = True
        self._acknowledged = 0

    @property
    def acknowledged(self) -> int:
        """How many of its appends were acknowledged, over all its lives."""
        return self._acknowledged + sum(endpoint.acknowledged for endpoint in self._endpoints)

    @property
    def is_open(self) -> bool:
        """Whether it has a database that its programs have not closed."""
        return self.database is not None and not any(shard._closed for shard in self.shards)

    def start(self) -> None:
        """Begin a life."""
        self._dead = False
        self.incarnation += 1
        if self.unfinished:
            self._spawn(self.unfinished[0], first=True)

    def crash(self, back_after: float) -> None:
        """Die now. Not when it is dead already."""
        if self._dead:
            return
        self._dead = True
        for task in self._tasks:
            self._scheduler.kill(task, Killed(f"{self.name} has crashed"))
        life = self.incarnation
        self._scheduler.call_at(self._scheduler.now + back_after, lambda: self._come_back(life))

    def stop(self) -> None:
        """End its programs, and leave its replicas as they are."""
        for task in self._tasks:
            self._scheduler.kill(task, Killed(f"{self.name} was stopped"))
        self.unfinished.clear()

    def revive(self) -> None:
        """If it is dead, it comes back now."""
        if self._dead and self.incarnation:
            self._come_back(self.incarnation)

    def open(self) -> Database:
        """A database over fresh replicas, on this machine."""
        servers = self._simulation.servers
        endpoints = [Endpoint(server, self.machine) for server in servers]
        self._endpoints = endpoints
        self.shards = [self._space(shard, endpoint) for shard, endpoint in enumerate(endpoints)]
        database = self.database = Database(
            self.shards,
            level=self._level,
            timeout=self._timeout,
            open_region=None if self._region is None else self._open_region,
        )
        if self._region is not None:
            database._in_region()  # now: its threads must not wait for each other in real time
        return database

    def replicas(self) -> Iterator[tuple[MemoryShard, LogServer]]:
        """All its shards, and the log of each."""
        yield from zip(self.shards, self._simulation.servers, strict=True)
        if self._region is not None:
            yield from zip(self.region_shards, self._region.servers, strict=True)

    def _open_region(self, _: str | None) -> OpenedRegion:
        from onefold.testing.sim.regions import OpenedRegion, SimPeers, open_shard

        simulation, region = self._simulation, self._region
        assert region is not None
        endpoints = [Endpoint(server, self.machine) for server in region.servers]
        self._endpoints = [*self._endpoints, *endpoints]
        self.region_shards = [
            open_shard(simulation, region, index, endpoint, self.machine)
            for index, endpoint in enumerate(endpoints)
        ]
        for shard, server in zip(self.region_shards, region.servers, strict=True):
            if not shard.reach(server.end, config.APPEND_RETRY_S):  # as on a cluster
                raise Unavailable(f"{shard.url} was not delivered in time. Try again", definite=True)
        alone = len(simulation.regions) == 1
        peers = None if alone else SimPeers(simulation, self.machine, region, self.region_shards)
        return OpenedRegion(region, self.region_shards, peers)

    def _space(self, shard: int, endpoint: Endpoint) -> MemoryShard:  # noqa: ARG002
        return MemoryShard(
            endpoint,
            [StateFold(len(self._simulation.servers))],
            self.machine,
            url=f"simulated://{self._simulation.seed}",
            pause=self.machine.pause,
            replica=True,
            turns=self._turn,
        )

    def close(self) -> None:
        """Release its replicas."""
        self._acknowledged = self.acknowledged
        self._endpoints = []
        if self.database is not None:
            self.database.close()
            self.database = None
            self.shards = []
            self.region_shards = []

    def _turn(self) -> Turn:
        return Turn(self._scheduler)

    def _spawn(self, at: int, *, first: bool = False) -> None:
        name = self.name if len(self._programs) == 1 else f"{self.name}.{at}"
        task = self._scheduler.spawn(name, lambda: self._run(at, first), self.machine)
        self._tasks.append(task)

    def _run(self, at: int, first: bool) -> None:
        try:
            if first:
                self.open()
                for other in self.unfinished[1:]:
                    self._spawn(other)
            if self.database is not None:
                self._programs[at](self.database)
        except Killed:
            raise
        except LogCorrupt as error:
            self._simulation.fail(self, error)
        except _OF_FAULTS as error:
            self._simulation.log(f"{self.name} ended with {type(error).__name__}: {error}")
            self.crash(self.machine.random.uniform(0.05, 0.5))
        except BaseException as error:
            self._simulation.fail(self, error)
        else:
            self.unfinished.remove(at)
            self._scheduler.wake(self._scheduler.main)

    def _come_back(self, life: int) -> None:
        if life != self.incarnation or not self._dead:
            return  # it did already
        if any(not task.done for task in self._tasks):
            self._scheduler.call_at(self._scheduler.now + 0.01, lambda: self._come_back(life))
            return
        self._tasks.clear()
        self.close()
        if (self.unfinished or self.serves) and not self._simulation.over:
            self.start()


def is_of_faults(error: OnefoldError) -> bool:
    """Whether programs must expect this error when something goes wrong."""
    return isinstance(error, _OF_FAULTS) and not isinstance(error, LogCorrupt)
