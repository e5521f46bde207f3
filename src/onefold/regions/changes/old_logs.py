"""Logs of regions of a folder that were evicted and came again under a new number: they stand next to the new ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from onefold.env import Env
from onefold.errors import InvalidArgument, SpaceError
from onefold.files import sync
from onefold.fold.nodes.regions import Admit, Decision
from onefold.regions.making import FOLDER, check_made, decisions_of, latest
from onefold.shard.api import Shard
from onefold.shard.embedded import EmbeddedShard
from onefold.space.open_space import Folds, is_there, open_shards

UNSEEN_NAME: Final = "unseen.jsonl"
_DONE_NAME: Final = "unseen.done"


def embedded(first: Shard) -> EmbeddedShard:
    """Shard 0 of a space in a folder. Raises InvalidArgument for another one."""
    if not isinstance(first, EmbeddedShard):
        raise InvalidArgument(f"{first.url} is not a space in a folder")
    return first


def must_decide(first: EmbeddedShard, name: str) -> bool:
    """Whether it is still to be decided that a region comes again; not if that has begun. Raises InvalidArgument for one that was
    not evicted, or is not there."""
    decisions = decisions_of(first)
    region = latest(decisions, name)
    if region is None or region.evicted:
        return True
    begun = len(_numbers(decisions, name)) > 1 and not check_made(first, region)
    if begun or unfinished(first, name):
        return False
    raise InvalidArgument(
        f"region {name} does not come again: it was not evicted. If its log is not to be used any more, evict it first"
    )


def unfinished(first: EmbeddedShard, name: str) -> list[tuple[int, Path]]:
    """The old logs of a region of which not everything was brought back yet: number and folder."""
    regions = first.directory / FOLDER
    found = [(number, regions / f"{name}.{number}") for number in _numbers(decisions_of(first), name)]
    return [(number, at) for number, at in found if is_there(at) and not (at / _DONE_NAME).exists()]


def finish(place: Path) -> None:
    """Note that all was brought back. Raises SpaceError."""
    try:
        (place / _DONE_NAME).touch()
        sync(place)
    except OSError as error:
        raise SpaceError(f"{place / _DONE_NAME} cannot be written: {error.strerror}. Do it again") from error


@contextmanager
def opened(place: Path, folds: Folds, env: Env) -> Iterator[Sequence[Shard]]:
    """An old log, for reading. Raises as ``open_shards``."""
    shards = open_shards(place, folds, env=env, create=False, read_only=True)
    try:
        yield shards
    finally:
        for shard in shards:
            shard.close()


def _numbers(decisions: Sequence[Decision], name: str) -> list[int]:
    return [one.number for one in decisions if isinstance(one, Admit) and one.name == name]
