"""Random programs of transactions in several regions: in each region as if one after the other, and never seen in part.

Several transactions are open at a time in each region, and effects of other regions come in between. One that commits must have
read what stands in the region at that moment, and must leave there what it saw at its end. One that is refused leaves nothing.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

import pytest
from tests.support.memory_regions import MemoryRegions

import onefold as of
from onefold.database import Database

KEYS = "abc"
FLOOR = -4
MERGES: dict[str, Any] = {"m": "last_writer_wins", "f": "fields", "k": "keep_both"}
State = dict[str, dict[str, Any]]
Step = Callable[[Any], Any]
"""Something done with a transaction's handles, or with a model of them; what it read."""


def contents(db: Database) -> State:
    """Everything in the region, as one moment shows it."""
    with db.transaction(read_only=True) as tx:
        return everything(tx)


def everything(tx: of.Transaction) -> State:
    return {
        "n": dict(tx.counters("n").items()),
        "s": dict(tx.sets("s").items()),
        "b": dict(tx.counters("b", floor=FLOOR).items()),
        **{name: dict(tx.map(name, mode="available", merge=merge).items()) for name, merge in MERGES.items()},
    }


class Model:
    """The same calls over plain dicts."""

    def __init__(self, state: State) -> None:
        self.state: State = copy.deepcopy(state)

    def counters(self, name: str, floor: int | None = None) -> _Counters:
        return _Counters(self.state[name])

    def sets(self, name: str) -> _Sets:
        return _Sets(self.state[name])

    def map(self, name: str, *, mode: str, merge: str) -> _Map:
        assert mode == "available"
        return _Map(self.state[name], keeps_both=merge == "keep_both")


class _Counters:
    def __init__(self, of_name: dict[str, Any]) -> None:
        self._of = of_name

    def get(self, key: str) -> int:
        found: int = self._of.get(key, 0)
        return found

    def add(self, key: str, n: int) -> None:
        self._of[key] = self._of.get(key, 0) + n

    def delete(self, key: str) -> bool:
        return self._of.pop(key, None) is not None

    def __contains__(self, key: str) -> bool:
        return key in self._of

    def items(self, **bounds: Any) -> list[tuple[str, int]]:
        return bounded(self._of, **bounds)


class _Sets:
    def __init__(self, of_name: dict[str, Any]) -> None:
        self._of = of_name

    def get(self, key: str) -> set[str]:
        return set(self._of.get(key, ()))

    def contains(self, key: str, element: str) -> bool:
        return element in self._of.get(key, ())

    def add(self, key: str, element: str) -> None:
        self._of.setdefault(key, set()).add(element)

    def discard(self, key: str, element: str) -> None:
        self._of.get(key, set()).discard(element)
        if not self._of.get(key):
            self._of.pop(key, None)

    def delete(self, key: str) -> bool:
        return bool(self._of.pop(key, None))

    def items(self, **bounds: Any) -> list[tuple[str, set[str]]]:
        return bounded({key: set(found) for key, found in self._of.items()}, **bounds)


class _Map:
    def __init__(self, of_name: dict[str, Any], *, keeps_both: bool) -> None:
        self._of, self._keeps_both = of_name, keeps_both

    def get(self, key: str) -> Any:
        return copy.deepcopy(self._of.get(key))

    def put(self, key: str, value: Any) -> None:
        self._of[key] = [value] if self._keeps_both else value

    def patch(self, key: str, set: dict[str, Any], unset: str) -> None:
        found = {**self._of.get(key, {}), **set}
        found.pop(unset, None)
        self._of[key] = found

    def delete(self, key: str) -> bool:
        return self._of.pop(key, None) is not None

    def modify(self, key: str, fn: Callable[[Any], Any]) -> Any:
        self.put(key, fn(self._of.get(key, [] if self._keeps_both else None)))
        return self.get(key)

    def clear(self) -> None:
        self._of.clear()

    def scan(self, *, start: str | None, limit: int | None, reverse: bool) -> list[Any]:
        found = bounded(copy.deepcopy(self._of), start)
        return (found[::-1] if reverse else found)[:limit]


def bounded(found: dict[str, Any], start: str | None = None, limit: int | None = None) -> list[Any]:
    return sorted(pair for pair in found.items() if start is None or pair[0] >= start)[:limit]


def steps(rng: random.Random, name: str) -> list[Step]:
    """What one transaction does. It begins with marks of its own in several places, which belong together."""
    made: list[Step] = [
        lambda tx: tx.sets("s").add("left", name),
        lambda tx: tx.sets("s").add("right", name),
        lambda tx: map_of(tx, "m").put("last", name),
        lambda tx: map_of(tx, "f").patch("last", set={"by": name}, unset="none"),
    ]
    adds = rng.random() < 0.7  # a counter that was deleted is not added to in the same transaction
    for _ in range(rng.randrange(1, 8)):
        some = rng.choice((on_counters, on_sets, on_maps, on_maps))
        made.append(some(rng, rng.choice(KEYS), adds=adds))
    return made


