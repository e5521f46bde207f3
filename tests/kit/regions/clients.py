"""What programs do in simulated regions: random requests on few keys, from a seed, and sessions that move between regions."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from onefold.available import ops
from onefold.available.ops import AnyRequest

FLOORS = {"stock": 0, "credit": -6}
KEYS = (b"a", b"b", b"a\x00b")
FIELDS = ("x", "y", "z")
ELEMENTS = (b"p", b"q", b"\x00", b"\xff")


@dataclass
class Session:
    """What a program has seen, whichever region it used."""

    region: int = 0
    """Which it uses now."""
    vector: dict[int, int] = field(default_factory=dict)
    hlc: int = 0


class Requests:
    """Makes them. Values are all different, so that each of them names the effect that wrote it."""

    def __init__(self, rng: random.Random, kinds: str = "rfksnb") -> None:
        """``kinds``: the letters of those that are used."""
        self._random = rng
        self._made = 0
        self._wished: ops.Wish | None = None
        makers = {
            "r": self._register,
            "f": self._fields,
            "k": self._keep_both,
            "s": self._set,
            "n": self._counter,
            "b": self._bounded,
        }
        self._makers = [makers[letter] for letter in kinds]

    def value(self) -> bytes:
        self._made += 1
        return b"v%d" % self._made

    def ttl_ms(self) -> int | None:
        return self._random.randrange(500, 20_000) if self._random.random() < 0.2 else None

    def some(self, numbers: list[int]) -> tuple[AnyRequest, ...]:
        """The requests of one ``Do``, mostly one. ``numbers``: of the other regions."""
        count = 1 if self._random.random() < 0.7 else self._random.randint(2, 4)
        return tuple(self.one(numbers) for _ in range(count))

    def one(self, numbers: list[int]) -> AnyRequest:
        """A request of a random kind."""
        make = self._random.choice(self._makers)
        return make(self._random.choice(KEYS), numbers)

    def _register(self, key: bytes, numbers: list[int]) -> AnyRequest:
        if self._random.random() < 0.35:
            return ops.Delete("r", "carts", (key,))
        return ops.Put("r", "carts", ((key, self.value()),), self.ttl_ms())

    def _keep_both(self, key: bytes, numbers: list[int]) -> AnyRequest:
        if self._random.random() < 0.3:
            return ops.Delete("k", "notes", (key,))
        return ops.Put("k", "notes", ((key, self.value()),), self.ttl_ms())

    def _fields(self, key: bytes, numbers: list[int]) -> AnyRequest:
        chance = self._random.random()
        if chance < 0.2:
            return ops.Delete("f", "users", (key,))
        names = self._random.sample(FIELDS, self._random.randint(1, 2))
        if chance < 0.5:
            return ops.Replace("users", key, tuple((name, self.value()) for name in names), self.ttl_ms())
        return ops.Patch(
            "users",
            key,
            tuple((name, self.value() if self._random.random() < 0.7 else None) for name in names),
        )

    def _set(self, key: bytes, numbers: list[int]) -> AnyRequest:
        chance = self._random.random()
        if chance < 0.1:
            return ops.Empty("tags", key)
        some = tuple(self._random.sample(ELEMENTS, self._random.randint(1, 2)))
        return (
            ops.Exclude("tags", key, some) if chance < 0.5 else ops.Include("tags", key, some, self.ttl_ms())
        )

    def _counter(self, key: bytes, numbers: list[int]) -> AnyRequest:
        if self._random.random() < 0.25:
            return ops.Reset("likes", key)
        return ops.Add("likes", key, self._random.randint(-3, 9))

    def _bounded(self, key: bytes, numbers: list[int]) -> AnyRequest:
        name = self._random.choice(list(FLOORS))
        floor, by = FLOORS[name], self._random.randint(1, 6)
        chance = self._random.random()
        if self._wished is not None and self._random.random() < 0.3:
            wish, self._wished = self._wished, None
            return ops.Change(wish.name, wish.floor, wish.key, -wish.need)
        if chance < 0.5:
            return ops.Change(name, floor, key, -by)
        if chance < 0.75:
            return ops.Change(name, floor, key, by)
        if chance < 0.85 and numbers:
            return ops.Move(name, floor, key, self._random.choice(numbers), by)
        self._wished = ops.Wish(name, floor, key, self._random.choice((0, by, 3 * by)), 10_000)
        return self._wished
