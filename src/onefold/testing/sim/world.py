"""The simulated world: a space, the programs that use it, and everything that can happen to them, from one seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from onefold import config
from onefold.arguments import WHOLE_MAX, check_flag, check_whole, shown
from onefold.db import Database
from onefold.env import SeededEnv
from onefold.errors import InvalidArgument, OnefoldError
from onefold.ids import REGIONS_MAX, check_region
from onefold.log.memory import MemoryLog
from onefold.state.core.consistency import Consistency, Level, parse_level
from onefold.testing.history import History
from onefold.testing.sim.env import WALL_START_MS
from onefold.testing.sim.faults import NONE, Faults, Nemesis
from onefold.testing.sim.links import Links
from onefold.testing.sim.network import LogServer
from onefold.testing.sim.nodes import Asker, Node
from onefold.testing.sim.process import Process, Program
from onefold.testing.sim.regions import SimRegion, Zone, differences
from onefold.testing.sim.scheduler import Scheduler

_LINES_SHOWN = 60
_CLIENTS_MAX = 10_000
_PROBE_TIMEOUT_S = 60.0
_PROBES_MAX = 100
_EQUAL_WITHIN_S = 120.0


class _TrueEnv(SeededEnv):
    """The logs' own clock: true time, but for what the clocks of a region are off."""

    def __init__(self, seed: str, scheduler: Scheduler, zone: Zone | None = None) -> None:
        super().__init__(0)
        self._random = random.Random(f"truth {seed}")
        self._scheduler = scheduler
        self._zone = zone

    def wall_ms(self) -> int:
        skew_s = 0.0 if self._zone is None else self._zone.skew_s
        return WALL_START_MS + int((self._scheduler.now + skew_s) * 1000)

    def boot_s(self) -> float:
        return self._scheduler.now


def check_regions(names: Sequence[str], nodes: int) -> list[str]:
    """The names as a list. Raises InvalidArgument."""
    if isinstance(names, str) or len(set(names)) != len(names) or len(names) > REGIONS_MAX:
        raise InvalidArgument(f"regions must be up to {REGIONS_MAX} different names; got {shown(names)}")
    if names and nodes:
        raise InvalidArgument("a simulation has either regions or nodes: programs in regions have replicas")
    for name in names:
        check_region(name)
    return list(names)


