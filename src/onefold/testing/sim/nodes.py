"""Simulated nodes, and clients without replicas that ask them: what goes over the network is questions and appends.

A question goes to one of the nodes that are up, and on to another when no answer comes. It can be lost, late, arrive twice, or be
answered when its asker no longer waits; nodes are cut off, held back, suspended and crash like everybody else.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from onefold import config
from onefold.errors import AppendUnknown, Expired, LogCorrupt, Timeout, Unavailable
from onefold.shard.memory import MemoryShard
from onefold.shard.remote.server import Server
from onefold.shard.remote.shard import RemoteShard
from onefold.state.core.consistency import STRONG
from onefold.state.fold.machine import StateFold
from onefold.testing.sim.network import Endpoint
from onefold.testing.sim.process import Process
from onefold.testing.sim.scheduler import Killed, Task

if TYPE_CHECKING:
    from onefold.testing.sim.world import Simulation


class Node(Process):
    """Replicas that answer questions. When it has crashed it comes back with fresh ones."""

    serves = True

    def __init__(self, simulation: Simulation, name: str) -> None:
        super().__init__(simulation, name, (), STRONG, None)
        self.queues: list[Server] = []
        """One for each shard; none while it is down."""

    @property
    def is_open(self) -> bool:
        return bool(self.queues) and super().is_open

    def start(self) -> None:
        self._dead = False
        self.incarnation += 1
        self._tasks.append(self._scheduler.spawn(self.name, self._boot, self.machine))

    def crash(self, back_after: float) -> None:
        self.queues = []
        super().crash(back_after)

    def take(self, shard: int, request: bytes, reply: Callable[[bytes], None]) -> None:
        """A question arrives."""
        if not self.queues or self.machine.cut:
            return
        queue = self.queues[shard]

        def answer() -> None:
            reply(queue.answer(request))

        self._tasks = [task for task in self._tasks if not task.done]
        self._tasks.append(self._scheduler.spawn(f"{self.name} answers", answer, self.machine))

    def _boot(self) -> None:
        try:
            self.open()
            self.queues = [Server(shard) for shard in self.shards]
        except Killed:
            raise
        except LogCorrupt as error:
            self._simulation.fail(self, error)
        except (Unavailable, Timeout, AppendUnknown, Expired) as error:
            self._simulation.log(f"{self.name} ended with {type(error).__name__}: {error}")
            self.crash(self.machine.random.uniform(0.05, 0.5))
        except BaseException as error:
            self._simulation.fail(self, error)


class Asker(Process):
    """A client without replicas."""

    has_replicas = False

    def _space(self, shard_id: int, endpoint: Endpoint) -> MemoryShard:
        shard = RemoteShard(
            endpoint,
            _Asking(self._simulation, self, shard_id),
            [StateFold(len(self._simulation.servers))],
            self.machine,
            url=f"simulated://{self._simulation.seed}",
            pause=self.machine.pause,
            turns=self._turn,
        )
        return cast(MemoryShard, shard)


class _Question:
    """One that is waited for."""

    __slots__ = ("answered_at", "reply", "task")

    def __init__(self, task: Task) -> None:
        self.task: Task | None = task
        self.reply = b""
        self.answered_at = float("inf")


class _Asking:
    """See ``remote_space.Asking``."""

    def __init__(self, simulation: Simulation, asker: Process, shard: int) -> None:
        self._simulation = simulation
        self._scheduler = simulation.scheduler
        self._machine = asker.machine
        self._shard = shard
        self._server = simulation.servers[shard]
        self._random = random.Random(f"asks {asker.name} {asker.incarnation} {shard} {simulation.seed}")

    def __call__(self, request: bytes, timeout: float, *, hedge_s: float) -> bytes:
        scheduler = self._scheduler
        question = _Question(scheduler.me())
        until = scheduler.now + timeout
        sent, next_at = 0, scheduler.now
        try:
            while scheduler.now < min(until, question.answered_at):
                if scheduler.now >= next_at and sent < config.ASK_HEDGES_MAX:
                    if not self._send(request, question) and not sent:
                        scheduler.sleep(self._server.delay())
                        raise Unavailable("no node is there")
                    sent += 1
                    next_at = scheduler.now + hedge_s * 2 ** (sent - 1)
                scheduler.block(min(until, next_at) if sent < config.ASK_HEDGES_MAX else until)
            if scheduler.now < question.answered_at:
                raise Timeout("no node answered in time")
            return question.reply
        finally:
            question.task = None

    def _send(self, request: bytes, question: _Question) -> bool:
        """On its way to one of the nodes; whether there is one."""
        scheduler, server, rng = self._scheduler, self._server, self._random
        nodes = [node for node in self._simulation.nodes if node.queues]
        if not nodes:
            return False
        node = rng.choice(nodes)
        for _ in range(1 + (rng.random() < server.faults.lost_answer)):  # sometimes it arrives twice
            delay = server.delay()
            if rng.random() < server.faults.late:
                delay += rng.expovariate(1.0)
            if rng.random() >= server.faults.vanished and not self._machine.cut:
                scheduler.call_at(
                    scheduler.now + delay,
                    lambda: node.take(
                        self._shard, request, lambda reply: self._replied(question, node, reply)
                    ),
                )
        return True

    def _replied(self, question: _Question, node: Node, reply: bytes) -> None:
        server, rng = self._server, self._random
        if node.machine.cut or self._machine.cut or rng.random() < server.faults.lost_answer:
            return

        def arrive() -> None:
            if question.task is not None and question.answered_at > self._scheduler.now:
                question.reply, question.answered_at = reply, self._scheduler.now
                self._scheduler.wake(question.task)

        self._scheduler.call_at(self._scheduler.now + server.delay(), arrive)
