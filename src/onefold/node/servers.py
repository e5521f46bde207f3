"""``LocalServers``: a cluster of real NATS servers on this machine, each a daemon with its data in a folder of its own.

For ``onefold up`` and for tests. Everything is below one directory::

    cluster.json             the plan: servers, ports, spaces
    keys/                    seeds of the users, the routes' password (0600)
    s1/ s2/ s3/              nats.conf (0600), server.log, data/, pid.json

so the servers can be stopped and started by other processes, with the same ports, users and data.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from onefold.errors import InvalidArgument, SpaceError, Timeout
from onefold.node import certificates, credentials, processes
from onefold.node.permissions import USERS
from onefold.node.processes import Daemon, write_whole
from onefold.node.server_config import SYSTEM_USER, ClusterPlan, ServerPlan, server_config
from onefold.node.server_program import server_program
from onefold.node.server_states import ServerStates

START_TIMEOUT_S: Final = 60.0
"""How long servers may take until all know each other and a leader (an election takes up to 9 s)."""
STOP_GRACE_S: Final = 20.0
"""How long a server may take to end by itself."""
DISK_SHARE: Final = 0.7
"""The share of the free disk that all servers of this machine may use together."""
REGIONS: Final = ("dc1", "dc2", "dc3", "dc4", "dc5")
WITNESS: Final = "witness"
_PORTS: Final = range(
    20_000, 32_000
)  # below those that the kernel hands out, so that a stopped server's stays free
_START_ATTEMPTS: Final = 3
_LOOK_S: Final = 0.05
_SPACE_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")


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

    @classmethod
    def start(
        cls,
        directory: str | Path,
        count: int = 3,
        *,
        regions: int = 1,
        secure: bool = True,
        tls: bool = False,
        spaces: Sequence[str] = (),
    ) -> LocalServers:
        """Start ``count`` (1, 3 or 5) servers, or those that the directory holds, and wait until they have a leader.

        With ``regions`` of two or more each server is in a region and a stream has its copies in different ones; of two
        regions, the third place is ``witness``. ``spaces`` get an account each at once; ``url`` makes others when asked.
        ``tls``: with certificates of their own. ``secure=False``: anybody of this machine may do anything (tests).

        Raises SpaceError (already running, other servers in the directory, a server that ends at once), Timeout;
        then none is left running.
        """
        directory = Path(directory).absolute()
        if any(processes.alive(daemon) for daemon in _daemons(directory)):
            raise SpaceError(
                f"servers of {directory} are running already. End them with `onefold down --dir {directory}`"
            )
        for attempt in range(_START_ATTEMPTS):
            made_now = not (directory / _PLAN).exists()
            servers = cls(directory, _plan(directory, count, regions, secure, tls, spaces))
            try:
                servers._start_all()
                return servers
            except _PortTaken:
                servers.stop()
                if not made_now or attempt == _START_ATTEMPTS - 1:
                    raise
                (directory / _PLAN).unlink()  # nothing is kept yet: other ports will do
            except BaseException:
                servers.stop()
                raise
        raise AssertionError  # the loop returned or raised

    @classmethod
    def open(cls, directory: str | Path) -> LocalServers:
        """The servers of a directory, running or not. Raises SpaceError when there are none."""
        directory = Path(directory).absolute()
        return cls(directory, _read_plan(directory))

    @property
    def servers(self) -> list[Server]:
        """All servers, as they are now."""
        return [self._server(place) for place in self._plan.servers]

    @property
    def regions(self) -> list[str]:
        """The regions for nodes, in order; empty when all servers are in one place."""
        found = dict.fromkeys(place.region for place in self._plan.servers)
        return [region for region in found if region is not None and region != WITNESS]

    @property
    def running(self) -> bool:
        """Whether any server runs."""
        return any(processes.alive(daemon) for daemon in _daemons(self.directory))

    def url(self, space: str, user: str = "app") -> str:
        """The URL of a space for a user: ``app``, ``node`` or ``admin``. It names the file of the seed, which is the secret.

        A space that the servers do not know yet gets its account, on running servers without a restart.
        """
        if user not in USERS:
            raise InvalidArgument(f"user={user!r}: one of {', '.join(USERS)}")
        if not _SPACE_NAME.fullmatch(space):
            raise InvalidArgument(
                f"{space!r} cannot be the name of a space: 1 to 32 letters, digits, _ and -"
            )
        hosts = ",".join(f"127.0.0.1:{place.port}" for place in self._plan.servers)
        files = {}
        if self._plan.secure:
            if space not in self._plan.spaces:
                self._add_space(space)
            files["nkey"] = str(self.seed_file(space, user))
        if self._plan.tls is not None:
            files["ca"] = self._plan.tls.ca
        query = "&".join(f"{name}={quote(path)}" for name, path in files.items())
        return f"{self._scheme}://{hosts}/{space}" + (f"?{query}" if query else "")

    def seed_file(self, space: str, user: str) -> Path:
        """The file of a user's seed."""
        return credentials.seed_file(self._keys, f"{space}/{user}")

    def states(self, only: int | None = None) -> ServerStates:
        """Asks the servers (one of them: its index) about themselves, as the system user. Close it."""
        places = self._plan.servers if only is None else [self._plan.servers[only]]
        seed = credentials.seed_file(self._keys, SYSTEM_USER)
        return self._states(places, seed)

    def kill(self, index: int, sig: int = signal.SIGKILL) -> None:
        """Send a signal to a server and wait until it has ended."""
        daemon = self._daemon(index)
        processes.send(daemon, sig)
        if not processes.wait_ended(daemon, STOP_GRACE_S):
            raise Timeout(
                f"server {self._plan.servers[index].name} has not ended {STOP_GRACE_S:g} s after signal {sig}"
            )

    def stop_server(self, index: int) -> None:
        """Halt a server (SIGSTOP): it holds its connections and says nothing."""
        processes.send(self._daemon(index), signal.SIGSTOP)

    def cont(self, index: int) -> None:
        """Let a halted server go on."""
        processes.send(self._daemon(index), signal.SIGCONT)

    def restart(self, index: int, *, wait: bool = True) -> None:
        """Start a server again, after ending it if it runs. ``wait``: until it knows the cluster's leader."""
        processes.end([self._daemon(index)], STOP_GRACE_S)
        self._spawn(self._plan.servers[index])
        if wait:
            self._await_leader([index], known=1)

    def stop(self, *, delete: bool = False) -> None:
        """End all servers; the data stays unless ``delete``. Raises Timeout when one cannot be ended."""
        left = processes.end(_daemons(self.directory), STOP_GRACE_S)
        if left:
            raise Timeout(f"process {left[0].pid} of {self.directory} cannot be ended, not even with SIGKILL")
        for place in self._plan.servers:
            (self.directory / place.name / _PID).unlink(missing_ok=True)
        if delete:
            for place in self._plan.servers:
                shutil.rmtree(self.directory / place.name, ignore_errors=True)
            shutil.rmtree(self._keys, ignore_errors=True)
            (self.directory / _PLAN).unlink(missing_ok=True)

    # -- one server

    @property
    def _keys(self) -> Path:
        return self.directory / "keys"

    def _daemon(self, index: int) -> Daemon | None:
        return processes.read(self.directory / self._plan.servers[index].name / _PID)

    def _server(self, place: ServerPlan) -> Server:
        folder = self.directory / place.name
        daemon = processes.read(folder / _PID)
        pid = daemon.pid if daemon is not None and processes.alive(daemon) else None
        return Server(place.name, pid, place.port, place.cluster_port, folder, place.region)

    @property
    def _scheme(self) -> str:
        return "nats" if self._plan.tls is None else "tls"

    def _states(self, places: Sequence[ServerPlan], seed: Path) -> ServerStates:
        ca = None if self._plan.tls is None else self._plan.tls.ca
        return ServerStates([f"{self._scheme}://127.0.0.1:{place.port}" for place in places], seed, ca)

    def _spawn(self, place: ServerPlan) -> None:
        folder = self.directory / place.name
        command = [str(server_program()), "-c", str(folder / _CONFIG)]
        processes.start(command, log=folder / "output.log", pid_file=folder / _PID)

    # -- all servers

    def _start_all(self) -> None:
        self._configure()
        for place in self._plan.servers:
            self._spawn(place)
        indices = list(range(len(self._plan.servers)))
        self._await_leader(indices, known=len(indices))

    def _configure(self) -> None:
        """Write the plan, the keys and the servers' configuration."""
        self.directory.mkdir(parents=True, exist_ok=True)
        secrets = credentials.make(self._keys, self._plan.spaces)
        if self._plan.tls is not None:
            certificates.make(Path(self._plan.tls.ca).parent)
        for place in self._plan.servers:
            folder = self.directory / place.name
            folder.mkdir(exist_ok=True, mode=0o700)
            write_whole(folder / _CONFIG, server_config(self._plan, place, folder, secrets).encode())
        write_whole(self.directory / _PLAN, msgspec.json.format(msgspec.json.encode(self._plan)))

    def _await_leader(self, indices: Sequence[int], *, known: int) -> None:
        """Wait until each of these servers knows a leader, and of ``known`` servers at least."""
        deadline = time.monotonic() + START_TIMEOUT_S
        for index in indices:
            while not self._knows_leader(index, known):
                for each in indices:
                    self._check_alive(each)
                if time.monotonic() > deadline:
                    raise Timeout(
                        f"the servers of {self.directory} found no leader in {START_TIMEOUT_S:g} s; "
                        f"see {self.directory / self._plan.servers[index].name / 'server.log'}"
                    )
                time.sleep(_LOOK_S)

    def _knows_leader(self, index: int, known: int) -> bool:
        if not _listens(self._plan.servers[index].port):
            return False
        with self.states(index) as states:
            meta = states.meta()
        return meta is not None and bool(meta.leader) and meta.servers >= known

    def _check_alive(self, index: int) -> None:
        place = self._plan.servers[index]
        if processes.alive(self._daemon(index)):
            return
        said = _last_words(self.directory / place.name)
        if "address already in use" in said:
            raise _PortTaken(f"server {place.name} ended: its port is taken: {said}")
        raise SpaceError(f"server {place.name} ended: {said or 'without a word'}")

    def _add_space(self, space: str) -> None:
        """Give a space its account. No server may be asked anything in that account before all of them know it: what routes bring
        for an unknown account is lost."""
        self._plan = _read_plan(self.directory)
        self._plan = msgspec.structs.replace(
            self._plan, spaces=list(dict.fromkeys([*self._plan.spaces, space]))
        )
        self._configure()
        indices = range(len(self._plan.servers))
        told = [index for index in indices if processes.send(self._daemon(index), signal.SIGHUP)]
        for index in told:
            self._await(index, self._knows_space, f"did not take the account of space {space}", space)
        for index in told:
            self._await(index, self._has_streams, f"gives space {space} no streams", space)

    def _await(self, index: int, found: Callable[[int, str], bool], problem: str, what: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not found(index, what):
            place = self._plan.servers[index]
            if time.monotonic() > deadline:
                log = self.directory / place.name / "server.log"
                raise Timeout(f"server {place.name} {problem}, for {START_TIMEOUT_S:g} s; see {log}")
            time.sleep(_LOOK_S)

    def _knows_space(self, index: int, space: str) -> bool:
        with self.states(index) as states:
            return space in states.accounts()

    def _has_streams(self, index: int, space: str) -> bool:
        with self._states([self._plan.servers[index]], self.seed_file(space, "admin")) as states:
            return states.has_streams()


_PLAN: Final = "cluster.json"
_CONFIG: Final = "nats.conf"
_PID: Final = "pid.json"


class _PortTaken(SpaceError):
    """A port was taken by somebody else between choosing and listening."""


def _plan(
    directory: Path, count: int, regions: int, secure: bool, tls: bool, spaces: Sequence[str]
) -> ClusterPlan:
    """The plan that the directory holds, with these spaces too; or a new one."""
    if (directory / _PLAN).exists():
        kept = _read_plan(directory)
        asked = ([place.region for place in _places(count, regions)], secure, tls)
        if ([place.region for place in kept.servers], kept.secure, kept.tls is not None) != asked:
            raise SpaceError(
                f"{directory} holds a cluster of {len(kept.servers)} servers made otherwise. "
                "Start it as it was made, or use another directory"
            )
        return msgspec.structs.replace(kept, spaces=list(dict.fromkeys([*kept.spaces, *spaces])))
    if count not in (1, 3, 5):
        raise InvalidArgument(f"count={count}: a cluster has 1, 3 or 5 servers")
    directory.mkdir(parents=True, exist_ok=True)
    disk = int(shutil.disk_usage(directory).free * DISK_SHARE / count)
    return ClusterPlan(
        f"onefold-{random.SystemRandom().getrandbits(32):08x}",
        _places(count, regions),
        disk,
        secure,
        list(spaces),
        certificates.make(directory / "keys" / "tls") if tls else None,
    )


def _places(count: int, regions: int) -> list[ServerPlan]:
    if not 1 <= regions <= len(REGIONS) or (regions > 1 and count < 3):
        raise InvalidArgument(
            f"regions={regions} with {count} servers: 1 to {len(REGIONS)}, with 3 servers or more"
        )
    names: list[str | None] = [None]
    if regions > 1:
        names = [*REGIONS[:regions], *([WITNESS] if regions == 2 else [])]
    ports = _free_ports(2 * count)
    return [
        ServerPlan(f"s{index + 1}", ports[2 * index], ports[2 * index + 1], names[index % len(names)])
        for index in range(count)
    ]


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, k=min(len(_PORTS), 100 * count)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise SpaceError(f"there are no {count} free ports between {_PORTS[0]} and {_PORTS[-1]}")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _read_plan(directory: Path) -> ClusterPlan:
    try:
        return msgspec.json.decode((directory / _PLAN).read_bytes(), type=ClusterPlan)
    except FileNotFoundError:
        raise SpaceError(
            f"{directory} holds no cluster. Make one with `onefold up --dir {directory}`"
        ) from None
    except msgspec.DecodeError as error:
        raise SpaceError(f"{directory / _PLAN} cannot be read ({error}). Restore it") from None


def _daemons(directory: Path) -> list[Daemon | None]:
    return [processes.read(path) for path in sorted(directory.glob(f"*/{_PID}"))]


def _last_words(folder: Path) -> str:
    """The last line that a server wrote before it ended."""
    lines: list[str] = []
    for name in ("server.log", "output.log"):
        try:
            lines += (folder / name).read_text(errors="replace").splitlines()[-20:]
        except OSError:
            continue
    fatal = [line for line in lines if "[FTL]" in line or "[ERR]" in line] or lines
    return fatal[-1].strip() if fatal else ""
