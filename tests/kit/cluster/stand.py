"""A test stand: real servers, nodes and clients on (if possible) hosts of their own, and what is known of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from kit.cluster import hosts as networks
from kit.cluster import leftovers
from kit.cluster.client import Instructions
from kit.cluster.leftovers import Notebook
from kit.cluster.reader import Reader
from kit.environment import with_tests
from onefold.cluster.server_plan import free_ports
from onefold.env import SYSTEM
from onefold.errors import OnefoldError

if TYPE_CHECKING:
    from onefold.cluster.servers import LocalServers
    from onefold.log.jetstream.client.link import Link
    from onefold.log.jetstream.spaces import SpaceInfo

START_S = 90.0
_LOOK_S = 0.05
_ASK_S = 5.0
_CLOCK = """\
# The wall clock of this process jumps when told: by the seconds in a file.
import os, time

def _wrong(real, unit, file=os.environ["STAND_CLOCK_FILE"]):
    def now():
        with open(file) as offset:
            return real() + unit(float(offset.read() or 0))
    return now

time.time = _wrong(time.time, float)
time.time_ns = _wrong(time.time_ns, lambda seconds: int(seconds * 1e9))
"""
_WRITES = frozenset({"write", "cas", "transfer", "txn", "put", "add", "ack", "transaction", "append"})


class Program:
    """One process of the stand; its output goes to a file."""

    def __init__(
        self, name: str, command: Sequence[str], output: Path, environment: dict[str, str], *, stdin: bool
    ) -> None:
        self.name = name
        self.output = output
        with output.open("ab") as file:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._popen.poll()

    def kill(self, number: int) -> None:
        """Send a signal; after one that ends it, wait for the end."""
        if self._popen.poll() is None:
            os.kill(self.pid, number)
            if number in (signal.SIGKILL, signal.SIGTERM):
                self._popen.wait(START_S)

    def release(self) -> None:
        """Close its stdin, which tells a client to end."""
        if self._popen.stdin is not None:
            self._popen.stdin.close()

    def end(self, timeout: float) -> int:
        """Wait for its end, with SIGKILL after ``timeout`` seconds; its exit code."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            for number in (signal.SIGCONT, signal.SIGKILL):
                self._popen.send_signal(number)
            return self._popen.wait()

    def last_words(self, lines: int = 40) -> str:
        """The end of its output."""
        return "\n".join(self.output.read_text("utf-8", "replace").splitlines()[-lines:])


@dataclass
class Client:
    """A client process, and its instructions."""

    process: Program
    told: Instructions
    host: str
    expected: bool = field(default=False)
    """Whether its death is the nemesis' doing."""


