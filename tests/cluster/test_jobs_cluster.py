"""Jobs on a real cluster of three servers and node processes, which are killed, stopped, drained, and come while a job runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg, config
from onefold.compute import requirements
from onefold.compute.blobs import BlobStore
from onefold.compute.jobs import ops, state
from onefold.compute.runs import Run
from onefold.compute.submission import decode_inputs
from onefold.node.servers import LocalServers
from onefold.node.setup import set_up_space

HERE = Path(__file__).parent
PATIENCE_S = 120.0
# Without backups of slow tasks: what runs twice has another reason then.
SMALL = {"BACKUP_FACTOR": 1e9, "LEASE_S": 4.0, "NODE_BEAT_S": 0.5, "NODE_RETRY_S": 0.3, "RUN_STALLED_S": 3.0}
FILES, LINES = 12, 40
_numbers = count()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    found = LocalServers.start(tmp_path_factory.mktemp("servers"), 3)
    yield found
    found.stop(delete=True)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(config, name, value)
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ONEFOLD_PROGRESS", "no")


class Node:
    """A node in a process of its own."""

    def __init__(self, stand: Stand, name: str, workers: int, *options: str, old: str | None = None) -> None:
        self.name = name
        self.directory = stand.folder / name
        self.output = stand.folder / f"{name}.log"
        script = ["small_node.py"] if old is None else ["old_node.py", old]
        command = [sys.executable, str(HERE / script[0]), *script[1:]]
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
        lines = [json.loads(line) for line in self.output.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

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
        with engine.space.view() as view:
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
        noted = {line for path in self.seen.iterdir() for line in path.read_text().splitlines()}
        return ends <= noted and all(
            sum(len(files) for member, files in held.items() if member in node.members) == each
            for node in nodes
        )

    def repeated(self) -> set[str]:
        """Files of which a record was seen more than once."""
        times = Counter(
            line for path in self.seen.iterdir() for line in path.read_text().splitlines() if line
        )
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


@pytest.fixture
def stand(servers: LocalServers, tmp_path: Path) -> Iterator[Stand]:
    made = Stand(servers, tmp_path)
    yield made
    made.close()


def test_a_job_is_done_by_nodes_alone(stand: Stand) -> None:
    stand.gate.touch()
    one, two = stand.start("n1"), stand.start("n2")
    run = stand.submit(pause_s=0.01)
    stand.finish(run)
    assert not stand.repeated() and run.progress().failed == 0 and run.progress().retried == 0
    stand.until(lambda: one.events("run_left") and two.events("run_left"), "the nodes' leaving")
    assert len(list(stand.seen.iterdir())) == 2  # a worker process at each, and none here
    assert run.worker_pids == []


def test_a_killed_node_costs_what_it_had_in_hand(stand: Stand) -> None:
    one, two = stand.start("n1", 2), stand.start("n2", 2)
    run = stand.submit()
    stand.until(lambda: stand.hung(run, one, two, each=2), "tasks at both nodes")
    one.end(signal.SIGKILL)
    (lost,) = [files for member, files in stand.held(run).items() if member not in two.members]
    assert len(lost) == 2
    stand.gate.touch()
    stand.finish(run)
    assert stand.repeated() == lost  # just these were run again
    assert run.progress().failed == 0  # no attempt failed: it is nobody's fault


def test_a_stopped_node_is_no_witness_and_no_judge(stand: Stand) -> None:
    one, two = stand.start("n1", 1), stand.start("n2", 1)
    run = stand.submit()
    stand.until(lambda: stand.hung(run, one, two, each=1), "tasks at both nodes")
    held = stand.held(run)
    one.process.send_signal(signal.SIGSTOP)
    (lost,) = [files for member, files in held.items() if member not in two.members]
    stand.gate.touch()
    stand.finish(run)
    repeated = stand.repeated()
    assert repeated == lost
    one.process.send_signal(signal.SIGCONT)  # a zombie: its late result changes nothing
    stand.until(lambda: one.events("run_left"), "that it has heard")
    stand.right("t")
    assert run.progress().done == FILES and run.progress().failed == 0
    again = stand.submit("t2")  # and it works on
    stand.finish(again)
    stand.until(
        lambda: [e for e in one.events("run_joined") if e["run"] == again.id], "work of the woken node"
    )


def test_a_node_that_was_stopped_ends_no_claim_of_others(stand: Stand) -> None:
    one, two = stand.start("n1", 1), stand.start("n2", 1)
    run = stand.submit()
    stand.until(lambda: stand.hung(run, one, two, each=1), "tasks at both nodes")
    two_holds = next(files for member, files in stand.held(run).items() if member in two.members)
    one.process.send_signal(signal.SIGSTOP)
    stand.until(lambda: stand.busy(run, one) == 0, "the end of its lease")
    one.process.send_signal(signal.SIGCONT)
    time.sleep(1.5 * SMALL["LEASE_S"])  # long enough for a false verdict
    assert next(files for member, files in stand.held(run).items() if member in two.members) == two_holds
    stand.gate.touch()
    stand.finish(run)


def test_a_node_joins_a_running_job(stand: Stand) -> None:
    one = stand.start("n1", 1)
    run = stand.submit()
    stand.until(lambda: stand.busy(run, one) == 1, "a task at the first node")
    two = stand.start("n2", 3)
    stand.until(lambda: stand.busy(run, two) == 3, "tasks at the second")
    stand.gate.touch()
    stand.finish(run)
    assert not stand.repeated()


def test_a_drained_node_finishes_what_it_has_and_nothing_runs_twice(stand: Stand) -> None:
    one, two = stand.start("n1", 2), stand.start("n2", 1)
    run = stand.submit()
    stand.until(lambda: stand.busy(run, one) == 2 and stand.busy(run, two) == 1, "tasks at both nodes")
    one.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert one.process.poll() is None and stand.busy(run, one) == 2
    stand.gate.touch()
    assert one.process.wait(PATIENCE_S) == 0
    stand.finish(run)
    assert not stand.repeated() and run.progress().failed == 0


def test_a_server_that_dies_stops_no_job(stand: Stand, servers: LocalServers) -> None:
    stand.gate.touch()
    stand.start("n1", 1), stand.start("n2", 1)
    run = stand.submit(pause_s=0.05)
    stand.until(lambda: run.progress().done >= 2, "a beginning")
    servers.kill(0)
    try:
        stand.finish(run)
        assert run.progress().failed == 0
    finally:
        servers.restart(0)


def test_the_program_works_too_and_may_go(stand: Stand) -> None:
    one = stand.start("n1", 1)
    other = of.connect(stand.url("app"))
    run = stand.job("t", db=other).start(workers=1, target_splits=FILES)
    mine = stand.db.open_run(run.id)
    stand.until(
        lambda: stand.busy(mine, one) == 1 and len(stand.held(mine)) == 2, "tasks at node and program"
    )
    other.close()  # gives its claim back
    stand.until(lambda: len(stand.held(mine)) == 1, "the program's going")
    stand.gate.touch()
    stand.finish(mine)


# -- what nodes do not do


def test_a_node_with_other_versions_leaves_the_run_to_others(stand: Stand) -> None:
    stand.gate.touch()
    old = stand.start("old", 1, old="1.99.0")
    run = stand.submit()
    (refusal,) = stand.until(run.refusals, "a refusal")
    assert refusal.node == "old" and f"polars {pl.__version__} (here 1.99.0)" in refusal.reason
    with pytest.raises(
        of.Unavailable, match=r"nobody has worked on run .*\nold: the job was submitted with polars"
    ):
        run.wait(PATIENCE_S)
    assert run.state == "running"
    listed = stand_cli(stand, "runs", "--json")
    assert json.loads(listed.stdout)[0]["refusals"][0]["node"] == "old"
    assert "node old leaves run" in stand_cli(stand, "runs").stderr
    stand.start("n1", 1)
    stand.finish(run)
    assert [event["run"] for event in old.events("run_refused")] == [run.id]


def test_a_node_that_takes_no_code(stand: Stand) -> None:
    stand.gate.touch()
    stand.start("careful", 1, "--code", "reference")
    refused = stand.submit("mine")
    (refusal,) = stand.until(refused.refusals, "a refusal")
    assert "code of its own" in refusal.reason
    refused.cancel()
    rows = stand.db.read_text(str(stand.source / "*.txt"))
    counted = rows.group_by(file=pl.col("line").str.split(" ").list.first()).agg(n=agg.count()).into("t")
    run = counted.start(workers=0, target_splits=FILES)
    stand.finish(run)
    assert list(stand.seen.iterdir()) == []


def test_requirements_are_those_of_the_submitting_side(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.gate.touch()
    stand.start("n1", 1)
    with monkeypatch.context() as newer:
        newer.setattr(requirements, "of_job", lambda job: requirements.Requirements("4.0.1", ()))
        run = stand.submit()
    (refusal,) = stand.until(run.refusals, "a refusal")
    assert "Python 4.0.1 (here 3." in refusal.reason
    run.resume(workers=1)  # this process has submitted it, and does it
    stand.finish(run)


# -- blobs


@pytest.mark.parametrize("place", ["jetstream", "dir"])
def test_shuffled_data_is_reachable_from_everywhere(
    servers: LocalServers, tmp_path: Path, place: str
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    stand = Stand(servers, tmp_path, blobs=place if place == "jetstream" else f"dir:{shared}")
    try:
        one, two = stand.start("n1", 1), stand.start("n2", 1)
        run = stand.db.map_reduce(
            stand.db.read_text(str(stand.source / "*.txt")),
            map=lambda record: [(record["line"].split()[0], "x" * 1000)],
            reduce=lambda key, values: len(list(values)),
            into="t",
            workers=0,
        )
        stand.finish(run)
        members = [one.members, two.members]
        assert all(members)
        assert bool(list(BlobStore(shared).names())) == (place == "dir")
        # A program without any copy of its own reads it from where it is kept.
        for path in (tmp_path / "cache").glob("*/blobs/??/*"):
            path.unlink()
        stand.right("t")
    finally:
        stand.close()


def test_a_program_without_a_replica(stand: Stand) -> None:
    stand.gate.touch()
    stand.start("n1", 1)
    with of.connect(stand.url("app"), replicas="remote") as db:
        run = stand.job("t", db=db).start(workers=0, target_splits=FILES)
        run.wait(PATIENCE_S)
        stand.right("t", db)
        assert [table.name for table in db.tables()] == ["t"] and db.runs()[0].id == run.id


def test_lost_blobs_are_made_again(stand: Stand) -> None:
    stand.gate.touch()
    one = stand.start("n1", 1)
    engine = stand.db._engine
    big = (
        stand.db.read_text(str(stand.source / "*.txt"))
        .map(
            lambda record: {
                "key": "".join(sha256(f"{record['line']}{i}".encode()).hexdigest() for i in range(40))
            }
        )
        .group_by("key")
        .agg(n=agg.count())
        .into("big")
    )
    big.start(workers=0, target_splits=2).wait(PATIENCE_S)
    before = stand.db.table("big").to_polars().sort("key")
    engine.catch_up()
    with engine.space.view() as view:
        row = state.read_table(view, "big")
        assert row is not None
        blobs = [one.result.blob for one in state.results(view, row.head, 0).values()]
    assert all(blobs)
    one.end(signal.SIGKILL)
    with of.connect(stand.url("node")) as nodes:  # whose credential may delete
        nodes._engine.blobs.delete(str(blobs[0]))
    for path in one.directory.glob("blobs/??/*"):
        path.unlink()
    stand.start("n2", 1)
    again = big.start(workers=0, target_splits=2)
    again.wait(PATIENCE_S)
    assert (again.progress().total, again.progress().reused) == (2, 1)
    assert stand.db.table("big").to_polars().sort("key").equals(before)


# -- the command line


PROGRAM = """
import os, sys, time
import onefold as of
from onefold import agg

