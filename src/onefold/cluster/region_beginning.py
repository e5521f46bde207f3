"""What a space over regions is made with: how many copies the own logs of each region have, and how all logs begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from onefold.cluster import shapes
from onefold.codec import Op, Record, encode_record
from onefold.env import SYSTEM
from onefold.fold import authority, system
from onefold.fold.api import NEWEST_VERSION
from onefold.fold.nodes.ops import NODES_FOLD, AddRegion, nodes_op
from onefold.fold.nodes.regions import Decision
from onefold.ids import client_id
from onefold.log.jetstream.region_logs import RegionPlan
from onefold.regions import beginning


def founders(sizes: Mapping[str, int], regions: Sequence[str]) -> list[RegionPlan]:
    """The regions of a new space. ``sizes``: how many servers each has."""
    decisions = beginning.founders(regions)
    return [region_plan(name, number, decisions, sizes[name]) for number, name in enumerate(regions, start=1)]


def region_plan(name: str, number: int, decisions: Sequence[Decision], servers: int) -> RegionPlan:
    """A region with the number that was decided for it, on so many servers."""
    first = partial(_first_of_region, tuple(decisions), number)
    return RegionPlan(name, shapes.region_copies(servers), first)


def first_record(regions: Sequence[str], shard: int, after: int = 0) -> bytes:
    """The record with which a log of the space itself begins: the regions are decided there. ``after``: the offset that it
    continues from."""
    if not regions:
        return authority.first_record(SYSTEM, after)
    ops = [system.system_op(system.RaiseFoldVersion(NEWEST_VERSION))]
    if shard == 0:
        ops.append(system.system_op(system.Register((NODES_FOLD,))))
        ops += [nodes_op(AddRegion(name, founder=True)) for name in regions]
    return _record(ops, after)


def _first_of_region(decisions: Sequence[Decision], number: int, shard: int) -> bytes:
    return _record(beginning.first_ops(decisions, number, shard), 0)


def _record(ops: Sequence[Op], after: int) -> bytes:
    return encode_record(Record(client_id(after, SYSTEM), 1, SYSTEM.wall_ms(), tuple(ops)))
