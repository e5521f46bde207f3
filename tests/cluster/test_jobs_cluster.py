"""Jobs on a real cluster of three servers and node processes, which are killed, stopped, drained, and come while a job runs."""

from __future__ import annotations

import signal
import time
from hashlib import sha256
from pathlib import Path

import pytest

import onefold as of
from onefold import agg
from onefold.cluster.servers import LocalServers
from onefold.compute.blobs.store import BlobStore
from onefold.compute.jobs import state
from support.job_stand import (
    FILES,
    PATIENCE_S,
    SHORT_LEASE_S,
    Stand,
    job_stand,  # noqa: F401
    short_leases,  # noqa: F401
    small,  # noqa: F401
)
from support.three_servers import three_servers  # noqa: F401


def test_a_job_is_done_by_nodes_alone(stand: Stand) -> None:
    stand.gate.touch()
    one, two = stand.start("n1"), stand.start("n2")
    run = stand.submit(pause_s=0.01)
    stand.finish(run)
    assert not stand.repeated() and run.progress().failed == 0 and run.progress().retried == 0
    stand.until(lambda: one.events("run_left") and two.events("run_left"), "the nodes' leaving")
    assert len(list(stand.seen.iterdir())) == 2  # a worker process at each, and none here
    assert run.worker_pids == []


@pytest.mark.usefixtures("short_leases")
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


@pytest.mark.usefixtures("short_leases")
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


@pytest.mark.usefixtures("short_leases")
def test_a_node_that_was_stopped_ends_no_claim_of_others(stand: Stand) -> None:
    one, two = stand.start("n1", 1), stand.start("n2", 1)
    run = stand.submit()
    stand.until(lambda: stand.hung(run, one, two, each=1), "tasks at both nodes")
    two_holds = next(files for member, files in stand.held(run).items() if member in two.members)
    one.process.send_signal(signal.SIGSTOP)
    stand.until(lambda: stand.busy(run, one) == 0, "the end of its lease")
    one.process.send_signal(signal.SIGCONT)
    time.sleep(1.5 * SHORT_LEASE_S)  # long enough for a false verdict
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


# -- blobs


@pytest.mark.moving(2)
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
        of_the_space = [name for folder in shared.iterdir() for name in BlobStore(folder).names()]
        assert bool(of_the_space) == (place == "dir")
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
    with engine.shard.view() as view:
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
