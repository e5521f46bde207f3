"""Bounded counters: a region takes only from rights that it holds, so the sum never falls below the floor.

After Balegas et al., "Extending eventually consistent cloud databases for enforcing numeric invariants", SRDS 2015. Each region
writes a share of its own: what it has added, and how many rights it has sent to each other region, in all. Rights of region i:
what it added, and what was sent to it, without what it sent. The floor's rights (as many as lie between zero and the floor) are
those of region 1 at first. Rights move by an effect of their owner alone, and count where that effect is known.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from onefold.available.kinds.row import clamped, encode
from onefold.available.stamps import Dot, Hlc, Number, Seq, ms_of

FIRST_OWNER = 1
"""The region that has the rights down to the floor at first."""


class Wanted(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An open wish: the rights that a region wishes to have."""

    hlc: Hlc
    need: int
    until_ms: int


class Share(msgspec.Struct, frozen=True, array_like=True):
    """What one region wrote, as of its effect ``seq``."""

    seq: Seq = 0
    net: int = 0
    sent: dict[Number, int] = msgspec.field(default_factory=dict)
    wish: Wanted | None = None


_NONE = Share()


class Shares(msgspec.Struct, frozen=True, array_like=True):
    """The row of one key, in order of the regions. It is never collected: rights would be lost with it."""

    regions: dict[Number, Share] = msgspec.field(default_factory=dict)

    def value(self) -> int:
        """The sum."""
        return clamped(sum(share.net for share in self.regions.values()))

    def rights(self, region: int, floor: int, heirs: Mapping[int, int]) -> int:
        """What a region may take; with the rights of evicted regions whose heir it is."""
        owners = {region}
        while more := {gone for gone, heir in heirs.items() if heir in owners} - owners:
            owners |= more
        found = -floor if FIRST_OWNER in owners else 0
        for number, share in self.regions.items():
            if number in owners:
                found += share.net - sum(share.sent.values())
            found += sum(share.sent.get(owner, 0) for owner in owners)
        return clamped(found)

    def wishes(self, now_ms: int) -> list[tuple[int, int, int]]:
        """The open ones, the oldest first: (clock, region, need)."""
        return sorted(
            (share.wish.hlc, region, share.wish.need)
            for region, share in self.regions.items()
            if share.wish is not None and share.wish.until_ms > now_ms
        )

    def spent(self, region: int, seq: int, by: int) -> Shares:
        """After a region has added. A wish ends when it is used."""
        share = self.regions.get(region, _NONE)
        used = share.wish is not None and -by >= share.wish.need
        return self._with(
            region, Share(seq, clamped(share.net + by), share.sent, None if used else share.wish)
        )

    def sent(self, region: int, seq: int, to: int, by: int) -> Shares:
        """After a region has given rights away."""
        share = self.regions.get(region, _NONE)
        sent = dict(sorted({**share.sent, to: clamped(share.sent.get(to, 0) + by)}.items()))
        return self._with(region, Share(seq, share.net, sent, share.wish))

    def wished(self, region: int, seq: int, wish: Wanted | None) -> Shares:
        """After a region has made a wish, or withdrawn it. One that is asked for again keeps its place."""
        share = self.regions.get(region, _NONE)
        if wish is not None and share.wish is not None and share.wish.until_ms > ms_of(wish.hlc):
            wish = Wanted(share.wish.hlc, wish.need, wish.until_ms)
        return self._with(region, Share(seq, share.net, share.sent, wish))

    def _with(self, region: int, share: Share) -> Shares:
        return Shares(dict(sorted({**self.regions, region: share}.items())))

    def is_empty(self) -> bool:
        return not self.regions

    def is_live(self) -> bool:
        return bool(self.regions)

    def ends_ms(self) -> int | None:
        return None

    def expired(self, now_ms: int) -> Shares:  # noqa: ARG002
        return self

    def waits(self) -> Dot | None:
        return None

    def collected(self, stable: Mapping[int, int]) -> Shares:  # noqa: ARG002
        return self

    def parts(self, data: bytes = b"") -> Collection[bytes]:  # noqa: ARG002
        return [encode((region, share.seq, share.net, share.sent)) for region, share in self.regions.items()]

    def joined(self, other: Shares, mine: Mapping[int, int], theirs: Mapping[int, int]) -> Shares:  # noqa: ARG002
        found = dict(self.regions)
        for region, share in other.regions.items():
            if region not in found or found[region].seq < share.seq:
                found[region] = share
        return Shares(dict(sorted(found.items())))
