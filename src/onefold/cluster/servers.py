"""``LocalServers``: a cluster of real NATS servers on this machine, each a daemon with its data in a folder of its own.

For ``onefold up`` and for tests. Everything is below one directory::

    cluster.json             the plan: servers, ports, spaces
    keys/                    seeds of the users, the routes' password (0600)
    s1/ s2/ s3/              nats.conf (0600), server.log, data/, pid.json

so the servers can be stopped and started by other processes, with the same ports, users and data.
"""

from __future__ import annotations

import shutil
import signal
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from onefold.backoff import wait_until
from onefold.cluster import credentials, daemons, server_plan, shapes
from onefold.cluster.daemons import Daemon
from onefold.cluster.permissions import USERS, inbox_prefix
from onefold.cluster.server_binary import server_program
from onefold.cluster.server_config import SYSTEM_USER, ClusterPlan, ServerPlan, server_config
from onefold.cluster.server_plan import Place, Shape
from onefold.cluster.server_states import ServerStates
from onefold.errors import InvalidArgument, SpaceError, Timeout
from onefold.files import write_whole
from onefold.log.jetstream.client.address import Address
from onefold.log.jetstream.names import check_space
from onefold.log.jetstream.regions import WITNESS

START_TIMEOUT_S: Final = 60.0
"""How long servers may take until all know each other and a leader (an election takes up to 9 s)."""
STOP_GRACE_S: Final = 20.0
"""How long a server may take to end by itself."""
_START_ATTEMPTS: Final = 3
_MEET_TIMEOUT_S: Final = 20.0
"""Servers that have not found each other by then are started again, once."""
_LOOK_S: Final = 0.05


@dataclass(frozen=True)
class Server:
    """One server: ``pid`` is None when it does not run; ``dir`` holds its configuration, log and data."""

    name: str
    pid: int | None
    port: int
    cluster_port: int
    dir: Path
    region: str | None


