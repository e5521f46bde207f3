"""A whole cluster on this machine: servers, a space, and nodes, as daemons below one directory. ``onefold up`` and ``down``.

Below the directory, in addition to what ``LocalServers`` keeps::

    nodes.json            the space, and the nodes with their ports
    nodes/n1/ …           a node's replicas, its log, pid.json

Everything can be ended and started again, by any process of this user; nothing runs that is not written down.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from onefold.backoff import Deadline, wait_until
from onefold.backup.manifest import read_manifest
from onefold.cluster import daemons, server_plan, shapes
from onefold.cluster.daemons import Daemon
from onefold.cluster.server_config import LOOPBACK
from onefold.cluster.servers import LocalServers
from onefold.cluster.setup import set_up_space
from onefold.errors import InvalidArgument, SpaceError, Timeout
from onefold.files import write_whole

NODES_MAX: Final = 32
"""More nodes on one machine than this are a mistake."""
READY_TIMEOUT_S: Final = 120.0
"""How long nodes may take until they answer for all that they host."""
DRAIN_S: Final = 30.0
"""How long a node may take to hand over and end."""
DEFAULT_DIRECTORY: Final = Path(".onefold-cluster")
DEFAULT_SPACE: Final = "main"
_PLAN: Final = "nodes.json"
_PID: Final = "pid.json"
_LOCK: Final = ".lock"
_LOOK_S: Final = 0.05
_LAST_WORDS_LINES: Final = 5


class NodePlan(msgspec.Struct, frozen=True):
    """One node: ``port`` is that of its HTTP side."""

    name: str
    port: int
    region: str | None = None


class NodesPlan(msgspec.Struct, frozen=True):
    """The space of a cluster, and its nodes."""

    space: str
    nodes: list[NodePlan]


@dataclass(frozen=True)
class LocalNode:
    """One node: ``pid`` is None when it does not run; ``dir`` holds its replicas and its log."""

    name: str
    pid: int | None
    port: int
    dir: Path
    region: str | None


class LocalCluster:
    """The cluster below one directory."""

    def __init__(self, servers: LocalServers, plan: NodesPlan) -> None:
        """Use ``up`` or ``open``."""
        self.directory = servers.directory
        self.servers = servers
        self._plan = plan

    @classmethod
    def up(
        cls,
        directory: str | Path,
        *,
        nodes: int | None = None,
        regions: int | None = None,
        servers: int | None = None,
        shards: int | None = None,
        space: str | None = None,
        blobs: str | None = None,
        restore: Path | None = None,
    ) -> LocalCluster:
        """Start whatever of the cluster does not run, and wait until all of it is ready; so a second call changes nothing.

        What the directory holds decides; arguments are for a new cluster (3 nodes, 3 servers, or 1 server for 1 node; with two
        or more ``regions`` 3 servers in each and an odd number in all), except that a larger ``nodes`` adds some. ``restore``: a
        backup that the space of a new cluster is made from. Raises SpaceError when they contradict it or it is not a backup,
        LogCorrupt, InvalidArgument, Timeout; then what this call started is ended, and nothing else.
        """
        directory = Path(directory).absolute()
        if nodes is not None and not 0 <= nodes <= NODES_MAX:
            raise InvalidArgument(f"{nodes} nodes: 0 to {NODES_MAX} run on one machine")
        if restore is not None:
            _check_backup(restore, shards)
        directory.mkdir(parents=True, exist_ok=True)
        with _alone(directory):
            ran = _daemons(directory)
            try:
                return cls._up(directory, nodes, regions, servers, shards, space, blobs, restore)
            except BaseException:
                started = [daemon for daemon in _daemons(directory) if daemon not in ran]
                daemons.end(started, DRAIN_S)
                raise

    @classmethod
    def _up(
        cls,
        directory: Path,
        nodes: int | None,
        regions: int | None,
        servers: int | None,
        shards: int | None,
        space: str | None,
        blobs: str | None,
        restore: Path | None,
    ) -> LocalCluster:
        kept = _read_plan(directory)
        if kept is not None and restore is not None:
            raise SpaceError(
                f"the cluster of {directory} holds space {kept.space}, and nothing is restored over it. Use another directory"
            )
        if kept is not None and space is not None and space != kept.space:
            raise SpaceError(
                f"the cluster of {directory} holds space {kept.space}. Use another directory for {space}"
            )
        name = kept.space if kept is not None else space or DEFAULT_SPACE
        running = _servers(directory, nodes, regions, servers, name)
        replicas, of_space = running.copies, running.space_regions
        if restore is not None:
            from onefold.cluster.restore_cluster import (
                restore_space,
            )  # which is much to import for who restores nothing

            restore_space(
                restore, running.url(name, "admin"), replicas=replicas, blobs=blobs, regions=of_space
            )
        else:
            set_up_space(
                running.url(name, "admin"), shards=shards, replicas=replicas, blobs=blobs, regions=of_space
            )
        plan = NodesPlan(name, _nodes(directory, kept, nodes, running.regions))
        _write_plan(directory, plan)
        cluster = cls(running, plan)
        cluster._start_nodes()
        return cluster

    @classmethod
    def open(cls, directory: str | Path) -> LocalCluster:
        """The cluster of a directory, running or not. Raises SpaceError when there is none."""
        servers = LocalServers.open(directory)
        plan = _read_plan(servers.directory)
        if plan is None:  # it was never up as a whole
            plan = NodesPlan(DEFAULT_SPACE, [])
        return cls(servers, plan)

    @property
    def space(self) -> str:
        """The name of the space."""
        return self._plan.space

    @property
    def nodes(self) -> list[LocalNode]:
        """All nodes, as they are now."""
        found = []
        for node in self._plan.nodes:
            folder = self._folder(node)
            daemon = daemons.read(folder / _PID)
            pid = daemon.pid if daemon is not None and daemons.alive(daemon) else None
            found.append(LocalNode(node.name, pid, node.port, folder, node.region))
        return found

    def url(self, user: str = "app") -> str:
        """The URL of the space for a user: ``app``, ``node`` or ``admin``."""
        return self.servers.url(self.space, user)

    def down(self, *, delete: bool = False) -> list[str]:
        """End the nodes, then the servers; what they hold stays unless ``delete``. Returns the names of those that ran.

        Raises Timeout when a process cannot be ended.
        """
        with _alone(self.directory):
            ran = [node.name for node in self.nodes if node.pid is not None]
            ran += [server.name for server in self.servers.servers if server.pid is not None]
            left = daemons.end(
                [daemons.read(self._folder(node) / _PID) for node in self._plan.nodes], DRAIN_S
            )
            if left:
                raise Timeout(f"node process {left[0].pid} cannot be ended, not even with SIGKILL")
            for node in self._plan.nodes:
                (self._folder(node) / _PID).unlink(missing_ok=True)
            self.servers.stop(delete=delete)
            if delete:
                shutil.rmtree(self.directory / "nodes", ignore_errors=True)
                (self.directory / _PLAN).unlink(missing_ok=True)
        if delete:
            with contextlib.suppress(OSError):  # something else is in it
                (self.directory / _LOCK).unlink()
                self.directory.rmdir()
        return ran

    # -- nodes

    def _folder(self, node: NodePlan) -> Path:
        return self.directory / "nodes" / node.name

    def _start_nodes(self) -> None:
        for node in self._plan.nodes:
            if not daemons.alive(daemons.read(self._folder(node) / _PID)):
                self._spawn(node)
        deadline = Deadline.after(READY_TIMEOUT_S)
        for node in self._plan.nodes:
            self._await_ready(node, deadline)

    def _spawn(self, node: NodePlan) -> None:
        folder = self._folder(node)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        command = [
            sys.executable,
            "-m",
            "onefold.cli",
            "node",
            "--url",
            self.url("node"),
            "--name",
            node.name,
        ]
        command += ["--dir", str(folder), "--http", f"{LOOPBACK}:{node.port}"]
        # Together they use all processors once.
        command += ["--workers", str(max(1, (os.cpu_count() or 1) // len(self._plan.nodes)))]
        if node.region is not None:
            command += ["--region", node.region]
        # What the caller's own programs use must not decide for a node: its credential and its place are those above.
        environment = {name: text for name, text in os.environ.items() if not name.startswith("ONEFOLD_")}
        daemons.start(command, log=_log(folder), pid_file=folder / _PID, environment=environment)

    def _await_ready(self, node: NodePlan, deadline: Deadline) -> None:
        folder = self._folder(node)

        def ready() -> bool:
            if not daemons.alive(daemons.read(folder / _PID)):  # else another program may answer at its port
                raise SpaceError(f"node {node.name} ended: {_last_words(folder)}")
            return _ready(node.port)

        if not wait_until(ready, deadline.within(READY_TIMEOUT_S), _LOOK_S):
            raise Timeout(
                f"node {node.name} is not ready after {READY_TIMEOUT_S:g} s; see {_log(folder)}: {_last_words(folder)}"
            )


def _servers(
    directory: Path, nodes: int | None, regions: int | None, servers: int | None, space: str
) -> LocalServers:
    """The servers, all running."""
    if not server_plan.exists(directory):
        wanted = regions if regions is not None else 1
        usual = shapes.default_servers(wanted) if wanted > 1 else 1 if nodes == 1 else 3
        count = servers if servers is not None else usual
        return LocalServers.start(directory, count, regions=wanted, spaces=[space])
    found = LocalServers.open(directory)
    has = len(found.regions) or 1
    if (servers or len(found.servers)) != len(found.servers) or (regions or has) != has:
        raise SpaceError(
            f"the cluster of {directory} has {len(found.servers)} servers and {has} regions, which cannot be changed. "
            "Start it as it is, or use another directory"
        )
    found.start_missing()
    return found


def _nodes(directory: Path, kept: NodesPlan | None, count: int | None, regions: list[str]) -> list[NodePlan]:
    """The nodes that are known, and new ones up to ``count``."""
    known = kept.nodes if kept is not None else []
    count = count if count is not None else 3 if kept is None else len(known)
    if count < len(known):
        raise SpaceError(
            f"the cluster of {directory} has {len(known)} nodes, not {count}. End it with "
            f"`onefold down --dir {directory}`, or leave --nodes away"
        )
    ports = server_plan.free_ports(count - len(known)) if count > len(known) else []
    added = [
        NodePlan(f"n{index + 1}", port, regions[index % len(regions)] if regions else None)
        for index, port in enumerate(ports, start=len(known))
    ]
    return [*known, *added]


def _check_backup(backup: Path, shards: int | None) -> None:
    """Raises, before anything is started, SpaceError when there is no backup, and InvalidArgument when it has other shards."""
    has = len(read_manifest(backup).shards)
    if shards is not None and shards != has:
        raise InvalidArgument(
            f"the backup {backup} has {has} shards, which cannot be changed; got {shards}. Leave it out"
        )


def _read_plan(directory: Path) -> NodesPlan | None:
    try:
        return msgspec.json.decode((directory / _PLAN).read_bytes(), type=NodesPlan)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise SpaceError(f"{directory / _PLAN} cannot be read ({error}). Restore it") from None


def _write_plan(directory: Path, plan: NodesPlan) -> None:
    write_whole(directory / _PLAN, msgspec.json.format(msgspec.json.encode(plan)))


def _daemons(directory: Path) -> list[Daemon]:
    """Everything of the cluster that runs: nodes first."""
    files = [*sorted(directory.glob(f"nodes/*/{_PID}")), *sorted(directory.glob(f"*/{_PID}"))]
    found = [daemons.read(path) for path in files]
    return [daemon for daemon in found if daemon is not None and daemons.alive(daemon)]


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep other processes from starting and ending things in the directory meanwhile. Raises SpaceError when one does."""
    fd = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpaceError(
                f"another `onefold up` or `down` is at work on {directory}. Wait for its end"
            ) from None
        yield
    finally:
        os.close(fd)


def _ready(port: int) -> bool:
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({})
    )  # a proxy has no business on loopback
    try:
        with opener.open(f"http://{LOOPBACK}:{port}/ready", timeout=2.0) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _log(folder: Path) -> Path:
    return folder / "node.log"


def _last_words(folder: Path) -> str:
    try:
        lines = _log(folder).read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return " / ".join(line.strip() for line in lines[-_LAST_WORDS_LINES:]) or "without a word"
