"""Which programs remove what nothing names any more, and what it costs the calls that begin it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold.database.sweeping import Sweeping
from onefold.env import SYSTEM
from onefold.shard.memory import MemoryShard
from onefold.shard.remote.shard import RemoteShard
from onefold.shard.replica.shard import LocalReplica

PROGRAM = """
import os, sys, threading
import onefold as of
from onefold import config

url, kind = sys.argv[1:]
if kind == "due":
    config.LIVE_GARBAGE_S = -60
with of.connect(url) as db:
    if kind == "large":
        stream = db.stream("s", retention="1ms")
        stream.append(os.urandom(config.STREAM_BLOB_BYTES_MIN + 100))
        stream.append(b"x")
        while stream.positions()[0][0] == 0:
            stream.append(b"x")
    else:
        db.map("m").put("k", 1)
    (keeper,) = (one for one in threading.enumerate() if one.name == "onefold-live-keeper")
    if kind == "large":
        assert "onefold.compute.live.garbage" not in sys.modules, "the call waits for what its thread needs"
assert not keeper.is_alive()
heavy = ("polars", "numpy", "onefold.compute.live_starting", "onefold.compute.live.worker.job_worker")
assert not {*heavy} & sys.modules.keys(), {*heavy} & sys.modules.keys()
"""


def test_what_sweeps_does_not_import_what_computes(tmp_path: Path) -> None:
    def run(kind: str) -> None:
        args = [sys.executable, "-c", PROGRAM, str(tmp_path / "s"), kind]
        done = subprocess.run(args, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def frames() -> list[Path]:
        return [one for one in (tmp_path / "s" / "blobs").glob("??/*") if one.is_file()]

    run("large")
    assert len(frames()) == 1, "garbage is kept for a time"
    run("due")
    assert not frames(), "it is closed at once, and has removed it all the same"


def opened(kind: type[Any], **has: Any) -> Any:
    """A shard that answers nothing."""
    shard = kind.__new__(kind)
    for name, value in has.items():
        setattr(shard, name, value)
    return shard


@pytest.mark.parametrize("kind", [RemoteShard, LocalReplica, MemoryShard])
def test_programs_of_a_cluster_leave_it_to_nodes(kind: type[Any]) -> None:
    def never() -> Any:
        raise AssertionError("a program of a cluster asks for nothing")

    shard = opened(kind, _read_only=False, _replicates=True, _env=SYSTEM)
    sweeping = Sweeping([shard], never, never)
    sweeping.look()
    sweeping.keep()
    assert sweeping._keeper is None


def test_in_a_folder_programs_that_may_write_do(tmp_path: Path) -> None:
    def keeps(db: of.Database) -> bool:
        db._sweeping.keep()
        keeper = db._sweeping._keeper
        return keeper is not None and keeper.is_running

    with of.connect(tmp_path / "s") as db:
        assert keeps(db)
        with of.connect(tmp_path / "s", read_only=True) as reader:
            assert not keeps(reader)


def test_live_jobs_have_it_begin(tmp_path: Path) -> None:
    with of.connect(tmp_path / "s") as db:
        db.stream("s").create()
        assert db._sweeping._keeper is None
        db.read_stream("s", follow=True).group_by("k").agg(n=of.agg.count()).into("t").start()
        keeper = db._sweeping._keeper
        assert keeper is not None and keeper.is_running
    assert not keeper.is_running
