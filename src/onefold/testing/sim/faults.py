"""What goes wrong in a simulation, and the nemesis that makes it so, from the seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onefold.testing.sim.process import Process
    from onefold.testing.sim.world import Simulation


@dataclass(frozen=True)
class Faults:
    """The first six are chances, from 0 to 1, for each append or message; the others say how often, relative to each other, the
    nemesis chooses a fault. It begins one about every ``every_s`` simulated seconds; each lasts about ``lasts_s``."""

    slow: float = 0.02
    """A message takes fifty times as long."""
    refused: float = 0.02
    """An append fails definitely."""
    lost_answer: float = 0.03
    """An append succeeds and its writer is not told."""
    late: float = 0.03
    """An append arrives seconds later, perhaps when its writer has given up or died."""
    vanished: float = 0.02
    """An append is lost on its way."""
    skew_s: float = 2.0
    """The machines' wall clocks are off by up to this much from the beginning; jumps are up to ten times as large."""
    partition: float = 3.0
    """A machine is cut off from every log, both ways."""
    hold_back: float = 3.0
    """A machine is delivered nothing; its own appends get through."""
    suspend: float = 2.0
    """A machine stands still while time continues (a laptop's lid, a long pause of the collector)."""
    crash: float = 2.0
    """A process dies at any point. It starts again later, with nothing but what the logs have."""
    outage: float = 1.0
    """A log crashes and is down for a while; what it acknowledged is kept."""
    clock_jump: float = 1.0
    """A machine's wall clock jumps, forward or back. Of regions, all clocks of one do so together, by an hour."""
    link: float = 3.0
    """Where there are regions: what one sends another one does not arrive, in both directions or in one, or arrives late."""
    every_s: float = 0.4
    lasts_s: float = 1.0

    @classmethod
    def named(cls, faults: str | Faults | None) -> Faults:
        """``"all"``, ``"none"`` (or None), ``"messages"`` (slow, lost and late ones only), or what it is. Raises ValueError."""
        if isinstance(faults, Faults):
            return faults
        if faults == "all":
            return cls()
        if faults == "none" or faults is None:
            return NONE
        if faults == "messages":
            return replace(cls(), **dict.fromkeys(_EVENTS, 0.0))
        raise ValueError(f"faults must be 'all', 'messages', 'none' or Faults(...); got {faults!r}")


_CHANCES = ("slow", "refused", "lost_answer", "late", "vanished", "skew_s")
_EVENTS = ("partition", "hold_back", "suspend", "crash", "outage", "clock_jump", "link")
_HOUR_S = 3600.0
NONE = Faults(**dict.fromkeys(_CHANCES + _EVENTS, 0.0))
"""Messages take time, and nothing else happens."""


class Nemesis:
    """Begins and ends faults until it is told to stop; then everything heals."""

    def __init__(self, simulation: Simulation, faults: Faults) -> None:
        self._simulation = simulation
        self._scheduler = simulation.scheduler
        self._faults = faults
        self._random = random.Random(f"nemesis {simulation.seed}")
        self._stopped = False
        self._kinds = [
            kind
            for kind in _EVENTS
            if getattr(faults, kind) > 0 and (kind != "link" or len(simulation.regions) > 1)
        ]
        self._weights = [getattr(faults, kind) for kind in self._kinds]

    def start(self) -> None:
        """From now on."""
        for server in self._simulation.all_servers:
            server.faults = self._faults
        for process in self._simulation.processes:
            process.machine.skew_s = self._random.uniform(-1, 1) * self._faults.skew_s
        if self._kinds:
            self._plan()

    def stop(self) -> None:
        """Nothing goes wrong any more: what was cut off is joined, what was down comes up."""
        self._stopped = True
        for server in self._simulation.all_servers:
            server.faults = NONE
            server.down = False
        self._simulation.links.heal()
        for region in self._simulation.regions:
            region.zone.skew_s = 0.0
            region.relay.accepts = True
        for process in self._simulation.processes:
            machine = process.machine
            machine.cut, machine.held_until = False, 0.0
            machine.suspended_until = min(machine.suspended_until, self._scheduler.now)
            process.revive()
        self._simulation.log("the nemesis has stopped; everything heals")

    def _plan(self) -> None:
        wait = self._random.expovariate(1 / self._faults.every_s)
        self._scheduler.call_at(self._scheduler.now + wait, self._strike)

    def _strike(self) -> None:
        if self._stopped:
            return
        kind = self._random.choices(self._kinds, self._weights)[0]
        lasts = self._random.expovariate(1 / self._faults.lasts_s)
        if self._random.random() < 0.1:
            lasts *= 10
        getattr(self, f"_{kind}")(lasts)
        self._plan()

    def _victim(self) -> Process:
        processes: Sequence[Process] = self._simulation.processes
        return self._random.choice(processes)

    def _later(self, seconds: float, heal: Callable[[], None]) -> None:
        def healing() -> None:
            if not self._stopped:
                heal()

        self._scheduler.call_at(self._scheduler.now + seconds, healing)

    def _partition(self, lasts: float) -> None:
        process = self._victim()
        if process.machine.cut:
            return
        process.machine.cut = True
        self._simulation.log(f"{process.name} is cut off for {lasts:.3f} s")

        def heal() -> None:
            process.machine.cut = False

        self._later(lasts, heal)

    def _hold_back(self, lasts: float) -> None:
        process = self._victim()
        process.machine.held_until = max(process.machine.held_until, self._scheduler.now + lasts)
        self._simulation.log(f"{process.name} is delivered nothing for {lasts:.3f} s")

    def _suspend(self, lasts: float) -> None:
        process = self._victim()
        process.machine.suspended_until = max(process.machine.suspended_until, self._scheduler.now + lasts)
        self._simulation.log(f"{process.name} is suspended for {lasts:.3f} s")

    def _crash(self, lasts: float) -> None:
        process = self._victim()
        self._simulation.log(f"{process.name} crashes, back in {lasts:.3f} s")
        process.crash(lasts)

    def _outage(self, lasts: float) -> None:
        servers = self._simulation.all_servers
        at = self._random.randrange(len(servers))
        server = servers[at]
        if server.down:
            return
        server.down = True
        lost = server.crash()
        self._simulation.log(f"log {at} crashes (loses {lost} records), back in {lasts:.3f} s")

        def heal() -> None:
            server.down = False

        self._later(lasts, heal)

    def _clock_jump(self, lasts: float) -> None:  # noqa: ARG002
        regions = self._simulation.regions
        if len(regions) > 1 and self._random.random() < 0.3:
            region = self._random.choice(regions)
            region.zone.skew_s = self._random.choice((_HOUR_S, -_HOUR_S, 0.0))
            self._simulation.log(
                f"the clocks of region {region.name} are off by {region.zone.skew_s:.0f} s now"
            )
            return
        process = self._victim()
        process.machine.skew_s = self._random.uniform(-10, 10) * self._faults.skew_s
        self._simulation.log(f"the wall clock of {process.name} is off by {process.machine.skew_s:.1f} s now")

    def _link(self, lasts: float) -> None:
        links = self._simulation.links
        one, other = self._random.sample(self._simulation.regions, 2)
        what = self._random.choice(("cut both ways", "cut one way", "slow"))
        if what == "slow":
            links.slow(one.name, other.name, lasts)
        else:
            links.cut(one.name, other.name, lasts)
        if what == "cut both ways":
            links.cut(other.name, one.name, lasts)
        self._simulation.log(f"the link from {one.name} to {other.name} is {what} for {lasts:.3f} s")
