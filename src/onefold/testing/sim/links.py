"""The links between simulated regions: who asks whom, and what is lost, late, or arrives twice on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from onefold.errors import Unavailable
from onefold.testing.sim.env import SimMachine
from onefold.testing.sim.scheduler import Scheduler, Task

if TYPE_CHECKING:
    from onefold.testing.sim.regions import SimRegion

T = TypeVar("T")
SLOW_S: Final = 0.3
"""How much longer a message is on its way, at most, over a link that is slow."""


class Links:
    """All of them. A link has a direction: what one region sends another one."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._cut_until: dict[tuple[str, str], float] = {}
        self._slow_until: dict[tuple[str, str], float] = {}

    def cut(self, source: str, target: str, seconds: float) -> None:
        """Nothing that the one sends reaches the other for so long."""
        self._extend(self._cut_until, source, target, seconds)

    def slow(self, source: str, target: str, seconds: float) -> None:
        """What the one sends takes longer to reach the other, for so long."""
        self._extend(self._slow_until, source, target, seconds)

    def heal(self) -> None:
        """All are as they should be."""
        self._cut_until.clear()
        self._slow_until.clear()

    def is_cut(self, source: str, target: str) -> bool:
        """Whether nothing gets through now."""
        return self._scheduler.now < self._cut_until.get((source, target), 0.0)

    def delay(self, source: SimRegion, target: SimRegion) -> float:
        """How long a message is on its way."""
        server = source.servers[0]
        delay = server.delay()
        if self._scheduler.now < self._slow_until.get((source.name, target.name), 0.0):
            delay += server.random.uniform(0, SLOW_S)
        return delay

    def _extend(self, until: dict[tuple[str, str], float], source: str, target: str, seconds: float) -> None:
        at = source, target
        until[at] = max(until.get(at, 0.0), self._scheduler.now + seconds)


class Call(Generic[T]):
    """One question of a region to another one's relay, and its answer. The question may arrive twice, and either may be lost."""

    def __init__(self, links: Links, machine: SimMachine, source: SimRegion, target: SimRegion) -> None:
        """``machine``: whose task asks, in the region ``source``."""
        self._links = links
        self._scheduler: Scheduler = links._scheduler
        self._machine = machine
        self._source = source
        self._target = target
        self._task: Task | None = None
        self._answers: list[T] = []

    def ask(self, work: Callable[[], T], timeout: float) -> T:
        """``work`` is done on the relay's machine. Raises Unavailable (definite) when no answer comes in time."""
        scheduler = self._scheduler
        self._task = scheduler.me()
        until = scheduler.now + timeout
        server = self._source.servers[0]
        for _ in range(1 + (server.random.random() < server.faults.lost_answer)):
            if not self._machine.cut and server.random.random() >= server.faults.vanished:
                scheduler.call_at(
                    scheduler.now + self._links.delay(self._source, self._target), lambda: self._arrive(work)
                )
        try:
            while not self._answers and scheduler.now < until:
                scheduler.block(until)
        finally:
            self._task = None
        if not self._answers:
            raise Unavailable(f"region {self._target.name} did not answer in time", definite=True)
        return self._answers[0]

    def _arrive(self, work: Callable[[], T]) -> None:
        if not self._links.is_cut(self._source.name, self._target.name):
            self._target.relay.serve(work, self._reply)

    def _reply(self, answer: T) -> None:
        source, target = self._source, self._target
        server = target.servers[0]
        lost = target.relay.machine.cut or server.random.random() < server.faults.lost_answer
        if not lost and not self._links.is_cut(target.name, source.name):
            self._scheduler.call_at(
                self._scheduler.now + self._links.delay(target, source), lambda: self._deliver(answer)
            )

    def _deliver(self, answer: T) -> None:
        cut = self._machine.cut or self._links.is_cut(self._target.name, self._source.name)
        if self._task is not None and not cut:
            self._answers.append(answer)
            self._scheduler.wake(self._task)