source, gate = sys.argv[1:]

def slow(record):
    while not os.path.exists(gate):
        time.sleep(0.02)
    return {"file": record["line"].split()[0]}

with of.connect() as db:
    db.read_text(source).map(slow).group_by("file").agg(n=agg.count()).into("t").run(target_splits=12)
    print("rows", db.table("t").to_polars().height)
"""


def stand_cli(stand: Stand, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [sys.executable, "-m", "onefold.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, "ONEFOLD_URL": stand.url("app")},
    )
    assert not check or ended.returncode == 0, ended.stderr
    return ended


def test_a_run_is_left_to_nodes_and_come_back_to(stand: Stand, tmp_path: Path) -> None:
    program = tmp_path / "job.py"
    program.write_text(PROGRAM)
    arguments = [str(program), str(stand.source / "*.txt"), str(stand.gate)]
    one = stand.start("n1", 2)
    ended = stand_cli(stand, "run", "--detach", *arguments)
    assert "rows" not in ended.stdout  # it ended where it would have waited
    (run,) = stand.db.runs()
    assert run.state == "running" and f"onefold run --attach {run.id}" in ended.stderr
    stand.until(lambda: stand.busy(run, one) == 2, "work of the node")
    # Looking, and leaving again.
    command = [sys.executable, "-m", "onefold.cli", "run", "--attach", run.id]
    environment = {**os.environ, "ONEFOLD_URL": stand.url("app"), "ONEFOLD_PROGRESS": "yes"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as attached:
        assert attached.stderr is not None
        first = attached.stderr.readline()
        assert "0/12 tasks" in first
        attached.send_signal(signal.SIGINT)
        rest = attached.stderr.read()
        assert attached.wait(30) == 130 and "goes on" in rest
    assert run.state == "running"
    # The same program again, without --detach: it joins its own run, and helps.
    environment = {**os.environ, "ONEFOLD_URL": stand.url("app")}
    command = [sys.executable, "-m", "onefold.cli", "run", "--workers", "1", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as again:
        stand.until(lambda: len(stand.held(run)) == 2, "help of the program")
        stand.gate.touch()
        assert again.communicate(timeout=PATIENCE_S)[0] == "rows 12\n"
        assert again.returncode == 0
    assert len(stand.db.runs()) == 1
    stand.finish(run)
    attached_json = json.loads(stand_cli(stand, "run", "--attach", run.id, "--json").stdout)
    assert attached_json["exit_code"] == 0 and attached_json["runs"][0]["state"] == "done"
    assert "t" in stand_cli(stand, "tables").stdout and "12/12" in stand_cli(stand, "runs").stdout
    # Detached again: all is done, so the program goes through.
    assert stand_cli(stand, "run", "--detach", *arguments).stdout == "rows 12\n"


def test_following_a_run_that_fails(stand: Stand) -> None:
    stand.start("n1", 1)
    failing = stand.db.read_text(str(stand.source / "*.txt")).map(lambda record: {"x": 1 // 0}).into("bad")
    run = failing.start(workers=0, max_attempts=1)
    ended = stand_cli(stand, "run", "--attach", run.id, check=False)
    assert ended.returncode == 1 and "ZeroDivisionError" in ended.stderr


def test_a_refusal_of_a_gone_node_is_taken_back_when_the_run_is_resumed(stand: Stand) -> None:
    run = stand.submit()
    stand.db._engine.submit(ops.Unfit(run.id, "gone", "polars 1"))
    assert [one.node for one in run.refusals()] == ["gone"]
    run.cancel()
    run.resume(workers=0)
    assert run.refusals() == []
    run.cancel()
