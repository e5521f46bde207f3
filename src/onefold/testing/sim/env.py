"""A simulated machine: its clocks, its randomness, and what has befallen it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from onefold.testing.sim.scheduler import Scheduler

if TYPE_CHECKING:
    from onefold.testing.sim.network import Endpoint
    from onefold.testing.sim.regions import Zone

WALL_START_MS = 1_700_000_000_000
"""The true time of day when every simulation begins."""


class SimMachine:
    """One machine with one process of the program. It is an ``Env``: its clocks are simulated, its entropy is seeded.

    ``boot_s`` runs as true time does, from a start of its own, also while the machine is suspended; it never goes back, and
    continues over crashes of the process. ``wall_ms`` is off by ``skew_s``, which faults change, and by what the clocks of its
    region are off.
    """

    def __init__(self, scheduler: Scheduler, name: str, seed: int | str) -> None:
        self.name = name
        self.random = random.Random(f"machine {name} {seed}")
        self.skew_s = 0.0
        self.zone: Zone | None = None
        """The region that it is in."""
        self.suspended_until = 0.0
        self.endpoints: list[Endpoint] = []
        """Its connections to the logs."""
        self._cut = False
        self._held_until = 0.0
        self._scheduler = scheduler
        self._boot_s = self.random.uniform(0, 1e6)

    @property
    def cut(self) -> bool:
        """Nothing reaches it, and nothing that it sends arrives."""
        return self._cut

    @cut.setter
    def cut(self, cut: bool) -> None:
        self._deliver()
        self._cut = cut
        self._announce()

    @property
    def held_until(self) -> float:
        """What the logs send it arrives only then; its own requests get through."""
        return self._held_until

    @held_until.setter
    def held_until(self, until: float) -> None:
        self._deliver()
        self._held_until = until
        self._announce()

    def _deliver(self) -> None:
        # What has arrived by now is here, whatever comes.
        for endpoint in self.endpoints:
            endpoint.deliver()

    def _announce(self) -> None:
        for endpoint in self.endpoints:
            endpoint.announce()

    def wall_ms(self) -> int:
        skew_s = self.skew_s if self.zone is None else self.skew_s + self.zone.skew_s
        return WALL_START_MS + int((self._scheduler.now + skew_s) * 1000)

    def boot_s(self) -> float:
        return self._boot_s + self._scheduler.now

    def token(self, nbytes: int) -> bytes:
        return self.random.randbytes(nbytes)

    def pause(self, seconds: float) -> None:
        """Let time pass for the calling task."""
        self._scheduler.sleep(max(0.0, seconds))
