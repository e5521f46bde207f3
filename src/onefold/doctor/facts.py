"""What can be seen of a cluster and of a space's streams on it, gathered from every server: facts for `status` and `doctor`.

Two credentials see different things. The space's own sees each server that takes it, and each stream as its leader tells. The
system user sees each server's disk, and each stream as every server by itself has it. What could not be asked is None or missing,
never a guess.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from onefold import config
from onefold.cluster.server_states import ServerStates
from onefold.errors import OnefoldError
from onefold.log.jetstream import admin, names
from onefold.log.jetstream.client.address import Address
from onefold.log.jetstream.client.connection import Connection
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.names import LogNames
from onefold.log.jetstream.regions import region_of
from onefold.log.jetstream.spaces import SpaceInfo
from onefold.log.jetstream.streams import ask_api, each_once

SYSTEM_VARIABLE: Final = "ONEFOLD_NATS_SYSTEM_NKEY"
"""Names the file of the system user's seed; a cluster that `onefold up` made has it next to the others."""
SILENT_S: Final = 10.0
"""A copy that the leader has not heard of for this long is away."""
_SYSTEM_FILE: Final = "system.nk"


class ServerFacts(NamedTuple):
    """One server. ``problem``: why it could not be reached; then the rest is unknown unless the system user told."""

    name: str | None
    address: str
    problem: str | None = None
    version: str | None = None
    max_payload: int | None = None
    jetstream: bool | None = None
    details: Mapping[str, Any] | None = None
    """Its VARZ; only the system user gets it."""
    ahead_s: float | None = None
    """How far its clock is ahead of this machine's, at least; 0 where the time that its answer took hides it."""

    place: str | None = None
    """Where it is by its name, in a space of several regions."""

    @property
    def tags(self) -> list[str] | None:
        """Its tags, as the system user knows them."""
        return None if self.details is None else [str(tag) for tag in self.details.get("tags") or ()]

    @property
    def region(self) -> str | None:
        """From its name, else from its tag ``region:…`` or ``az:…``."""
        if self.place is not None:
            return self.place
        for tag in self.tags or ():
            kind, _, region = tag.partition(":")
            if kind in ("region", "az"):
                return region
        return None


class ReplicaFacts(NamedTuple):
    """Another server's copy as the stream's leader sees it."""

    server: str
    current: bool
    lag: int
    """So many operations behind."""
    silent_s: float | None
    """So long ago the leader heard of it; servers that live are heard of every second. None: never since it leads."""
    offline: bool
    """Whether the server said that it stops: one that was killed does not."""

    @property
    def away(self) -> bool:
        """Whether it must be taken for gone: the leader itself takes a killed server for current for a while."""
        if self.silent_s is None:
            return self.offline or not self.current  # of a leader that died its successor has never heard
        return self.offline or self.silent_s > SILENT_S


class CopyFacts(NamedTuple):
    """A stream as one server by itself has it."""

    first: int
    last: int
    messages: int
    deleted: int
    """Missing between them."""
    lost: int
    """Known to the server as lost."""
    account: str
    raft_group: str | None


def _replica(other: Mapping[str, Any]) -> ReplicaFacts:
    return ReplicaFacts(
        str(other["name"]),
        bool(other.get("current")),
        int(other.get("lag", 0)),
        int(other["active"]) / 1e9 if other.get("active") else None,
        bool(other.get("offline")),
    )


@dataclass(frozen=True)
class StreamFacts:
    """One stream of the space. ``info`` is what its leader says, None when nobody does; ``problem`` then says why."""

    name: str
    log: LogNames | None
    info: Mapping[str, Any] | None
    problem: str | None = None
    copies: Mapping[str, CopyFacts] = field(default_factory=dict)
    """By the server's name; empty without the system user."""
    region: str = ""
    """Of which it is an own log, or has the blobs of those; empty: it is of the whole space."""

    @property
    def leader(self) -> str | None:
        """Its name; a server on its own has no cluster and leads."""
        cluster = (self.info or {}).get("cluster") or {}
        leader = cluster.get("leader")
        return None if leader is None else str(leader)

    @property
    def replicas(self) -> list[ReplicaFacts]:
        """The other servers' copies as the leader sees them."""
        said = ((self.info or {}).get("cluster") or {}).get("replicas") or ()
        return [found for found in map(_replica, said) if found.server != self.leader]

    @property
    def state(self) -> Mapping[str, Any]:
        """The leader's first and last sequence numbers, messages, bytes."""
        return (self.info or {}).get("state") or {}

    @property
    def servers(self) -> list[str]:
        """All servers that keep a copy, the leader first, each once."""
        return list(each_once(self.leader, (other.server for other in self.replicas)))


@dataclass(frozen=True)
class ClusterFacts:
    """Everything that was seen."""

    address: Address
    servers: list[ServerFacts]
    space: SpaceInfo | None
    space_problem: str | None
    streams: list[StreamFacts]
    system: bool
    """Whether the system user was asked."""
    earlier: Mapping[str, int] = field(default_factory=dict)
    """By stream: the last sequence number that any server had before the servers' copies were looked at."""


def look(link: Link) -> ClusterFacts:
    """Ask every server. Raises nothing for what does not answer; bounded by a few seconds for each round of questions."""
    details, copies, earlier, ahead = _ask_system(link)
    servers = [
        server._replace(ahead_s=ahead.get(server.name or ""))
        for server in link.run(lambda: _servers(link, details or {}), None)
    ]
    space, problem = None, None
    try:
        space = admin.read_space(link)
    except OnefoldError as error:
        problem = str(error)
    if space is not None and space.regions:
        servers = [server._replace(place=region_of(server.name or "")) for server in servers]
    streams = link.run(lambda: _streams(link, space, copies), None) if space is not None else []
    return ClusterFacts(link.address, servers, space, problem, streams, details is not None, earlier)


