"""What a region's log knows of itself and of other regions: one row, which every operation reads and writes.

An ``Origin`` is what a region's own effects have said, as far as they are in this log. A ``Region`` is what this log decides by
itself: who is admitted, evicted, held. The *stable* vector is what all live regions are known to know, each by its latest effect
here (causal stability: Baquero et al., "Making operation-based CRDTs operation-based", DAIS 2014). What is stable can be
dropped: effects that are kept for others, tombstones, deleted parts of counters.

**Eviction.** Each remaining region votes how far it knows the evicted one, and takes nothing *from* it any more. What others
pass on is taken: it came from somebody who had not voted yet, and who will vote for no less. The highest vote is the *final*
number. Once all are known to have the effects up to there, the evicted region counts no more. Another eviction begins another
round, in which all vote again on all that are evicted. Else a vote that only some have heard of would lead to different finals.
A final number that is known stays: who knows it has all effects up to it, since a vote depends on what it names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec

from onefold.available.stamps import Hlc, Number, Seq, Vector, common, knows
from onefold.fold.api import StoreView

Chain = Annotated[bytes, msgspec.Meta(max_length=16)]
SELF = "ap/self"
"""One row, with the key ``b""``: ``Known``."""


class Origin(msgspec.Struct, array_like=True):
    """What the effects of one region have said."""

    seq: Seq = 0
    """The last one that is known; all before it are known."""
    hlc: Hlc = 0
    chain: Chain = b""
    """The chain digest up to there."""
    seen: Vector = msgspec.field(default_factory=dict)
    """What that region knew of others with it."""
    round: int = 0
    votes: Vector = msgspec.field(default_factory=dict)
    """Of that round, by evicted region."""
    admits: tuple[Number, ...] = ()


class Region(msgspec.Struct, array_like=True):
    """What this log has decided about one region."""

    name: str
    founder: bool = False
    round: int = 0
    """The round in which it was evicted; 0: it was not."""
    limit: Seq = 0
    """Of an evicted one: the final number, if ``final``."""
    final: bool = False
    """Whether all votes of the latest round are known."""
    out: bool = False
    """Whether it counts no more: it is evicted, and all others know its effects up to the limit."""
    heir: int = 0
    """Who has its rights in bounded counters; 0: nobody."""
    accepted: Hlc = 0
    """Its effects are taken up to this clock, however far ahead that is."""
    held: Hlc = 0
    """The clock of the effect of its that is too far ahead; 0: none is."""
    listed: Seq = 0
    """Of an evicted one: up to here, effects that nobody takes were listed as conflicts."""


class Dropped(msgspec.Struct, frozen=True, array_like=True):
    """How far the effects of an origin are not kept any more, and the chain digest there."""

    seq: Seq = 0
    chain: bytes = b""


class Sync(msgspec.Struct, array_like=True):
    """A full sync that has begun: see ``sync``."""

    id: str
    source: Number
    hlc: Hlc
    origins: dict[Number, Origin]
    """What that region knew."""
    generation: int
    """Where the joined rows are written."""
    staged: int = 0
    """How many rows have come."""
    joining: bool = False
    """Whether all have come: they are joined."""
    part: int = 0
    """Which of the parts of ``sync.joining`` is next ..."""
    after: bytes = b""
    """... from where on."""
    content: bytes = bytes(16)
    gone_rows: int = 0
    gone_bytes: int = 0
    """As in ``Known``, of the joined rows."""


class Known(msgspec.Struct, array_like=True):
    """See above."""

    number: int = 0
    """Of this region; 0: not known yet."""
    hlc: Hlc = 0
    origins: dict[Number, Origin] = msgspec.field(default_factory=dict)
    regions: dict[Number, Region] = msgspec.field(default_factory=dict)
    dropped: dict[Number, Dropped] = msgspec.field(default_factory=dict)
    writing: bool = False
    """Whether all regions have admitted this one."""
    retired: bool = False
    round: int = 0
    """The latest round of evictions."""
    owes: bool = False
    """Whether something was imported that others do not know is known here."""
    collected: Vector = msgspec.field(default_factory=dict)
    """The stable vector up to which gone rows were collected."""
    content: bytes = bytes(16)
    """A hash over what readers see; see ``rows``."""
    out_count: int = 0
    out_bytes: int = 0
    gone_rows: int = 0
    gone_bytes: int = 0
    conflicts: int = 0
    """How many there ever were."""
    conflicts_first: int = 0
    """The number of the oldest one that is kept."""
    conflicts_bytes: int = 0
    cap_ms: int = 0
    cap_until_ms: int = 0
    shown: int = 0
    """The generation of rows that readers see."""
    switched: int = 0
    """The offset since which they see it."""
    sync: Sync | None = None
    staged: bool = False
    """Whether rows that the last full sync has staged are still there."""
    later: bool = False
    """Whether it has left something else to be done."""
    cleared: list[int] = msgspec.field(default_factory=list)
    """Generations that nobody sees any more, whose rows are dropped bit by bit."""
    passed: Vector = msgspec.field(default_factory=dict)
    """Effects of an origin up to this one are kept for nobody, and are dropped bit by bit."""

    def drop_sync(self) -> None:
        """What has come of a full sync is not needed any more."""
        if self.sync is not None:
            self.cleared.append(self.sync.generation)
            self.sync = None

    def free_generation(self) -> int:
        """The first one of which there are no rows. They are used again, so that there are few tables."""
        used = {self.shown, *self.cleared}
        return next(number for number in range(len(used) + 1) if number not in used)

    def joined_vectors(self) -> tuple[dict[int, int], dict[int, int]]:
        """What this region knows, and what the one knew whose rows are joined."""
        origins = self.sync.origins if self.sync is not None else {}
        return self.have(), {number: origin.seq for number, origin in origins.items()}

    def origin(self, number: int) -> Origin:
        """What is known of an origin; made if nothing is."""
        found = self.origins.get(number)
        if found is None:
            found = self.origins[number] = Origin()
        return found

    def have(self) -> dict[int, int]:
        """What this log knows of each origin."""
        return {number: origin.seq for number, origin in self.origins.items() if origin.seq}

    def seen_by(self, number: int) -> dict[int, int]:
        """What a region is known to know, by its latest effect here."""
        origin = self.origins.get(number)
        return {} if origin is None else {**origin.seen, number: origin.seq}

    def live(self) -> list[int]:
        """The regions that have to know of something before it is dropped."""
        return [number for number, region in self.regions.items() if not region.out]

    def voters(self) -> list[int]:
        """Those that are not evicted."""
        return [number for number, region in self.regions.items() if not region.round]

    def evicted(self) -> Iterator[tuple[int, Region]]:
        """Those that are."""
        return ((number, region) for number, region in self.regions.items() if region.round)

    def stable(self) -> dict[int, int]:
        """What all live regions are known to know. That of this region counts as others know it, by its own latest effect."""
        return common(map(self.seen_by, self.live()))

    def heirs(self) -> dict[int, int]:
        """Evicted regions whose rights belong to another one. They do once nothing more can come from it."""
        return {number: region.heir for number, region in self.regions.items() if region.heir and region.out}

    def may_write(self) -> bool:
        """Whether own effects are made, other than those that only say what is known."""
        return bool(self.number) and self.writing and not self.retired

    def owes_beat(self) -> bool:
        """Whether others wait for an effect of this region."""
        if not self.number or self.retired:
            return False
        return self.owes or self.gone_rows > 0 or any(not region.out for _, region in self.evicted())


def settle(me: Known) -> bool:
    """Draw conclusions from what is known of votes and admissions. Whether anything changed."""
    if me.writing and not me.round:
        return False
    changed = False
    voters = me.voters()
    voted = [me.origins.get(number) for number in voters]
    if voted and all(origin is not None and origin.round == me.round for origin in voted):
        for number, region in me.evicted():
            if not region.final:
                region.limit = max(origin.votes.get(number, 0) for origin in voted if origin is not None)
                region.final = changed = True
            if not region.out and all(knows(me.seen_by(voter), number, region.limit) for voter in voters):
                region.out = changed = True
    if me.number and not me.writing:
        me.writing = all(
            number == me.number or number > me.number or _admits(me, number) for number in voters
        )
        changed = changed or me.writing
    return changed


def _admits(me: Known, number: int) -> bool:
    region, origin = me.regions[number], me.origins.get(number)
    return region.founder or (origin is not None and me.number in origin.admits)


_decoder = msgspec.msgpack.Decoder(Known)
encode_self = msgspec.msgpack.Encoder().encode


def read_self(store: StoreView) -> Known:
    """The row as it is in the store; a new one when there is none."""
    data = store.get(SELF, b"")
    return Known() if data is None else _decoder.decode(data)
