"""Jobs that a program leaves to the nodes of a real cluster: who refuses them says why, and the program may come back to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import onefold as of
from onefold import agg, config
from onefold.compute.code import needs as requirements
from onefold.compute.jobs import ops
from support.job_stand import (
    FILES,
    PATIENCE_S,
    Stand,
    job_stand,  # noqa: F401
    small,  # noqa: F401
)
from support.three_servers import three_servers  # noqa: F401
from support.times import scaled

# -- what nodes do not do


def test_a_node_with_other_versions_leaves_the_run_to_others(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "RUN_STALLED_S", scaled(0.5))
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


# -- the command line


PROGRAM = """
import os, sys, time
import onefold as of
from onefold import agg, config

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
        assert attached.wait(60) == 130 and "continues" in rest
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
