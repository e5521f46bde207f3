"""Counters: increments never conflict, and count exactly once."""

from __future__ import annotations

from kit.workloads.base import Workload
from onefold.db import Database
from onefold.testing.history import Verdict
from onefold.testing.workload_checks import check_counter


class Counter(Workload):
    """Every amount is a power of a number larger than the count of its kind, so no two sets of adds have the same sum."""

    name = "counter"
    threads = 2

    def setup(self, db: Database) -> None:
        db.map("counters").put("n", 0)

    def step(self, db: Database, process: int) -> None:
        counters = db.map("counters")
        chance = self.random.random()
        if chance < 0.6:
            by = self.random.randint(1, 5)
            request_id = f"add-{self.unique()}" if chance < 0.2 else None
            self.attempt(process, "add", None, by, lambda: counters.increment("n", by, request_id=request_id))
        else:
            self.attempt(process, "read", None, None, lambda: counters["n"])

    def finish(self, db: Database) -> None:
        self.attempt(self.new_process(), "read", None, None, lambda: db.map("counters")["n"])

    def check(self) -> Verdict:
        return check_counter(self.operations(), every_read=True)
