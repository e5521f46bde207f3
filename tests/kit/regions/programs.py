"""Programs of several regions, with everything that can go wrong, and what they check while they run.

Each keeps what its session has seen, and hands that on, with the session's token, to programs of other regions. What a session
has seen, no later read of it or of its heirs may miss. When all is over, ``kit.regions.replays`` looks at the logs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from kit.regions.region import Violation
from onefold.db import Database
from onefold.errors import BelowFloor, Conflict, OnefoldError
from onefold.testing.sim import Simulation
from onefold.testing.sim.process import is_of_faults

BOUND_S = 1.0
STOCK = 15
STOCK_KEYS = ("x", "y")
PAIRS = ("p", "q")
THINK_S = 0.2
Seen = dict[str, int]


class Programs:
    """Some programs of each region, and what they have done. ``record``: of every write, by its request id: ok, fail or info."""

    def __init__(self, simulation: Simulation, operations: int) -> None:
        self.simulation = simulation
        self.random = random.Random(f"programs {simulation.seed}")
        self.record: dict[str, str] = {}
        self.acked: dict[str, list[tuple[float, int]]] = {}
        """Of each writer: when which of its numbers was acknowledged."""
        self.mail: list[tuple[str, Seen]] = []
        """Tokens, and what the sessions had seen that they are of."""
        self.tags: set[str] = set()
        """Elements that were added for certain, and that nobody discards."""
        self.below: list[str] = []
        self._left = operations
        self._made = 0

    def setup(self, db: Database) -> None:
        """What there is before anything goes wrong."""
        stock = db.counters("stock", floor=0)
        for key in STOCK_KEYS:
            stock.add(key, STOCK, request_id=self.made("ok"))

    def start(self, clients: int = 2) -> None:
        """Make the programs."""
        for region in self.simulation.regions:
            for _ in range(clients):
                self.simulation.client(self._program, region=region.name, timeout=1.5)

    def made(self, status: str) -> str:
        """A new request id, and what became of the request."""
        self._made += 1
        name = f"r{self._made}"
        self.record[name] = status
        return name

    def unique(self) -> int:
        """A number that nobody else has."""
        self._made += 1
        return self._made

    def _program(self, db: Database) -> None:
        life = Life(self, db, f"w{self.unique()}")
        while self._left > 0:
            self._left -= 1
            life.step()
            self.simulation.sleep(self.random.expovariate(1 / THINK_S))


class Life:
    """One life of a program. It alone writes numbers under its name, one after the other."""

    def __init__(self, programs: Programs, db: Database, name: str) -> None:
        self.programs = programs
        self.simulation = programs.simulation
        self.random = programs.random
        self.db = db
        self.name = name
        self.n = 0
        self.seen: Seen = {}
        self.own = db.map("own", mode="available")
        self.alone = len(db._shards) == 1

    def step(self) -> None:
        """Something, by chance."""
        chances = {
            self.write: 5,
            self.read: 6,
            self.pass_on: 3,
            self.take_over: 3,
            self.bounded: 2,
            self.sync: 0.7,
            self.sell: 4,
            self.pair: 3,
            self.look_at_pair: 3,
            self.others: 4,
        }
        doing = self.random.choices(list(chances), list(chances.values()))[0]
        try:
            doing()
        except OnefoldError as error:
            if not (is_of_faults(error) or isinstance(error, (Conflict, BelowFloor))):
                raise
            self.simulation.log(f"{doing.__name__}: {type(error).__name__}: {error}")

    def attempt(self, do: Callable[[str], Any]) -> Any:
        """A write, under a request id of its own. Raises as it does."""
        record = self.programs.record
        name = self.programs.made("info")
        try:
            found = do(name)
        except OnefoldError as error:
            if error.definite or isinstance(error, (Conflict, BelowFloor)):
                record[name] = "fail"
            raise
        record[name] = "ok"
        return found

    # -- sessions and causal order

    def write(self) -> None:
        """The next number, with all that was seen before."""
        self.n += 1
        n, value = self.n, {"n": self.n, "seen": dict(self.seen)}
        writer = self.name
        try:
            self.attempt(lambda name: self.own.put(writer, value, request_id=name))
        except OnefoldError as error:
            if not error.definite:  # it may surface after the next one
                self.name, self.n = f"w{self.programs.unique()}", 0
            raise
        self.seen[writer] = n
        self.programs.acked.setdefault(self.name, []).append((self.simulation.now, n))

    def read(self) -> None:
        """What some writer has written, as this session sees it."""
        writer = self.some_writer()
        if writer is not None:
            self.note(writer, self.own.get(writer))

    def note(self, writer: str, value: Any) -> None:
        """A read in this session has shown this."""
        n = 0 if value is None else value["n"]
        if n < self.seen.get(writer, 0):
            raise Violation(f"{self.name} has seen {self.seen[writer]} of {writer}, and reads {n}")
        self.seen[writer] = n
        if value is not None and self.alone:  # else the others may be in other logs
            for other, number in value["seen"].items():
                self.seen[other] = max(number, self.seen.get(other, 0))

    def some_writer(self) -> str | None:
        """Mostly one that was seen."""
        known = sorted(self.seen if self.seen and self.random.random() < 0.7 else self.programs.acked)
        return self.random.choice(known) if known else None

    def pass_on(self) -> None:
        """The token of this session is for anybody, in any region."""
        seen = dict(self.seen)
        self.programs.mail.append((self.db.session.token, seen))

    def take_over(self) -> None:
        """Continue from the token of another session too, and read what that had seen."""
        if not self.programs.mail:
            return
        token, seen = self.random.choice(self.programs.mail[-5:])
        self.db.session.merge(token)
        for writer, n in seen.items():
            self.seen[writer] = max(n, self.seen.get(writer, 0))
        for writer in self.random.sample(sorted(seen), min(2, len(seen))):
            self.note(writer, self.own.get(writer))

    # -- levels

    def bounded(self) -> None:
        """Everything that was acknowledged longer ago than the bound is there."""
        writer = self.some_writer()
        if writer is None:
            return
        before_s = self.simulation.now - BOUND_S
        value = self.own.get(writer, consistency=f"bounded:{BOUND_S:g}s")
        self.has(writer, value, before_s, "a read of the level bounded")

    def sync(self) -> None:
        """Everything that was acknowledged before is there."""
        before_s = self.simulation.now
        self.db.sync()
        for writer in sorted(self.programs.acked):
            self.has(writer, self.own.get(writer, consistency="eventual"), before_s, "sync")

    def has(self, writer: str, value: Any, before_s: float, what: str) -> None:
        wanted = max((n for at_s, n in self.programs.acked.get(writer, ()) if at_s < before_s), default=0)
        found = 0 if value is None else value["n"]
        if found < wanted:
            raise Violation(
                f"{what} of {self.name} shows {found} of {writer}, where {wanted} was acknowledged"
            )

    # -- other collections

    def sell(self) -> None:
        """Take from a counter with a floor, or put something back."""
        stock = self.db.counters("stock", floor=0)
        key, chance = self.random.choice(STOCK_KEYS), self.random.random()
        n = -self.random.randint(1, 4) if chance < 0.75 else self.random.randint(1, 3)
        if chance > 0.95 and len(self.simulation.regions) > 1:
            to = self.random.choice(self.simulation.regions).name
            if to != self.db._available.region.name:
                self.attempt(lambda name: stock.move(key, 1, to, request_id=name))
                return
        left = self.attempt(lambda name: stock.add(key, n, request_id=name))
        if left < 0:
            raise Violation(f"{key} was sold below its floor: {left}")

    def pair(self) -> None:
        """Two maps get the same number in one transaction."""
        key, n = self.random.choice(PAIRS), self.programs.unique()

        def both(name: str) -> None:
            with self.db.transaction(name) as tx:
                if self.random.random() < 0.5:
                    self.equal(tx, key)
                for side in ("left", "right"):
                    tx.map(side, mode="available")[key] = n
                tx.counters("pairs").add(key, 1)

        self.attempt(both)

    def look_at_pair(self) -> None:
        """Both are equal wherever and whenever they are seen."""
        with self.db.transaction(read_only=True) as tx:
            self.equal(tx, self.random.choice(PAIRS))

    def equal(self, tx: Any, key: str) -> None:
        left, right = (tx.map(side, mode="available").get(key) for side in ("left", "right"))
        if left != right:
            raise Violation(f"a transaction is seen in part: {left} and {right} under {key}")

    def others(self) -> None:
        """Kinds that only the model looks at."""
        tags, key = self.db.sets("tags"), self.random.choice(("a", "b"))
        chance, some = self.random.random(), self.random.choice(("new", "sale", "old"))
        if chance < 0.15:
            own = f"{self.name}-{self.programs.unique()}"
            self.attempt(lambda name: tags.add("all", own, request_id=name))
            self.programs.tags.add(own)
        elif chance < 0.3:
            self.attempt(lambda name: tags.add(key, some, request_id=name))
        elif chance < 0.45:
            self.attempt(lambda name: tags.discard(key, some, request_id=name))
        elif chance < 0.6:
            self.attempt(lambda name: self.db.counters("likes").add(key, 2, request_id=name))
        elif chance < 0.75:
            notes = self.db.map("notes", mode="available", merge="keep_both")
            self.attempt(lambda name: notes.put(key, self.programs.unique(), request_id=name))
        elif chance < 0.9:
            users = self.db.map("users", mode="available", merge="fields")
            fields = {some: self.programs.unique()}
            self.attempt(lambda name: users.patch(key, fields, request_id=name))
        else:
            carts = self.db.map("carts", mode="available")
            self.attempt(lambda name: carts.delete(key, request_id=name))
            self.attempt(lambda name: carts.put(key, self.programs.unique(), request_id=name))
