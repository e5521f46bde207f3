"""The core under all handles of collections for every region: operations go out here, and views come in at their level.

One for each open database, once such a collection is used. It has the logs of one region, and a session of its own: offsets of
those logs, which say nothing elsewhere, and vectors of other regions' effects, which travel in tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

from onefold.available import regions
from onefold.available.ops import (
    AnyRequest,
    Committed,
    Do,
    Read,
    Rejected,
    Span,
    available_op,
    decode_outcome,
)
from onefold.available.rows import SHOWN, decode_shown, tables_of
from onefold.available.stamps import covers, merged
from onefold.backoff import Backoff
from onefold.errors import InvalidArgument, TokenError, UnsupportedConsistency
from onefold.shard.requirements import Behind, ReadRequirement
from onefold.state.available import levels
from onefold.state.available.refusals import refusal
from onefold.state.core.consistency import SESSION, STRONG, Level
from onefold.state.core.shards_client import ShardsClient
from onefold.state.core.time_limits import end_of
from onefold.state.core.tokens import RegionPart, Seen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onefold.regions.peers import Peers
    from onefold.shard.api import Shard, View
    from onefold.state.core.client import StateClient

_PAUSE_S, _PAUSE_S_MAX = 0.005, 0.25
_UNSUPPORTED = (
    "a collection for every region cannot be read with consistency='strong': no region knows what others write at this moment. "
    "Leave it out ('session'), use 'bounded:5s', or a consistent collection (mode='consistent')"
)


class Region(Protocol):
    """A region that is open: see ``onefold.regions``."""

    @property
    def name(self) -> str: ...

    @property
    def shards(self) -> Sequence[Shard]: ...

    @property
    def peers(self) -> Peers | None:
        """None: there is no other region."""
        ...

    def look(self) -> None:
        """Notice other regions that came since; cheap."""
        ...

    def close(self) -> None:
        """Stop what this process does for regions, and release the logs."""
        ...


class RegionClient(ShardsClient):
    """Thread-safe."""

    def __init__(self, space: StateClient, region: Region, level: Level | None = None) -> None:
        """``space``: of the same connection, whose time limits and session it has. ``level``: of reads that name none."""
        super().__init__(
            region.shards, level=level or SESSION, timeout=space.timeout if space.limited else None
        )
        self.space = space
        self.region = region
        self.session = Seen()
        self.incarnation = self.shards[0].incarnation
        self.unmet: dict[int, dict[int, int]] = {}
        """By shard, vectors that tokens have seen and that are not known to be here yet."""
        self._hlc = 0
        self._names: dict[int, str] = {}
        self._generations: dict[int, tuple[int, int]] = {}
        """By shard, which tables readers see, and up to which offset that is known."""
        self.levels = levels.Levels(self)

    # -- what is known

    def known(self, shard: int) -> regions.Known:
        """What the shard's log knows of regions, as it is here now."""
        with self.shards[shard].view(need=ReadRequirement()) as view:
            return regions.read_self(view)

    def region_names(self) -> dict[int, str]:
        """Names of regions by their numbers; one that came again has several."""
        return {number: region.name for number, region in self.known(0).regions.items()}

    def name_of(self, number: int) -> str | None:
        """The name of the region with this number; None: it is not known."""
        name = self._names.get(number)
        if name is None and number:
            self._names = self.region_names()
            name = self._names.get(number)
        return name

    def only_region(self) -> int:
        """The number of this region if there is no other one; else 0."""
        known = self.known(0)
        return known.number if len(known.regions) == 1 else 0

    def silent_s(self) -> Mapping[str, float]:
        """By name of the other regions, for how many seconds nothing was heard of them."""
        peers = self.region.peers
        return {} if peers is None else {link.name: link.silent_s for link in peers.links()}

    # -- the session

    def seen(self) -> RegionPart:
        """See ``tokens.OpenRegion``. What is here now: that is at least what was seen."""
        offsets, vectors, hlc = {}, {}, self._hlc
        for number, shard in enumerate(self.shards):
            with shard.view(
                need=ReadRequirement(self.session.floor(number), timeout=self.read_time())
            ) as view:
                me = regions.read_self(view)
                offsets[number] = max(self.session.floor(number), view.offset)
            vectors[number] = merged(me.have(), self.unmet.get(number, {}))
            hlc = max(hlc, me.hlc)
        return RegionPart(self.region.name, self.incarnation, offsets, {}, vectors, hlc)

    def demand(self, part: RegionPart) -> None:
        """See ``tokens.OpenRegion``."""
        if any(not 0 <= shard < self.shard_count for shard in (*part.offsets, *part.vectors)):
            raise TokenError("the session token names shards that this space does not have. Start without it")
        names = self.region_names()
        unknown = [number for vector in part.vectors.values() for number in vector if number not in names]
        if unknown:
            raise TokenError(
                f"the session token has seen a region (number {unknown[0]}) that is not known here yet. Wait until this region "
                "has heard of it, or start without the token"
            )
        self._hlc = max(self._hlc, part.hlc)
        for shard, vector in part.vectors.items():
            self.unmet[shard] = merged(self.unmet.get(shard, {}), vector)
        if part.incarnation == self.incarnation:
            self.session.demand(part.offsets)

    def forget(self, name: str) -> None:
        """See ``tokens.OpenRegion``."""
        numbers = {number for number, known in self.region_names().items() if known == name}
        if not numbers:
            raise InvalidArgument(
                f"there is no region {name!r:.60}; there are {', '.join(sorted(set(self.region_names().values())))}"
            )
        for shard, vector in self.unmet.items():
            self.unmet[shard] = {number: seq for number, seq in vector.items() if number not in numbers}

    def demanded(self, shard: int) -> Mapping[int, int]:
        """What the session's tokens have seen and this region may not know yet."""
        return self.unmet.get(shard, {})

    def met(self, shard: int, vector: Mapping[int, int]) -> None:
        """This is here. What a log knows it knows for ever."""
        if covers(vector, self.unmet.get(shard, {})):
            self.unmet.pop(shard, None)

    # -- writing

    def do(
        self,
        shard: int,
        requests: tuple[AnyRequest, ...],
        reads: tuple[Read, ...] = (),
        spans: tuple[Span, ...] = (),
        request_id: str | None = None,
        *,
        last_try: bool = True,
    ) -> Committed:
        """Do it in this region, as one effect. Waits for what the session has seen elsewhere, and for the region to be admitted.

        Raises, definite: TooStale (that is not here yet), Conflict, TooOld, BelowFloor, InvalidArgument, InvalidValue,
        Unavailable (the region is evicted); and what ``Shard.submit`` raises.
        """
        self.region.look()
        deadline = self.deadline()
        backoff = Backoff(_PAUSE_S, _PAUSE_S_MAX, self.env)
        while True:
            demanded = self.demanded(shard)
            if demanded:
                self.levels.reach(shard, max(0.0, deadline - self.env.boot_s()))
            op = available_op(Do(requests, reads, spans, dict(demanded), self._hlc, last_try), request_id)
            outcome = decode_outcome(self.shards[shard].submit([op], deadline, self.receipt(shard))[0])
            self.session.observe(shard, self.shards[shard].applied)  # what has refused it is seen too
            if isinstance(outcome, Committed):
                return outcome
            passes = isinstance(outcome, Rejected) and outcome.reason in ("not_admitted", "no_region")
            if not passes or self.env.boot_s() >= deadline:
                raise refusal(outcome, self.region.name)
            self.shards[shard].pause(min(backoff.pause_s(), max(0.0, deadline - self.env.boot_s())))

    # -- time

    def deadline(self) -> float:
        """See ``ShardsClient``. A call of the whole connection that is under way, such as a transaction that is tried again,
        bounds what it does in the region too."""
        own, outer = super().deadline(), end_of(self.space)
        return own if outer is None else min(own, outer)

    def read_time(self, timeout: float | None = None) -> float:
        """See ``ShardsClient``."""
        own, outer = super().read_time(timeout), end_of(self.space)
        return own if outer is None else max(0.0, min(own, outer - self.env.boot_s()))

    # -- reading

    def view(
        self, shard_id: int, level: Level | None = None, timeout: float | None = None
    ) -> AbstractContextManager[View]:
        """A view of the region's shard that meets the level (default: the connection's).

        Raises, all definite: TooStale (``session``, ``bounded``), Unavailable, TokenAhead, UnsupportedConsistency (``strong``).
        """
        level = self.level if level is None else level
        return self._met(shard_id, level, timeout)

    @contextmanager
    def _met(self, shard_id: int, level: Level, timeout: float | None) -> Iterator[View]:
        self.meet(shard_id, level, timeout)
        with self._plain(shard_id, level, timeout) as view:
            yield view

    def peek(
        self, shard: int, table: str, key: bytes, level: Level | None = None, timeout: float | None = None
    ) -> bytes | None:
        """One key's row in a table at the level. Raises as ``view``."""
        return self._peek(shard, table, key, self.level if level is None else level, timeout)[0]

    def peek_row(
        self, shard_id: int, place: str, key: bytes, level: Level | None = None, timeout: float | None = None
    ) -> tuple[bytes | None, int]:
        """The row of one key of a collection at the level, and the offset that it is of: the cheapest read. Raises as ``view``.

        A full sync alone changes in which table it is, and always to a later one. So what was found in a table counts if that
        table is still the latest one after it was read.
        """
        level = self.level if level is None else level
        while True:
            generation, known_at = self._generations.get(shard_id, (0, -1))
            data, offset = self._peek(shard_id, tables_of(generation).rows + place, key, level, timeout)
            if offset == known_at:
                return data, offset
            at = None if offset > known_at else offset
            shown, seen_at = self.shards[shard_id].peek(SHOWN, b"", at=at)
            found = decode_shown(shown).generation
            if found == generation:
                self._generations[shard_id] = found, max(seen_at, known_at)
                return data, offset
            if at is not None:  # it is behind what was read before
                return self.shards[shard_id].peek(tables_of(found).rows + place, key, at=offset)
            self._generations[shard_id] = found, seen_at

    def _peek(
        self, shard: int, table: str, key: bytes, level: Level, timeout: float | None
    ) -> tuple[bytes | None, int]:
        self.meet(shard, level, timeout)
        if self.shows_all:
            found = self.shards[shard].peek(table, key)
        else:
            need = self._requirement(shard, level, timeout)
            try:
                found = self.shards[shard].peek(table, key, need)
            except Behind as error:
                self._explain(shard, need, error)
                raise
        self.session.observe(shard, found[1])
        return found

    def refresh(self, shard: int) -> None:
        """Wait until all that this region's log has acknowledged before the call is here. Raises Unavailable (definite)."""
        self.session.observe(shard, self.shards[shard].barrier(self.read_time()))

    def strongly(self, shard: int) -> ReadRequirement:
        """What shows all that was acknowledged in this region before. No collection is read so: other regions may be writing."""
        return self._requirement(shard, STRONG)

    def meet(self, shard: int, level: Level, timeout: float | None = None) -> None:
        """Wait until this region knows what the level demands of others.

        Raises TooStale and UnsupportedConsistency (definite)."""
        if level.kind == "session":
            if shard in self.unmet:
                self.levels.reach(shard, self.read_time(timeout))
        elif level.kind == "bounded":
            self.levels.fresh(shard, level.seconds, self.read_time(timeout))
        elif level.kind == "strong":
            raise UnsupportedConsistency(_UNSUPPORTED)


def check_level(level: Level) -> Level:
    """The level itself. Raises UnsupportedConsistency for ``strong``."""
    if level.kind == "strong":
        raise UnsupportedConsistency(_UNSUPPORTED)
    return level
