"""Locks: a holder within its ttl is alone, and fencing tokens grow."""

from __future__ import annotations

from itertools import pairwise

from kit.workloads.base import Workload
from onefold.db import Database
from onefold.errors import Conflict
from onefold.testing.history import Operation, Verdict, indented, invalid, unknown

TTL_S = 2.0


class Lock(Workload):
    """Holders release in time, or hold for too long, or die."""

    name = "lock"
    clients = 4

    def setup(self, db: Database) -> None:
        db.map("other").put("other", 0)

    def step(self, db: Database, process: int) -> None:
        lock = db.lock("l", ttl=TTL_S, timeout=5.0)

        def acquire() -> int:
            lock.acquire()
            return lock.fencing_token

        token = self.attempt(process, "acquire", None, None, acquire)
        if token is None:
            return
        chance = self.random.random()
        self.simulation.sleep(
            self.random.expovariate(1 / 0.02) if chance < 0.8 else self.random.uniform(0, 2 * TTL_S)
        )

        def release() -> bool:
            try:
                lock.release()
            except Conflict:
                return False
            return True

        self.attempt(process, "release", None, token, release)

    def check(self) -> Verdict:
        """Grants in the order of their tokens: each begins after the one before was released or its ttl was over, which ran from
        its acquisition's invocation at the earliest."""
        grants = sorted(
            (op for op in self.operations("acquire") if op.status == "ok"), key=lambda op: op.result
        )
        if len(grants) < 2:
            return unknown("the lock was not taken twice")
        released = {op.value: op for op in self.operations("release")}
        problems = []
        for first, second in pairwise(grants):
            if first.result == second.result:
                problems.append(("same-token", indented([first, second])))
            if second.precedes(first):
                problems.append(
                    ("token-order", f"a later grant has a lower token:{indented([first, second])}")
                )
            release: Operation | None = released.get(first.result)
            free = first.invoked + TTL_S
            if release is not None:
                free = min(free, release.invoked)
            if second.end < free:
                problems.append(("shared", f"two held it at once:{indented([first, second])}"))
        return invalid(problems)
