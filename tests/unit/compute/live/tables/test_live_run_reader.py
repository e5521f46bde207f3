"""Runs that are kept in memory for a while, read while others push them out."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl

import onefold as of
from onefold import agg
from onefold.compute.live.runs.run_store import RunReader

AT = datetime(2026, 1, 1, tzinfo=UTC)


def test_what_was_kept_when_runs_were_listed_may_be_pushed_out_before_it_is_read(tmp_path: Path) -> None:
    with of.connect(tmp_path / "space", log_keep=None) as db:
        clicks = db.stream("clicks")
        counts = db.read_stream("clicks", follow=True, event_time="at", idle=None).group_by("k")
        run = counts.agg(n=agg.count()).into("t").start(latency=0)
        table = run.result()
        table._reader = RunReader(
            run._jobs.blobs, kept_bytes_max=5_000_000
        )  # one of the large runs, and small ones
        expected = 0
        for first in (0, 200_000):
            for many in (list(range(first, first + 200_000)), [1]):  # a run in a blob, and one in the row
                clicks.append_many(pl.DataFrame({"at": [AT] * len(many), "k": many}))
                expected += len(many)
                run.catch_up(timeout=60)
            for _ in range(3):
                table._frames = None
                assert table.to_polars()["n"].sum() == expected
