"""Links between the regions of a folder, and how far the clocks of its regions are off: a file that tests write.

Regions of one folder reach each other through its files. ``onefold.testing.links`` cuts that, for all processes that use the
folder. Without the file nothing is cut.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from onefold.env import Env
from onefold.errors import SpaceError

LINKS_NAME: Final = "links.json"
_LOOK_S: Final = 0.2
"""How old what was read of the file may be."""


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
    """The file, read again when it has changed; looked at no more often than every 0.2 s."""

    def __init__(self, regions: Path, env: Env) -> None:
        self._regions = regions
        self._path = os.fspath(regions / LINKS_NAME)
        self._boot_s = env.boot_s
        self._looked_s = -_LOOK_S
        self._seen: tuple[int, int] | None = None
        self._links = NO_LINKS

    def read(self, *, now: bool = False) -> Links:
        """What it holds. ``now``: looked at in any case. Raises as ``read_links``."""
        at_s = self._boot_s()
        if not now and at_s - self._looked_s < _LOOK_S:
            return self._links
        try:
            status = os.stat(self._path)  # noqa: PTH116 - several times a second
            seen = status.st_ino, status.st_mtime_ns
        except OSError:
            seen = None
        if seen != self._seen:
            self._links = NO_LINKS if seen is None else read_links(self._regions)
            self._seen = seen
        self._looked_s = at_s
        return self._links


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
