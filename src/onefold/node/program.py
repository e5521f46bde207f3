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
from onefold.errors import InvalidArgument, SpaceError
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.regions import check_place, check_region_of
from onefold.node.all_shards import AllShards
from onefold.node.job_workers import JobWorkers
from onefold.node.life import Life
from onefold.node.members.membership import Identity
from onefold.node.metrics import registry_of
from onefold.node.process import Node
from onefold.node.telemetry.http import HttpSide
from onefold.node.telemetry.logging import JsonLog
from onefold.node.telemetry.tracing import start_tracing

if TYPE_CHECKING:
    from onefold.compute.blobs.store import BlobStore
    from onefold.compute.code.functions import Code
    from onefold.log.jetstream.client.link import Link
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
        life = _assemble(stack, settings, link, log)
        stack.enter_context(_signals(life, log))
        life.run()


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


def _assemble(stack: ExitStack, settings: Settings, link: Link, log: JsonLog) -> Life:
    from onefold.log.jetstream import admin
    from onefold.node.hosted_logs import Surroundings, host_region, host_space

    info = admin.read_space(link)
    if info.regions:
        check_region_of(info.space, info.regions, settings.region)
        link.stay_in_region()
    identity = Identity(settings.name, settings.region, settings.zone, settings.workers)
    _make_directory(settings.directory)
    tracing = start_tracing(settings.name, info.space, settings.region)
    stack.callback(tracing.close)
    around = Surroundings(stack, link, identity, settings.directory, settings.snapshots, log, tracing)
    space = host_space(around, info)
    region = host_region(around, info, space)
    if settings.workers:
        blobs = shared_store(link, info, settings.directory / "blobs")
        space.node.workers = _job_workers(space.node, settings, blobs, log, space.ground.open_remote)
    hosted = [space] if region is None else [space, region]
    life = Life(*(one.node for one in hosted))
    registry = registry_of(*(one.metrics for one in hosted))
    http = HttpSide(settings.listen, live=life.live, ready=life.ready, registry=registry)
    stack.callback(http.close)
    log.info(
        "started", pid=os.getpid(), url=link.address.url, http=http.address, space=info.space, shards=info.shards,
        snapshots=settings.snapshots,
    )  # fmt: skip
    return life


@contextmanager
def _signals(life: Life, log: JsonLog) -> Iterator[None]:
    """The first signal lets the node leave, the second ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def handle(number: int, frame: Any) -> None:  # noqa: ARG001
        if asked:
            os._exit(128 + number)
        asked.append(number)
        life.stop()

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
