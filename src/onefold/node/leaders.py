"""Keeping the leaders of logs in regions: the witness of a cluster votes, and should not lead.

A log that is led from a place without programs costs every writer the way there and back. Servers elect whom they like, so nodes
look where each log is led from, and ask a leader elsewhere to step down in favour of a region.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onefold import config
from onefold.errors import OnefoldError
from onefold.log.jetstream.names import LogNames, blobs_stream
from onefold.log.jetstream.regions import region_of
from onefold.log.jetstream.streams import lead_from, stream_state

if TYPE_CHECKING:
    from onefold.log.jetstream.client.link import Link
    from onefold.log.jetstream.spaces import SpaceInfo
    from onefold.node.maintenance import Round
    from onefold.node.telemetry.logging import JsonLog


class Leaders:
    """See the module: one of the duties. The first node of a shard does it for the shard, and that of shard 0 for the blobs."""

    def __init__(self, name: str, link: Link, info: SpaceInfo, log: JsonLog) -> None:
        self._name = name
        self._link = link
        self._info = info
        self._log = log
        self._looked_s: dict[str, float] = {}
        self._asked_s: dict[str, float] = {}

    def look(self, now: Round) -> None:
        """Ask what is due to step down. Raises OnefoldError when a log could not be looked at; the others are."""
        if not self._info.regions:
            return
        problem: OnefoldError | None = None
        for shard in now.hosted:
            if now.placement.get(shard, ("",))[0] != self._name:
                continue
            for stream in self._streams(shard):
                try:
                    self._look_at(stream, now.now_s)
                except OnefoldError as error:
                    problem = error
        if problem is not None:
            raise problem

    def _streams(self, shard: int) -> list[str]:
        log = LogNames(self._info.space, self._info.incarnation, shard).stream
        return [log, blobs_stream(self._info.space)] if shard == 0 else [log]

    def _look_at(self, stream: str, now_s: float) -> None:
        if now_s < self._looked_s.get(stream, -math.inf) + config.LEADER_LOOK_S:
            return
        self._looked_s[stream] = now_s
        if now_s < self._asked_s.get(stream, -math.inf) + config.LEADER_MOVE_S:
            return
        state = self._link.run(lambda: stream_state(self._link, stream), config.ENGINE_REQUEST_TIMEOUT_S)
        if state.leader is None or region_of(state.leader) in self._info.regions:
            return
        region = self._region_for(state.current)
        if region is None:
            return
        self._asked_s[stream] = now_s
        self._link.run(lambda: lead_from(self._link, stream, region), config.ENGINE_REQUEST_TIMEOUT_S)
        self._log.info("leader_moved", stream=stream, leader=state.leader, region=region)

    def _region_for(self, servers: tuple[str, ...]) -> str | None:
        """The first of the space's regions in which one of these servers is."""
        there = {region_of(server) for server in servers}
        return next((region for region in self._info.regions if region in there), None)