def system_seed(address: Address) -> Path | None:
    """The file of the system user's seed, where there is one."""
    named = os.environ.get(SYSTEM_VARIABLE)
    if named:
        return Path(named)
    if address.nkey is None:
        return None
    beside = Path(address.nkey).with_name(_SYSTEM_FILE)
    return beside if os.access(beside, os.R_OK) else None


# -- the system user's view

_Copies = Mapping[str, Mapping[str, CopyFacts]]
"""By stream, by server."""


def _ask_system(
    link: Link,
) -> tuple[dict[str, dict[str, Any]] | None, _Copies, dict[str, int], dict[str, float]]:
    seed = system_seed(link.address)
    if seed is None:
        return None, {}, {}, {}
    address = dataclasses.replace(
        link.address, servers=tuple(link.servers), nkey=str(seed), user=None, password=None, creds=None
    )
    with ServerStates(address) as states:
        if not states.connected:
            return None, {}, {}, {}
        earlier = {name: max(copy.last for copy in found.values()) for name, found in _copies(states).items()}
        before_s = link.env.wall_ms() / 1000
        details = states.ask_all("VARZ")
        after_s = link.env.wall_ms() / 1000
        ahead = {
            name: found
            for name, said in details.items()
            if (found := ahead_of(str(said.get("now")), before_s, after_s)) is not None
        }
        return details, _copies(states), earlier, ahead


def ahead_of(now: str, before_s: float, after_s: float) -> float | None:
    """How far a clock that said ``now`` (RFC 3339) between two readings of another one is ahead of that, at least. None: it said
    no time."""
    text = re.sub(r"(\.\d{6})\d+", r"\1", now)  # servers tell nanoseconds
    try:
        said_s = datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
    return max(0.0, said_s - after_s) or min(0.0, said_s - before_s)


def _copies(states: ServerStates) -> _Copies:
    streams = states.ask_all("JSZ", {"accounts": True, "streams": True, "raft": True})
    copies: dict[str, dict[str, CopyFacts]] = {}
    for server, said in streams.items():
        for account in said.get("account_details") or ():
            for stream in account.get("stream_detail") or ():
                copies.setdefault(str(stream["name"]), {})[server] = _copy(stream, str(account["name"]))
    return copies


def _copy(stream: Mapping[str, Any], account: str) -> CopyFacts:
    state = stream.get("state") or {}
    group = stream.get("stream_raft_group")
    return CopyFacts(
        int(state.get("first_seq", 0)),
        int(state.get("last_seq", 0)),
        int(state.get("messages", 0)),
        int(state.get("num_deleted", 0)),
        len((state.get("lost") or {}).get("msgs") or ()),
        account,
        None if group is None else str(group),
    )


# -- the space's own view


async def _servers(link: Link, details: Mapping[str, Mapping[str, Any]]) -> list[ServerFacts]:
    """Each server once, by name; then each address at which none was reached."""
    found = await asyncio.gather(*(_server(link, address, details) for address in link.servers))
    reached = {server.name: server for server in reversed(found) if server.problem is None}
    lost = [server for server in found if server.problem is not None]
    return sorted(reached.values(), key=lambda server: server.name or "") + lost


async def _server(link: Link, address: str, details: Mapping[str, Mapping[str, Any]]) -> ServerFacts:
    try:
        connection = await Connection.open(
            link.address,
            address,
            name="onefold-doctor",
            env=link.env,
            timeout=config.CONNECT_SERVER_TIMEOUT_S,
        )
    except OnefoldError as error:
        return ServerFacts(None, address, str(error))
    info, name = connection.info, connection.server_name
    connection.close()
    return ServerFacts(
        name,
        address,
        None,
        str(info.get("version")),
        connection.max_payload,
        bool(info.get("jetstream")),
        details.get(name),
    )


async def _streams(link: Link, space: SpaceInfo, copies: _Copies) -> list[StreamFacts]:
    """The record, the logs, and the blobs where they are in JetStream; then those of each region."""
    record = await _stream(link, names.space_stream(space.space), None, copies)
    found = [record, *await _logs(link, space, copies)]
    for region in space.each_region():
        of_record = names.region_record_stream(space.space, region.region)
        found.append(await _stream(link, of_record, None, copies, region.region))
        found += await _logs(link, region, copies)
    return found


async def _logs(link: Link, space: SpaceInfo, copies: _Copies) -> list[StreamFacts]:
    logs = [LogNames(space.space, space.incarnation, shard) for shard in range(space.shards)]
    found = [await _stream(link, log.stream, log, copies, space.region) for log in logs]
    blobs = await _stream(link, space.blob_names.stream, None, copies, space.region)
    return found if blobs.info is None and not blobs.copies and not space.region else [*found, blobs]


async def _stream(
    link: Link, name: str, log: LogNames | None, copies: _Copies, region: str = ""
) -> StreamFacts:
    mine = copies.get(name, {})
    try:
        info = await ask_api(link, names.STREAM_INFO + name, None, f"stream {name}")
    except OnefoldError as error:
        return StreamFacts(name, log, None, str(error), mine, region)
    return StreamFacts(name, log, info, None, mine, region)
