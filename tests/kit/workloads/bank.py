"""A bank: transfers between accounts keep the total, and every read of all accounts shows it."""

from __future__ import annotations

from kit.workloads.base import Workload
from onefold.db import Database
from onefold.state.transaction import Transaction
from onefold.testing.history import Verdict
from onefold.testing.workload_checks import check_bank

ACCOUNTS = tuple(range(6))
EACH = 20


class Bank(Workload):
    """Read-only transactions read by key, by page and by range."""

    name = "bank"

    def setup(self, db: Database) -> None:
        db.map("accounts").update(dict.fromkeys(ACCOUNTS, EACH))

    def step(self, db: Database, process: int) -> None:
        chance = self.random.random()
        if chance < 0.6:
            self._transfer(db, process)
        else:
            self._read(db, process, by_range=chance < 0.8)

    def _transfer(self, db: Database, process: int) -> None:
        source, target = self.random.sample(ACCOUNTS, 2)
        amount = self.random.randint(1, EACH)
        attempts = self.random.choice((1, 20))
        request_id = f"transfer-{self.unique()}" if self.random.random() < 0.5 else None

        def transfer() -> None:
            db.run_transaction(move, attempts=attempts, request_id=request_id)

        def move(tx: Transaction) -> None:
            balances = tx.map("accounts")
            if balances[source] >= amount:
                balances[source] -= amount
                balances[target] += amount

        self.attempt(process, "transfer", None, (source, target, amount), transfer)

    def _read(self, db: Database, process: int, *, by_range: bool) -> None:
        def read_all(tx: Transaction) -> dict[int, int]:
            accounts = tx.map("accounts")
            if by_range:
                return dict(accounts.scan())
            return {account: accounts[account] for account in ACCOUNTS}

        def read() -> dict[int, int]:
            return db.run_transaction(read_all, read_only=True, attempts=attempts)

        attempts = self.random.choice((1, 20))
        self.attempt(process, "read", None, None, read)

    def finish(self, db: Database) -> None:
        process = self.new_process()
        self._read(db, process, by_range=False)
        self._read(db, process, by_range=True)

    def check(self) -> Verdict:
        return check_bank(self.operations(), EACH * len(ACCOUNTS), ACCOUNTS, overdraft=False)
