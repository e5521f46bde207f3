"""Collections that every region can write, and the regions, asynchronously. A part of ``AsyncDatabase``."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from onefold.aio.bridge import Bridge
from onefold.aio.counters import AsyncCounters
from onefold.aio.iterators import Fed
from onefold.aio.sets import AsyncSets
from onefold.arguments import check_flag
from onefold.db import Database
from onefold.state.core.consistency import Consistency

if TYPE_CHECKING:
    from onefold.state.available.conflicts import ConflictEntry
    from onefold.state.available.status import Region

Duration = float | timedelta | str


class AsyncRegions:
    """See ``AsyncDatabase``."""

    @property
    def sync(self) -> Database:
        raise NotImplementedError

    @property
    def _bridge(self) -> Bridge:
        raise NotImplementedError

    def counters(
        self,
        name: str,
        *,
        mode: Literal["available"] = "available",
        floor: int | None = None,
        consistency: Consistency | None = None,
    ) -> AsyncCounters:
        """Counters for every region; see ``Database.counters``."""
        plain = self.sync.counters(name, mode=mode, floor=floor, consistency=consistency)
        return AsyncCounters(self._bridge, plain, self.sync._state)

    def sets(
        self,
        name: str,
        *,
        mode: Literal["available"] = "available",
        consistency: Consistency | None = None,
    ) -> AsyncSets:
        """Sets for every region; see ``Database.sets``."""
        plain = self.sync.sets(name, mode=mode, consistency=consistency)
        return AsyncSets(self._bridge, plain, self.sync._state)

    def conflicts(
        self,
        name: str | None = None,
        *,
        start: str | None = None,
        follow: bool = False,
        timeout: Duration | None = None,
    ) -> Fed[ConflictEntry]:
        """What two regions wrote without knowing of each other, for ``async for``; see ``Database.conflicts``."""
        self._bridge.check(self.sync._state, "conflicts()")
        check_flag("follow", follow)
        plain = self.sync
        return Fed(
            self._bridge,
            lambda: plain.conflicts(name, start=start, follow=follow, timeout=timeout),
            ends=True,
        )

    async def regions(self) -> list[Region]:
        """The regions of the space: this connection's first, then the others by name. In a space that has none yet it is the one
        that the first use makes; empty where there can be none: as the database was, for example. Other regions are asked, for
        a second at most.

        Raises:
            InvalidArgument: definite; it is not clear which region this connection is for.
            Unavailable, SpaceError, TokenError: definite; the region cannot be opened or read.
        """
        self._bridge.check()
        return await self._bridge.call(self.sync.regions)

    async def sync_regions(self, timeout: Duration | None = None) -> None:
        """Return when everything is visible here that all live regions had acknowledged at the call. ``timeout``: for how long
        it may take (default: what a read of this connection has).

        Raises:
            TooStale: definite; something did not come in time. ``regions`` names those that it is missing from.
            InvalidArgument: definite; an argument is not valid, or it is not clear which region this connection is for.
            TransactionError: definite; inside a transaction's block.
            Unavailable, SpaceError, TokenError: definite; the region cannot be opened or read.
        """
        self._bridge.check(self.sync._state, "sync()")
        await self._bridge.call(self.sync.sync, timeout)
