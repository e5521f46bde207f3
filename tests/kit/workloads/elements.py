"""A set, and many small writes that must not fork: what was acknowledged is in every later read."""

from __future__ import annotations

from kit.workloads.base import Workload
from onefold.db import Database
from onefold.testing.history import Verdict
from onefold.testing.workload_checks import check_long_fork, check_set


class Set(Workload):
    """Each element is a key; reads are scans of the whole map, by pages."""

    name = "set"
    threads = 2

    def setup(self, db: Database) -> None:
        db.map("other").put("other", 0)

    def step(self, db: Database, process: int) -> None:
        elements = db.map("elements")
        if self.random.random() < 0.7:
            element = self.unique()
            request_id = f"add-{element}" if self.random.random() < 0.3 else None
            self.attempt(
                process,
                "add",
                None,
                element,
                lambda: elements.put(element, element, request_id=request_id) and None,
            )
        else:
            self.attempt(process, "read", None, None, lambda: [key for key, _ in elements.scan()])

    def finish(self, db: Database) -> None:
        self.attempt(self.new_process(), "read", None, None, lambda: list(db.map("elements")))

    def check(self) -> Verdict:
        return check_set(self.operations(), every_read=True)


class LongFork(Workload):
    """Keys are written once; two reads of the same keys must see the writes in one order. Also at the weak levels, since one
    shard's replicas all show prefixes of one log."""

    name = "long-fork"
    group = 3

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._open: list[tuple[int, int]] = []
        self._groups = 0

    def setup(self, db: Database) -> None:
        db.map("other").put("other", 0)

    def step(self, db: Database, process: int) -> None:
        registers = db.map("forks")
        if self.random.random() < 0.4:
            if not self._open:
                self._open = [(self._groups, at) for at in range(self.group)]
                self._groups += 1
            key = self._open.pop(self.random.randrange(len(self._open)))
            self.attempt(process, "write", key, 1, lambda: registers.put(key, 1) and None)
            return
        group = max(0, self._groups - 1 - self.random.randrange(2))
        keys = [(group, at) for at in range(self.group)]
        self.random.shuffle(keys)
        if self.random.random() < 0.5:
            level = self.random.choice(("strong", "session", "bounded:1s", "prefix", "eventual"))
            self.attempt(
                process, "read", None, None, lambda: _all(registers.get_many(keys, consistency=level), keys)
            )
        else:

            def read() -> dict[tuple[int, int], int | None]:
                with db.transaction(read_only=True) as tx:
                    found = tx.map("forks")
                    return {key: found.get(key) for key in keys}

            self.attempt(process, "read", None, None, read)

    def finish(self, db: Database) -> None:
        process = self.new_process()
        for group in range(self._groups):
            keys = [(group, at) for at in range(self.group)]
            self._read_many(db, process, keys, "strong")

    def _read_many(self, db: Database, process: int, keys: list[tuple[int, int]], level: str) -> None:
        forks = db.map("forks")
        self.attempt(process, "read", None, None, lambda: _all(forks.get_many(keys, consistency=level), keys))

    def check(self) -> Verdict:
        return check_long_fork(self.operations())


def _all(found: dict[tuple[int, int], int], keys: list[tuple[int, int]]) -> dict[tuple[int, int], int | None]:
    return {key: found.get(key) for key in keys}