class Simulation:
    """A space of Onefold with several programs on it, in simulated time, from a seed: the same seed gives the same run.

    Programs are ordinary functions of a database, and need no change::

        sim = Simulation(seed=7)
        sim.setup(lambda db: db.map("accounts").update({"a": 100, "b": 0}))
        sim.clients(3, teller)                     # each on a machine of its own, with a replica of its own
        sim.run(faults="all", seconds=60)          # then everything heals, and all programs must come to their end
        with sim.healed() as db:
            assert sum(db.map("accounts").values()) == 100

    Programs run in threads, one at a time; others run where a program writes, reads or waits. They must not wait by other
    means than the database's, or ``sim.sleep``. Errors that faults bring about (``Unavailable``, ``Timeout``, ``AppendUnknown``,
    ``Expired``) may end a program: its process starts again half a second later with a fresh replica, and so it does after a
    crash. Any other exception of a program fails the simulation, with its seed in a note on the exception. A failure can be
    run again by the seed alone, under any PYTHONHASHSEED (if the programs themselves do not depend on it).

    Maps, transactions, queues, locks and streams are simulated; jobs are not, and neither is the background renewal of leases
    (call ``renew`` or ``extend``).

    With ``regions`` each of them has logs of its own, and programs use maps, counters and sets that every region can write.
    Regions exchange what they did as those of a cluster do. Links between them are cut in one direction or both, and clocks of a
    whole region go wrong. In the end all regions must be equal. Consistent collections are in logs that every region reaches::

        sim = Simulation(seed=7, regions=("eu", "us"))
        sim.setup(lambda db: db.counters("stock", floor=0).add("sku-1", 10))
        sim.client(seller, region="eu")
        sim.client(seller, region="us")
        sim.run(faults="all", seconds=60)
        with sim.healed(region="eu") as db:
            assert db.counters("stock", floor=0).get("sku-1") >= 0

    ``shards``: of the space, and of each region. ``nodes``: when there are any, clients have no replicas, and ask these.
    ``syncs=False``: logs acknowledge before records are safe, as no log should.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        shards: int = 1,
        nodes: int = 0,
        syncs: bool = True,
        regions: Sequence[str] = (),
        rerun: str | None = None,
    ) -> None:
        """``rerun``: what failures say about how to run this seed again."""
        check_flag("syncs", syncs)
        check_whole("seed", seed, least=-WHOLE_MAX)
        check_whole("shards", shards, least=1, most=config.SHARDS_MAX)
        check_whole("nodes", nodes, least=0, most=config.NODES_MAX)
        self.seed = seed
        self.scheduler = Scheduler(seed)
        self.random = random.Random(f"simulation {seed}")
        """For the test's own choices."""
        self.processes: list[Process] = []
        self._syncs = syncs
        self.servers = [self._server(f"{shard} {seed}") for shard in range(shards)]
        self.over = False
        """Whether no process is started again."""
        self.history = History(self._tick)
        """Records what programs do and see, for the checkers of ``onefold.testing``: its times are simulated seconds."""
        self._last_tick = -1.0
        self._rerun = rerun or f"Simulation(seed={seed})"
        self._lines: list[str] = []
        self._names = itertools.count(1)
        self._failure: BaseException | None = None
        self._helpers: list[Process] = []
        self.nodes = [Node(self, f"node {number}") for number in range(1, nodes + 1)]
        self.processes += self.nodes
        self.links = Links(self.scheduler)
        """Those between regions."""
        names = check_regions(regions, nodes)
        self.regions = [self._region(name, number) for number, name in enumerate(names, 1)]
        for region in self.regions:
            region.begin(self, names)
        self.processes += [region.relay for region in self.regions]

    @property
    def all_servers(self) -> list[LogServer]:
        """The logs of the space, then those of each region."""
        return [*self.servers, *(server for region in self.regions for server in region.servers)]

    # -- before

    def setup(self, fn: Callable[[Database], object]) -> None:
        """Run ``fn(db)`` now, before anything can go wrong. Where there are regions it is a program of the first one, and all
        others know what it did before anything else happens."""
        with self._noted():
            with self._visitor("setup") as db:
                fn(db)
            self._exchange()

    def client(
        self,
        program: Program,
        *more: Program,
        consistency: Consistency | None = None,
        name: str | None = None,
        timeout: float | None = None,
        region: str | None = None,
    ) -> Process:
        """A process that runs ``program(db)`` once ``run`` begins, on a machine and replica of its own (with ``nodes``: without
        one). More functions are threads of the same process, on the same database. ``consistency``, ``timeout``, ``region``: as
        of ``connect``; where there are regions, and none is named, clients are in each of them in turn."""
        name = name or f"client {next(self._names)}"
        kind = Asker if self.nodes else Process
        at = self._region_of(region, len(self.processes))
        process = kind(self, name, (program, *more), self._level(consistency), timeout, at)
        self.processes.append(process)
        return process

    def clients(self, count: int, program: Program, *more: Program, **options: Any) -> list[Process]:
        """So many processes that each run the program; see ``client``."""
        check_whole("count", count, least=0, most=_CLIENTS_MAX)
        return [self.client(program, *more, **options) for _ in range(count)]

    # -- the run

    def run(self, faults: str | Faults | None = "all", seconds: float = 60.0, grace: float = 120.0) -> None:
        """Run all clients to their end. Faults happen for ``seconds`` of simulated time at most; then everything heals.

        A program that has not ended ``grace`` simulated seconds later fails the run when it wrote nothing since everything
        healed; otherwise it is taken for one that runs for ever, and is stopped. In the end every process must be able to read
        and write, and all replicas must hold the same state.

        Raises what a program raised; AssertionError when one is stuck or when replicas differ. Both with the seed in a note.
        """
        with self._noted():
            nemesis = Nemesis(self, Faults.named(faults))
            nemesis.start()
            for process in self.processes:
                if not process.incarnation:
                    process.start()
            self._await(self.scheduler.now + seconds)
            nemesis.stop()
            before = {process.name: process.acknowledged for process in self.processes}
            self._await(self.scheduler.now + grace)
            stuck = [
                process.name
                for process in self.processes
                if process.unfinished and process.acknowledged == before[process.name]
            ]
            if stuck:
                raise AssertionError(
                    f"nothing went wrong for {grace:g} simulated seconds, and yet these made no progress: {', '.join(stuck)}"
                )
            for process in self.processes:
                process.stop()
            self._exchange()  # a relay that is down comes back for it
            self.over = True
            self._probe()

    @contextmanager
    def healed(
        self, consistency: Consistency | None = None, *, region: str | None = None
    ) -> Iterator[Database]:
        """A database over a fresh replica, with nothing going wrong, to look at what the programs have left. ``region``: in which
        it is (default: the first)."""
        with self._noted(), self._visitor("healed", consistency, region) as db:
            yield db

    # -- for programs

    @property
    def now(self) -> float:
        """Simulated seconds since the beginning; true time, which no machine's own clock need agree with."""
        return self.scheduler.now

    def sleep(self, seconds: float) -> None:
        """Let simulated time pass, in a program or in the test."""
        self.scheduler.sleep(seconds)

    def log(self, *what: object) -> None:
        """Note something; the last lines are shown when the simulation fails."""
        task = self.scheduler.current.name
        self._lines.append(f"{self.scheduler.now:10.6f} [{task}] {' '.join(map(str, what))}")

    @property
    def trace(self) -> tuple[str, ...]:
        """What was noted, by programs and by the nemesis, in order."""
        return tuple(self._lines)

    def report(self) -> str:
        """The seed, how to run it again, and the end of the trace."""
        shown = self._lines[-_LINES_SHOWN:]
        more = len(self._lines) - len(shown)
        head = f"onefold simulation failed with seed {self.seed}; run it again: {self._rerun}"
        return "\n".join([head, f"  ... {more} lines before", *shown] if more else [head, *shown])

    # -- after

    def close(self) -> None:
        """End all threads and release everything."""
        self.over = True
        self.scheduler.close()
        for process in [*self.processes, *self._helpers]:
            process.close()

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside

    def fail(self, process: Process, error: BaseException) -> None:
        """A program has failed, and with it the simulation."""
        self.log(f"{process.name} failed: {type(error).__name__}: {error}")
        if self._failure is None:
            self._failure = error
        self.scheduler.wake(self.scheduler.main)

    def _await(self, until: float) -> None:
        while any(process.unfinished for process in self.processes) and self.scheduler.now < until:
            self.scheduler.block(until)
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure

    def _probe(self) -> None:
        """Every process can write and read, and all replicas that have applied the same hold the same."""
        alive = [process for process in self.processes if process.is_open]
        for process in alive:
            for shard, _ in process.replicas():
                try:
                    shard.barrier(_PROBE_TIMEOUT_S)
                except OnefoldError as error:
                    raise AssertionError(
                        f"{process.name} cannot read after everything has healed: {error!r}"
                    ) from error
        for _ in range(_PROBES_MAX):
            servers = self.all_servers
            ends = {id(server): server.end for server in servers}
            digests: dict[int, dict[str, str]] = {id(server): {} for server in servers}
            for process in alive:
                for shard, server in process.replicas():
                    end = ends[id(server)]
                    if not shard.reach(end, _PROBE_TIMEOUT_S):
                        raise AssertionError(
                            f"{process.name} was not delivered offset {end} after everything has healed"
                        )
                if process.has_replicas:
                    for shard, server in process.replicas():
                        digests[id(server)][process.name] = shard.state_digest()
            if ends == {id(server): server.end for server in servers}:
                break
            # A late append has surfaced meanwhile: some have applied it and some have not. Again.
        else:
            raise AssertionError("the logs do not come to rest after everything has healed")
        differ = [of_log for of_log in digests.values() if len(set(of_log.values())) > 1]
        if differ:
            raise AssertionError(f"replicas of the same logs differ: {differ}")

    # -- regions

    def _server(self, seed: str, zone: Zone | None = None) -> LogServer:
        log = MemoryLog(env=_TrueEnv(seed, self.scheduler, zone), syncs=self._syncs)
        return LogServer(self.scheduler, log, NONE, seed)

    def _region(self, name: str, number: int) -> SimRegion:
        return SimRegion(
            self, name, number, lambda zone, shard: self._server(f"{name} {shard} {self.seed}", zone)
        )

    def _region_of(self, name: str | None, at: int) -> SimRegion | None:
        """The region with that name; without one, one of them."""
        if name is None:
            return self.regions[at % len(self.regions)] if self.regions else None
        for region in self.regions:
            if region.name == name:
                return region
        there_are = ", ".join(region.name for region in self.regions) or "none"
        raise ValueError(f"region must be one of the simulation's, which are: {there_are}; got {name!r}")

    def _level(self, consistency: Consistency | None) -> Level | None:
        """None says what each kind of collection has by default."""
        return None if consistency is None else parse_level(consistency)

    def _exchange(self) -> None:
        """Nothing goes wrong: all regions become equal."""
        for region in self.regions:
            if not region.relay.incarnation:
                region.relay.start()
        until = self.scheduler.now + _EQUAL_WITHIN_S
        while differ := differences(self.regions) if self.regions else "":
            if self.scheduler.now >= until:
                raise AssertionError(
                    f"regions did not become equal within {_EQUAL_WITHIN_S:g} simulated seconds in which nothing went wrong: "
                    f"{differ}"
                )
            self._await_failure(0.05)

    def _await_failure(self, seconds: float) -> None:
        self.scheduler.sleep(seconds)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    @contextmanager
    def _visitor(
        self, name: str, consistency: Consistency | None = None, region: str | None = None
    ) -> Iterator[Database]:
        level, at = self._level(consistency), self._region_of(region, 0)
        process = Process(self, f"{name} {next(self._names)}", (), level, None, at)
        self._helpers.append(process)
        try:
            yield process.open()
        finally:
            process.close()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            error.add_note(self.report())
            raise

    def _tick(self) -> float:
        """Simulated time that never stands still: one thread runs at a time, so the order of calls is the order of time."""
        self._last_tick = max(self.scheduler.now, self._last_tick + 1e-9)
        return self._last_tick
