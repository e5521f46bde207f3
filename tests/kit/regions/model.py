"""What regions must show: computed from nothing but the set of effects, and what each of them knew.

The model has no rows, no order of arrival and no tombstones. For each key it looks at all effects that are known, and decides by
their pasts and stamps which of them count. It is slow, and independent of how the fold keeps rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from onefold.available import ops
from onefold.available.home import place_of_request
from onefold.available.kinds import places
from onefold.available.ops import AnyRequest

Key = tuple[str, bytes]


class Did(NamedTuple):
    """An accepted ``Do``."""

    origin: int
    seq: int
    past: Mapping[int, int]
    """All that was known there, with itself."""
    hlc: int
    now_ms: int
    requests: tuple[AnyRequest, ...]


class Part(NamedTuple):
    """One request of it."""

    did: Did
    at: int
    request: Any

    @property
    def stamp(self) -> tuple[int, int, int, int]:
        return self.did.hlc, self.did.origin, self.did.seq, self.at

    def ends_ms(self) -> int | None:
        ttl_ms = getattr(self.request, "ttl_ms", None)
        return None if ttl_ms is None else self.did.now_ms + ttl_ms

    def is_over(self, now_ms: int) -> bool:
        ends_ms = self.ends_ms()
        return ends_ms is not None and ends_ms <= now_ms

    def knew(self, other: Part) -> bool:
        """Whether the other one happened before it."""
        if (self.did.origin, self.did.seq) == (other.did.origin, other.did.seq):
            return other.at < self.at
        return self.did.past.get(other.did.origin, 0) >= other.did.seq


class Model:
    """All effects that there ever were."""

    def __init__(self) -> None:
        self.did: dict[tuple[int, int], Did] = {}
        self._keys: dict[Key, list[Part]] = {}

    def add(self, did: Did) -> None:
        """An effect was made."""
        self.did[did.origin, did.seq] = did
        for at, request in enumerate(did.requests):
            for key in keys_of(request):
                self._keys.setdefault((place_of_request(request), key), []).append(Part(did, at, request))

    def state(self, vector: Mapping[int, int], now_ms: int) -> dict[Key, Any]:
        """What a region that knows this shows at a fold time, by place and key; what shows nothing is left out."""
        found: dict[Key, Any] = {}
        for (place, key), parts in self._keys.items():
            known = [part for part in parts if vector.get(part.did.origin, 0) >= part.did.seq]
            value = self.value(place, key, known, now_ms)
            if value is not None:
                found[place, key] = value
        return found

    def value(self, place: str, key: bytes, parts: list[Part], now_ms: int) -> Any:
        """Of one key, from the requests that touch it."""
        match place[0]:
            case places.REGISTER:
                return _register(key, parts, now_ms)
            case places.FIELDS:
                return self._fields(parts, now_ms)
            case places.KEEP_BOTH:
                alive = [part for part in _outlived(parts) if isinstance(part.request, ops.Put)]
                alive = [part for part in alive if not part.is_over(now_ms)]
                return [dict(p.request.items)[key] for p in sorted(alive, key=lambda p: p.stamp)] or None
            case places.SET:
                return _set(parts, now_ms) or None
            case places.COUNTER:
                adds = [part for part in parts if isinstance(part.request, ops.Add)]
                resets = [part for part in parts if isinstance(part.request, ops.Reset)]
                counted = [add for add in adds if not any(reset.knew(add) for reset in resets)]
                return sum(add.request.by for add in counted) if counted else None
            case _:
                changes = [part.request.by for part in parts if isinstance(part.request, ops.Change)]
                touched = changes or any(isinstance(p.request, (ops.Move, ops.Wish)) for p in parts)
                return sum(changes) if touched else None

    def _fields(self, parts: list[Part], now_ms: int) -> dict[str, bytes] | None:
        bases = [part for part in parts if not isinstance(part.request, ops.Patch)]
        base = max(bases, key=lambda part: part.stamp, default=None)
        shown: dict[str, bytes] = {}
        latest: dict[str, tuple[Part, bytes | None]] = {}
        for part in sorted(parts, key=lambda part: part.stamp):
            if part is base or (
                isinstance(part.request, ops.Patch) and (not base or part.stamp > base.stamp)
            ):
                for name, value in getattr(part.request, "fields", ()):
                    latest[name] = part, value
        for name, (part, value) in latest.items():
            ends_ms = part.ends_ms() if part is base else self._inherited(part, parts)
            if value is not None and (ends_ms is None or ends_ms > now_ms):
                shown[name] = value
        there = base is not None and isinstance(base.request, ops.Replace) and not base.is_over(now_ms)
        return shown if shown or there else None

    def _inherited(self, patch: Part, parts: list[Part]) -> int | None:
        """When the item ends that was patched, as it was there and then."""
        before = [one for one in parts if patch.knew(one) and not isinstance(one.request, ops.Patch)]
        base = max(before, key=lambda part: part.stamp, default=None)
        if base is None or not isinstance(base.request, ops.Replace) or base.is_over(patch.did.now_ms):
            return None
        return base.ends_ms()

    def total(self, place: str, key: bytes) -> int:
        """Of a bounded counter, over all effects that there ever were, wherever they are known."""
        parts = self._keys.get((place, key), ())
        return sum(part.request.by for part in parts if isinstance(part.request, ops.Change))


def keys_of(request: AnyRequest) -> Iterator[bytes]:
    """The keys that a request touches."""
    match request:
        case ops.Put():
            yield from dict(request.items)
        case ops.Delete():
            yield from dict.fromkeys(request.keys)
        case _:
            yield request.key


def _register(key: bytes, parts: Iterable[Part], now_ms: int) -> bytes | None:
    last = max(parts, key=lambda part: part.stamp, default=None)
    if last is None or isinstance(last.request, ops.Delete) or last.is_over(now_ms):
        return None
    value: bytes = dict(last.request.items)[key]
    return value


def _outlived(parts: list[Part]) -> list[Part]:
    """Those that no other one knew."""
    return [part for part in parts if not any(other.knew(part) for other in parts)]


def _set(parts: list[Part], now_ms: int) -> set[bytes]:
    found: set[bytes] = set()
    named = {element for part in parts for element in getattr(part.request, "elements", ())}
    for element in named:
        touching = [
            part for part in parts if isinstance(part.request, ops.Empty) or element in part.request.elements
        ]
        for part in touching:
            if not isinstance(part.request, ops.Include) or part.is_over(now_ms):
                continue
            if not any(other.knew(part) for other in touching):
                found.add(element)
    return found
