"""A worker that stood still for a day between storing the blobs of a commit and the commit: they are there all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg, config
from onefold.compute.live.garbage import LiveGarbage
from onefold.folds import blob_tables
from onefold.state.core.client import StateClient
from onefold.state.fold.live.ops import LaneCommit
from onefold.state.fold.ops import Commit


@pytest.mark.parametrize("sink", ["windows", "late", "stream"])
def test_blobs_that_were_removed_before_their_commit_are_stored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: str
) -> None:
    for limit in ("LIVE_INLINE_BYTES_MAX", "STREAM_INLINE_BYTES_MAX", "STREAM_BLOB_BYTES_MIN"):
        monkeypatch.setattr(config, limit, 100)
    with of.connect(tmp_path) as db:
        rows = pl.select(
            k=pl.int_range(300),
            at=pl.datetime_range(
                pl.datetime(2026, 1, 1), interval="1s", closed="left", end=pl.datetime(2026, 1, 1, 0, 5)
            ),
        )
        late = rows.head(40) if sink == "late" else rows.clear()
        stream = db.stream("clicks", partitions=1)
        stream.append_many(rows)
        removed: list[int] = []
        submit = StateClient.submit

        def standing_still(self: StateClient, shard: int, op: Any, *args: Any, **options: Any) -> Any:
            if isinstance(op, Commit) and any(isinstance(write, LaneCommit) for write in op.writes):
                removed.append(LiveGarbage(db._state, db._engine.blobs).remove_unnamed(age_s=-60))
            return submit(self, shard, op, *args, **options)

        source: Any = db.read_stream(
            "clicks", follow=True, event_time="at", watermark_delay="1s", max_ahead=None
        )
        counted = source.window(of.window.tumbling("10s")).group_by("k").agg(n=agg.count())
        job = source.into_stream("out", key="k") if sink == "stream" else counted.into("t")
        monkeypatch.setattr(StateClient, "submit", standing_still)
        monkeypatch.setattr(config, "ORPHAN_BLOB_AGE_S", 0)  # each commit is late
        run = job.start()
        run.catch_up(timeout=60)
        stream.append_many(late)
        run.stop(drain=True, timeout=60)
        assert sum(removed) > 0
        with db._shard.view() as view:
            named = {key.decode() for table in blob_tables(garbage=False) for key, _ in view.scan(table)}
        assert named and named <= set(db._engine.blobs.names())
        run._workers.reader._kept.clear()
        if sink == "stream":
            assert db.stream("out").to_polars().height == 300
        else:
            assert db.table("t").to_polars()["n"].sum() == 300 and db.table("t").late().height == late.height
