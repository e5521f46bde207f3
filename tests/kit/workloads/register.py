"""Registers: reads, writes and compare-and-set of single keys, linearizable."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kit.workloads.base import Workload
from onefold.db import Database
from onefold.errors import AppendUnknown, Conflict, Timeout, Unavailable
from onefold.testing.history import Operation, Verdict
from onefold.testing.linearizability import check_linearizable
from onefold.testing.models import register

KEYS = 8


class Register(Workload):
    """One process has three threads on one replica, so that their barriers can be shared."""

    name = "register"
    threads = 3

    def setup(self, db: Database) -> None:
        db.map("registers").put("other", 0)

    def step(self, db: Database, process: int) -> None:
        registers = db.map("registers")
        key, chance = self.random.randrange(KEYS), self.random.random()
        if chance < 0.5:
            self.read(db, process, key)
        elif chance < 0.7:
            value = self.unique()
            self.attempt(process, "write", key, value, lambda: registers.put(key, value) and None)
        elif chance < 0.8:
            value = self.unique()
            self.attempt(process, "write", key, value, lambda: self._insist(db, key, value))
        elif chance < 0.85:
            self.attempt(process, "write", key, None, lambda: registers.delete(key) and None)
        else:
            self._compare_and_set(db, process, key)

    def read(self, db: Database, process: int, key: int) -> None:
        self.attempt(process, "read", key, None, lambda: db.map("registers").get(key))

    def _insist(self, db: Database, key: int, value: int) -> None:
        """Write under a request id until the answer is known, as programs do that must know."""
        request_id, in_doubt = f"write-{value}", False
        for _ in range(2):
            try:
                db.map("registers").put(key, value, request_id=request_id)
                return
            except (Unavailable, AppendUnknown, Timeout) as error:
                in_doubt = in_doubt or not error.definite  # a later try that failed says nothing of the first
                self.simulation.sleep(0.05)
        if in_doubt and db.outcome(request_id) == "committed":
            return
        if in_doubt:
            raise AppendUnknown(f"{request_id} got no answer")
        raise Unavailable(f"{request_id} was refused")

    def _compare_and_set(self, db: Database, process: int, key: int) -> None:
        registers = db.map("registers")
        expected: Any = registers.get(key, consistency="eventual")
        value = self.unique()

        def compare_and_set() -> bool:
            item = registers.get_item(key)
            if item is None:
                if expected is not None:
                    raise Conflict("another value")
                registers.put(key, value, if_absent=True)
            elif item.value != expected:
                raise Conflict("another value")
            else:
                registers.put(key, value, if_version=item.version)
            return True

        self.attempt(process, "cas", key, (expected, value), compare_and_set)

    def finish(self, db: Database) -> None:
        process = self.new_process()
        for key in range(KEYS):
            self.read(db, process, key)

    def check(self) -> Verdict:
        return check_linearizable(self.operations(), register(None))


class Bounded(Register):
    """Reads may be stale by a bound, so they are linearizable as if they had been invoked that much earlier."""

    name = "bounded"
    threads = 1
    bounds = (0.05, 0.5, 3.0)

    def read(self, db: Database, process: int, key: int) -> None:
        bound = self.random.choice(self.bounds)
        self.attempt(
            process,
            "read",
            key,
            bound,
            lambda: db.map("registers").get(key, consistency=f"bounded:{bound}s"),
        )

    def check(self) -> Verdict:
        return check_linearizable([_earlier(op) for op in self.operations()], register(None))


def _earlier(op: Operation) -> Operation:
    # The history's clock runs ahead of the simulation's by less than a microsecond.
    return replace(op, invoked=op.invoked - op.value - 1e-6, value=None) if op.kind == "read" else op
