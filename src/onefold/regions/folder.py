"""Opening a region of a space in a folder, and making it when its name is new."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from onefold.available.regions import Known, read_self
from onefold.backoff import Deadline
from onefold.env import Env
from onefold.errors import InvalidArgument, OnefoldError, SpaceError
from onefold.fold.nodes.regions import Region, living
from onefold.ids import check_region
from onefold.machine import forks
from onefold.machine.undisturbed import let_pass, undisturbed
from onefold.regions import making
from onefold.regions.beginning import LOCAL
from onefold.regions.decisions import apply_decisions
from onefold.regions.folder_exchange import FolderExchange, wake_others
from onefold.regions.links import LinksFile, RegionEnv
from onefold.regions.neighbours import Neighbours, OpenedRegion
from onefold.regions.peers import Peers
from onefold.shard.api import Shard
from onefold.shard.embedded import EmbeddedShard
from onefold.space.open_space import Folds, open_shards

ADMISSION_S: Final = 5.0
"""A new region waits for so long until the others have admitted it; then it is open, and cannot write yet."""


class OpenRegion:
    """A region that is open in this process. Thread-safe."""

    def __init__(self, opened: OpenedRegion, neighbours: Neighbours) -> None:
        self.name = opened.name
        self.number = opened.number
        self.shards: list[Shard] = list(opened.shards)
        """Its logs, one for each shard of the space."""
        self._opened = opened
        self._neighbours = neighbours
        self._exchange = FolderExchange(neighbours)
        self._seen_ns = -1
        self._pid = forks.process

    @property
    def peers(self) -> Peers | None:
        """The other regions; None where there is no other one at this moment. Raises as ``Shard.view``."""
        self.look()
        return self._neighbours if self._neighbours.others() else None

    def look(self) -> None:
        """Notice that there is another region than when this one was opened, and begin the exchange with it: cheap, to be called
        where the region is used. Nothing runs before there is a second region. Raises as ``Shard.view``."""
        if self._exchange.runs or not self._opened.writable or self._pid != forks.process:
            return
        try:
            seen_ns = os.stat(self._neighbours.folder).st_mtime_ns  # noqa: PTH116 - often
        except OSError:
            return
        if seen_ns != self._seen_ns:
            if self._neighbours.others():
                undisturbed(self._exchange.start)
            self._seen_ns = seen_ns

    def close(self) -> None:
        """End the exchange and close the region's shards. Does nothing in a forked process."""
        if self._pid == forks.process:
            undisturbed(self._close)

    def _close(self) -> None:
        self._exchange.close()
        self._neighbours.close()
        self._opened.close()


def open_folder(
    space_shards: Sequence[Shard],
    directory: str | os.PathLike[str],
    region: str | None,
    env: Env,
    *,
    folds: Folds,
    create: bool = True,
    read_only: bool = False,
    timeout: float | None = None,
) -> OpenRegion:
    """Open a region of the space in ``directory``, and make it if there is none of that name.

    ``space_shards``: those of the space itself, open. ``region``: None is the only one that there is; where there is none,
    ``local`` is made. ``folds``: what gives the folds of a region's log (``onefold.folds.region_folds``). ``create=False`` and
    ``read_only`` make nothing, and ``read_only`` writes nothing. ``timeout``: as that of ``open_shards``.

    A new region is admitted by the others where links allow, which is waited for.

    Raises:
        InvalidArgument: definite; not the name of a region, too many regions, or several where none is named.
        SpaceError: definite; there is no such region and none is made, it was lost, or it cannot be opened.
        LogCorrupt: definite; its file is damaged.
        Timeout: definite; others held its lock for too long.
    """
    first = space_shards[0]
    if not isinstance(first, EmbeddedShard):
        raise InvalidArgument(f"{first.url} is not a space in a folder")
    if region is not None:
        check_region(region)
    del directory  # that of the shard is the one that was opened

    def opened() -> OpenRegion:
        return _open(
            first,
            len(space_shards),
            region,
            env,
            folds,
            create=create and not read_only,
            read_only=read_only,
            timeout=timeout,
        )

    return undisturbed(opened, OpenRegion.close)


