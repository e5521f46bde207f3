"""A space on a real cluster with node processes, and a job whose tasks wait for a gate and note what ran."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import agg, config
from onefold.cluster.servers import LocalServers
from onefold.cluster.setup import set_up_space
from onefold.compute.jobs import state
from onefold.compute.runs import Run
from onefold.compute.submission.submit import decode_inputs
from support.times import scaled
from support.whole_lines import json_lines, whole_lines

SCRIPTS = Path(__file__).parents[1] / "cluster"
PATIENCE_S = 120.0
# Without backups of slow tasks: what runs twice has another reason then. Nobody is taken for dead because the machine is busy.
SMALL = {
    "BACKUP_FACTOR": 1e9,
    "LEASE_S": scaled(60.0),
    "NODE_BEAT_S": scaled(0.5),
    "NODE_RETRY_S": scaled(0.3),
    "RUN_STALLED_S": 120.0,
}
SHORT_LEASE_S = scaled(5.0)
FILES, LINES = 12, 40
_numbers = count()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(config, name, value)
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ONEFOLD_PROGRESS", "no")


@pytest.fixture
def short_leases(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claims of who is silent end soon: for tests in which somebody is killed or stopped."""
    monkeypatch.setitem(SMALL, "LEASE_S", SHORT_LEASE_S)
    monkeypatch.setattr(config, "LEASE_S", SHORT_LEASE_S)


class Node:
    """A node in a process of its own."""

    def __init__(self, stand: Stand, name: str, workers: int, *options: str, old: str | None = None) -> None:
        self.name = name
        self.directory = stand.folder / name
        self.output = stand.folder / f"{name}.log"
        script = ["small_node.py"] if old is None else ["old_node.py", old]
        command = [sys.executable, str(SCRIPTS / script[0]), *script[1:]]
        command += [
            *(f"{key}={value!r}" for key, value in SMALL.items()),
            "--",
            "node",
            "--url",
            stand.url("node"),
        ]
        command += ["--name", name, "--dir", str(self.directory), "--workers", str(workers), *options]
        environment = {key: text for key, text in os.environ.items() if not key.startswith("ONEFOLD_")}
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(command, stderr=output, stdout=output, env=environment)

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in json_lines(self.output) if line["event"] == event]

    @property
    def members(self) -> set[str]:
        """Under which names it claims."""
        return {path.name for path in self.directory.glob("**/members/m_*")}

    def end(self, number: int = signal.SIGTERM) -> int:
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
    """A space of its own on the servers, its nodes, and a program that submits."""

    def __init__(self, servers: LocalServers, folder: Path, **space: Any) -> None:
        self.folder = folder
        self._servers = servers
        self.space = f"jobs{next(_numbers)}"
        self.info = set_up_space(self.url("admin"), **space)
        self.nodes: dict[str, Node] = {}
        self.db = of.connect(self.url("app"))
        self.seen = folder / "seen"
        self.seen.mkdir()
        self.gate = folder / "gate"
        self.source = folder / "in"
        self.source.mkdir()
        for number in range(FILES):
            (self.source / f"{number}.txt").write_text("".join(f"{number} {i}\n" for i in range(LINES)))

    def url(self, user: str) -> str:
        return self._servers.url(self.space, user)

    def start(self, name: str, workers: int = 1, *options: str, **more: Any) -> Node:
        self.nodes[name] = Node(self, name, workers, *options, **more)
        return self.nodes[name]

    def close(self) -> None:
        for node in self.nodes.values():
            with suppress(subprocess.TimeoutExpired):
                node.end(signal.SIGKILL)
        self.db.close()

    def until(self, holds: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := holds()):
            dead = [node.name for node in self.nodes.values() if node.process.poll() not in (None, 0, -9)]
            assert not dead, f"{dead} ended:\n{self._said()}"
            assert time.monotonic() < deadline, f"{what} did not come about:\n{self._said()}"
            time.sleep(0.05)
        return found

    def _said(self) -> str:
        return "\n".join(f"{node.name}: {node.output.read_text()[-1500:]}" for node in self.nodes.values())

    # -- the job

    def job(self, table: str = "t", pause_s: float = 0.0, db: of.Database | None = None) -> Any:
        """Counts records by file; notes each record that a function sees. While the gate is shut, its tasks do not end."""
        seen, gate = str(self.seen), str(self.gate)

        def note(record: dict[str, Any]) -> dict[str, Any]:
            with open(f"{seen}/{os.getpid()}", "a") as file:
                file.write(record["line"] + "\n")
            time.sleep(pause_s)
            while record["line"].endswith(f" {LINES - 1}") and not Path(gate).exists():
                time.sleep(0.02)
            return {"file": record["line"].split()[0]}

        rows = (db or self.db).read_text(str(self.source / "*.txt")).map(note)
        return rows.group_by("file").agg(n=agg.count()).into(table)

    def submit(self, table: str = "t", workers: int = 0, pause_s: float = 0.0) -> Run:
        run: Run = self.job(table, pause_s).start(workers=workers, target_splits=FILES)
        assert run.progress().total == FILES
        return run

    def held(self, run: Run) -> dict[str, set[str]]:
        """By member: the files whose tasks it has in hand."""
        engine = self.db._engine
        engine.catch_up()
        with engine.shard.view() as view:
            row = state.read_run(view, run.id)
            claims = state.claims(view, run.id)
        assert row is not None
        inputs = decode_inputs(engine.blobs.get(row.stages[0].inputs))
        found: dict[str, set[str]] = {}
        for claim in claims:
            (unit,) = inputs[claim.index].units
            found.setdefault(claim.member, set()).add(Path(unit.path).stem)
        return found

    def busy(self, run: Run, node: Node) -> int:
        return sum(len(files) for member, files in self.held(run).items() if member in node.members)

    def hung(self, run: Run, *nodes: Node, each: int) -> bool:
        """Whether each of the nodes has so many tasks in hand, and all of these wait for the gate."""
        held = self.held(run)
        ends = {f"{file} {LINES - 1}" for files in held.values() for file in files}
        noted = {line for path in self.seen.iterdir() for line in whole_lines(path)}
        return ends <= noted and all(
            sum(len(files) for member, files in held.items() if member in node.members) == each
            for node in nodes
        )

    def repeated(self) -> set[str]:
        """Files of which a record was seen more than once."""
        times = Counter(line for path in self.seen.iterdir() for line in whole_lines(path) if line)
        assert len(times) == FILES * LINES
        return {line.split()[0] for line, often in times.items() if often > 1}

    def finish(self, run: Run) -> None:
        """Wait until the run is done, with the one right result."""
        self.until(lambda: run.state != "running", "the run's end")
        run.raise_if_failed()
        self.right(run.table_name)

    def right(self, table: str, db: of.Database | None = None) -> None:
        frame = (db or self.db).table(table).to_polars()
        assert dict(frame.iter_rows()) == {str(number): LINES for number in range(FILES)}


@pytest.fixture(name="stand")
def job_stand(servers: LocalServers, tmp_path: Path) -> Iterator[Stand]:
    made = Stand(servers, tmp_path)
    yield made
    made.close()
