"""A simulated log service: one true log for each shard, and the endpoints through which machines reach it.

An append is a request that takes time, an append to the truth, and an answer that takes time. Either message can be lost or
late, the service may refuse or be down, and the machine may be cut off or die on the way: what was sent arrives none the
less. What was appended is delivered to each endpoint in order, each entry after a delay of its own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onefold.errors import AppendUnknown, SpaceError, Unavailable
from onefold.log.api import Entry
from onefold.log.memory import MemoryLog
from onefold.testing.sim.scheduler import Scheduler, Task

if TYPE_CHECKING:
    from onefold.testing.sim.env import SimMachine
    from onefold.testing.sim.faults import Faults

APPEND_TIMEOUT_S = 2.0
"""How long an endpoint waits for the answer to an append."""
DELAY_S = 0.002
"""The mean time of a message on its way."""
READ_PAUSE_CHANCE = 0.05
"""How often time passes before a replica looks at what it has, so that others get in between two local reads."""
SYNC_EVERY_S = 0.2
"""How often a log that acknowledges before it syncs does sync."""


class LogServer:
    """One shard's log service."""

    def __init__(self, scheduler: Scheduler, truth: MemoryLog, faults: Faults, seed: str) -> None:
        self.scheduler = scheduler
        self.truth = truth
        self.faults = faults
        """The chances of what happens to messages; the nemesis changes it."""
        self.down = False
        self.endpoints: list[Endpoint] = []
        self.times: list[float] = []
        """When each entry was appended; true time."""
        self.random = random.Random(f"log {seed}")
        self._will_sync = False

    @property
    def end(self) -> int:
        """The last offset of the truth."""
        return len(self.times)

    def delay(self) -> float:
        """How long a message is on its way: mostly short, sometimes long."""
        chance = self.random.random()
        if chance < self.faults.slow:
            return self.random.expovariate(1 / (50 * DELAY_S))
        return self.random.expovariate(1 / DELAY_S)

    def store(self, data: bytes) -> int:
        """A request has arrived."""
        offset = self.truth.append(data)
        self.times.append(self.scheduler.now)
        if not self.truth.syncs and not self._will_sync:
            self._will_sync = True
            self.scheduler.call_at(self.scheduler.now + SYNC_EVERY_S, self._sync)
        for endpoint in self.endpoints:
            endpoint.announce()
        return offset

    def _sync(self) -> None:
        self._will_sync = False
        self.truth.sync()

    def crash(self) -> int:
        """The service crashes: what was not safe is lost. How many records."""
        lost = self.truth.crash()
        del self.times[self.truth.last :]
        for endpoint in self.endpoints:
            endpoint.cut_to(self.end)
        return lost


class _Request:
    """An append on its way."""

    __slots__ = ("answered_at", "data", "offset", "task")

    def __init__(self, data: bytes, task: Task) -> None:
        self.data = data
        self.task: Task | None = task
        """Who waits for the answer; None: nobody any more."""
        self.offset: int | None = None
        """None in an answer: refused."""
        self.answered_at = float("inf")


class Endpoint:
    """One machine's access to one shard: ``onefold.log.api.Log``. ``last`` is what was delivered to it."""

    def __init__(self, server: LogServer, machine: SimMachine) -> None:
        self._server = server
        self._scheduler = server.scheduler
        self._machine = machine
        self._delivered = 0
        self._last_at = 0.0
        self._next_at: float | None = None
        self._waiting: list[Task] = []
        self._closed = False
        self.acknowledged = 0
        """How many appends were acknowledged to it."""
        server.endpoints.append(self)
        machine.endpoints.append(self)

    # -- the contract

    @property
    def incarnation(self) -> str:
        return self._server.truth.incarnation

    @property
    def first(self) -> int:
        return self._server.truth.first

    @property
    def last(self) -> int:
        if self._machine.random.random() < READ_PAUSE_CHANCE:
            self._scheduler.sleep(self._machine.random.expovariate(1 / DELAY_S))
        return self.deliver()

    def append(self, data: bytes, deadline: float | None = None) -> int:
        server, scheduler, rng = self._server, self._scheduler, self._server.random
        request = _Request(data, scheduler.me())
        self._check_open()
        faults = server.faults
        if rng.random() < faults.refused or (self._machine.cut and rng.random() < 0.5):
            scheduler.sleep(server.delay())
            raise Unavailable("the log cannot be reached: the connection was refused")
        delay = server.delay()
        if rng.random() < faults.late:
            delay += rng.expovariate(1 / (2 * APPEND_TIMEOUT_S))
        if rng.random() >= faults.vanished and not self._machine.cut:
            scheduler.call_at(scheduler.now + delay, lambda: self._arrive(request))
        until = scheduler.now + APPEND_TIMEOUT_S
        if deadline is not None:
            until = min(until, scheduler.now + max(0.0, deadline - self._machine.boot_s()))
        try:
            while scheduler.now < until and scheduler.now < request.answered_at:
                scheduler.block(until)
        finally:
            request.task = None
        if scheduler.now < request.answered_at:
            raise AppendUnknown("the log did not answer an append in time")
        if request.offset is None:
            raise Unavailable("the log refused an append")
        self.acknowledged += 1
        return request.offset

    def _arrive(self, request: _Request) -> None:
        server, now = self._server, self._scheduler.now
        if server.down:
            if server.random.random() < 0.5:
                return
        else:
            request.offset = server.store(request.data)
        lost = server.random.random() < server.faults.lost_answer
        if request.task is not None and not lost and not self._machine.cut:
            request.answered_at = now + server.delay()
            self._scheduler.wake(request.task, request.answered_at)

    def read(self, start: int, max_bytes: int = 1 << 20) -> Sequence[Entry]:
        return self._server.truth._read(start, max_bytes, self.deliver())

    def wait(self, after: int, timeout: float | None) -> int:
        scheduler = self._scheduler
        until = None if timeout is None else scheduler.now + timeout
        while not self._closed:
            delivered = self.deliver()
            if delivered > after or (until is not None and scheduler.now >= until):
                break
            me = scheduler.me()
            self._waiting.append(me)
            try:
                self.announce()
                scheduler.block(until)
            finally:
                self._waiting.remove(me)
        return self.deliver()

    def trim(self, before: int) -> None:
        self._server.truth.trim(before)

    def close(self) -> None:
        self._closed = True
        if self in self._server.endpoints:
            self._server.endpoints.remove(self)
            self._machine.endpoints.remove(self)
        for task in self._waiting:
            self._scheduler.wake(task)

    # -- delivery

    def announce(self) -> None:
        """Something was appended, or may now come through: wake who waits when the next entry arrives."""
        if self._waiting and self._delivered < self._server.end and not self._machine.cut:
            at = max(self._arrival(), self._machine.held_until, self._scheduler.now)
            for task in self._waiting:
                self._scheduler.wake(task, at)

    def cut_to(self, end: int) -> None:
        """The log has lost what was beyond."""
        self._delivered = min(self._delivered, end)
        self._next_at = None

    def _arrival(self) -> float:
        if self._next_at is None:
            sent = self._server.times[self._delivered]
            self._next_at = max(self._last_at, sent + self._server.delay())
        return self._next_at

    def deliver(self) -> int:
        """What has arrived by now."""
        now, end = self._scheduler.now, self._server.end
        if self._machine.cut or self._machine.held_until > now:
            return self._delivered
        while self._delivered < end and self._arrival() <= now:
            self._last_at = self._arrival()
            self._next_at = None
            self._delivered += 1
        return self._delivered

    def _check_open(self) -> None:
        if self._closed:
            raise SpaceError("the log's endpoint is closed. Open the space again")
