"""Opening a region of a space on a cluster, for a program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from onefold.env import Env
from onefold.errors import InvalidArgument
from onefold.log.jetstream import admin
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.spaces import SpaceInfo
from onefold.machine.undisturbed import undisturbed
from onefold.regions.cluster import ClusterNeighbours, ClusterPeers
from onefold.regions.peers import Peers
from onefold.shard.api import Shard
from onefold.space.open_cluster import Folds, open_region


class RegionOfCluster:
    """A region that a program uses. Thread-safe."""

    def __init__(self, name: str, shards: Sequence[Shard], neighbours: ClusterNeighbours, link: Link) -> None:
        self.name = name
        self.shards = shards
        self._neighbours = neighbours
        self._peers = ClusterPeers(neighbours, shards)
        self._link = link

    @property
    def peers(self) -> Peers | None:
        """The other regions; None where there is no other one. Raises as ``Shard.view``."""
        return self._peers if self._neighbours.others() else None

    def look(self) -> None:
        """Nothing: nodes exchange, whatever programs do."""

    def close(self) -> None:
        """Ask no more, and close the region's shards."""
        self._neighbours.close()
        for shard in self.shards:
            shard.close()
        self._link.close()


def open_in_cluster(
    url: str,
    region: str | None,
    env: Env,
    *,
    folds: Folds,
    read_only: bool = False,
    timeout: float | None = None,
    replicas: Literal["local", "remote"] = "local",
) -> RegionOfCluster:
    """Open a region of the space at ``url``. None: the only one. Needs no leader of the cluster, and none of the consistent logs.

    Raises InvalidArgument (no such region, several and none is named, a space that was made without regions), and as
    ``open_space.open_region``.
    """
    address = parse_address(url)

    def opened() -> RegionOfCluster:
        link = Link.shared(address, env=env)
        try:
            info = admin.read_space(link)
            name = _which(info, region)
            shards = open_region(
                url, name, folds, env=env, read_only=read_only, timeout=timeout, replicas=replicas
            )
        except BaseException:
            link.close()
            raise
        neighbours = ClusterNeighbours(link, info, lambda: shards[0], folds, env)
        return RegionOfCluster(name, shards, neighbours, link)

    return undisturbed(opened, RegionOfCluster.close)


def _which(info: SpaceInfo, region: str | None) -> str:
    names = ", ".join(info.regions)
    if not info.regions:
        raise InvalidArgument(
            f"space {info.space} was made without regions, so it has no available collections. Make one with them: `onefold init "
            "--regions NAME,NAME`, or `onefold up --regions 2`"
        )
    if region is None:
        raise InvalidArgument(
            f"space {info.space} has the regions {names}: say which one with region=, for instance region={info.regions[0]!r}"
        )
    return region
