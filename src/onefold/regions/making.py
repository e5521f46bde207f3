"""Making a region of a folder: decided once in the log of shard 0, then built next to its place, and moved there whole.

Steps, after any of which the process may be killed; the next one that opens the region continues:

1. The fold version is raised, and ``AddRegion`` gives the region its number: from here on there is a region.
2. Its logs are built in ``regions/.NAME.half``, each with its beginning, and the folder is moved to ``regions/NAME``. Until then
   nothing was acknowledged there.
3. The file of shard 0 notes that it was made, and which one: from here on a missing folder is a lost one. A restored space has no
   such notes: its regions are made again, empty.

One at a time makes regions: it has the lock of ``regions/making.lock``.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from onefold import config
from onefold.available.regions import read_self
from onefold.env import Env
from onefold.errors import InvalidArgument, OnefoldError, SpaceError
from onefold.files import sync, sync_tree
from onefold.fold.nodes.ops import REGIONS_VERSION, AddRegion, RegionIs, decode_region_outcome, nodes_op
from onefold.fold.nodes.regions import Decision, Region, read_decisions, regions_of
from onefold.machine import members
from onefold.machine.turn import waited_turn
from onefold.machine.undisturbed import let_pass
from onefold.regions.beginning import first_ops
from onefold.regions.decisions import apply_decisions
from onefold.shard.embedded import EmbeddedShard
from onefold.shard.fold_version import reach_version
from onefold.space.open_space import Folds, is_there, open_shards

FOLDER: Final = "regions"
_NOTE: Final = "region/"


def decisions_of(first: EmbeddedShard) -> list[Decision]:
    """What was decided on regions. Raises as ``Shard.view``."""
    with first.view() as view:
        return read_decisions(view)


def decide(first: EmbeddedShard, name: str) -> Region:
    """Decide that there is this region, if there is none. Raises SpaceError, InvalidArgument, and as ``Shard.submit``."""
    if not reach_version(first, REGIONS_VERSION):
        raise SpaceError(
            f"region {name} cannot be made in {first.url}: a program of an earlier release has the space open. Stop it, or "
            "upgrade it first"
        )
    outcome = decode_region_outcome(first.submit([nodes_op(AddRegion(name))])[0])
    if not isinstance(outcome, RegionIs):
        raise InvalidArgument(f"region {name} cannot be made in {first.url}: {outcome.message}")
    return Region(outcome.number, name, False)


def noted(first: EmbeddedShard, number: int) -> str | None:
    """The incarnation of the region that was made under this number; None: that was not noted."""
    with first.log.file.reading() as con:
        found = con.execute("SELECT value FROM meta WHERE key = ?", (f"{_NOTE}{number}",)).get
    return found if isinstance(found, str) else None


def make(
    first: EmbeddedShard, shard_count: int, region: Region, folds: Folds, env: Env, timeout: float | None
) -> None:
    """Make what is not there of a region that was decided. Raises SpaceError (it was lost, or its place is taken), Timeout, and
    as ``Shard.submit``."""
    regions = first.directory / FOLDER
    place = regions / region.name
    try:
        regions.mkdir(exist_ok=True)
        sync(regions.parent)
    except OSError as error:
        raise SpaceError(
            f"{regions} cannot be made: {error.strerror}. Choose a place you may write to"
        ) from error
    with waited_turn(
        regions / "making.lock",
        config.WRITE_LOCK_TIMEOUT_S if timeout is None else timeout,
        "making a region",
    ):
        known, there = noted(first, region.number), is_there(place)
        if known is not None:
            if there:
                return  # another one was faster
            raise _lost(region, place)
        decisions = decisions_of(first)
        number, incarnation = identity_of(place, folds, env) if there else (0, "")
        if there and number != region.number:
            _retire(place, decisions, folds, env)
            _move_away(place, number, decisions, region)
            there = False
        if not there:
            incarnation = _build(regions, place, shard_count, decisions, region, folds, env, timeout)
        _note(first, region.number, incarnation)


def identity_of(place: Path, folds: Folds, env: Env) -> tuple[int, str]:
    """The number in the log of the region in a folder, 0 when it has none; and its incarnation. Raises as ``open_shards``."""
    shards = open_shards(place, folds, env=env, create=False, read_only=True)
    try:
        with shards[0].view() as view:
            return read_self(view).number, shards[0].incarnation
    finally:
        for shard in shards:
            shard.close()


def _build(
    regions: Path,
    place: Path,
    shard_count: int,
    decisions: list[Decision],
    region: Region,
    folds: Folds,
    env: Env,
    timeout: float | None,
) -> str:
    half = regions / f".{region.name}.half"
    try:
        if half.exists():
            shutil.rmtree(half)
        shards = open_shards(half, folds, shards=shard_count, env=env, timeout=timeout)
        incarnation = shards[0].incarnation
        try:
            for index, shard in enumerate(shards):
                shard.submit(first_ops(decisions, region.number, index))
        finally:
            for shard in shards:
                shard.close()
        sync_tree(half)
        half.rename(place)
        sync(regions)
    except OSError as error:
        raise SpaceError(f"{place} cannot be made: {error.strerror}. Nothing was written there") from error
    return incarnation


def _retire(place: Path, decisions: list[Decision], folds: Folds, env: Env) -> None:
    """Have an evicted region's old log hear of that, so that no program that still has it open writes there."""
    try:
        shards = open_shards(place, folds, env=env, create=False)
    except OnefoldError as error:
        let_pass(error)  # it is damaged: what can be read of it is read later
        return
    try:
        for shard in shards:
            apply_decisions(shard, decisions)
    finally:
        for shard in shards:
            shard.close()


def _move_away(place: Path, found: int, decisions: list[Decision], region: Region) -> None:
    """An evicted region has come again under another number: what its old log has is kept next to it."""
    earlier = {one.number for one in decisions if getattr(one, "name", None) == region.name}
    if found not in earlier:
        raise SpaceError(
            f"{place} is the folder of another space, or damaged: its number is {found}, and region {region.name} is "
            f"{region.number}. Move it away, or put the right one there"
        )
    users = members.notes(place / "members")
    if users:
        raise SpaceError(
            f"region {region.name} was evicted, and programs still have it open ({', '.join(sorted(users.values()))}). Stop "
            "them, then open it again: it comes again under a new number"
        )
    place.rename(place.with_name(f"{region.name}.{found}"))
    sync(place.parent)


def _note(first: EmbeddedShard, number: int, incarnation: str) -> None:
    with first.log.file.writing() as con:
        con.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (f"{_NOTE}{number}", incarnation))


def check_made(first: EmbeddedShard, region: Region) -> bool:
    """Whether the region was made and its folder is there. Raises SpaceError when it was lost."""
    place = first.directory / FOLDER / region.name
    if noted(first, region.number) is None:
        return False
    if is_there(place):
        return True
    raise _lost(region, place)


def _lost(region: Region, place: Path) -> SpaceError:
    return SpaceError(
        f"region {region.name} was lost: {place} is missing. Other regions have what they know of it: `onefold region evict "
        f"{region.name}`, then `onefold region rejoin {region.name}`"
    )


def latest(decisions: list[Decision], name: str) -> Region | None:
    """The region of that name as it was decided last."""
    return regions_of(decisions).get(name)
