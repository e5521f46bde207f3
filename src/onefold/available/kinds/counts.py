"""Counters: each region adds to a part of its own, so nothing that is concurrent is lost or counted twice.

A delete notes what it had seen of each part (a *base*), and that is not counted any more. When all regions know a delete, the
parts that it covers wholly are dropped with it. A part has a *birth*, the seq with which it began: after its delete, a region
begins a new one, so that it is never taken for the earlier part that others have dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar

import msgspec

from onefold.available.kinds.row import clamped, encode, joined_part
from onefold.available.stamps import Dot, Number, Seq, knows

T = TypeVar("T")


class Part(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a region has added since the birth of the part."""

    birth: Seq
    seq: Seq
    total: int


class Base(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a delete had seen of a part: up to that seq."""

    birth: Seq
    seq: Seq
    total: int
    by: Number
    at: Seq
    """The dot of the delete."""


class Counter(msgspec.Struct, frozen=True, array_like=True):
    """The row of one key, in order of the regions."""

    regions: dict[Number, Part] = msgspec.field(default_factory=dict)
    bases: dict[Number, Base] = msgspec.field(default_factory=dict)

    def counts(self, region: int) -> bool:
        """Whether a part is counted, as far as no delete has seen it."""
        part, base = self.regions.get(region), self.bases.get(region)
        if part is None:
            return False
        return base is None or base.birth < part.birth or (base.birth == part.birth and base.seq < part.seq)

    def net(self, region: int) -> int:
        """What is counted of a region."""
        if not self.counts(region):
            return 0
        part, base = self.regions[region], self.bases.get(region)
        seen = base.total if base is not None and base.birth == part.birth else 0
        return clamped(part.total - seen)

    def value(self) -> int:
        """The sum."""
        return clamped(sum(map(self.net, self.regions)))

    def birth(self, region: int, seq: int) -> int:
        """The birth of the part to which the next effect of a region adds."""
        return self.regions[region].birth if self.counts(region) else seq

    def added(self, region: int, seq: int, birth: int, by: int) -> Counter:
        """After an effect of a region."""
        part = self.regions.get(region)
        before = part.total if part is not None and part.birth == birth else 0
        return Counter(_sorted({**self.regions, region: Part(birth, seq, clamped(before + by))}), self.bases)

    def deleted(self, seen: Mapping[int, tuple[int, int, int]], by: int, at: int) -> Counter:
        """After a delete that had seen this."""
        bases = dict(self.bases)
        for region, (birth, seq, total) in seen.items():
            base = bases.get(region)
            if base is None or (base.birth, base.seq) <= (birth, seq):
                bases[region] = Base(birth, seq, total, by, at)
        return Counter(self.regions, _sorted(bases))

    def is_empty(self) -> bool:
        return not self.regions and not self.bases

    def is_live(self) -> bool:
        return any(map(self.counts, self.regions))

    def ends_ms(self) -> int | None:
        return None

    def expired(self, now_ms: int) -> Counter:  # noqa: ARG002
        return self

    def _over(self) -> Iterator[tuple[int, Base]]:
        """Bases that nothing is subtracted from."""
        for region, base in self.bases.items():
            if not self.counts(region) or self.regions[region].birth > base.birth:
                yield region, base

    def waits(self) -> Dot | None:
        return next(((base.by, base.at) for _, base in self._over()), None)

    def collected(self, stable: Mapping[int, int]) -> Counter:
        over = {region for region, base in self._over() if knows(stable, base.by, base.at)}
        if not over:
            return self
        return Counter(
            {
                region: part
                for region, part in self.regions.items()
                if region not in over or self.counts(region)
            },
            {region: base for region, base in self.bases.items() if region not in over},
        )

    def parts(self, data: bytes = b"") -> Collection[bytes]:  # noqa: ARG002
        return [
            encode((region, part.birth, part.seq, self.net(region)))
            for region, part in self.regions.items()
            if self.counts(region)
        ]

    def joined(self, other: Counter, mine: Mapping[int, int], theirs: Mapping[int, int]) -> Counter:
        regions: dict[int, Part] = {}
        bases: dict[int, Base] = {}
        for region in {*self.regions, *other.regions}:
            one, two = self.regions.get(region), other.regions.get(region)
            part = joined_part(
                one,
                two,
                known_here=two is not None and knows(mine, region, two.seq),
                known_there=one is not None and knows(theirs, region, one.seq),
                larger=one if two is None or (one is not None and one.seq >= two.seq) else two,
            )
            if part is not None:
                regions[region] = part
        for region in {*self.bases, *other.bases}:
            own, their = self.bases.get(region), other.bases.get(region)
            base = joined_part(
                own,
                their,
                known_here=their is not None and knows(mine, their.by, their.at),
                known_there=own is not None and knows(theirs, own.by, own.at),
                larger=max(filter(None, (own, their)), key=lambda one: (one.birth, one.seq, one.by, one.at)),
            )
            if base is not None:
                bases[region] = base
        return Counter(_sorted(regions), _sorted(bases))


def _sorted(found: dict[int, T]) -> dict[int, T]:
    return dict(sorted(found.items()))
