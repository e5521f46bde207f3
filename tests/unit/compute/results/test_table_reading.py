"""Reading a table while another run replaces it and its old data is removed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import polars as pl
import pytest

import onefold as of
from onefold import agg, config
from onefold.compute.blobs.store import BlobMissing
from onefold.compute.results.tables import Contents, Table


@pytest.mark.parametrize("kept", [True, False], ids=["kept aside", "gone"])
def test_a_reader_whose_run_is_replaced_while_it_reads(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets the rows of the moment in which it began while they can be had, else those of now; never some of each."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        lines = (hashlib.sha256(f"{number} {i}".encode()).hexdigest() for i in range(10_000))
        (tmp_path / "in" / f"{number}.txt").write_text("\n".join(lines))
    with of.connect(tmp_path / "space") as db, of.connect(tmp_path / "space") as reader:

        def make(least: int) -> None:
            job = db.read_text(tmp_path / "in").group_by("line").agg(n=agg.sum(pl.lit(least)))
            job.into("t", mode="replace").run(progress=False, target_splits=3)

        def sweep() -> None:
            monkeypatch.setattr(config, "SWEPT_KEPT_S", -1.0)
            while (
                db._engine.garbage.names() or db._engine.blobs.hidden()
            ):  # the run's own thread sweeps as well
                db._engine.garbage.sweep()

        make(1)
        table = reader.table("t")
        contents = table.contents
        seen: list[Contents] = []

        def stale() -> Contents:
            seen.append(contents())
            if len(seen) == 1:
                make(2)  # its end hides the data of the run before
                if not kept:
                    sweep()
            return seen[-1]

        table.contents = stale  # type: ignore[method-assign]
        old = {result.blob for result in contents().results.values()}
        assert None not in old
        frame = table.to_polars()
        assert (frame.height, frame["n"].unique().to_list()) == (30_000, [1 if kept else 2])
        assert len({found.run for found in seen}) == (1 if kept else 2)
        table.contents = contents  # type: ignore[method-assign]
        assert table.to_polars()["n"].unique().to_list() == [2]
        sweep()
        assert not old & {*db._engine.blobs.names()}, (
            "what a late reader put back stays there, and nobody removes it"
        )


def test_data_that_is_lost_for_good_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    with of.connect(tmp_path / "space") as db:
        db.read_text(tmp_path / "a.txt").group_by("line").agg(n=agg.count()).into("t").run(progress=False)
        table = db.table("t")

        def lost(contents: Contents) -> object:
            raise BlobMissing("0" * 64)

        with pytest.raises(of.Unavailable, match="has to run again"):
            Table._steady(table, lost)  # type: ignore[arg-type]


def test_a_table_in_the_making_is_read_again_at_the_cost_of_what_is_new(tmp_path: Path) -> None:
    """Once the nodes of the merge tree are kept, one more task costs one more load, not one for each task."""
    (tmp_path / "in").mkdir()
    for number in range(16):
        (tmp_path / "in" / f"{number}.txt").write_text(f"a{number}\nb\n")
    with of.connect(tmp_path / "space") as db:
        job = db.read_text(tmp_path / "in").group_by("line").agg(n=agg.count()).into("t")
        job.run(progress=False, target_splits=16)
        table = db.table("t")
        whole = table.contents()
        stored = table._result(whole)
        loads: list[object] = []
        load = table._results.partial
        table._results.partial = lambda result: (loads.append(result), load(result))[1]  # type: ignore[method-assign]
        for done in (8, 9):
            loads.clear()
            some = {index: whole.results[index] for index in range(done)}
            frame = table._results.finished(some, stored, whole=False)
            assert frame["n"].sum() == 2 * done
        assert len(loads) == 1
        assert table._results.finished(whole.results, stored)["n"].sum() == 32
