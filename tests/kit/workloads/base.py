"""What all workloads share: a budget of operations, the seed's choices, and recording what became of each."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from onefold.db import Database
from onefold.errors import Conflict, OnefoldError, TooOld
from onefold.testing.history import Operation, Verdict
from onefold.testing.sim.process import is_of_faults
from onefold.testing.sim.world import Simulation

THINK_S = 0.004
"""How long a client mostly waits between two operations, on average."""


class Workload(ABC):
    """Clients that together do so many operations on a simulated space, record them, and a checker of what they saw.

    Each life of a process is a process of the history; a process with two threads is two. An operation that faults ended is
    recorded as its error says: ``fail`` if definite, else ``info``; one whose client died is left open.
    """

    name: ClassVar[str]
    clients: ClassVar[int] = 4
    threads: ClassVar[int] = 1
    """Of the first client."""
    consistency: ClassVar[str] = "strong"

    def __init__(self, simulation: Simulation, operations: int) -> None:
        self.simulation = simulation
        self.history = simulation.history
        self.random = random.Random(f"{self.name} {simulation.seed}")
        self._left = operations
        self._processes = 0
        self._unique = 0

    @abstractmethod
    def setup(self, db: Database) -> None:
        """What is there before anything goes wrong."""

    @abstractmethod
    def step(self, db: Database, process: int) -> None:
        """One client's next operation."""

    def finish(self, db: Database) -> None:  # noqa: B027 - some have nothing to do then
        """When everything has healed: last reads."""

    @abstractmethod
    def check(self) -> Verdict:
        """The verdict on the history."""

    # -- for workloads

    def start(self) -> None:
        """Make the clients."""
        for at in range(self.clients):
            threads = self.threads if at == 0 else 1
            self.simulation.client(*[self._program] * threads, consistency=self.consistency)

    def unique(self) -> int:
        """A number that nobody else gets."""
        self._unique += 1
        return self._unique

    def attempt(self, process: int, kind: str, key: Any, value: Any, do: Callable[[], Any]) -> Any:
        """Do an operation and record it; its result, or None when it failed or nobody knows."""
        token = self.history.invoke(process, kind, key, value)
        try:
            result = do()
        except (Conflict, TooOld):
            self.history.fail(token)
        except OnefoldError as error:
            if not is_of_faults(error):
                raise
            self.simulation.log(f"{kind} {key!r} {value!r}: {type(error).__name__} {error}")
            if error.definite:
                self.history.fail(token)
            else:
                self.history.info(token)
        else:
            self.history.ok(token, result)
            return result
        return None

    def new_process(self) -> int:
        """The number of a new process of the history."""
        self._processes += 1
        return self._processes

    def operations(self, *kinds: str) -> list[Operation]:
        """What was recorded, of these kinds (default: all)."""
        return [op for op in self.history.operations if not kinds or op.kind in kinds]

    def _program(self, db: Database) -> None:
        process = self.new_process()
        for _ in self._mine():
            self.step(db, process)
            if self.random.random() < 0.7:
                self.simulation.sleep(self.random.expovariate(1 / THINK_S))

    def _mine(self) -> Iterator[None]:
        while self._left > 0:
            self._left -= 1
            yield
