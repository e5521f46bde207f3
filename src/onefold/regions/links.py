"""Links between the regions of a folder, and how far the clocks of its regions are off: a file that tests write.

Regions of one folder reach each other through its files. ``onefold.testing.links`` cuts that, for all processes that use the
folder. Without the file nothing is cut.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from onefold.env import Env
from onefold.errors import SpaceError
from onefold.files import write_whole
from onefold.machine.turn import waited_turn

LINKS_NAME: Final = "links.json"
_LOOK_S: Final = 0.2
"""How old what was read of the clocks in the file may be."""


class Links(msgspec.Struct, frozen=True):
    """What the file holds."""

    cut: dict[str, dict[str, int]] = {}
    """By region, those that what it writes does not reach, and since when (ms since 1970)."""
    ahead_ms: dict[str, int] = {}
    """By region, how far the clocks of programs in it are ahead."""

    def cut_since(self, source: str, target: str) -> int | None:
        """Since when what one region writes does not reach another one, in ms since 1970; None: it does."""
        return self.cut.get(source, {}).get(target)


NO_LINKS: Final = Links()
Change = Callable[[Links], Links]


def cut(links: Links, source: str, target: str, now_ms: int) -> Links:
    """Likewise, and what one region writes does not reach another one. Since when stays where that was so before."""
    found = {name: dict(others) for name, others in links.cut.items()}
    found.setdefault(source, {}).setdefault(target, now_ms)
    return msgspec.structs.replace(links, cut=found)


def healed(links: Links, source: str, target: str) -> Links:
    """Likewise, and what one region writes reaches another one."""
    found = {
        name: {to: ms for to, ms in others.items() if (name, to) != (source, target)}
        for name, others in links.cut.items()
    }
    return msgspec.structs.replace(links, cut={name: others for name, others in found.items() if others})


def shifted(links: Links, region: str, ahead_ms: int) -> Links:
    """Likewise, and the clocks of a region are so far ahead."""
    found = {**links.ahead_ms, region: ahead_ms}
    return msgspec.structs.replace(links, ahead_ms={name: ms for name, ms in found.items() if ms})


def change_links(regions: Path, change: Change, timeout_s: float = 30.0) -> None:
    """Change the file, one at a time. Raises SpaceError, Timeout."""
    path = regions / LINKS_NAME
    with waited_turn(regions / "links.lock", timeout_s, "changing links"):
        found = change(read_links(regions))
        if found == NO_LINKS:
            path.unlink(missing_ok=True)
        else:
            write_whole(path, msgspec.json.encode(found), 0o644)


def read_links(regions: Path) -> Links:
    """What the file in the folder of all regions holds. Raises SpaceError when that is not what tests write."""
    path = regions / LINKS_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Links)
    except FileNotFoundError:
        return NO_LINKS
    except (OSError, msgspec.MsgspecError) as error:
        raise SpaceError(
            f"{path} cannot be read ({error}). It is there for tests that cut links; remove it"
        ) from error


class LinksFile:
    """The file, read again when it has changed; looked at no more often than every 0.2 s, unless that is asked for."""

    def __init__(self, regions: Path, env: Env) -> None:
        self._regions = regions
        self._path = os.fspath(regions / LINKS_NAME)
        self._boot_s = env.boot_s
        self._looked_s = -_LOOK_S
        self._known: tuple[tuple[int, int] | None, Links] = None, NO_LINKS
        """What was read, and of which file: together, since several threads read."""

    def read(self, *, now: bool = False) -> Links:
        """What it holds. ``now``: looked at in any case. Raises as ``read_links``."""
        at_s = self._boot_s()
        if not now and at_s - self._looked_s < _LOOK_S:
            return self._known[1]
        try:
            status = os.stat(self._path)  # noqa: PTH116 - several times a second
            seen = status.st_ino, status.st_mtime_ns
        except OSError:
            seen = None
        known = self._known
        if seen != known[0]:
            known = self._known = seen, NO_LINKS if seen is None else read_links(self._regions)
        self._looked_s = at_s
        return known[1]


class RegionEnv:
    """The outside world of programs in one region: its wall clock is as far ahead as the file says."""

    def __init__(self, env: Env, links: LinksFile, region: str) -> None:
        self._env = env
        self._links = links
        self._region = region
        self.boot_s = env.boot_s
        self.token = env.token

    def wall_ms(self) -> int:
        """See ``Env``."""
        return self._env.wall_ms() + self._links.read().ahead_ms.get(self._region, 0)
