"""How many lanes each worker should own, and who gives which to whom. Pure arithmetic: every worker comes to the same result."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live.lanes import Lanes
from onefold.state.fold.live.rows import Bundle


class Gift(NamedTuple):
    """Lanes of a bundle that its owner should give to another worker."""

    bundle: int
    lanes: Lanes
    to: str


def share_max(lanes: int, workers: int) -> int:
    """The most lanes that a worker takes."""
    return -(-lanes // max(1, workers))


def share_min(lanes: int, workers: int) -> int:
    """The fewest lanes that each worker should have; nobody gives below it."""
    return lanes // max(1, workers)


def owned(bundles: Iterable[Bundle]) -> dict[str, int]:
    """How many lanes each owner has; of nobody under the empty name."""
    found: dict[str, int] = {}
    for bundle in bundles:
        lanes = lane_sets.count(lane_sets.unpack(bundle.row.lanes))
        found[bundle.row.owner] = found.get(bundle.row.owner, 0) + lanes
    return found


def with_room(lanes: int, bundles: Iterable[Bundle], workers: Collection[str]) -> set[str]:
    """Workers that own fewer lanes than they may: of what nobody owns, a part is left to each of them."""
    have, most = owned(bundles), share_max(lanes, len(workers))
    return {worker for worker in workers if have.get(worker, 0) < most}


def wanted(lanes: int, bundles: Iterable[Bundle], workers: Collection[str]) -> int:
    """How many lanes workers with too few wait for, beyond those that nobody owns."""
    have = owned(bundles)
    least = share_min(lanes, len(workers))
    lacking = sum(max(0, least - have.get(worker, 0)) for worker in workers)
    return max(0, lacking - have.get("", 0))


def gifts(lanes: int, bundles: Collection[Bundle], workers: Collection[str], me: str) -> list[Gift]:
    """What ``me`` should give now, highest lanes of each bundle first. Nobody is left below ``share_min`` by it, and of a bundle
    some lanes stay."""
    have = owned(bundles)
    least = share_min(lanes, len(workers))
    spare = have.get(me, 0) - max(1, least)
    found: list[Gift] = []
    mine = {bundle.id: lane_sets.unpack(bundle.row.lanes) for bundle in bundles if bundle.row.owner == me}
    for worker in sorted(workers):
        lack = least - have.get(worker, 0)
        for bundle in sorted(mine):
            number = min(lack, spare, lane_sets.count(mine[bundle]) - 1)
            if worker != me and number > 0:
                given = lane_sets.last_of(mine[bundle], number)
                found.append(Gift(bundle, given, worker))
                mine[bundle] &= ~given
                lack, spare = lack - number, spare - number
    return found
