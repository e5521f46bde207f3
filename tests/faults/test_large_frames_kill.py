"""A writer of large frames is killed next to the record: nothing acknowledged is lost, and the blob that nothing names goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import onefold as of
from onefold import config
from onefold.compute.live.garbage import LiveGarbage
from onefold.folds import blob_tables

pytestmark = pytest.mark.faults
WRITER = """
import os, signal, sys
import numpy as np, polars as pl
import onefold as of
from onefold import config
from onefold.state.core.client import StateClient

folder, moment, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
config.STREAM_BLOB_BYTES_MIN = 20_000
commit, count = StateClient.commit, 0

def dying(self, *args, **options):
    global count
    count += 1
    if count == last and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    done = commit(self, *args, **options)
    if count == last and moment == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return done

StateClient.commit = dying
with of.connect(folder) as db:
    for number in range(10):
        db.stream("s").append_many(pl.DataFrame({"v": np.random.default_rng(number).random(4000)}))
        print(number, flush=True)
"""


@pytest.mark.parametrize(("moment", "left"), [("before", 1), ("after", 0)])
def test_a_writer_that_dies_next_to_the_record(tmp_path: Path, moment: str, left: int) -> None:
    found = subprocess.run(
        [sys.executable, "-c", WRITER, tmp_path, moment, "3"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == -signal.SIGKILL, found.stderr
    acknowledged = len(found.stdout.split())
    assert acknowledged == 2
    with of.connect(tmp_path) as db:
        frames = list(db.stream("s").read_frames())
        for number, frame in enumerate(frames):
            assert frame["v"].to_list() == np.random.default_rng(number).random(4000).tolist()
        assert len(frames) == acknowledged + (moment == "after")
        with db._shard.view() as view:
            named = {key.decode() for table in blob_tables(garbage=True) for key, _ in view.scan(table)}
        there = set(db._engine.blobs.names())
        assert there >= named and len(there - named) == left
        garbage = LiveGarbage(db._state, db._engine.blobs)
        assert garbage.remove_unnamed() == 0, "its writer may be about to name it"
        for name in there:
            os.utime(db._engine.blobs.path(name), (time.time() - config.ORPHAN_BLOB_AGE_S - 60,) * 2)
        assert garbage.remove_unnamed() == left
        assert set(db._engine.blobs.names()) == named
        assert pl.concat(db.stream("s").read_frames()).height == 4000 * len(frames)
