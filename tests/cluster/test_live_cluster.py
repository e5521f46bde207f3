"""Live jobs on a real cluster of three servers: nodes work on them, one is killed, and programs read the table."""

from __future__ import annotations

import signal
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import agg
from onefold.cluster.server_plan import free_ports
from onefold.cluster.servers import LocalServers
from onefold.state.fold.live import rows as live_rows
from support.command_line import ask, document
from support.job_stand import (
    Node,
    Stand,
    job_stand,  # noqa: F401
    short_leases,  # noqa: F401
    small,  # noqa: F401
)
from support.three_servers import three_servers  # noqa: F401

START = datetime(2026, 1, 1, tzinfo=UTC)


def events(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"at": START + timedelta(seconds=number), "page": "abc"[number % 3], "v": number}
        for number in range(first, first + count)
    ]


def check_metrics(stand: Stand, http: str) -> None:
    """The node reports the job as ``status`` does."""
    wanted = {
        "running": 1, "readable": 1, "lag_records": 0, "lag_seconds": 0, "watermark_seconds": START.timestamp() + 299,
        "events_total": 300, "late_total": 0, "dead_total": 0, "ahead_total": 0, "workers": 2, "held": 0,
    }  # fmt: skip
    names = {f'onefold_live_{name}{{job="t"}}': value for name, value in wanted.items()}

    def found() -> dict[str, float]:
        with urllib.request.urlopen(f"http://{http}/metrics", timeout=30) as answer:
            lines = [line for line in answer.read().decode().splitlines() if line.startswith("onefold_live_")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    stand.until(lambda: names.items() <= found().items(), f"metrics: {found()}")
    assert found()['onefold_live_commits_total{job="t"}'] > 0
    assert found()['onefold_live_state_bytes{job="t"}'] > 0


PROGRAM = """
import onefold as of
from onefold import agg

rows = of.connect().read_stream("clicks", follow=True)
rows.group_by("page").agg(n=agg.count()).into("left").start().wait()
"""


def check_commands(stand: Stand, node: Node) -> None:
    """The command line, which has no replica: it reads how a job stands, and leaves another one to the nodes and ends that."""
    url, program = stand.url("app"), stand.folder / "job.py"
    (shown,) = document(ask("live", "--json", url=url))
    assert (shown["id"], shown["status"]["workers"], shown["status"]["rows"]) == ("t/1", 2, 300)
    program.write_text(PROGRAM)
    left = ask("run", program, "--detach", url=url)
    assert left.returncode == 0 and "onefold run --attach left/1" in left.stderr, left.stderr
    stand.until(
        lambda: standing(url, "left")["status"]["rows"] == 300, "the nodes' work on what was left to them"
    )
    assert {one["job"] for one in node.events("live_job_joined")} == {"t/1", "left/1"}
    assert document(ask("stop", "left", "--json", url=url))["state"] == "stopped"
    assert document(ask("drop", "live", "left", "--json", url=url))["dropped"]


def standing(url: str, job: str) -> dict[str, Any]:
    (found,) = document(ask("live", job, "--json", url=url))
    return dict(found)


def per_minute(db: of.Database) -> Any:
    rows = db.read_stream("clicks", follow=True, event_time="at", idle=None, max_ahead=None)
    return rows.window(of.window.tumbling("1m")).group_by("page").agg(n=agg.count(), total=agg.sum("v"))


@pytest.mark.usefixtures("short_leases")
def test_nodes_work_on_a_live_job_and_take_over_from_one_that_is_killed(stand: Stand) -> None:
    http = f"127.0.0.1:{free_ports(1)[0]}"
    one, two = stand.start("n1"), stand.start("n2", 1, "--http", http)
    stream = stand.db.stream("clicks")
    stream.append_many(events(0, 300))
    run = per_minute(stand.db).into("t").start(workers=0)
    run.catch_up(timeout=60)
    stand.until(lambda: one.events("live_job_joined") and two.events("live_job_joined"), "both nodes")
    stand.until(lambda: run.status().workers == 2, "both nodes' workers")
    check_metrics(stand, http)
    check_commands(stand, two)
    killed, two = (one, two) if member(run) in one.members else (two, one)
    killed.end(signal.SIGKILL)
    stream.append_many(events(300, 300))
    run.catch_up(timeout=60)
    stand.until(lambda: run.status().workers == 1, "the end of the dead one's lease")
    assert member(run) in two.members
    stream.append_many(events(600, 120))
    run.stop(drain=True, timeout=60)
    table = stand.db.table("t").to_polars()
    assert (table["n"].sum(), table["total"].sum()) == (720, sum(range(720)))
    assert table.height == 36
    stand.until(lambda: two.events("live_job_left"), "the node's leaving")
    rows = stand.db.read_stream("clicks", event_time="at").map(lambda row: {**row, "v": row["v"] + 1})
    over = rows.group_by("page").agg(n=agg.count(), total=agg.sum("v")).into("over").start(workers=0)
    found = over.wait(timeout=60).result().to_polars()  # by the node, whose worker process has no state
    assert (found["n"].sum(), found["total"].sum()) == (720, sum(range(720)) + 720)
    assert two.end() == 0


def test_nodes_that_host_some_shards_work_on_jobs_over_all(servers: LocalServers, tmp_path: Path) -> None:
    """The job's rows, its input and its map are in shards that no node hosts all of."""
    stand = Stand(servers, tmp_path, shards=4)
    try:
        nodes = [stand.start(f"n{number}") for number in range(3)]
        stream = stand.db.stream("clicks", partitions=4)
        for number, event in enumerate(events(0, 200)):
            stream.append(event, key=number)
        rows = stand.db.read_stream("clicks", follow=True, event_time="at", idle=None, max_ahead=None)
        counted = rows.group_by("v").agg(n=agg.count())
        run = stand.until(lambda: begun(counted.into_map("counts", key="v")), "the fold version")
        stand.until(lambda: run.status().workers == 3, "all nodes' workers")
        run.catch_up(timeout=60)
        assert any(len(shards) < 4 for shards in hosted(nodes).values())
        counts = stand.db.map("counts")
        stand.until(lambda: len(counts) == 200, "the rows in other shards")
        assert {value["n"] for _, value in counts.items()} == {1}
        for node in nodes:
            assert node.end() == 0
    finally:
        stand.close()


def member(run: Any) -> str:
    """The process that works on a job."""
    with run._jobs.client.view(run._job.home) as view:
        (worker,) = live_rows.sharing_workers(view, run.name, 1).values()
    return worker.member


def begun(job: Any) -> Any:
    """None while the nodes have not raised the fold version of all shards."""
    try:
        return job.start(workers=0)
    except of.SpaceError:
        return None


def hosted(nodes: list[Any]) -> dict[str, set[int]]:
    return {node.name: {line["shard"] for line in node.events("replica_opened")} for node in nodes}


def test_a_node_that_runs_no_code_of_jobs_leaves_such_a_job(stand: Stand) -> None:
    node = stand.start("careful", 1, "--code", "reference")
    stand.db.stream("clicks").append_many(events(0, 100))
    plain = per_minute(stand.db).into("plain").start(workers=0)
    plain.catch_up(timeout=60)
    rows = stand.db.read_stream("clicks", follow=True, event_time="at", idle=None).map(lambda row: row)
    coded = rows.group_by("page").agg(n=agg.count()).into("coded").start(workers=0)
    stand.until(lambda: node.events("live_job_refused"), "the refusal")
    assert coded.status().workers == 0
    assert "no worker" in coded.status().held_by
    coded.resume(workers=1).catch_up(timeout=60)
