"""What a node cannot do of a run is refused by name and left to others: versions, code of its own, files that it has not."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute.code import needs as requirements
from onefold.compute.jobs import ops
from support.node_machines import (
    PATIENCE_S,
    counting,
    expected,
    lines_to_count,  # noqa: F401
    machine,
    result,
    submitting_program,  # noqa: F401
    until,
    workers_of,
)


def test_another_version_is_refused_by_name(
    tmp_path: Path, db: of.Database, lines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        found = requirements.of_job(None)
        newer = tuple((name, "99.1" if name == "polars" else version) for name, version in found.packages)
        other.setattr(requirements, "of_job", lambda job: requirements.Requirements("3.99.1", newer))
        run = counting(db, lines).start(workers=0)
    with machine(tmp_path, "n1") as one:
        (refusal,) = until(run.refusals)
        assert refusal.node == "n1" and refusal.stage == -1
        assert "Python 3.99.1 (here 3." in refusal.reason
        assert f"polars 99.1 (here {pl.__version__})" in refusal.reason
        assert one.events("run_refused")[0]["why"] == refusal.reason
        assert one.workers.status().refused == {run.id: refusal.reason}
        assert not workers_of(db, run) and run.state == "running"
        # Others go on, and it is no business of the refusing node any more.
        run.resume(workers=1)
        run.wait(PATIENCE_S)
        until(lambda: not one.workers.status().refused)
    assert result(db) == expected()


def test_a_node_that_has_the_right_versions_now_takes_its_refusal_back(
    tmp_path: Path, db: of.Database, lines: str
) -> None:
    run = counting(db, lines).start(workers=0)
    db._engine.submit(ops.Unfit(run.id, "n1", "polars 99"), ops.Unfit(run.id, "n2", "polars 99"))
    with machine(tmp_path, "n1"):
        run.wait(PATIENCE_S)
    assert [refusal.node for refusal in run.refusals()] == ["n2"]


def test_a_node_that_takes_no_code_runs_what_is_installed(
    tmp_path: Path, db: of.Database, lines: str
) -> None:
    import msgspec
    from polars.testing import assert_frame_equal

    with machine(tmp_path, "n1", code="reference") as one:
        run = counting(db, lines).start(workers=0)  # expressions only
        run.wait(PATIENCE_S)
        assert result(db) == expected()
        installed = db.read_text(lines).map(msgspec.to_builtins, schema={"line": pl.String})
        run = installed.group_by("line").agg(n=agg.count()).into("installed").start(workers=0)
        run.wait(PATIENCE_S)
        run.raise_if_failed()
        assert result(db, "installed") == expected()
        evil = tmp_path / "evil"
        run = counting(db, lines, lambda record: evil.touch() or record, "mine").start(workers=0)
        (refusal,) = until(run.refusals)
        assert "code of its own" in refusal.reason
        run.cancel()
        run = db.read_text(lines).map(eval).into("eval").start(workers=0)
        (refusal,) = until(run.refusals)
        assert "Python's own library" in refusal.reason
        run.cancel()
        run = db.map_reduce(
            db.read_text(lines), map=msgspec.to_builtins, reduce=assert_frame_equal, into="mr", workers=0
        )
        (refusal,) = until(run.refusals)
        assert "pickled" in refusal.reason
        run.cancel()
        assert not evil.exists() and len(one.events("run_refused")) == 3


def test_a_file_that_one_node_has_not_is_read_by_another(
    tmp_path: Path, db: of.Database, lines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onefold.compute.execution import reachable

    honest = reachable.why_not
    blind = threading.Event()
    blind.set()

    def without(stage: Any, item: Any) -> str | None:
        """As if this machine had not these two files."""
        if blind.is_set() and any(unit.path.endswith(("1.txt", "3.txt")) for unit in item.units):
            return f"the file {item.units[0].path} is not there"
        return honest(stage, item)

    monkeypatch.setattr(reachable, "why_not", without)
    with machine(tmp_path, "n1", slots=2) as one:
        run = counting(db, lines).start(workers=0, target_splits=8)
        until(lambda: run.progress().done == run.progress().total - 2)
        (refusal,) = until(run.refusals)
        assert refusal.node == "n1" and refusal.stage == 0 and "is not there" in refusal.reason
        before = db._engine.shard.applied
        time.sleep(1.0)
        assert db._engine.shard.applied - before <= 5  # it does not claim and give back for ever
        assert run.state == "running" and run.progress().failed == 0
        blind.clear()
        assert one.workers.status().runs == (run.id,)
        run.resume(workers=1)  # somebody who has the files
        run.wait(PATIENCE_S)
    assert result(db) == expected()


def test_files_that_are_missing_or_others_are_told_by_name(
    tmp_path: Path, db: of.Database, lines: str
) -> None:
    files = sorted((tmp_path / "in").iterdir())
    run = counting(db, lines).start(workers=0, target_splits=8)
    files[0].rename(tmp_path / "away")
    (tmp_path / "copy").write_bytes(files[1].read_bytes())
    (tmp_path / "copy").replace(files[1])  # the same content, but not the file that was listed
    with machine(tmp_path, "n1", slots=1) as one:
        until(lambda: run.progress().done == run.progress().total - 2)
        (refusal,) = until(run.refusals)
        told = {
            f"the file {files[0]} is not there",
            f"the file {files[1]} is another one (its size, time or inode differ)",
        }
        assert refusal.node == "n1" and refusal.reason in told
        assert one.workers.status().runs == (run.id,) and run.progress().failed == 0
        run.cancel()
