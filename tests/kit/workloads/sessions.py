"""Weak levels: sessions that move between replicas with their tokens, and reads that show whole records of a prefix."""

from __future__ import annotations

from collections.abc import Iterable

from kit.workloads.base import Workload
from onefold.db import Database
from onefold.errors import Conflict, OnefoldError
from onefold.state.encoding.items import Version
from onefold.state.encoding.keys import decode_key
from onefold.state.encoding.values import decode_value
from onefold.state.fold import rows
from onefold.state.transaction import Transaction
from onefold.testing.history import Operation, Status, Verdict, indented, invalid, worst
from onefold.testing.session_checks import check_prefix, check_session
from onefold.testing.sim.process import is_of_faults

KEYS = 5
SESSIONS = 5


class Session(Workload):
    """A session is a process of the history. Whichever client does its next operation takes its token first."""

    name = "session"
    consistency = "session"
    registers = "session-registers"
    """The map, which no other workload has."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._free = [(self.new_process(), "") for _ in range(SESSIONS)]

    def setup(self, db: Database) -> None:
        db.map("other").put("other", 0)

    def step(self, db: Database, process: int) -> None:
        if not self._free:
            # Who dies, stands still or waits has taken a session along; another begins.
            self._free.append((self.new_process(), ""))
        session, token = self._free.pop(self.random.randrange(len(self._free)))
        if token:
            db.session.merge(token)
        self.do(db, session, self.random.randrange(KEYS))
        self._free.append((session, db.session.token))

    def do(self, db: Database, session: int, key: int) -> None:
        """One operation of the session."""
        registers = db.map(self.registers)
        if self.random.random() < 0.4:
            value = self.unique()
            self.attempt(session, "write", key, value, lambda: _number(registers.put(key, value)))
            return

        def read() -> tuple[int | None, int]:
            item = registers.get_item(key)
            return (None, 0) if item is None else (item.value, _number(item.version))

        self.attempt(session, "read", key, None, read)

    def check(self) -> Verdict:
        if len(self.simulation.servers) == 1:
            return check_session(self.operations())
        return check_each_key(self.operations())


def check_each_key(operations: Iterable[Operation]) -> Verdict:
    """The guarantees in each key alone: a token says what its session has seen in each shard, not what the writers of that had
    seen in others."""
    by_key: dict[object, list[Operation]] = {}
    for op in operations:
        by_key.setdefault(op.key, []).append(op)
    return worst(check_session(each) for each in by_key.values())


def _number(version: Version) -> int:
    ((_, offset, index),) = version._parts
    return offset * 1000 + index


class SessionTransactions(Session):
    """The writes are transactions that count two keys up, in several shards. A count is its own version."""

    name = "session-transactions"

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self._recorded: list[Operation] = []

    def do(self, db: Database, session: int, key: int) -> None:
        counts = db.map("counts")
        other = (key + 1 + self.random.randrange(KEYS - 1)) % KEYS
        if self.random.random() < 0.4:
            self._count_up(db, session, key, other)
            return
        for each in (key, other):

            def read(each: int = each) -> tuple[int | None, int]:
                count = counts.get(each)
                return count, count or 0

            self.attempt(session, "read", each, None, read)

    def _count_up(self, db: Database, session: int, *keys: int) -> None:
        written: dict[int, int] = {}

        def count_up(tx: Transaction) -> None:
            counts = tx.map("counts")
            for key in keys:
                written[key] = counts.get(key, 0) + 1
                counts[key] = written[key]

        token = self.history.invoke(session, "transaction")
        status: Status = "info"
        try:
            db.run_transaction(count_up)
            status = "ok"
        except OnefoldError as error:
            if not isinstance(error, Conflict) and not is_of_faults(error):
                raise
            status = "fail" if error.definite else "info"
        finally:
            # Who dies here is recorded too: its last try may have been committed.
            ended = self.history.info(token)
            for key in keys if status != "fail" else ():
                if key in written:
                    count = written[key]
                    op = Operation(
                        session, "write", key, count, count, ended.invoked, ended.completed, status
                    )
                    self._recorded.append(op)

    def check(self) -> Verdict:
        """Of two writes of one count one at most has happened: the acknowledged one, if there is one."""
        writes: dict[tuple[int, int], Operation] = {}
        for op in self._recorded:
            before = writes.setdefault((op.key, op.value), op)
            if before is not op and op.status == "ok":
                if before.status == "ok":
                    return invalid([("lost-update", f"both wrote {op.value}:{indented([before, op])}")])
                writes[op.key, op.value] = op
        return check_each_key([*writes.values(), *self.operations("read")])


GROUP = "group"
"""The first element of the keys of ``Prefix``, which chooses their shard."""


class Prefix(Workload):
    """Writers put several keys at once; readers see some prefix of those records, never half of one.

    The keys are in one shard, since shards have no order among them.
    """

    name = "prefix"
    consistency = "prefix"
    registers = "prefix-registers"
    """The map, which no other workload has."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.order: list[dict[int, int]] = []
        """What was written, record by record."""

    def setup(self, db: Database) -> None:
        db.map("other").put("other", 0)

    def step(self, db: Database, process: int) -> None:
        registers = db.map(self.registers)
        if self.random.random() < 0.5:
            keys = self.random.sample(range(KEYS), self.random.randint(2, 4))
            written = {key: self.unique() for key in keys}
            items = {(GROUP, key): value for key, value in written.items()}
            self.attempt(process, "write", None, written, lambda: registers.put_many(items) and None)
            return
        self.read(db, process, self.random.choice(("prefix", "eventual")))

    def read(self, db: Database, process: int, level: str) -> None:
        """Read all keys at a level."""
        registers = db.map(self.registers)

        def read() -> dict[int, int | None]:
            found = registers.get_many([(GROUP, key) for key in range(KEYS)], consistency=level)
            return {key: found.get((GROUP, key)) for key in range(KEYS)}

        self.attempt(process, "read", level, None, read)

    def finish(self, db: Database) -> None:
        """The order of the records, from the history of a whole replica."""
        with db._state.view(0) as view:
            place = None
            for change in view.changes(rows.map_table(self.registers), 0, limit=1_000_000):
                if (change.offset, change.place) != place:
                    place = (change.offset, change.place)
                    self.order.append({})
                assert change.value is not None
                key, row = decode_key(change.key), rows.read_row(change.value)
                assert isinstance(key, tuple)
                self.order[-1][int(str(key[1]))] = decode_value(row.value)

    def check(self) -> Verdict:
        if not self.simulation.nodes:
            return check_prefix(self.operations(), self.order, monotonic=True)
        # Anyone who answers first may be behind the one before, so only those reads continue that say so.
        ordered = [op for op in self.operations("read") if op.key == "prefix"]
        return worst(
            [
                check_prefix(self.operations("read"), self.order),
                check_prefix(ordered, self.order, monotonic=True),
            ]
        )
