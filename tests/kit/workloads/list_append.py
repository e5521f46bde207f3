"""Transactions that append to lists and read them: strictly serializable, by the method of Elle."""

from __future__ import annotations

from typing import Any

from kit.workloads.base import Workload
from onefold.db import Database
from onefold.testing.history import Verdict
from onefold.testing.list_append import check_list_append

LISTS = 6
"""The even ones are a value each; the odd ones are a range of keys, one for each element."""

MicroOp = tuple[str, int, Any]


class ListAppend(Workload):
    """Some transactions are retried until they commit, some are tried once, some only read."""

    name = "list-append"

    def setup(self, db: Database) -> None:
        db.map("lists").put("other", 0)

    def step(self, db: Database, process: int) -> None:
        size = self.random.randint(1, 4)
        read_only = self.random.random() < 0.3
        wanted: list[MicroOp] = []
        for _ in range(size):
            key = self.random.randrange(LISTS)
            if read_only or self.random.random() < 0.5:
                wanted.append(("r", key, None))
            else:
                wanted.append(("append", key, self.unique()))
        attempts = self.random.choice((1, 20))

        def run() -> list[MicroOp]:
            read_alone = read_only and all(kind == "r" for kind, _, _ in wanted)
            return db.run_transaction(
                lambda tx: [self._micro(tx.map("lists"), *each) for each in wanted],
                attempts=attempts,
                read_only=read_alone,
            )

        self.attempt(process, "txn", None, wanted, run)

    def _micro(self, lists: Any, kind: str, key: int, element: Any) -> MicroOp:
        if key % 2 == 0:
            found = lists.get(key, [])
            if kind == "append":
                lists[key] = [*found, element]
        else:
            found = [value for _, value in lists.scan(prefix=(key,))]
            if kind == "append":
                lists[key, len(found)] = element
        # Between two reads of one transaction others may get in.
        if self.random.random() < 0.3:
            self.simulation.sleep(self.random.expovariate(1 / 0.003))
        return (kind, key, element if kind == "append" else found)

    def finish(self, db: Database) -> None:
        wanted: list[MicroOp] = [("r", key, None) for key in range(LISTS)]

        def read() -> list[MicroOp]:
            with db.transaction(read_only=True) as tx:
                return [self._micro(tx.map("lists"), *each) for each in wanted]

        self.attempt(self.new_process(), "txn", None, wanted, read)

    def check(self) -> Verdict:
        return check_list_append(self.operations())
