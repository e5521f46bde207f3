"""Histories of objects that are right, drawn at random, and the plainest judge of whether a history is linearizable."""

from __future__ import annotations

import itertools

from kit.synthetic import schedule
from onefold.testing.history import Operation
from onefold.testing.models import (
    Model,
    counter,
    fifo_queue,
    grow_and_shrink_set,
    mutex,
    register,
    unordered_queue,
)


def op(process, kind, value=None, result=None, at=(0, 1), status="ok", key=None):
    return Operation(process, kind, key, value, result, at[0], at[1], status)


MODELS: dict[str, tuple[Model, list]] = {
    "register": (register(0), ["read", "write", "cas"]),
    "counter": (counter(), ["read", "add"]),
    "set": (grow_and_shrink_set(), ["read", "add", "remove", "contains"]),
    "fifo": (fifo_queue(), ["put", "get", "put"]),
    "bag": (unordered_queue(), ["put", "get", "put"]),
    "mutex": (mutex(), ["acquire", "release"]),
}


class Shared:
    """The true object: written apart from the models, so that an error in one of them shows."""

    def __init__(self, name, rng):
        self.name, self.rng = name, rng
        self.value = 0
        self.items = []
        self.owner = None

    def run(self, kind, value, process):
        match self.name, kind:
            case "register" | "counter", "read":
                return self.value
            case "register", "write":
                self.value = value
            case "register", "cas":
                if self.value != value[0]:
                    return False
                self.value = value[1]
                return True
            case "counter", "add":
                self.value += value
                return self.value if self.rng.random() < 0.5 else None
            case "set", "read":
                return self.rng.sample(self.items, len(self.items))
            case "set", "contains":
                return value in self.items
            case "set", "add":
                self.items = [*(each for each in self.items if each != value), value]
            case "set", "remove":
                self.items = [each for each in self.items if each != value]
            case "fifo" | "bag", "put":
                self.items.append(value)
            case "fifo", "get":
                return self.items.pop(0) if self.items else None
            case "bag", "get":
                return self.items.pop(self.rng.randrange(len(self.items))) if self.items else None
            case "mutex", "acquire":
                if self.owner is not None:
                    return False
                self.owner = process
                return True
            case "mutex", "release":
                if self.owner != process:
                    return False
                self.owner = None
                return True
        return None


def draw(rng, kind, number):
    match kind:
        case "write":
            return rng.randrange(4)
        case "cas":
            return (rng.randrange(4), rng.randrange(4))
        case "add" | "remove" | "contains":
            return rng.randrange(1, 6)
        case "put":
            return number
    return None


def simulate(model, rng, count, *, keys=3, name="register", processes=5, info=0.05, fail=0.05):
    kinds = MODELS[name][1]
    shared = {key: Shared(name, rng) for key in range(keys)}
    operations = []
    for number, slot in enumerate(schedule(rng, count, processes=processes, info=info, fail=fail)):
        key, kind = rng.randrange(keys), rng.choice(kinds)
        value = draw(rng, kind, number)
        result = None if slot.effect is None else shared[key].run(kind, value, slot.process)
        result = result if slot.status == "ok" else None
        operations.append(
            Operation(slot.process, kind, key, value, result, slot.invoked, slot.completed, slot.status)
        )
    rng.shuffle(operations)
    return operations


def brute_force(operations, model):
    """Try every subset of the operations of unknown outcome in every order."""
    certain = [each for each in operations if each.status == "ok"]
    maybe = [each for each in operations if each.status == "info"]
    for count in range(len(maybe) + 1):
        for chosen in itertools.combinations(maybe, count):
            if any(explains(order, model) for order in itertools.permutations([*certain, *chosen])):
                return True
    return False


def explains(order, model):
    for i, later in enumerate(order):
        if any(later.precedes(earlier) for earlier in order[:i]):
            return False
    state = model.initial
    for each in order:
        legal, state = model.step(state, each)
        if not legal:
            return False
    return True
