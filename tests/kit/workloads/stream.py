"""A stream and a group of consumers: what was appended is there once, and is counted exactly once by transactions."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from kit.workloads.base import Workload
from onefold import config
from onefold.db import Database
from onefold.errors import OnefoldError
from onefold.state.streams.consumer import Consumer
from onefold.state.transaction import Transaction
from onefold.testing.history import Verdict, invalid, worst
from onefold.testing.sim.process import is_of_faults
from onefold.testing.workload_checks import check_set

PARTITIONS = 3
_ROUNDS_MAX = 1000


class Stream(Workload):
    """Members of the group come and go with their processes; each commits its offsets in the transaction that counts."""

    name = "stream"
    clients = 3

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._consumers: WeakKeyDictionary[Database, Consumer[int]] = WeakKeyDictionary()
        self._counts: dict[Any, int] = {}

    def setup(self, db: Database) -> None:
        db.stream("events", partitions=PARTITIONS).create()

    def step(self, db: Database, process: int) -> None:
        stream = db.stream("events")
        if self.random.random() < 0.6:
            element, key = self.unique(), self.random.randrange(5)
            request_id = f"add-{element}" if self.random.random() < 0.5 else None
            self.attempt(
                process,
                "add",
                None,
                element,
                lambda: stream.append(element, key=key, request_id=request_id) and None,
            )
            return
        self.attempt(process, "count", None, None, lambda: self._count(db, 0.3))

    def _count(self, db: Database, timeout: float) -> int:
        """Count some records that nobody has counted; how many."""
        consumer = self._consumers.get(db)
        if consumer is None:
            consumer = self._consumers[db] = db.stream("events").consumer("counters", timeout=timeout)
        records: list[int] = []
        limit = self.random.randint(1, 10)
        try:
            for record in consumer:
                records.append(record.value)
                if len(records) >= limit:
                    break
        except OnefoldError:
            del self._consumers[db]  # what it has given is forgotten here, so it must be given again
            raise

        asked = False

        def count(tx: Transaction) -> None:
            nonlocal asked
            counts = tx.map("counts")
            for element in records:
                counts[element] = counts.get(element, 0) + 1
            tx.commit(consumer)
            asked = True

        if records:
            try:
                db.run_transaction(count, attempts=self.random.choice((1, 5)))
            except OnefoldError:
                if not asked:
                    # The consumer never heard of the transaction, so its next commit would cover these records.
                    self._consumers.pop(db, None)
                raise
        return len(records)

    def finish(self, db: Database) -> None:
        """Until everything is counted: at first the dead members hold their shares."""
        process = self.new_process()
        stream = db.stream("events")
        self.attempt(process, "read", None, None, lambda: [record.value for record in stream.read()])
        self.simulation.sleep(2 * config.CONSUMER_SESSION_S)
        for _ in range(_ROUNDS_MAX):
            try:
                if not self._count(db, 2 * config.CONSUMER_SESSION_S):
                    break
            except OnefoldError as error:
                if not is_of_faults(error):
                    self.simulation.log(repr(error))
        self._counts = dict(db.map("counts").items())

    def check(self) -> Verdict:
        reads = [op for op in self.operations("read") if op.status == "ok"]
        if not reads:
            return check_set([])
        there = set(reads[-1].result)
        problems = [
            ("counted-wrongly", f"{element!r} was counted {self._counts.get(element, 0)} times")
            for element in sorted(there | self._counts.keys())
            if self._counts.get(element, 0) != 1 or element not in there
        ]
        return worst([check_set(self.operations()), invalid(problems)])