class Stand:
    """``servers`` servers and as many nodes, each pair on one host; clients on hosts of their own, dealt in turn."""

    def __init__(
        self,
        directory: Path,
        *,
        space: str = "faults",
        servers: int = 3,
        nodes: int = 3,
        client_hosts: int = 2,
        shards: int = 1,
        seed: int = 0,
        removes: bool = False,
    ) -> None:
        """``removes``: the directory is removed with what an interrupted stand left."""
        self.directory = directory
        self._removes = removes
        self._notebook: Notebook | None = None
        self.space = space
        self.shards = shards
        self.seed = seed
        self.no_hosts = networks.missing() or ""
        self.hosts: networks.Hosts | None = None
        self.server_hosts = [f"server{at + 1}" for at in range(servers)]
        self.client_hosts = [f"client{at + 1}" for at in range(client_hosts)]
        self.nodes: dict[str, Program] = {}
        self.node_hosts = {f"n{at + 1}": self.server_hosts[at % servers] for at in range(nodes)}
        self.clients: list[Client] = []
        self.clock_files: dict[str, Path] = {}
        self.small_disk: tuple[int, Path] | None = None
        self.no_small_disk = "a full disk needs a small tmpfs, and that root; none was asked for"
        """Why there is none."""
        self.info: SpaceInfo | None = None
        self._all_clients: list[Client] = []
        ports = free_ports(len(self.node_hosts))  # not those of outgoing connections, which come and go
        self._node_ports = dict(zip(self.node_hosts, ports, strict=True))
        self._began = time.monotonic()
        self._server_count = servers
        self._servers: LocalServers | None = None
        directory.mkdir(parents=True, exist_ok=True)

    # -- life

    def start(self, *, small_disk_bytes: int | None = None) -> None:
        """Start everything but clients, and wait until the nodes are ready. A small disk is had where one can be mounted."""
        from onefold.cluster.server_plan import Place
        from onefold.cluster.servers import LocalServers

        leftovers.sweep()
        self._notebook = Notebook(self.directory, removes=self._removes)
        os.environ.update(self._notebook.environment)  # servers inherit it
        places = None
        if not self.no_hosts:
            self._notebook.namespaces(
                networks.namespaces(1 + len(self.server_hosts) + len(self.client_hosts))
            )
            self.hosts = networks.Hosts([*self.server_hosts, *self.client_hosts])
            chosen = [self.hosts[name] for name in self.server_hosts]
            places = [Place(host.address, host.prefix) for host in chosen]
            self._enter_hub()
        if small_disk_bytes is not None:
            self.small_disk = self._mount(small_disk_bytes)
        self._servers = LocalServers.start(
            self.directory / "servers", self._server_count, places=places, spaces=[self.space]
        )
        self._make_space()
        for name in self.node_hosts:
            self.start_node(name, wait=False)
        for name in self.node_hosts:
            self.await_node(name)

    def close(self) -> None:
        """End every process that this stand started, and remove its hosts, wherever it was interrupted."""
        with ExitStack() as stack:
            if self._notebook is not None:
                stack.callback(os.environ.pop, leftovers.VARIABLE, None)
                stack.callback(self._notebook.close)
            if self.hosts is not None:
                stack.callback(self.hosts.close)
            if self.small_disk is not None:
                stack.callback(subprocess.run, ["umount", str(self.small_disk[1])], check=False)
            if self._servers is not None:
                stack.callback(self._servers.stop)
                for at in range(self._server_count):
                    stack.callback(self._servers.cont, at)
            for program in [*self.nodes.values(), *(client.process for client in self._all_clients)]:
                stack.callback(program.end, 0.0)
            for client in self._all_clients:
                stack.callback(client.process.release)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what there is

    @property
    def servers(self) -> LocalServers:
        """The servers, once they were started."""
        if self._servers is None:
            raise RuntimeError("the stand was not started")
        return self._servers

    def url(self, user: str = "app") -> str:
        """Of the space, for a user."""
        return self.servers.url(self.space, user)

    def leader(self, shard: int) -> int:
        """The index of the server that leads a shard's stream; some server when none is known."""
        from onefold.log.jetstream.names import LogNames
        from onefold.log.jetstream.streams import stream_state

        assert self.info is not None
        stream = LogNames(self.info.space, self.info.incarnation, shard).stream
        with self._admin() as link:
            try:
                leader = link.run(partial(stream_state, link, stream), _ASK_S).leader
            except OnefoldError:
                leader = None
        names = [server.name for server in self.servers.servers]
        return names.index(leader) if leader in names else 0

    def log(self, line: str) -> None:
        """To stderr, with the time since the stand was made."""
        print(f"{time.monotonic() - self._began:8.2f} {line}", file=sys.stderr, flush=True)

    # -- nodes

    def start_node(self, name: str, *, wait: bool = True) -> None:
        """Start a node, and wait until it is ready."""
        old = self.nodes.get(name)
        if old is not None:
            old.kill(signal.SIGKILL)
        host = self.node_hosts[name]
        address = self.hosts[host].address if self.hosts is not None else "127.0.0.1"
        command = [sys.executable, "-m", "onefold.cli", "node", "--url", self.url("node"), "--name", name]
        command += ["--dir", str(self.directory / name), "--http", f"{address}:{self._node_ports[name]}"]
        output = self.directory / f"{name}.log"
        environment = self._environment(name)
        prefix = self._prefix(host)
        self.nodes[name] = Program(name, [*prefix, *command], output, environment, stdin=False)
        self._note(self.nodes[name])
        if wait:
            self.await_node(name)

    def await_node(self, name: str) -> None:
        """Wait until a node that was started is ready. Raises AssertionError."""
        host = self.node_hosts[name]
        address = self.hosts[host].address if self.hosts is not None else "127.0.0.1"
        url = f"http://{address}:{self._node_ports[name]}/ready"
        self._await(lambda: _answers(url), f"node {name} is not ready", self.nodes[name])

    def _environment(self, name: str | None = None) -> dict[str, str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ONEFOLD_")}
        if self._notebook is not None:
            environment |= self._notebook.environment
        if name is not None:
            self.clock_files[name] = self.directory / f"{name}.clock"
            patch = self.directory / "clock" / "sitecustomize.py"
            patch.parent.mkdir(exist_ok=True)
            patch.write_text(_CLOCK)
            if not self.clock_files[name].exists():
                self.clock_files[name].write_text("0")
            environment["STAND_CLOCK_FILE"] = str(self.clock_files[name])
            environment["PYTHONPATH"] = str(patch.parent)
        return environment

    def _note(self, program: Program) -> None:
        if self._notebook is not None:
            self._notebook.started(program.pid)

    def _prefix(self, host: str) -> list[str]:
        return self.hosts[host].prefix if self.hosts is not None else []

    # -- clients

    def start_client(self, workload: str, **options: Any) -> Client:
        """Start a client of a workload; ``await_clients`` waits until it is connected."""
        index = len(self._all_clients) + 1
        host = options.pop("host", self.client_hosts[index % len(self.client_hosts)])
        told = Instructions(
            url=self.url(),
            workload=workload,
            index=index,
            seed=self.seed,
            history=str(self.directory / f"client{index}.{workload}.history"),
            **options,
        )
        return self._start_client(told, host)

    def _start_client(self, told: Instructions, host: str) -> Client:
        environment = with_tests(self._environment())
        environment["ONEFOLD_CACHE"] = str(self.directory / f"cache-{host}")
        command = [*self._prefix(host), sys.executable, "-m", "kit.cluster.client"]
        output = self.directory / f"client{told.index}.log"
        text = msgspec.json.encode(told).decode()
        client = Client(
            Program(f"client{told.index}", [*command, text], output, environment, stdin=True), told, host
        )
        self.clients.append(client)
        self._all_clients.append(client)
        self._note(client.process)
        return client

    def await_clients(self) -> None:
        """Wait until all clients are connected. Raises AssertionError."""
        for client in self.clients:
            output = client.process.output
            self._await(
                lambda output=output: b"connected" in output.read_bytes(),  # type: ignore[misc]
                "a client is not connected",
                client.process,
            )

    def replace_client(self, client: Client) -> None:
        """Start another one in the place of a client that was killed."""
        client.expected = True
        self.clients.remove(client)
        index = len(self._all_clients) + 1
        history = str(self.directory / f"client{index}.{client.told.workload}.history")
        self._start_client(msgspec.structs.replace(client.told, index=index, history=history), client.host)

    def check_clients(self) -> None:
        """Raises AssertionError when a client has ended that nobody killed."""
        for client in self.clients:
            if client.process.exit_code not in (None, -signal.SIGKILL):
                raise AssertionError(
                    f"{client.process.name} ({client.told.workload}) ended with {client.process.exit_code}:\n"
                    f"{client.process.last_words()}"
                )

    def await_progress(self, timeout: float) -> None:
        """Wait until every client (but those who only read) has written something that it began after this call. Raises
        AssertionError."""
        since = time.monotonic()
        behind = {
            client.told.history: client for client in self.clients if client.told.workload != Reader.name
        }
        while behind:
            self.check_clients()
            behind = {path: client for path, client in behind.items() if not _has_written(Path(path), since)}
            if behind and time.monotonic() - since > timeout:
                late = next(iter(behind.values()))
                raise AssertionError(
                    f"{len(behind)} clients have written nothing for {timeout:g} s after all had healed; "
                    f"{late.process.name} ({late.told.workload}) says:\n{late.process.last_words()}"
                )
            time.sleep(_LOOK_S)

    def stop_clients(self) -> None:
        """Tell all clients to end, and wait for it. Raises AssertionError when one fails."""
        for client in self.clients:
            client.process.release()
        for client in self.clients:
            code = client.process.end(START_S)
            if code != 0:
                raise AssertionError(
                    f"{client.process.name} ({client.told.workload}) ended with {code}:\n{client.process.last_words()}"
                )

    def histories(self, workload: str) -> list[Path]:
        """The files of all clients of a workload, of dead ones too."""
        return [
            path
            for client in self._all_clients
            if client.told.workload == workload and (path := Path(client.told.history)).exists()
        ]

    # -- inside

    def _make_space(self) -> None:
        from onefold.fold import authority
        from onefold.log.jetstream import admin

        with self._admin() as link:
            self.info = admin.make_space(
                link,
                self.space,
                self.shards,
                min(3, self._server_count),
                first=lambda _: authority.first_record(SYSTEM),
            )

    @contextmanager
    def _admin(self) -> Iterator[Link]:
        from onefold.log.jetstream.client.address import parse_address
        from onefold.log.jetstream.client.link import Link

        link = Link(parse_address(self.url("admin")), name="stand")
        try:
            yield link
        finally:
            link.close()

    def _enter_hub(self) -> None:
        """This process (all threads to come) looks into the stand's network: it must reach its hosts."""
        assert self.hosts is not None
        import ctypes

        with open(f"/run/netns/{self.hosts.hub.namespace}", "rb") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0) != 0:
                raise OSError(ctypes.get_errno(), "the hub's namespace cannot be entered")

    def _mount(self, size: int) -> tuple[int, Path] | None:
        """A small disk for the last server, or None; ``no_small_disk`` says why."""
        if shutil.which("mount") is None:
            self.no_small_disk = "the tool `mount` is missing (Debian: mount)"
            return None
        at = self._server_count - 1
        folder = self.directory / "servers" / f"s{at + 1}"
        folder.mkdir(parents=True, exist_ok=True)
        if self._notebook is not None:
            self._notebook.mount(folder)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            self.no_small_disk = f"a small tmpfs cannot be mounted here: {done.stderr.strip()}"
            return None
        return at, folder

    def _await(self, done: Callable[[], bool], problem: str, program: Program) -> None:
        end = time.monotonic() + START_S
        while not done():
            if program.exit_code is not None or time.monotonic() > end:
                raise AssertionError(f"{problem} (exit code {program.exit_code}):\n{program.last_words()}")
            time.sleep(_LOOK_S)


def _has_written(path: Path, since: float) -> bool:
    """Whether a write that began after the moment was acknowledged. Reads the end of the file only."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        lines = file.read().splitlines()
    begun: dict[int, bool] = {}
    for line in lines:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "kind" in event:
            begun[event["id"]] = event["kind"] in _WRITES and event["at"] > since
        elif event["status"] == "ok" and begun.get(event["id"]):
            return True
    return False


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
