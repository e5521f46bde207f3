"""Links between the regions of a folder, for tests: cut and healed, and clocks that are off, for all processes.

Nothing passes that is written after a cut. What is healed or set takes effect within a second.

```python
from onefold.testing import links

links.cut(folder, "eu", "us")
...                                 # both continue, each with what it knows
links.heal(folder)
```

What is set stays in a file of the folder until it is healed, also for programs that are started later.
"""

from __future__ import annotations

import os
from pathlib import Path

from onefold.arguments import check_flag, shown
from onefold.durations import Duration, seconds
from onefold.env import SYSTEM
from onefold.errors import InvalidArgument
from onefold.ids import check_region
from onefold.machine.undisturbed import undisturbed
from onefold.regions import links
from onefold.regions.folder_exchange import wake_others
from onefold.regions.links import Links, change_links
from onefold.regions.making import FOLDER
from onefold.space.open_shard import directory_of
from onefold.space.open_space import is_there

__all__ = ["clock", "cut", "heal"]

_AHEAD_MS_MAX = 100 * 365 * 86_400_000
"""A hundred years."""


def cut(folder: str | os.PathLike[str], one: str, other: str, *, one_way: bool = False) -> None:
    """Let nothing pass between two regions of a folder, until ``heal``. ``one_way``: what ``one`` writes does not reach
    ``other``, and the other direction is as it was.

    Raises:
        InvalidArgument: definite; the folder has no such region, or both are the same.
        SpaceError: definite; the folder cannot be written.
    """
    check_flag("one_way", one_way)
    regions = _regions(folder)
    pairs = _pairs(regions, one, other)[: 1 if one_way else 2]
    now_ms = SYSTEM.wall_ms()

    def change(found: Links) -> Links:
        for source, target in pairs:
            found = links.cut(found, source, target, now_ms)
        return found

    _change(regions, change)


def heal(folder: str | os.PathLike[str], one: str | None = None, other: str | None = None) -> None:
    """Let everything pass again, between two regions of a folder or between all. Clocks stay as they are.

    Raises:
        InvalidArgument: definite; the folder has no such region, or only one is named.
        SpaceError: definite; the folder cannot be written.
    """
    regions = _regions(folder)
    if one is None and other is None:
        _change(regions, lambda found: Links(ahead_ms=found.ahead_ms))
        return
    if one is None or other is None:
        raise InvalidArgument("a link has two ends: name both regions, or none of them to heal all links")
    pairs = _pairs(regions, one, other)

    def change(found: Links) -> Links:
        for source, target in pairs:
            found = links.healed(found, source, target)
        return found

    _change(regions, change)


def clock(folder: str | os.PathLike[str], region: str, *, ahead: Duration) -> None:
    """Set the wall clock of programs in one region so far ahead, for what they write into available collections; 0 sets it right.
    It counts for programs that are open too. Time that a region's log has seen does not go back.

    Raises:
        InvalidArgument: definite; the folder has no such region, or that is not a duration of up to a hundred years.
        SpaceError: definite; the folder cannot be written.
    """
    ahead_ms = round(seconds(ahead, "ahead") * 1000)
    if ahead_ms > _AHEAD_MS_MAX:
        raise InvalidArgument(f"ahead must be at most a hundred years; got {shown(ahead)}")
    regions = _regions(folder)
    _check(regions, region)
    _change(regions, lambda found: links.shifted(found, region, ahead_ms))


def _regions(folder: str | os.PathLike[str]) -> Path:
    if not isinstance(folder, str | os.PathLike):
        raise InvalidArgument(f"folder must be that of a space; got {shown(folder)}")
    found = directory_of(folder if isinstance(folder, str) else Path(folder))
    if not is_there(found):
        raise InvalidArgument(
            f"there is no space in {found}: links and clocks are of the regions of a space in a folder"
        )
    return found / FOLDER


def _pairs(regions: Path, one: str, other: str) -> list[tuple[str, str]]:
    for name in (one, other):
        _check(regions, name)
    if one == other:
        raise InvalidArgument(f"a link is between two regions, and both are {one!r}")
    return [(one, other), (other, one)]


def _check(regions: Path, name: str) -> None:
    check_region(name)
    if not is_there(regions / name):
        there = sorted(path.name for path in regions.iterdir() if is_there(path)) if regions.is_dir() else []
        names = ", ".join(name for name in there if "." not in name)
        raise InvalidArgument(f"there is no region {name!r} in {regions.parent}; it has: {names or 'none'}")


def _change(regions: Path, change: links.Change) -> None:
    if not regions.is_dir():
        return  # no region, so nothing is cut
    undisturbed(lambda: change_links(regions, change))
    wake_others(regions)
