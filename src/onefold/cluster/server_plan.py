"""The plan of a cluster on this machine: how many servers, where they listen, in which regions; and the file that keeps it."""

from __future__ import annotations

import random
import shutil
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from onefold.cluster import certificates, shapes
from onefold.cluster.server_config import LOOPBACK, ClusterPlan, ServerPlan
from onefold.errors import InvalidArgument, SpaceError
from onefold.files import write_whole

DISK_SHARE: Final = 0.7
"""The share of the free disk that all servers of this machine may use together."""
REGIONS: Final = ("dc1", "dc2", "dc3", "dc4", "dc5")
COUNTS: Final = (1, 3, 5)
"""How many servers a cluster of one region may have: an even number survives no more than one less."""
SERVERS_MAX: Final = 25
"""More servers on one machine than this are a mistake."""
_FILE: Final = "cluster.json"
_PORTS: Final = range(20_000, 32_000)
"""Below the ports that the kernel hands out by itself, so that a stopped server's stays free."""


class Place(NamedTuple):
    """Where a server is when it is not on loopback: its address, and what comes before its command (``ip netns exec …``)."""

    address: str
    prefix: Sequence[str] = ()


@dataclass(frozen=True)
class Shape:
    """What is asked of a cluster; see ``LocalServers.start``."""

    count: int = 3
    regions: int = 1
    secure: bool = True
    tls: bool = False
    places: Sequence[Place] | None = None


def exists(directory: Path) -> bool:
    """Whether the directory holds a cluster."""
    return (directory / _FILE).exists()


def new(directory: Path, shape: Shape, spaces: Sequence[str]) -> ClusterPlan:
    """A plan with free ports, and its share of the disk. Raises InvalidArgument for a shape that is not a cluster."""
    servers = _servers(shape)
    directory.mkdir(parents=True, exist_ok=True)
    disk = int(shutil.disk_usage(directory).free * DISK_SHARE / shape.count)
    name = f"onefold-{random.SystemRandom().getrandbits(32):08x}"
    hosts = [server.address for server in servers]
    tls = certificates.make(directory / "keys" / "tls", hosts) if shape.tls else None
    return ClusterPlan(name, servers, disk, shape.secure, list(spaces), tls)


def check_shape(directory: Path, plan: ClusterPlan, shape: Shape) -> None:
    """Raises SpaceError when the cluster of the directory was made with another shape."""
    regions = Counter(server.region for server in plan.servers)
    asked = Counter(place.region for place in _places(shape))
    if (regions, plan.secure, plan.tls is not None) != (asked, shape.secure, shape.tls):
        raise SpaceError(
            f"{directory} holds a cluster of {len(plan.servers)} servers that was made otherwise. "
            "Start it as it was made, or use another directory"
        )


def read(directory: Path) -> ClusterPlan:
    """The plan of a directory. Raises SpaceError when there is none."""
    try:
        return msgspec.json.decode((directory / _FILE).read_bytes(), type=ClusterPlan)
    except (FileNotFoundError, NotADirectoryError):
        raise SpaceError(
            f"{directory} holds no cluster. Make one with `onefold up --dir {directory}`"
        ) from None
    except msgspec.DecodeError as error:
        raise SpaceError(f"{directory / _FILE} cannot be read ({error}). Restore it") from None


def write(directory: Path, plan: ClusterPlan) -> None:
    """Keep the plan."""
    write_whole(directory / _FILE, msgspec.json.format(msgspec.json.encode(plan)))


def remove(directory: Path) -> None:
    """Forget the plan."""
    (directory / _FILE).unlink(missing_ok=True)


class _Place(NamedTuple):
    name: str
    region: str | None = None
    cp: bool = False


def _places(shape: Shape) -> list[_Place]:
    """Each server: its name, its region, and whether it holds copies of consistent logs."""
    count, regions = shape.count, shape.regions
    if not 1 <= regions <= len(REGIONS):
        raise InvalidArgument(f"{regions} regions: 1 to {len(REGIONS)} run on one machine")
    if regions == 1:
        if count not in COUNTS:
            raise InvalidArgument(f"{count} servers: a cluster has 1, 3 or 5")
        return [_Place(f"s{index + 1}") for index in range(count)]
    if not 1 <= count <= SERVERS_MAX:
        raise InvalidArgument(f"{count} servers: 1 to {SERVERS_MAX} run on one machine")
    sizes = shapes.spread(count, REGIONS[:regions])
    copies = shapes.cp_counts(sizes, shapes.copies_for(sizes)) or {}
    return [
        _Place(f"{region}-{index + 1}", region, index < copies[region])
        for region, size in sizes.items()
        for index in range(size)
    ]


def _servers(shape: Shape) -> list[ServerPlan]:
    servers = _places(shape)
    places = shape.places or [Place(LOOPBACK)] * shape.count
    if len(places) != shape.count:
        raise InvalidArgument(f"{len(places)} places for {shape.count} servers")
    ports = free_ports(2 * shape.count)
    return [
        ServerPlan(
            server.name, ports[2 * index], ports[2 * index + 1], server.region, place.address, list(place.prefix),
            server.cp,
        )
        for index, (server, place) in enumerate(zip(servers, places, strict=True))
    ]  # fmt: skip


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, k=100 * count):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise SpaceError(f"there are no {count} free ports between {_PORTS[0]} and {_PORTS[-1]}")
