"""The logs that a region has of its own: made with the space, or later in place of those that were lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from onefold.env import Env
from onefold.errors import OnefoldError
from onefold.ids import new_id
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.names import LogNames
from onefold.log.jetstream.spaces import RegionLogs, SpaceInfo
from onefold.log.jetstream.stream_making import begin_log, delete, make_blobs, make_log


class RegionPlan(NamedTuple):
    """A region whose logs are to be made."""

    name: str
    replicas: int
    first: Callable[[int], bytes]
    """The record with which the log of a shard begins. It is published where only nodes may publish."""


def make_region_logs(link: Link, info: SpaceInfo, plan: RegionPlan, env: Env) -> RegionLogs:
    """Make a region's logs, with an incarnation of their own, and the stream of the blobs of their snapshots. The space's record
    does not name them yet. Raises as ``admin.make_space``; then none of them is left, as far as servers answer."""
    logs = RegionLogs(plan.name, new_id("i", env), plan.replicas)
    mine = as_space(info, logs)
    try:
        make_blobs(link, mine)
        for shard in range(info.shards):
            make_log(link, mine, shard)
            begin_log(link, LogNames(mine.space, mine.incarnation, shard), plan.first(shard))
    except BaseException:
        with contextlib.suppress(OnefoldError):
            delete_region_logs(link, info, logs)
        raise
    return logs


def delete_region_logs(link: Link, info: SpaceInfo, logs: RegionLogs) -> None:
    """Delete a region's logs and blobs. The space's record should not name them any more. Raises as ``admin.make_space``."""
    for stream in streams_of(as_space(info, logs)):
        delete(link, stream)


def streams_of(region: SpaceInfo) -> list[str]:
    """The streams of a region's logs, and of their blobs."""
    logs = [LogNames(region.space, region.incarnation, shard).stream for shard in range(region.shards)]
    return [*logs, region.blob_names.stream]


def as_space(info: SpaceInfo, logs: RegionLogs) -> SpaceInfo:
    """A region's logs as a space by itself, whether or not the space's record names them."""
    return msgspec.structs.replace(info, region_logs=(logs,)).of_region(logs.name)
