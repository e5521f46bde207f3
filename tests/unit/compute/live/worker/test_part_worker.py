"""What a worker has in memory of its bundles is what they have committed, whatever happens between two of a round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

import onefold as of
from onefold import agg
from onefold.compute.live.bundles import Worker
from onefold.compute.live.runs.run_store import RunReader
from onefold.compute.live.worker.bundle_fold import BundleFold
from onefold.compute.live.worker.part_worker import PartWorker


def test_a_bundle_that_gives_no_lanes_is_not_read_again(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        stream = db.stream("s", partitions=1)
        stream.create()
        counted = db.read_stream("s", follow=True).group_by("k").agg(n=agg.count())
        run: Any = counted.into("t").start(workers=0, lanes=8)
        plan = run._jobs.plan_of(run._found)

        def made() -> PartWorker:
            jobs, worker = run._jobs, Worker(run._job, run._generation)
            return PartWorker(worker, plan, plan.parts[0], jobs.blobs, RunReader(jobs.blobs), jobs.results)

        def work(one: PartWorker) -> None:
            one.work(run._generation_row(), {}, may_read=True)

        def append() -> None:
            stream.append_many(pl.DataFrame({"k": range(24)}), key=None)

        def state(fold: BundleFold) -> pl.DataFrame:
            values = fold.state.values()
            assert values is not None
            return values.sort("k")

        first, second, third = made(), made(), made()
        append()
        work(first)
        assert 0 < first.committing_s < run._jobs.client.env.boot_s()
        second.worker.claim("main")
        append()
        work(first)  # gives the second one half
        append()
        work(second)
        second.worker.leave()
        first.worker.claim("main")  # takes it back, a commit ahead of the other half
        third.worker.claim("main")
        first._adopt(first.worker.held("main"))
        (behind, ahead) = first._folds.values()
        work(first)  # the half that is behind commits, and gives
        assert [*first._folds.values()] == [first._folds[behind.held.id], ahead]
        assert first._folds[behind.held.id] is not behind
        for fold in first._folds.values():
            has = state(fold)
            fold.recover()
            assert has.equals(state(fold))
