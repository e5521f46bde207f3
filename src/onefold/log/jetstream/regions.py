"""Regions of a cluster: their names, the tags that place copies, and which servers are in which. Pure.

A space of several regions is fixed to them when it is made. Servers have the tag ``region:NAME``, and names that begin with the
region (``eu-1``), since a server reports its name to programs, and no tags. The consistent logs, the space's record and its blobs
are on the servers with the tag ``cp``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from onefold.arguments import shown
from onefold.errors import InvalidArgument
from onefold.ids import REGIONS_MAX, WITNESS, check_region

__all__ = [
    "CP_TAG", "PLACE_NAME", "WITNESS", "badly_placed", "check_place", "check_region", "check_region_of", "check_regions",
    "region_of", "region_tag",
]  # fmt: skip

PLACE_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What nodes may call the place where they are, in a space of one region: it is part of a subject."""
CP_TAG: Final = "cp"
"""Of the servers that hold the copies of consistent logs."""


def check_regions(names: Sequence[str]) -> tuple[str, ...]:
    """The names themselves. Raises InvalidArgument when they cannot be the regions of a space."""
    for name in names:
        check_region(name)
    if not 2 <= len(names) <= REGIONS_MAX:
        raise InvalidArgument(
            f"{len(names)} regions: a space has 2 to {REGIONS_MAX}, or none are named and all is one region"
        )
    if len({name.lower() for name in names}) < len(names):  # servers take tags of any case for the same
        raise InvalidArgument(
            f"the regions {', '.join(names)}: two of them have the same name, apart from case"
        )
    return tuple(names)


def check_place(what: str, region: object) -> None:
    """Raises InvalidArgument for what cannot be the region of a node. ``what``: the argument."""
    if not isinstance(region, str):
        raise InvalidArgument(f"{what} must be text; got {shown(region)} ({type(region).__name__})")
    if not PLACE_NAME.fullmatch(region):
        raise InvalidArgument(f"{what} has 1 to 64 letters, digits, - and _; got {shown(region)}")


def check_region_of(space: str, regions: Sequence[str], region: str) -> None:
    """Raises InvalidArgument when a node or a program cannot be in this region of the space. In a space of one region any name
    is only a place, whose nodes are asked first."""
    check_place("a region", region)
    if regions and region not in regions:
        raise InvalidArgument(
            f"space {space} has the regions {', '.join(regions)}, which are fixed; got {region!r}. Give one of them"
        )


def region_tag(region: str) -> str:
    """The tag of the servers of a region."""
    return f"region:{region}"


def region_of(server: str) -> str | None:
    """The region with which a server's name begins (``eu`` of ``eu-1``); None when it begins with none."""
    return server.rpartition("-")[0] or None


def badly_placed(servers: Sequence[str], copies: int) -> str | None:
    """Why these servers must not hold the copies of a stream: the loss of one place would take the majority. None: they may."""
    held = Counter(region_of(server) or server for server in servers)
    place, most = held.most_common(1)[0] if held else ("", 0)
    if most <= (copies - 1) // 2:
        return None
    return f"{most} of {copies} copies are in {place}, and none could be written without it"


def elsewhere(servers: Sequence[str], region: str) -> list[str]:
    """Those of the servers that are not in a region."""
    return sorted(server for server in servers if region_of(server) != region)