def _open(
    first: EmbeddedShard,
    shard_count: int,
    name: str | None,
    env: Env,
    folds: Folds,
    *,
    create: bool,
    read_only: bool,
    timeout: float | None,
) -> OpenRegion:
    found = _named(first, name, create=create)
    region = found if isinstance(found, Region) else making.decide(first, found)
    regions = first.directory / making.FOLDER
    region_env = RegionEnv(env, LinksFile(regions, env), region.name)
    if not making.check_made(first, region):
        if not create:
            raise SpaceError(
                f"region {region.name} of {first.url} is not complete yet. Open it for writing once"
            )
        making.make(first, shard_count, region, folds, region_env, timeout)
        wake_others(regions)
    if create:
        _complete(first, shard_count, folds, env, timeout)
    place = regions / region.name
    shards = open_shards(place, folds, env=region_env, create=False, read_only=read_only, timeout=timeout)
    opened = OpenedRegion(region, shards, writable=not read_only)
    try:
        _check(first, shard_count, opened, place)
        neighbours = Neighbours(first, opened, folds, env)
        if not read_only:
            decisions = making.decisions_of(first)
            for shard in shards:
                apply_decisions(shard, decisions)
        result = OpenRegion(opened, neighbours)
    except BaseException:
        opened.close()
        raise
    try:
        result.look()
        if not read_only and neighbours.others():
            _await_admission(opened, neighbours, ADMISSION_S if timeout is None else timeout)
    except BaseException:
        result.close()
        raise
    return result


def _complete(first: EmbeddedShard, shard_count: int, folds: Folds, env: Env, timeout: float | None) -> None:
    """Make what is not there of other regions that were decided: their makers were killed, or the space was restored. A later one
    could not write before they admit it."""
    regions = first.directory / making.FOLDER
    for region in living(making.decisions_of(first)):
        try:
            if not making.check_made(first, region):
                region_env = RegionEnv(env, LinksFile(regions, env), region.name)
                making.make(first, shard_count, region, folds, region_env, timeout)
                wake_others(regions)
        except SpaceError as error:
            let_pass(error)  # it is lost, which is reported where it is opened


def _named(first: EmbeddedShard, name: str | None, *, create: bool) -> Region | str:
    """The region that is meant; or the name of one to be made."""
    decisions = making.decisions_of(first)
    present = living(decisions)
    names = ", ".join(region.name for region in present)
    if name is None:
        if len(present) > 1:
            raise InvalidArgument(
                f"the space in {first.url} has the regions {names}: say which one with region=, for instance "
                f"region={present[0].name!r}"
            )
        if present:
            return present[0]
    else:
        found = making.latest(decisions, name)
        if found is not None:
            return found
    if not create:
        which = f"region {name}" if name is not None else "region"
        raise SpaceError(
            f"there is no {which} in {first.url}; it has: {names or 'none'}. Open it for writing once, which makes it"
        )
    return name or LOCAL


def _check(first: EmbeddedShard, shard_count: int, opened: OpenedRegion, place: Path) -> None:
    if len(opened.shards) != shard_count:
        raise SpaceError(
            f"{place} has {len(opened.shards)} shards, and the space {shard_count}: it is the folder of another space. Move it "
            "away, or put the right one there"
        )
    if making.noted(first, opened.number) not in (None, opened.shards[0].incarnation):
        raise SpaceError(
            f"{place} is not the folder that was made as region {opened.name}: another one was put there. Put the right one there"
        )


def _await_admission(opened: OpenedRegion, neighbours: Neighbours, seconds: float) -> None:
    """Wait until the region may write, as long as the links to those that have not admitted it are not cut."""
    deadline = Deadline.after(min(seconds, ADMISSION_S), neighbours.env)
    for shard in opened.shards:
        while not deadline.passed:
            with shard.view() as view:
                me, offset = read_self(view), view.offset
            if me.may_write() or me.retired or _is_cut_off(me, neighbours, opened.name):
                break
            shard.wait(offset, deadline.within(0.2))


def _is_cut_off(me: Known, neighbours: Neighbours, name: str) -> bool:
    for other in neighbours.others():
        admitted = me.number in me.origin(other.number).admits
        try:
            if not admitted and neighbours.cut_since_ms(other.name, name) is not None:
                return True
        except OnefoldError as error:
            let_pass(error)
    return False
