"""A queue with leases: everything put is acknowledged once, and nobody gets what another still holds."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

from kit.workloads.base import Workload
from onefold.db import Database
from onefold.errors import Conflict
from onefold.state.queues.queue import Queue as Queues
from onefold.testing.history import Operation, Verdict, indented, invalid, worst
from onefold.testing.workload_checks import check_queue

LEASE_S = 3.0


class Queue(Workload):
    """Takers acknowledge, give back, or are too slow; some die with messages in their hands."""

    name = "queue"
    clients = 4

    def setup(self, db: Database) -> None:
        self._queue(db)
        db.map("other").put("other", 0)

    def step(self, db: Database, process: int) -> None:
        queue = self._queue(db)
        if self.random.random() < 0.5:
            element = self.unique()
            request_id = f"put-{element}" if self.random.random() < 0.3 else None
            delay = self.random.choice((None, None, 0.5))
            self.attempt(
                process,
                "put",
                None,
                element,
                lambda: queue.put(element, delay=delay, request_id=request_id) and None,
            )
            return
        self._work(db, process, timeout=self.random.choice((0.0, 0.5)))

    def _work(self, db: Database, process: int, *, timeout: float, careful: bool = False) -> bool:
        """Take a message and end it; whether there was one."""
        taken = []

        def take() -> int | None:
            message = self._queue(db).take(timeout)
            if message is None:
                return None
            taken.append(message)
            return int(message.value)

        self.attempt(process, "get", None, None, take)
        if not taken:
            return False
        message, chance = taken[0], self.random.random()
        element = message.value
        if not careful and chance < 0.15:
            self.simulation.sleep(self.random.uniform(0.5, 1.5) * LEASE_S)
        elif not careful and chance < 0.25:
            self.attempt(process, "nack", None, element, message.nack)
            return True
        elif not careful and chance < 0.3:
            return True  # forgets it

        def ack() -> bool:
            try:
                message.ack()
            except Conflict:
                return False
            return True

        self.attempt(process, "ack", None, element, ack)
        return True

    def finish(self, db: Database) -> None:
        """Until nothing is left."""
        process = self.new_process()
        while self._work(db, process, timeout=3 * LEASE_S, careful=True):
            pass

    def check(self) -> Verdict:
        return worst([check_queue(self.operations()), self._check_leases()])

    def _check_leases(self) -> Verdict:
        """Between two deliveries of a message lies a lease, counted from the first one's invocation, or somebody gave it back."""
        gets: dict[int, list[Operation]] = defaultdict(list)
        ends: dict[int, list[Operation]] = defaultdict(list)
        for op in self.operations("get", "nack"):
            if op.kind == "get" and op.status == "ok" and op.result is not None:
                gets[op.result].append(op)
            elif op.kind == "nack":
                ends[op.value].append(op)
        early = []
        for element, deliveries in gets.items():
            deliveries.sort(key=lambda op: op.end)
            for first, second in pairwise(deliveries):
                # Deliveries that overlap may have happened in the other order.
                start = min(first.invoked, second.invoked)
                given_back = any(start <= op.invoked <= second.end for op in ends[element])
                if not given_back and second.end < start + LEASE_S:
                    early.append(
                        (
                            "early",
                            f"{element!r} was given out again within its lease:{indented([first, second])}",
                        )
                    )
        return invalid(early)

    def _queue(self, db: Database) -> Queues[Any]:
        return db.queue("work", lease=LEASE_S, max_attempts=10_000)
