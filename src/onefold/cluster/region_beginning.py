"""What a space over regions is made with, for each of them: how many copies its own logs have, and how those begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from onefold.available.ops import AVAILABLE_FOLD, Admit, available_op
from onefold.cluster import shapes
from onefold.codec import Op, Record, encode_record
from onefold.env import SYSTEM
from onefold.fold import system
from onefold.fold.api import NEWEST_VERSION
from onefold.ids import client_id
from onefold.log.jetstream.region_logs import RegionPlan


def founders(sizes: Mapping[str, int], regions: Sequence[str]) -> list[RegionPlan]:
    """The regions of a new space. ``sizes``: how many servers each has."""
    return [
        RegionPlan(name, shapes.region_copies(sizes[name]), partial(first_record, tuple(regions), name))
        for name in regions
    ]


def first_record(regions: Sequence[str], here: str, shard: int) -> bytes:
    """The record with which the log of a shard begins in the region ``here``. Regions have numbers from 1 on, in order."""
    return encode_record(
        Record(client_id(0, SYSTEM), 1, SYSTEM.wall_ms(), tuple(_first(regions, here, shard)))
    )


def _first(regions: Sequence[str], here: str, shard: int) -> list[Op]:
    folds = (AVAILABLE_FOLD,) if shard else (AVAILABLE_FOLD, "nodes")
    admitted = [
        available_op(Admit(number, name, here=name == here, founder=True))
        for number, name in enumerate(regions, start=1)
    ]
    return [
        system.system_op(system.RaiseFoldVersion(NEWEST_VERSION)),
        system.system_op(system.Register(folds)),
        *admitted,
    ]
