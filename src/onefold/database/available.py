"""Collections that every region can write, and the regions. A part of ``Database``."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from onefold.arguments import check_flag, shown
from onefold.errors import InvalidArgument
from onefold.machine.first_use import first_use

if TYPE_CHECKING:
    from collections.abc import Callable

    from onefold.state.available.client import Region as OpenRegion
    from onefold.state.available.client import RegionClient
    from onefold.state.available.conflicts import Conflicts
    from onefold.state.available.counters import Counters
    from onefold.state.available.sets import Sets
    from onefold.state.available.status import Region
    from onefold.state.core.consistency import Consistency


class DatabaseAvailable:
    """See ``Database``."""

    _open_region: Callable[[str | None], OpenRegion] | None

    @property
    def _available(self) -> RegionClient:
        raise NotImplementedError

    def counters(
        self,
        name: str,
        *,
        mode: Literal["available"] = "available",
        floor: int | None = None,
        consistency: Consistency | None = None,
    ) -> Counters:
        """Integers by key, to which every region can add at any time. ``floor``: none of them falls below it, whatever the
        regions do at the same time; it is 0 or less. ``consistency``: of reads (default: ``session``). They need not exist: they
        are 0 until something is added.

        Raises:
            InvalidArgument: definite; an argument is not valid.
            UnsupportedConsistency: definite; ``strong``, which no region can give.
        """
        _check_mode("counters", mode, "map(name).increment(key, n)")
        with first_use:
            from onefold.state.available.counters import Counters, check_floor
            from onefold.state.core.consistency import parse_level

        check_floor(floor)
        level = None if consistency is None else parse_level(consistency)
        return Counters(lambda: self._available, name, floor=floor, level=level)

    def sets(
        self,
        name: str,
        *,
        mode: Literal["available"] = "available",
        consistency: Consistency | None = None,
    ) -> Sets:
        """Sets by key, which every region can change at any time. ``consistency``: of reads (default: ``session``). They need
        not exist: they are empty until something is added.

        Raises:
            InvalidArgument: definite; an argument is not valid.
            UnsupportedConsistency: definite; ``strong``, which no region can give.
        """
        _check_mode("sets", mode, "map(name), with a key for each element")
        with first_use:
            from onefold.state.available.sets import Sets
            from onefold.state.core.consistency import parse_level

        level = None if consistency is None else parse_level(consistency)
        return Sets(lambda: self._available, name, level=level)

    def conflicts(
        self,
        name: str | None = None,
        *,
        start: str | None = None,
        follow: bool = False,
        timeout: float | timedelta | str | None = None,
    ) -> Conflicts:
        """What two regions wrote into a map without knowing of each other, in the order in which this region met it: an
        iterator, which is a context manager too. The latest 10,000 of 7 days are kept, of each shard.

        ``name``: of the map (default: of all, and requests that were done in two regions under one id). ``start``: the token of
        an entry, behind which it begins (default: the oldest that is kept). ``follow``: wait for more; it ends when none
        came for ``timeout``.

        Raises:
            InvalidArgument: definite; an argument is not valid, or it is not clear which region this connection is for.
            TokenError: definite; the token is not one of conflicts, or is one of another region.
            TooOld: definite; what followed the token is no longer kept.
            TransactionError: definite; inside a transaction's block.
            Unavailable, SpaceError: definite; the region cannot be opened or read.
        """
        with first_use:
            from onefold.state.available.conflicts import open_conflicts

        check_flag("follow", follow)
        return open_conflicts(self._available, name, start, follow=follow, timeout=timeout)

    def regions(self) -> list[Region]:
        """The regions of the space: this connection's first, then the others by name. In a space that has none yet it is the one
        that the first use makes; empty where there can be none: as the database was, for example. Other regions are asked, for
        a second at most.

        Raises:
            InvalidArgument: definite; it is not clear which region this connection is for.
            Unavailable, SpaceError, TokenError: definite; the region cannot be opened or read.
        """
        if self._open_region is None:
            return []
        with first_use:
            from onefold.state.available.status import list_regions

        return list_regions(self._available)

    def sync(self, timeout: float | timedelta | str | None = None) -> None:
        """Return when everything is visible here that all live regions had acknowledged at the call. ``timeout``: for how long
        it may take (default: what a read of this connection has).

        Raises:
            TooStale: definite; something did not come in time. ``regions`` names those that it is missing from.
            InvalidArgument: definite; an argument is not valid, or it is not clear which region this connection is for.
            TransactionError: definite; inside a transaction's block.
            Unavailable, SpaceError, TokenError: definite; the region cannot be opened or read.
        """
        with first_use:
            from onefold.state.available.levels import sync

        sync(self._available, timeout)


def _check_mode(what: str, mode: object, instead: str) -> None:
    if mode == "available":
        return
    if mode == "consistent":
        raise InvalidArgument(
            f"{what} are for every region, mode='available'. In one that is consistent over all of them use {instead}"
        )
    raise InvalidArgument(f"mode must be 'available' for {what}; got {shown(mode)}")
