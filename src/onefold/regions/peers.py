"""What a program can learn of the other regions: how far they have come, and what their links are like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

LinkIs = Literal["linked", "cut", "diverged", "differs", "lost", "behind"]


class LinkState(NamedTuple):
    """The link to another region, as seen here."""

    number: int
    name: str
    silent_s: float
    """For how long it has not answered; 0 when it does."""
    state: LinkIs
    """``linked``: it answers. ``cut``: it does not. ``behind``: this region needs a full sync from it. The others are alarms:
    ``lost``: one of the two knows effects of the other one that are missing there, whose log has lost its end; ``diverged``: they
    have other effects under the same numbers; ``differs``: the same effects and other rows. Nobody repairs those in silence."""


class Peers(Protocol):
    """The other regions, as one of them reaches them. Thread-safe."""

    def latest(self, timeout_s: float) -> Mapping[int, Mapping[int, int]]:
        """The last own effect of each region that answered in time: by its number, by shard, the seq as of a moment after the
        call began. Regions that did not answer are missing, also those that are evicted."""
        ...

    def links(self) -> Sequence[LinkState]:
        """The links to all other regions that are not evicted, in the order of their numbers."""
        ...

    def clocks(self, number: int) -> Mapping[int, int]:
        """The hybrid clock of the last own effect of a region, by shard, of those that answer. They may be far ahead."""
        ...