class LocalServers:
    """The servers below one directory. Not for several threads at a time."""

    def __init__(self, directory: Path, plan: ClusterPlan) -> None:
        """Use ``start`` or ``open``."""
        self.directory = directory
        self._plan = plan
        self._logs_before: dict[str, dict[str, int]] = {}

    @classmethod
    def start(
        cls,
        directory: str | Path,
        count: int = 3,
        *,
        regions: int = 1,
        secure: bool = True,
        tls: bool = False,
        places: Sequence[Place] | None = None,
        spaces: Sequence[str] = (),
    ) -> LocalServers:
        """Start ``count`` (1, 3 or 5) servers, or those that the directory holds, and wait until they have a leader.

        With ``regions`` of two or more each server is in a region and says so by tags; of two regions, the last server is
        ``witness``. ``count`` is then an odd number that survives the loss of a region. ``spaces`` get an account each at once;
        ``url`` makes others when asked. ``tls``: with certificates of their own. ``secure=False``: anybody of this machine may do
        anything (tests). ``places``: addresses other than loopback (tests).

        Raises InvalidArgument, SpaceError (already running, made otherwise, a server that ends at once), Timeout; then none is
        left running.
        """
        directory = Path(directory).absolute()
        if any(daemons.alive(daemon) for daemon in _daemons(directory)):
            raise SpaceError(
                f"servers of {directory} are running already. End them with `onefold down --dir {directory}`"
            )
        for space in spaces:
            check_space(space)
        shape = Shape(count, regions, secure, tls, places)
        for attempt in range(_START_ATTEMPTS):
            known = server_plan.exists(directory)
            plan = server_plan.read(directory) if known else server_plan.new(directory, shape, spaces)
            server_plan.check_shape(directory, plan, shape)
            servers = cls(directory, _with_spaces(plan, spaces))
            try:
                servers.start_missing()
                return servers
            except _PortTaken:
                if known or attempt == _START_ATTEMPTS - 1:
                    raise
                server_plan.remove(directory)  # nothing is kept yet: other ports will do
        raise AssertionError  # the loop returned or raised

    @classmethod
    def open(cls, directory: str | Path) -> LocalServers:
        """The servers of a directory, running or not. Raises SpaceError when there are none."""
        directory = Path(directory).absolute()
        return cls(directory, server_plan.read(directory))

    @property
    def servers(self) -> list[Server]:
        """All servers, as they are now."""
        return [self._server(server) for server in self._plan.servers]

    @property
    def regions(self) -> list[str]:
        """The regions for nodes, in order; empty when all servers are in one."""
        found = dict.fromkeys(server.region for server in self._plan.servers)
        return [region for region in found if region is not None and region != WITNESS]

    @property
    def space_regions(self) -> list[str]:
        """The regions of a new space on these servers; none where an earlier release made them."""
        return self.regions if self._plan.by_tags else []

    @property
    def copies(self) -> int:
        """How many copies a log of a new space has."""
        placed = sum(server.cp for server in self._plan.servers)
        return placed or min(3, len(self._plan.servers))

    @property
    def region_copies(self) -> dict[str, int]:
        """How many copies the own logs of each region of a new space have."""
        counts = Counter(server.region for server in self._plan.servers)
        return {region: shapes.region_copies(counts[region]) for region in self.space_regions}

    @property
    def running(self) -> bool:
        """Whether any server runs."""
        return any(daemons.alive(daemon) for daemon in _daemons(self.directory))

    def url(self, space: str, user: str = "app") -> str:
        """The URL of a space for a user: ``app``, ``node`` or ``admin``. It names the file of the seed, which is the secret.

        A space that the servers do not know yet gets its account, on running servers without a restart.
        """
        if user not in USERS:
            raise InvalidArgument(f"user={user!r}: one of {', '.join(USERS)}")
        check_space(space)
        hosts = ",".join(f"{server.address}:{server.port}" for server in self._plan.servers)
        options = {}
        self._know(space)
        if self._plan.secure:
            options["nkey"] = str(self.seed_file(space, user))
            options["inbox"] = inbox_prefix(user)
        if self._plan.tls is not None:
            options["ca"] = self._plan.tls.ca
        query = "&".join(f"{name}={quote(value)}" for name, value in options.items())
        return f"{self._scheme}://{hosts}/{space}" + (f"?{query}" if query else "")

    def seed_file(self, space: str, user: str) -> Path:
        """The file of a user's seed."""
        return credentials.seed_file(self._keys, f"{space}/{user}")

    def states(self, only: int | None = None) -> ServerStates:
        """Asks the servers (one of them: its index) about themselves, as the system user. Close it."""
        servers = self._plan.servers if only is None else [self._plan.servers[only]]
        seed = credentials.seed_file(self._keys, SYSTEM_USER)
        return self._states(servers, seed)

    def start_missing(self) -> None:
        """Start the servers that do not run, and wait until all know a leader. Raises as ``start``; then ends those."""
        indices = list(range(len(self._plan.servers)))
        missing = [index for index in indices if not daemons.alive(self._daemon(index))]
        try:
            self._configure()
            for index in missing:
                self._spawn(self._plan.servers[index])
            try:
                self._await_leader(indices, known=len(indices), timeout=_MEET_TIMEOUT_S)
            except Timeout:
                self._start_again(missing)
                self._await_leader(indices, known=len(indices))
        except BaseException:
            daemons.end([self._daemon(index) for index in missing], STOP_GRACE_S)
            raise

    def _start_again(self, indices: Sequence[int]) -> None:
        """Those of these servers that know no leader, or all of them: servers that find each other crosswise in the same
        moment (2.15.1: `Duplicate Route` on both sides) sometimes never do."""
        lost = [index for index in indices if not self._knows_leader(index, 1)] or indices
        daemons.end([self._daemon(index) for index in lost], STOP_GRACE_S)
        for index in lost:
            self._spawn(self._plan.servers[index])

    def kill(self, index: int, sig: int = signal.SIGKILL) -> None:
        """Send a signal to a server and wait until it has ended."""
        daemon = self._daemon(index)
        daemons.send(daemon, sig)
        if not daemons.wait_ended(daemon, STOP_GRACE_S):
            raise Timeout(
                f"server {self._plan.servers[index].name} has not ended {STOP_GRACE_S:g} s after signal {sig}"
            )

    def stop_server(self, index: int) -> None:
        """Halt a server (SIGSTOP): it holds its connections and says nothing."""
        daemons.send(self._daemon(index), signal.SIGSTOP)

    def cont(self, index: int) -> None:
        """Let a halted server continue."""
        daemons.send(self._daemon(index), signal.SIGCONT)

    def restart(self, index: int, *, wait: bool = True) -> None:
        """Start a server again, after ending it if it runs. ``wait``: until it knows the cluster's leader."""
        daemons.end([self._daemon(index)], STOP_GRACE_S)
        self._spawn(self._plan.servers[index])
        if wait:
            self._await_leader([index], known=1)

    def stop(self, *, delete: bool = False) -> None:
        """End all servers; the data stays unless ``delete``. Raises Timeout when one cannot be ended."""
        left = daemons.end(_daemons(self.directory), STOP_GRACE_S)
        if left:
            raise Timeout(f"process {left[0].pid} of {self.directory} cannot be ended, not even with SIGKILL")
        for server in self._plan.servers:
            (self.directory / server.name / _PID).unlink(missing_ok=True)
        if delete:
            for server in self._plan.servers:
                shutil.rmtree(self.directory / server.name, ignore_errors=True)
            shutil.rmtree(self._keys, ignore_errors=True)
            server_plan.remove(self.directory)

    # -- one server

    @property
    def _keys(self) -> Path:
        return self.directory / "keys"

    def _daemon(self, index: int) -> Daemon | None:
        return daemons.read(self.directory / self._plan.servers[index].name / _PID)

    def _server(self, server: ServerPlan) -> Server:
        folder = self.directory / server.name
        daemon = daemons.read(folder / _PID)
        pid = daemon.pid if daemon is not None and daemons.alive(daemon) else None
        return Server(server.name, pid, server.port, server.cluster_port, folder, server.region)

    @property
    def _scheme(self) -> str:
        return "nats" if self._plan.tls is None else "tls"

    def _states(self, servers: Sequence[ServerPlan], seed: Path) -> ServerStates:
        hosts = tuple(f"{server.address}:{server.port}" for server in servers)
        ca = None if self._plan.tls is None else self._plan.tls.ca
        # Each user may hear what is for itself; the system user hears everything in its own account.
        inbox = inbox_prefix("admin")
        return ServerStates(Address(hosts, "-", tls=ca is not None, nkey=str(seed), ca=ca, inbox=inbox))

    def _spawn(self, server: ServerPlan) -> None:
        folder = self.directory / server.name
        command = [*server.prefix, str(server_program()), "-c", str(folder / _CONFIG)]
        self._logs_before[server.name] = _log_sizes(folder)
        daemons.start(command, log=folder / "output.log", pid_file=folder / _PID)

    # -- all servers

    def _configure(self) -> None:
        """Write the plan, the keys and the servers' configuration."""
        self.directory.mkdir(parents=True, exist_ok=True)
        secrets = credentials.make(self._keys, self._plan.spaces)
        for server in self._plan.servers:
            folder = self.directory / server.name
            folder.mkdir(exist_ok=True, mode=0o700)
            write_whole(folder / _CONFIG, server_config(self._plan, server, folder, secrets).encode())
        server_plan.write(self.directory, self._plan)

    def _await_leader(self, indices: Sequence[int], *, known: int, timeout: float = START_TIMEOUT_S) -> None:
        """Wait until each of these servers knows a leader, and of ``known`` servers at least."""
        left = list(indices)

        def led() -> bool:
            while left and self._knows_leader(left[0], known):
                del left[0]
            if left:
                for each in indices:
                    self._check_alive(each)
            return not left

        if not wait_until(led, timeout, _LOOK_S):
            raise Timeout(
                f"the servers of {self.directory} found no leader in {timeout:g} s; "
                f"see {self.directory / self._plan.servers[left[0]].name / 'server.log'}"
            )

    def _knows_leader(self, index: int, known: int) -> bool:
        if not _listens(self._plan.servers[index]):
            return False
        with self.states(index) as states:
            meta = states.meta()
        return meta is not None and bool(meta.leader) and meta.servers >= known

    def _check_alive(self, index: int) -> None:
        server = self._plan.servers[index]
        if daemons.alive(self._daemon(index)):
            return
        said = _last_words(self.directory / server.name, self._logs_before.get(server.name, {}))
        if "address already in use" in said:
            raise _PortTaken(f"server {server.name} ended: its port is taken: {said}")
        raise SpaceError(f"server {server.name} ended: {said or 'without a word'}")

    def _know(self, space: str) -> None:
        """Give a space its account, also on running servers.

        No server may be asked anything in that account before all of them know it: what routes bring for an unknown account
        is lost.
        """
        if not self._plan.secure or space in self._plan.spaces:
            return
        self._plan = _with_spaces(server_plan.read(self.directory), [space])
        self._configure()
        indices = range(len(self._plan.servers))
        told = [index for index in indices if daemons.send(self._daemon(index), signal.SIGHUP)]
        for index in told:
            self._await(index, self._knows_space, f"did not take the account of space {space}", space)
        for index in told:
            self._await(index, self._has_streams, f"gives space {space} no streams", space)

    def _await(self, index: int, found: Callable[[int, str], bool], problem: str, what: str) -> None:
        if not wait_until(lambda: found(index, what), START_TIMEOUT_S, _LOOK_S):
            server = self._plan.servers[index]
            log = self.directory / server.name / "server.log"
            raise Timeout(f"server {server.name} {problem}, for {START_TIMEOUT_S:g} s; see {log}")

    def _knows_space(self, index: int, space: str) -> bool:
        with self.states(index) as states:
            return space in states.accounts()

    def _has_streams(self, index: int, space: str) -> bool:
        with self._states([self._plan.servers[index]], self.seed_file(space, "admin")) as states:
            return states.has_streams()