def on_counters(rng: random.Random, key: str, *, adds: bool) -> Step:
    n, start, limit = rng.choice((-2, -1, 1, 3)), rng.choice((None, *KEYS)), rng.choice((None, 1, 2))
    of_choice: list[Step] = [
        lambda tx: tx.counters("n").get(key),
        lambda tx: key in tx.counters("n"),
        lambda tx: list(tx.counters("n").items(start=start, limit=limit)),
        lambda tx: tx.counters("b", floor=FLOOR).get(key),
        lambda tx: tx.counters("b", floor=FLOOR).add(key, n),
        (lambda tx: tx.counters("n").add(key, n)) if adds else (lambda tx: tx.counters("n").delete(key)),
    ]
    return rng.choice(of_choice)


def on_sets(rng: random.Random, key: str, *, adds: bool) -> Step:
    element, start, limit = rng.choice("xyz"), rng.choice((None, *KEYS)), rng.choice((None, 1, 2))
    of_choice: list[Step] = [
        lambda tx: tx.sets("s").get(key),
        lambda tx: tx.sets("s").contains(key, element),
        lambda tx: tx.sets("s").add(key, element),
        lambda tx: tx.sets("s").discard(key, element),
        lambda tx: tx.sets("s").delete(key),
        lambda tx: list(tx.sets("s").items(start=start, limit=limit)),
    ]
    return rng.choice(of_choice)


def on_maps(rng: random.Random, key: str, *, adds: bool) -> Step:
    name, n = rng.choice(tuple(MERGES)), rng.randrange(100)
    start, limit, reverse = rng.choice((None, *KEYS)), rng.choice((None, 1, 2)), rng.random() < 0.5
    field, other = rng.sample("uvw", 2)
    value: Any = {field: n, other: -n} if name == "f" else n
    of_choice: list[Step] = [
        lambda tx: map_of(tx, name).get(key),
        lambda tx: map_of(tx, name).put(key, value),
        lambda tx: map_of(tx, name).delete(key),
        lambda tx: map_of(tx, name).modify(key, lambda found: {"was": found} if name == "f" else [found, n]),
        lambda tx: list(map_of(tx, name).scan(start=start, limit=limit, reverse=reverse)),
        lambda tx: map_of(tx, "f").patch(key, set={field: n}, unset=other),
    ]
    return map_of_clear(name) if rng.random() < 0.05 else rng.choice(of_choice)


def map_of_clear(name: str) -> Step:
    return lambda tx: map_of(tx, name).clear()


def map_of(tx: Any, name: str) -> Any:
    return tx.map(name, mode="available", merge=MERGES[name])


def program(db: Database, watcher: Database, todo: list[Step]) -> Generator[None, None, str]:
    """One transaction, a step at a time; how it ended. Checks it against the model at its end."""
    seen: list[Any] = []
    looked = False
    try:
        with db.transaction() as tx:
            for step in todo:
                seen.append(step(tx))
                yield
            own = everything(tx) if len(todo) % 3 == 0 else None
            looked = own is not None
            before = contents(watcher)
    except of.Conflict:
        assert contents(watcher) == before
        return "conflict"
    except of.BelowFloor:
        assert contents(watcher) == before
        return "below"
    model = Model(before)
    assert seen == [step(model) for step in todo]
    after = contents(watcher)
    assert after == model.state
    assert not looked or own == after
    return "done"


def marks_are_together(state: State) -> None:
    """Both sets have the same, and the later of two writers has the last word in both maps, unless those were cleared."""
    assert state["s"].get("left", set()) == state["s"].get("right", set())
    if "last" in state["m"] and "last" in state["f"]:
        assert state["f"]["last"]["by"] == state["m"]["last"]


@pytest.mark.parametrize("seed", range(16))
def test_transactions_are_as_one_after_the_other_in_each_region_and_whole_in_all(seed: int) -> None:
    rng = random.Random(seed)
    names = ("eu", "us", "ap")[: rng.choice((2, 3))]
    with closing(MemoryRegions(*names)) as regions:
        regions.linked = False
        watchers = {name: regions.database(name) for name in names}
        connections = {name: [regions.database(name) for _ in range(3)] for name in names}
        open_now: dict[tuple[str, int], Generator[None, None, str]] = {}
        ends: list[str] = []
        begun = 0
        while begun < 40 or open_now:
            name, at = rng.choice(names), rng.randrange(3)
            running = open_now.get((name, at))
            if running is None and begun < 40:
                begun += 1
                open_now[name, at] = program(connections[name][at], watchers[name], steps(rng, f"t{begun}"))
            elif running is not None:
                try:
                    next(running)
                except StopIteration as end:
                    ends.append(end.value)
                    del open_now[name, at]
            if rng.random() < 0.2:
                to, source = rng.sample(names, 2)
                regions.pull(to, source)
                marks_are_together(contents(watchers[to]))
        regions.exchange()
        found = [contents(watchers[name]) for name in names]
        assert all(one == found[0] for one in found)
        marks_are_together(found[0])
        assert all(value >= FLOOR for value in found[0]["b"].values()), found[0]["b"]
        assert len(found[0]["s"]["left"]) == ends.count("done") > 5
        assert ends.count("conflict") > 0
