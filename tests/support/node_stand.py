"""A space on a real cluster, its nodes as processes, and a test's own view of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from onefold import config
from onefold.cluster.restore_cluster import restore_space
from onefold.cluster.servers import LocalServers
from onefold.cluster.setup import set_up_space
from onefold.compute.blobs.places import fetch_base
from onefold.db import Database
from onefold.env import SYSTEM
from onefold.errors import OnefoldError, Unavailable
from onefold.fold import system
from onefold.fold.nodes import state
from onefold.fold.nodes.state import Node
from onefold.folds import folds as space_folds
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.engine import JetStreamLog
from onefold.log.jetstream.names import LogNames
from onefold.node.hosting import placement_of
from onefold.shard.memory import MemoryShard
from onefold.shard.remote import protocol
from support.times import scaled
from support.whole_lines import json_lines

SMALL_NODE = Path(__file__).parents[1] / "cluster" / "small_node.py"
SMALL = {
    "NODE_BEAT_S": scaled(0.3),
    "NODE_LEASE_S": scaled(2.5),
    "NODE_LOOK_S": scaled(0.05),
    "SNAPSHOT_EVERY_OFFSETS": 128,
    "DIGEST_EVERY_OFFSETS": 32,
    "UPKEEP_LOOK_S": scaled(0.3),
}
EVERY = int(SMALL["SNAPSHOT_EVERY_OFFSETS"])
SHARDS = 4
PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():  # what this process folds is what the nodes fold
        monkeypatch.setattr(config, name, value)


class Process:
    """A node in a process of its own."""

    def __init__(self, stand: Stand, name: str, *options: str) -> None:
        self.name = name
        self.directory = stand.directory / name
        self.output = stand.directory / f"{name}.log"
        limits = [f"{key}={value!r}" for key, value in SMALL.items()]
        command = [sys.executable, str(SMALL_NODE), *limits, "--", "node"]
        command += [
            "--url",
            stand.url("node"),
            "--name",
            name,
            "--dir",
            str(self.directory),
            "--workers",
            "0",
        ]
        command += ["--snapshots", str(stand.directory / "vault"), *options]
        environment = {key: text for key, text in os.environ.items() if not key.startswith("ONEFOLD_")}
        self._skip = self.output.stat().st_size if self.output.exists() else 0
        self.began_s = time.monotonic()
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(command, stderr=output, stdout=output, env=environment)

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """What this process has said."""
        lines = json_lines(self.output, self._skip)
        return [line for line in lines if event is None or line["event"] == event]

    def get(self, path: str) -> tuple[int, str]:
        started = self.events("started")
        if not started:
            return 0, ""
        try:
            with urllib.request.urlopen(f"http://{started[0]['http']}{path}", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except (OSError, HTTPException):
            return 0, ""

    @property
    def ready(self) -> bool:
        return self.get("/ready")[0] == 200

    def metrics(self) -> dict[str, float]:
        """Asked for until it answers: a busy machine may take longer than a question waits."""
        deadline = time.monotonic() + PATIENCE_S
        while (answer := self.get("/metrics"))[0] != 200:
            assert time.monotonic() < deadline, f"{self.name} says no metrics: {answer}"
            time.sleep(0.05)
        lines = [line for line in answer[1].splitlines() if line and line[0] != "#"]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def kill(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it; what it ended with."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


class Stand:
    """A space on the servers, its nodes, and this test's own view of it."""

    def __init__(
        self, servers: LocalServers, directory: Path, space: str, source: Path | None = None
    ) -> None:
        """``source``: a backup that the space is made from."""
        self.directory = directory
        self._servers = servers
        self._shard = space
        self.nodes: dict[str, Process] = {}
        if source is None:
            self.info = set_up_space(self.url("admin"), shards=SHARDS)
        else:
            self.info, _ = restore_space(source, self.url("admin"))
        self.link = Link(parse_address(self.url("app")))
        self.shards = [
            MemoryShard(
                JetStreamLog(self.link, self.info, shard),
                space_folds(shard, SHARDS),
                SYSTEM,
                replica=True,
                snapshot=self._base(shard),
            )
            for shard in range(SHARDS)
        ]
        self.db = Database(self.shards)

    def _base(self, shard: int) -> Path | None:
        path = self.directory / f"base-{shard}"
        return path if fetch_base(self.link, self.info, shard, path) else None

    def url(self, user: str) -> str:
        return self._servers.url(self._shard, user)

    def start(self, *names: str, options: tuple[str, ...] = (), wait: bool = True) -> None:
        for name in names:
            self.nodes[name] = Process(self, name, *options)
        if wait:
            self.wait(lambda: all(self.nodes[name].ready for name in names), "it is not ready")

    def close(self) -> None:
        for node in self.nodes.values():
            with suppress(subprocess.TimeoutExpired):
                node.end(signal.SIGKILL)
        for space in self.shards:
            space.close()
        self.link.close()

    # -- what there is

    def rows(self) -> dict[str, Node]:
        self.shards[0].barrier(PATIENCE_S)
        with self.shards[0].view() as view:
            return {node.name: node for node in state.read_nodes(view)}

    def states(self) -> dict[str, str]:
        return {name: node.state.state for name, node in self.rows().items()}

    def hosts(self) -> dict[int, set[str]]:
        found: dict[int, set[str]] = {shard: set() for shard in range(SHARDS)}
        for name, node in self.rows().items():
            for shard in node.shards:
                found[shard].add(name)
        return found

    def settled(self, *names: str) -> bool:
        """Whether just these are members, and each answers for exactly what is placed there."""
        rows = self.rows()
        if {name for name, node in rows.items() if node.member} != set(names):
            return False
        placement = placement_of(SHARDS, rows.values())
        return self.hosts() == {
            shard: set(hosts) if shard else set(names) for shard, hosts in placement.items()
        }

    def wait(self, what: Callable[[], Any], problem: str, seconds: float = PATIENCE_S) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := what()):
            for node in self.nodes.values():
                code = node.process.poll()
                assert code in (None, 0, -signal.SIGKILL), (
                    f"{node.name} ended: {node.output.read_text()[-3000:]}"
                )
            assert time.monotonic() < deadline, f"{problem}:\n{self._said()}"
            time.sleep(0.05)
        return found

    def _said(self) -> str:
        return "\n".join(f"{n.name}: {n.get('/ready')} {n.events()[-5:]}" for n in self.nodes.values())

    # -- what is done

    def ask(
        self, shard: int, what: protocol.What, timeout: float = 0.5
    ) -> protocol.Answer | protocol.Refusal:
        """One question to whichever node takes it."""
        names = LogNames(self.info.space, self.info.incarnation, shard)
        ask = protocol.Ask(protocol.PROTOCOL, self.info.incarnation, what)
        msg = self.link.request(names.ask, protocol.encode(ask), timeout=timeout)
        return protocol.decode_reply(msg.data)

    def first_answer(self, shard: int) -> protocol.Answer | protocol.Refusal:
        """What the first node that is found says.

        A server learns from the others, a moment later, who listens there: until then nobody is found, whoever is ready.
        """
        found: list[protocol.Answer | protocol.Refusal] = []

        def asks() -> bool:
            with suppress(Unavailable):
                found.append(self.ask(shard, protocol.Applied(), PATIENCE_S))
            return bool(found)

        self.wait(asks, f"nobody answers for shard {shard}")
        return found[0]

    def ticks(self, shard: int, upto: int) -> None:
        """Append until the shard's log has reached an offset."""
        space = self.shards[shard]
        while space.applied < upto:
            space.submit([system.system_op(system.Tick())])

    @contextmanager
    def asking(self) -> Iterator[list[float]]:
        """Asks all shards all the time, as a client that hedges; yields the longest time without an answer, by shard."""
        longest = [0.0] * SHARDS
        done = threading.Event()

        def run(shard: int) -> None:
            since_s = time.monotonic()
            while not done.is_set():
                try:
                    answered = isinstance(self.ask(shard, protocol.Applied(), 0.3), protocol.Answer)
                except OnefoldError:
                    answered = False
                now_s = time.monotonic()
                if answered:
                    longest[shard] = max(longest[shard], now_s - since_s)
                    since_s = now_s
                done.wait(0.01)
            longest[shard] = max(longest[shard], time.monotonic() - since_s)

        threads = [threading.Thread(target=run, args=(shard,)) for shard in range(SHARDS)]
        for thread in threads:
            thread.start()
        try:
            yield longest
        finally:
            done.set()
            for thread in threads:
                thread.join()


@pytest.fixture(name="stand")
def node_stand(servers: LocalServers, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stand]:
    made = Stand(servers, tmp_path, f"t{os.getpid()}_{abs(hash(request.node.name)) % 10**8}")
    yield made
    made.close()


def hashes(stand: Stand, shard: int, offset: int) -> dict[str, str]:
    stand.shards[0].barrier(PATIENCE_S)
    with stand.shards[0].view() as view:
        return state.hashes(view).get((shard, offset), {})
