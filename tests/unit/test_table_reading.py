"""Reading a table while another run replaces it and its old data is removed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import onefold as of
from onefold import agg
from onefold.compute.blobs import BlobMissing
from onefold.compute.tables import Contents, Table


def test_a_reader_never_meets_the_gap_between_two_runs(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.txt").write_text(
            "".join(f"{number}-{i}-{'x' * 40}\n" for i in range(30_000))
        )
    with of.connect(tmp_path / "space") as db, of.connect(tmp_path / "space") as reader:

        def make(version: str) -> None:
            job = db.read_text(tmp_path / "in").group_by("line").agg(n=agg.count())
            job.into("t", mode="replace", version=version).run(progress=False, target_splits=3)

        make("0")
        over = threading.Event()
        heights: set[int] = set()
        errors: list[BaseException] = []

        def read() -> None:
            try:
                while not over.is_set():
                    table = reader.table("t")
                    if table.status.exact:
                        heights.add(table.to_polars().height)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        for version in range(1, 6):
            make(str(version))
        over.set()
        thread.join()
        assert errors == []
        assert max(heights) == 90_000


def test_data_that_is_lost_for_good_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    with of.connect(tmp_path / "space") as db:
        db.read_text(tmp_path / "a.txt").group_by("line").agg(n=agg.count()).into("t").run(progress=False)
        table = db.table("t")

        def lost(contents: Contents) -> object:
            raise BlobMissing("0" * 64)

        with pytest.raises(of.Unavailable, match="has to run again"):
            Table._steady(table, lost)  # type: ignore[arg-type]
