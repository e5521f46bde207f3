"""The parts of a node put together, and its life as a process: from its settings to the end by a signal."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from onefold.compute.blobs.places import shared_store
from onefold.env import SYSTEM
from onefold.errors import InvalidArgument, SpaceError
from onefold.ids import new_id
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.regions import check_place, check_region_of
from onefold.node.all_shards import AllShards
from onefold.node.divergence import DivergenceCheck
from onefold.node.job_workers import JobWorkers
from onefold.node.leaders import Leaders
from onefold.node.maintenance import Maintenance, Part
from onefold.node.members.membership import Identity
from onefold.node.metrics import NodeMetrics
from onefold.node.process import Node
from onefold.node.snapshots.server import SnapshotServer
from onefold.node.snapshots.snapshots import Snapshots
from onefold.node.snapshots.store import Vault, open_vault
from onefold.node.snapshots.trimming import Trimming
from onefold.node.telemetry.http import HttpSide
from onefold.node.telemetry.logging import JsonLog
from onefold.node.telemetry.tracing import start_tracing
from onefold.node.versions import Authority, NewestVersion

if TYPE_CHECKING:
    import apsw

    from onefold.compute.blobs.store import BlobStore
    from onefold.compute.code.functions import Code
    from onefold.log.jetstream.client.link import Link
    from onefold.log.jetstream.spaces import SpaceInfo
    from onefold.shard.api import Shard

REGION: Final = "local"
"""The region of nodes that name none."""


@dataclass(frozen=True)
class Settings:
    """How a node is to run."""

    url: str
    name: str
    directory: Path
    region: str = REGION
    zone: str = ""
    listen: tuple[str, int] = ("127.0.0.1", 0)
    workers: int = 0
    snapshots: str | None = None
    """A place for blobs; None: none are made, and no log is trimmed."""
    code: Code = "pickle"
    """Which functions of jobs it runs: those that a job carries, or (``"reference"``) only those of installed packages."""


def default_name() -> str:
    """The machine's name, as a node's name."""
    text = "".join(
        one if one.isascii() and (one.isalnum() or one in "-_.") else "-" for one in socket.gethostname()
    )
    return text[:64] or "node"


def run_node(settings: Settings) -> None:
    """Run a node until SIGTERM or SIGINT, then leave in order; a second signal ends it at once.

    Raises SpaceError (no such space, wrong credential, name taken, a newer space), Unavailable (no server answers),
    InvalidArgument.
    """
    address = parse_address(settings.url)
    log = JsonLog(settings.name, secrets=[address.password or ""])
    with ExitStack() as stack:
        link = _connect(stack, settings)
        node = _assemble(stack, settings, link, log)
        stack.enter_context(_signals(node, log))
        node.run()


def _connect(stack: ExitStack, settings: Settings) -> Link:
    from onefold.log.jetstream.client.link import Link

    address = dataclasses.replace(parse_address(settings.url), region=settings.region)
    link = Link(address, name=f"onefold-node-{settings.name}")
    stack.callback(link.close)
    return link


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpaceError(f"{directory} cannot be used: {error.strerror}. Choose another --dir") from error


def _job_workers(
    node: Node, settings: Settings, blobs: BlobStore, log: JsonLog, open_remote: Callable[[int], Shard]
) -> JobWorkers:
    return JobWorkers(
        lambda: node.hosting.replica(0),
        blobs,
        log,
        node=settings.name,
        slots=settings.workers,
        code=settings.code,
        shards=AllShards(node.hosting.ready, open_remote, node.shard_count),
    )


def _vault(stack: ExitStack, settings: Settings, link: Link, info: SpaceInfo) -> Vault | None:
    if settings.snapshots is None:
        return None
    vault = open_vault(settings.snapshots, settings.directory / "scratch", link, info.space, info.incarnation)
    stack.callback(vault.close)
    return vault


def _assemble(stack: ExitStack, settings: Settings, link: Link, log: JsonLog) -> Node:
    from onefold.log.jetstream import admin
    from onefold.node.nats_runtime import ClusterGround

    info = admin.read_space(link)
    if info.regions:
        check_region_of(info.space, info.regions, settings.region)
        link.stay_in_region()
    identity = Identity(
        settings.name, settings.region, settings.zone, settings.workers, _fold_version_max(info.shards)
    )
    _make_directory(settings.directory)
    vault = _vault(stack, settings, link, info)
    tracing = start_tracing(settings.name, info.space, settings.region)
    stack.callback(tracing.close)
    ground = ClusterGround(link, info, identity, settings.directory, log, vault=vault)
    stack.callback(ground.close)
    snapshots = Snapshots(settings.name, vault, log, tracing, SYSTEM)
    trimming = Trimming(settings.name, vault, log, tracing, SYSTEM)
    node = Node(ground, identity, log, tracing=tracing)
    if settings.workers:
        node.workers = _job_workers(
            node, settings, shared_store(link, info, settings.directory / "blobs"), log, ground.open_remote
        )

    def halt(shard: int, why: str) -> None:
        ground.condemn(shard, why)
        node.hosting.halt(shard, why)

    divergence_check = DivergenceCheck(
        settings.name, log, tracing, hashed=snapshots.said, refold=ground.refold, halt=halt
    )
    duties: dict[str, Part] = {
        "authority": Authority(settings.name, log),
        "newest_version": NewestVersion(settings.name, log),
        "snapshots": snapshots,
        "divergence_check": divergence_check,
        "trimming": trimming,
        "leaders": Leaders(settings.name, link, info, log),
    }
    node.duties = maintenance = Maintenance(lambda: node.hosting, duties, log, SYSTEM)
    ground.first = lambda: node.hosting.replica(0)
    ground.at_boundary = _boundary(node, snapshots, maintenance, info.incarnation)
    ground.boundary_missed = snapshots.missed
    metrics = NodeMetrics(
        node, info.space, snapshots=snapshots, trimming=trimming, divergence_check=divergence_check
    )
    http = HttpSide(settings.listen, live=node.live, ready=node.ready, registry=metrics.registry())
    stack.callback(http.close)
    if vault is not None:
        first = lambda: node.hosting.ready().get(0)  # noqa: E731
        offers = SnapshotServer(link, info, new_id("n", SYSTEM), vault, first, log, ground.fetch_base)
        stack.callback(offers.close)
    log.info(
        "started", pid=os.getpid(), url=link.address.url, http=http.address, space=info.space, shards=info.shards,
        snapshots=settings.snapshots,
    )  # fmt: skip
    return node


def _boundary(
    node: Node, snapshots: Snapshots, maintenance: Maintenance, incarnation: str
) -> Callable[[int, int, apsw.Connection], None]:
    def at_boundary(shard: int, offset: int, con: apsw.Connection) -> None:
        hosts = node.placement.get(shard, ())
        history = _history(shard, node.shard_count)
        snapshots.at_boundary(shard, offset, con, history=history, incarnation=incarnation, hosts=hosts)
        maintenance.kick()

    return at_boundary


def _history(shard: int, shards: int) -> frozenset[str]:
    from onefold.folds import folds

    return frozenset().union(*(fold.history for fold in folds(shard, shards)))


def _fold_version_max(shards: int) -> int:
    from onefold.folds import folds

    return min(fold.version for shard in range(min(shards, 2)) for fold in folds(shard, shards))


@contextmanager
def _signals(node: Node, log: JsonLog) -> Iterator[None]:
    """The first signal lets the node leave, the second ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def handle(number: int, frame: Any) -> None:  # noqa: ARG001
        if asked:
            os._exit(128 + number)
        asked.append(number)
        node.stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if asked:
            log.info("ended", signal=signal.Signals(asked[0]).name)


def check_settings(settings: Settings) -> Settings:
    """The settings, if a node can be run with them. Raises InvalidArgument."""
    from onefold.fold.nodes.fold import malformed
    from onefold.fold.nodes.ops import Join

    wrong = malformed(Join(settings.name, "i", settings.region, settings.zone, "", "", 1, settings.workers))
    if wrong:
        raise InvalidArgument(wrong)
    check_place("--region", settings.region)
    return settings