__all__ = ["LocalServers", "Place", "Server"]

_CONFIG: Final = "nats.conf"
_PID: Final = "pid.json"
_LOGS: Final = ("server.log", "output.log")


def _with_spaces(plan: ClusterPlan, spaces: Sequence[str]) -> ClusterPlan:
    return msgspec.structs.replace(plan, spaces=list(dict.fromkeys([*plan.spaces, *spaces])))


class _PortTaken(SpaceError):
    """A port was taken by somebody else between choosing and listening."""


def _listens(server: ServerPlan) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((server.address, server.port)) == 0


def _daemons(directory: Path) -> list[Daemon | None]:
    return [daemons.read(path) for path in sorted(directory.glob(f"*/{_PID}"))]


def _log_sizes(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in _LOGS if (folder / name).exists()}


def _last_words(folder: Path, before: Mapping[str, int]) -> str:
    """The last line that a server wrote before it ended, of those that are behind these sizes of its logs."""
    lines: list[str] = []
    for name, size in _log_sizes(folder).items():
        with open(folder / name, "rb") as file:
            file.seek(max(before.get(name, 0), size - 10_000))
            lines += file.read().decode(errors="replace").splitlines()
    telling = [line for line in lines if "[FTL]" in line or "[ERR]" in line] or lines
    return telling[-1].strip() if telling else ""
