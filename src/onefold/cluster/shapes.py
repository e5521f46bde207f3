"""How servers are spread over regions, and which of them hold the copies of consistent logs. Pure.

A cluster of regions must continue without its largest one: the servers elect a leader by the majority of all of them, so their
number is odd, and more than half of them are elsewhere. Each consistent log has five copies, no place with more than two of them,
or three in different places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from onefold.errors import InvalidArgument
from onefold.log.jetstream.regions import WITNESS

COPIES: Final = (5, 3)
"""How many copies a consistent log has where there are regions; the first for which there are servers."""
SERVERS_A_REGION: Final = 3
"""How many servers a region has unless told otherwise: as many as a log inside it has copies."""
REGION_COPIES: Final = 3
"""How many copies a region's own logs have, where it has so many servers; otherwise there is one."""


def region_copies(servers: int) -> int:
    """How many copies the own logs of a region of so many servers have."""
    return REGION_COPIES if servers >= REGION_COPIES else 1


def default_servers(regions: int) -> int:
    """How many servers a cluster of regions has unless told otherwise: three each, and one more where that is even."""
    count = SERVERS_A_REGION * regions
    return count + 1 - count % 2


def spread(count: int, regions: Sequence[str]) -> dict[str, int]:
    """How many of ``count`` servers each place has: evenly; of two regions, one is the witness. Raises InvalidArgument for a
    shape that does not survive the loss of its largest region."""
    voting = 1 if len(regions) == 2 and count > 2 else 0
    each, more = divmod(count - voting, len(regions))
    sizes = {region: each + (index < more) for index, region in enumerate(regions)}
    if voting:
        sizes[WITNESS] = voting
    check_survives(sizes)
    return sizes


def check_survives(sizes: Mapping[str, int]) -> None:
    """Raises InvalidArgument when servers spread so would not continue without the largest region."""
    total = sum(sizes.values())
    empty = [place for place, size in sizes.items() if size == 0]
    largest = max(sizes, key=lambda place: sizes[place])
    left = total - sizes[largest]
    if empty:
        problem = f"no server is in {empty[0]}"
    elif total % 2 == 0:
        problem = f"{total} is an even number, of which one half could not decide without the other"
    elif 2 * left <= total:
        problem = f"without {largest} {left} of {total} would be left, which is not more than half"
    else:
        return
    shape = ", ".join(f"{place} {size}" for place, size in sizes.items())
    raise InvalidArgument(
        f"servers by region: {shape}. {problem[0].upper()}{problem[1:]}. A cluster of regions must survive the loss of its "
        "largest one: two regions have as many servers each and a witness has one more (3+3+1, 1+1+1), three or more regions "
        "an odd number in all, such as 3+3+3"
    )


def cp_counts(sizes: Mapping[str, int], copies: int) -> dict[str, int] | None:
    """How many of ``copies`` each place holds: at most so many that the others are a majority, and the witness one. None when
    there are too few servers for that."""
    most = (copies - 1) // 2
    room = {place: min(size, 1 if place == WITNESS else most) for place, size in sizes.items()}
    counts = dict.fromkeys(sizes, 0)
    left = copies
    while left:
        open_ = [place for place in counts if counts[place] < room[place]]
        if not open_:
            return None
        for place in open_[:left]:
            counts[place] += 1
        left -= min(left, len(open_))
    return counts


def copies_for(sizes: Mapping[str, int], asked: int | None = None) -> int:
    """How many copies a consistent log has: ``asked``, or as many as there are servers for. Raises InvalidArgument when it cannot
    have as many."""
    for copies in COPIES if asked is None else (asked,):
        if copies in COPIES and cp_counts(sizes, copies) is not None:
            return copies
    shape = ", ".join(f"{place} {size}" for place, size in sizes.items())
    raise InvalidArgument(
        f"{asked} copies over servers by region {shape}: with regions a log has 3 copies in different places, or 5 with at "
        "most 2 in one region and 1 at the witness"
    )
