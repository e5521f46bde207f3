"""What is not exchanged with another region, as this region's logs know it: for ``db.regions()``, ``onefold status``, and nodes'
metrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from onefold.available import effects, regions
from onefold.available.rows import OUT, out_key
from onefold.available.stamps import ms_of

if TYPE_CHECKING:
    from onefold.available.reading import RegionStatus
    from onefold.fold.api import StoreView

_LOOKED_AT_MAX: Final = 1000
"""So many of the effects that a region lacks are read, to leave out those that only say what is known."""


class Lag:
    """Of one other region, over the shards that were noted."""

    def __init__(self) -> None:
        self.writes = 0
        self.since_ms: int | None = None
        """When the first of them was made."""
        self.ahead_ms = 0
        self.states: set[str] = set()

    def note(self, writes: int, since_ms: int) -> None:
        """So many in one shard, the first made then."""
        if writes > 0:
            self.writes += writes
            self.since_ms = since_ms if self.since_ms is None else min(self.since_ms, since_ms)

    def note_state(self, region: RegionStatus) -> None:
        """What one shard's log knows of the region."""
        self.states.add(region.state)
        self.ahead_ms = max(self.ahead_ms, region.ahead_ms)

    def note_view(self, view: StoreView, number: int) -> None:
        """What is in one shard and region ``number`` is not known to have. What only says what is known does not count."""
        me = regions.read_self(view)
        seen = me.seen_by(number)
        for origin, seq in me.have().items():
            after = seen.get(origin, 0)
            if origin == number or seq <= after:
                continue
            writes, first_ms = 0, 0
            found = view.scan(OUT, out_key(origin, after + 1), out_key(origin, seq + 1), limit=_LOOKED_AT_MAX)
            for looked_at, (_, data) in enumerate(found, start=1):
                effect = effects.decode_effect(data[effects.CHAIN_BYTES :])
                if effect is not None and any(not isinstance(one, effects.CONTROL) for one in effect.writes):
                    first_ms = first_ms or ms_of(effect.hlc)
                    writes += 1
                if looked_at == _LOOKED_AT_MAX:
                    writes += seq - after - looked_at
            self.note(writes, first_ms or ms_of(me.hlc))

    def behind_s(self, now_ms: int) -> float:
        """How long ago the first of them was made."""
        return 0.0 if self.since_ms is None else max(0.0, (now_ms - self.since_ms) / 1000)
