"""The logs that a node hosts, with all that belongs to them: replicas, membership, snapshots, archives, trimming, comparing.

A node hosts the logs of the space. In a space of several regions it hosts those of its region as well, in the same process. Each
of the two is a ``HostedLogs`` with a membership of its own, so nothing of the region's logs waits for those of the space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onefold.env import SYSTEM
from onefold.folds import folds, region_folds
from onefold.ids import new_id
from onefold.node.divergence import DivergenceCheck
from onefold.node.leaders import Leaders
from onefold.node.maintenance import Maintenance, Part, SeveralDuties
from onefold.node.members.membership import Identity
from onefold.node.metrics import REGION_PREFIX, SPACE_PREFIX, NodeMetrics
from onefold.node.nats_runtime import ClusterGround, Folds
from onefold.node.process import Node
from onefold.node.regions.decisions import Decisions
from onefold.node.regions.exchange import Exchange
from onefold.node.snapshots.server import SnapshotServer
from onefold.node.snapshots.snapshots import Snapshots
from onefold.node.snapshots.store import Vault, open_vault
from onefold.node.snapshots.trimming import Trimming
from onefold.node.telemetry.logging import JsonLog
from onefold.node.telemetry.tracing import Labelled, Tracing
from onefold.node.versions import Authority, NewestVersion
from onefold.regions import questions
from onefold.regions.cluster import ClusterNeighbours
from onefold.shard.remote.server import Exchanging

if TYPE_CHECKING:
    import apsw

    from onefold.log.jetstream.client.link import Link
    from onefold.log.jetstream.spaces import SpaceInfo
    from onefold.shard.api import Shard, View


@dataclass(frozen=True)
class Surroundings:
    """What the logs of a node share. ``stack`` closes what is opened."""

    stack: ExitStack
    link: Link
    identity: Identity
    directory: Path
    snapshots: str | None
    """See ``program.Settings``."""
    log: JsonLog
    tracing: Tracing


@dataclass(frozen=True)
class HostedLogs:
    """Logs that are hosted once ``node`` runs."""

    node: Node
    ground: ClusterGround
    metrics: NodeMetrics


def host_space(around: Surroundings, info: SpaceInfo) -> HostedLogs:
    """Those of the space."""
    name, log = around.identity.name, around.log
    duties = {"leaders": Leaders(name, around.link, info, log)}
    return _host(around, info, folds, duties, SPACE_PREFIX)


def host_region(around: Surroundings, info: SpaceInfo, space: HostedLogs) -> HostedLogs | None:
    """Those of the node's region; None where it has none of its own. ``space``: those of the space, in which regions are decided
    on."""
    region = around.identity.region
    if region not in (logs.name for logs in info.region_logs):
        return None
    apart = replace(
        around,
        identity=replace(around.identity, slots=0),
        directory=around.directory / "region",
        log=around.log.about(logs=region),
        tracing=Labelled(around.tracing, logs=region),
    )
    begun: list[Node] = []

    def own() -> Shard | None:
        return begun[0].hosting.ready().get(0) if begun else None

    neighbours = ClusterNeighbours(around.link, info, own, region_folds, SYSTEM)
    decided = Decisions(around.identity.name, lambda: space.node.hosting.ready().get(0), neighbours)
    hosted = _host(
        apart, info.of_region(region), region_folds, {"decisions": decided}, REGION_PREFIX, _exchanging
    )
    node = hosted.node
    begun.append(node)
    exchange = Exchange(around.identity.name, node.hosting.ready, neighbours, apart.log, SYSTEM)
    assert node.duties is not None
    node.duties = SeveralDuties(node.duties, exchange)
    hosted.metrics.links, hosted.metrics.pulled = exchange.states, exchange.pulled
    return hosted


def _exchanging(view: View, question: bytes, late: bool) -> bytes | None:
    """See ``shard.remote.server.Exchanging``."""
    return questions.answer(view, question, SYSTEM.wall_ms(), late=late)


def _host(
    around: Surroundings,
    info: SpaceInfo,
    folds: Folds,
    duties: Mapping[str, Part],
    prefix: str,
    exchanging: Exchanging | None = None,
) -> HostedLogs:
    stack, link, log, tracing = around.stack, around.link, around.log, around.tracing
    identity = replace(around.identity, fold_version_max=_fold_version_max(folds, info.shards))
    name = identity.name
    vault = _vault(around, info)
    ground = ClusterGround(
        link, info, identity, around.directory, log, folds=folds, exchanging=exchanging, vault=vault
    )
    stack.callback(ground.close)
    node = Node(ground, identity, log, tracing=tracing)
    snapshots = Snapshots(name, vault, log, tracing, SYSTEM)
    trimming = Trimming(name, vault, log, tracing, SYSTEM)

    def halt(shard: int, why: str) -> None:
        ground.condemn(shard, why)
        node.hosting.halt(shard, why)

    divergence_check = DivergenceCheck(
        name, log, tracing, hashed=snapshots.said, refold=ground.refold, halt=halt
    )
    parts: dict[str, Part] = {
        "authority": Authority(name, log),
        "newest_version": NewestVersion(name, log),
        "snapshots": snapshots,
        "divergence_check": divergence_check,
        "trimming": trimming,
        **duties,
    }
    node.duties = maintenance = Maintenance(lambda: node.hosting, parts, log, SYSTEM)
    ground.first = lambda: node.hosting.replica(0)
    ground.at_boundary = _boundary(node, snapshots, maintenance, info, folds)
    ground.boundary_missed = snapshots.missed
    if vault is not None:
        first = lambda: node.hosting.ready().get(0)  # noqa: E731
        offers = SnapshotServer(link, info, new_id("n", SYSTEM), vault, first, log, ground.fetch_base)
        stack.callback(offers.close)
    metrics = NodeMetrics(
        node,
        info.space,
        snapshots=snapshots,
        trimming=trimming,
        divergence_check=divergence_check,
        prefix=prefix,
    )
    return HostedLogs(node, ground, metrics)


def _vault(around: Surroundings, info: SpaceInfo) -> Vault | None:
    if around.snapshots is None:
        return None
    scratch = around.directory / "scratch"
    vault = open_vault(
        around.snapshots, scratch, around.link, info.space, info.incarnation, of_region=bool(info.region)
    )
    around.stack.callback(vault.close)
    return vault


def _boundary(
    node: Node, snapshots: Snapshots, maintenance: Maintenance, info: SpaceInfo, folds: Folds
) -> Callable[[int, int, apsw.Connection], None]:
    def at_boundary(shard: int, offset: int, con: apsw.Connection) -> None:
        hosts = node.placement.get(shard, ())
        history = frozenset().union(*(fold.history for fold in folds(shard, info.shards)))
        snapshots.at_boundary(shard, offset, con, history=history, incarnation=info.incarnation, hosts=hosts)
        maintenance.kick()

    return at_boundary


def _fold_version_max(folds: Folds, shards: int) -> int:
    return min(fold.version for shard in range(min(shards, 2)) for fold in folds(shard, shards))
