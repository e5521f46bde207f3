"""A program in one region that writes collections of all kinds as long as its standard input is open, and notes what it does.

``fire_program.py URL REGION NAME NAMES JOURNAL SEED``: NAMES are those of all programs there will be, with commas. The journal
has a line when an operation begins and one when it has ended, so it tells what was acknowledged even of a program that is killed.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import onefold as of

PAUSE_S = 0.01
ACCOUNTS, OPENING = 8, 100
SLOTS, KEYS = 2, 4
STOCK, RARE = 100_000, 40
"""How many of the plentiful and of the rare ware there are."""


class Journal:
    """Threads share it."""

    def __init__(self, path: str, name: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._name = name
        self._numbers = itertools.count(1)

    def _write(self, **line: Any) -> None:
        os.write(self._file, (json.dumps({**line, "t": time.monotonic()}) + "\n").encode())

    def call(self, thread: str, kind: str, key: Any, value: Any, do: Callable[[str], Any]) -> Any:
        """Do it under a request id of its own; what it gives, or None when it raises."""
        number = next(self._numbers)
        request_id = f"{self._name}-{number}"
        self._write(id=request_id, thread=thread, kind=kind, key=key, value=value)
        result, said = None, ""
        try:
            result, status = do(request_id), "ok"
        except of.BelowFloor as error:
            status, said = "refused", str(error)
        except of.OnefoldError as error:
            status, said = "fail" if error.definite else "info", f"{type(error).__name__}: {error}"
        except Exception:
            status, said = "error", traceback.format_exc()
        self._write(id=request_id, status=status, result=result, said=said)
        return result


class Program:
    """The collections, and what is done with them."""

    def __init__(self, db: of.Database, name: str, names: list[str], journal: Journal, seed: int) -> None:
        self.db, self.name, self.names, self.journal = db, name, names, journal
        self.draw = random.Random(f"{seed} {name}")
        self.registers = db.map("registers", mode="available")
        self.shared = db.map("shared", mode="available")
        self.people = db.map("people", mode="available", merge="fields")
        self.drafts = db.map("drafts", mode="available", merge="keep_both")
        self.orders = db.map("orders", mode="available")
        self.likes, self.totals = db.counters("likes"), db.counters("totals")
        self.tags = db.sets("tags")
        self.stock = db.counters("stock", floor=0)
        self.mine: list[tuple[int, str]] = []
        self.n = 0

    def available(self) -> None:
        self.n += 1
        n, key = self.n, self.draw.randrange(KEYS)
        steps = [self.write, self.read, self.read, self.race, self.patch, self.keep, self.like, self.tag]
        step = self.draw.choice([*steps, self.untag, self.order, self.check])
        step(n, key)

    def _do(self, kind: str, key: Any, value: Any, do: Callable[[str], Any]) -> Any:
        return self.journal.call("available", kind, key, value, do)

    def write(self, n: int, key: int) -> None:
        place = f"{self.name}/{key % SLOTS}"
        self._do("write", place, n, lambda request: bool(self.registers.put(place, n, request_id=request)))

    def read(self, n: int, key: int) -> None:
        place = f"{self.draw.choice(self.names)}/{key % SLOTS}"
        self._do("read", place, None, lambda _: self.registers.get(place))

    def race(self, n: int, key: int) -> None:
        said = f"{self.name}:{n}"
        self._do("race", key, said, lambda request: bool(self.shared.put(key, said, request_id=request)))

    def patch(self, n: int, key: int) -> None:
        fields = {self.name: n}
        self._do("patch", key, n, lambda request: bool(self.people.patch(key, fields, request_id=request)))

    def keep(self, n: int, key: int) -> None:
        said = f"{self.name}:{n}"
        self._do("keep", key, said, lambda request: bool(self.drafts.put(key, said, request_id=request)))  # type: ignore[arg-type]

    def like(self, n: int, key: int) -> None:
        by = self.draw.randint(1, 5)
        self._do("like", key, by, lambda request: self.likes.add(key, by, request_id=request))

    def tag(self, n: int, key: int) -> None:
        said = f"{self.name}:{n}"
        self.mine.append((key, said))
        self._do("tag", key, said, lambda request: self.tags.add(key, said, request_id=request))

    def untag(self, n: int, key: int) -> None:
        if self.mine:
            key, said = self.mine.pop(self.draw.randrange(len(self.mine)))
            self._do("untag", key, said, lambda request: self.tags.discard(key, said, request_id=request))

    def order(self, n: int, key: int) -> None:
        """An order and the number of orders: both or none, in every region."""

        def do(request: str) -> None:
            with self.db.transaction(request_id=request) as tx:
                tx.map(self.orders)[(key, self.name, n)] = n
                tx.counters(self.totals).add(key, 1)

        self._do("order", key, [key, self.name, n], do)

    def check(self, n: int, key: int) -> None:
        def do(_: str) -> list[int]:
            with self.db.transaction(read_only=True) as tx:
                count = sum(1 for _ in tx.map(self.orders).scan(prefix=(key,)))
                return [count, tx.counters(self.totals).get(key)]

        self._do("check", key, None, do)

    def sell(self) -> None:
        self.journal.call(
            "sell", "sell", "plenty", 1, lambda request: self.stock.add("plenty", -1, request_id=request)
        )

    def sell_rare(self) -> None:
        """Which may have to wait for rights of the other region, until the time is over."""
        self.journal.call(
            "rare", "sell", "rare", 1, lambda request: self.stock.add("rare", -1, request_id=request)
        )
        time.sleep(0.2)

    def consistent(self) -> None:
        debit, credit = self.draw.sample(range(ACCOUNTS), 2)
        amount = self.draw.randint(1, 5)

        def do(request: str) -> bool:
            def transfer(tx: Any) -> None:
                accounts = tx.map("accounts")
                accounts[debit] -= amount
                accounts[credit] += amount
                tx.map("ledger")[request] = [debit, credit, amount]

            self.db.run_transaction(transfer)
            return True

        self.journal.call("consistent", "transfer", None, [debit, credit, amount], do)


def main(url: str, region: str, name: str, names: str, path: str, seed: str) -> None:
    journal = Journal(path, name)

    def begin(db: of.Database) -> Program:
        return Program(db, name, names.split(","), journal, int(seed))

    with (
        of.connect(url, region=region) as db,
        of.connect(url, region=region, timeout=8) as hasty,
        of.connect(url, region=region, timeout=60) as patient,  # longer than an election takes
    ):
        program = begin(db)
        stop = threading.Event()

        def repeat(step: Callable[[], None]) -> None:
            while not stop.is_set():
                step()
                time.sleep(PAUSE_S)

        steps = (program.available, program.sell, begin(hasty).sell_rare, begin(patient).consistent)
        threads = [threading.Thread(target=repeat, args=(step,), daemon=True) for step in steps]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        stop.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
