"""Watching a map: watchers that stop, die and continue elsewhere with their tokens see every change once, in the log's order."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from kit.workloads.base import Workload
from onefold.db import Database
from onefold.errors import OnefoldError, TokenAhead
from onefold.state.encoding.items import Change
from onefold.state.encoding.keys import decode_key
from onefold.state.fold import rows
from onefold.testing.history import Verdict, invalid, unknown
from onefold.testing.sim.process import is_of_faults

KEYS = 5
WATCHERS = 3

Seen = tuple[str, int, str]
"""A change: its version, its key, its kind."""


class Watch(Workload):
    """Keys are put, put with a lifetime, and deleted; several at once."""

    name = "watch"

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._start = ""
        self._free = list(range(WATCHERS))
        self._tokens: list[str] = []
        self._seen: list[list[Seen]] = [[] for _ in range(WATCHERS)]
        self._truth: list[tuple[int, str]] = []

    def setup(self, db: Database) -> None:
        db.map("watched").put("other", 0)
        self._tokens = [db.session.token] * WATCHERS

    def step(self, db: Database, process: int) -> None:
        watched, chance = db.map("watched"), self.random.random()
        key = self.random.randrange(KEYS)
        if chance < 0.25:
            self.attempt(process, "put", key, None, lambda: watched.put(key, self.unique()) and None)
        elif chance < 0.4:
            ttl = self.random.uniform(0.01, 2.0)
            self.attempt(process, "put", key, ttl, lambda: watched.put(key, self.unique(), ttl=ttl) and None)
        elif chance < 0.5:
            values = {each: self.unique() for each in self.random.sample(range(KEYS), 3)}
            self.attempt(process, "put_many", None, values, lambda: watched.put_many(values) and None)
        elif chance < 0.6:
            self.attempt(process, "delete", key, None, lambda: watched.delete(key))
        elif self._free:
            watcher = self._free.pop(self.random.randrange(len(self._free)))
            try:
                self._watch(db, watcher, self.random.choice((0.0, 0.05, 0.5)), self.random.randint(1, 20))
            finally:
                self._free.append(watcher)  # also when its client dies: it continues elsewhere

    def _watch(self, db: Database, watcher: int, timeout: float, limit: int) -> int:
        """Continue with a watch; how many changes came."""
        came = 0
        with suppress(TokenAhead):  # this replica is behind what the watcher has seen elsewhere
            try:
                with db.map("watched").watch(start=self._tokens[watcher], timeout=timeout) as changes:
                    for change in changes:
                        came += 1
                        self._seen[watcher].append(_seen(change))
                        self._tokens[watcher] = change.token
                        if came >= limit:
                            break
            except OnefoldError as error:
                if not is_of_faults(error):
                    raise
        return came

    def finish(self, db: Database) -> None:
        # A watch that waits lets lifetimes end, which the others have not seen then.
        while sum(self._watch(db, watcher, 0.5, 1_000_000) for watcher in range(WATCHERS)):
            pass
        with db._state.view(0) as view:
            for change in view.changes(rows.map_table("watched"), 0, limit=1_000_000):
                key: Any = decode_key(change.key)
                if key != "other":
                    kind = "put" if change.value is not None else "expire" if change.place == -1 else "delete"
                    self._truth.append((key, kind))

    def check(self) -> Verdict:
        if not self._truth:
            return unknown("nothing has changed")
        problems = []
        for watcher, seen in enumerate(self._seen):
            shown = [(key, kind) for _, key, kind in seen]
            if len({(version, key) for version, key, kind in seen if kind == "put"}) != sum(
                kind == "put" for _, _, kind in seen
            ):
                problems.append(("twice", f"watcher {watcher} saw a put twice"))
            if shown != self._truth:
                at = next(
                    (i for i, pair in enumerate(zip(shown, self._truth, strict=False)) if pair[0] != pair[1]),
                    -1,
                )
                problems.append(
                    (
                        "wrong-changes",
                        f"watcher {watcher} saw {len(shown)} changes, {len(self._truth)} happened; they differ at {at}",
                    )
                )
        return invalid(problems)


def _seen(change: Change[Any]) -> Seen:
    return str(change.version), int(str(change.key)), change.kind
