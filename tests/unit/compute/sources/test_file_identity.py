"""A file that changed is read again, also where its size and its time of modification say nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute import sources
from onefold.compute.plan.stages import Unit
from onefold.compute.sources import etags, listing

OLD = 1_000_000_000


@pytest.fixture
def db(tmp_path: Path) -> of.Database:
    return of.connect(tmp_path / "space")


def write(path: Path, value: int) -> None:
    path.write_text(f"v\n{value}\n")
    os.utime(path, (OLD, OLD))


def in_place(path: Path, value: int) -> None:
    write(path, value)


def by_cp(path: Path, value: int) -> None:
    other = path.with_suffix(".other")
    write(other, value)
    subprocess.run(["cp", "-p", other, path], check=True)


def by_tar(path: Path, value: int) -> None:
    archive = path.with_suffix(".tar")
    other = path.with_suffix(".other")
    write(other, value)
    with tarfile.open(archive, "w") as made:
        made.add(other, arcname=path.name)
    subprocess.run(["tar", "-C", path.parent, "-xf", archive], check=True)


def mapped(path: Path, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(2)
        file.write(str(value).encode())
    os.utime(path, (OLD, OLD))


@pytest.mark.parametrize("rewrite", [in_place, by_cp, by_tar, mapped])
def test_rewritten_with_the_old_size_and_time(
    db: of.Database, tmp_path: Path, rewrite: Callable[[Path, int], None]
) -> None:
    path = tmp_path / "a.csv"
    job = db.read_csv(path).group_by().agg(s=agg.sum("v")).into("t")
    write(path, 1)
    got = []
    for value in (1, 2, 3):  # at once: faster than a clock's tick
        rewrite(path, value)
        got.append(job.run(progress=False, workers=1).result().to_polars().item())
    assert got == [1, 2, 3]
    again = job.run(progress=False, workers=1)
    assert again.progress().reused == again.progress().total


def test_rewritten_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write(path, 1)
    source = sources.make_source("csv", path)
    resolved = sources.resolve(source)
    units = sources.units_of(source, resolved, split_bytes=1 << 40, min_units=1)
    write(path, 2)
    with pytest.raises(of.InvalidValue, match=r"a\.csv changed"):
        sources.scan(source, resolved.schema, units).collect()


def test_our_own_hard_links_change_nothing(db: of.Database, tmp_path: Path) -> None:
    days = tmp_path / "days.csv"
    published = tmp_path / "out"

    def publish(text: str) -> None:
        days.write_text(f"day,v\n{text}\n")
        db.read_csv(days).write_parquet(published, partition_by="day", mode="replace_partitions").run(
            progress=False, workers=1
        )

    below = db.read_parquet(published).group_by("day").agg(s=agg.sum("v")).into("below")
    publish("1,10\n2,20")
    kept = {path: path.stat().st_ctime_ns for path in (published / "day=1").iterdir()}
    assert sorted(below.run(progress=False, workers=1, target_splits=9).result().to_polars().rows()) == [
        (1, 10),
        (2, 20),
    ]
    publish("2,30")
    assert all(path.stat().st_ctime_ns != before for path, before in kept.items()), "linked again"
    run = below.run(progress=False, workers=1, target_splits=9)
    assert sorted(run.result().to_polars().rows()) == [(1, 10), (2, 30)]
    assert run.progress().reused == 1


def test_a_published_file_that_somebody_rewrites(tmp_path: Path) -> None:
    path = tmp_path / "run_0123456789abcdef-00000.parquet"
    seen = set()
    for value in (1, 2):
        pl.DataFrame({"v": [value]}).write_parquet(path)
        os.utime(path, (OLD, OLD))
        seen.add(etags.etag(str(path), path.stat()))
    assert len(seen) == 2


def test_units_of_earlier_releases_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write(path, 1)
    source = sources.make_source("csv", path)
    resolved = sources.resolve(source)
    status = path.stat()
    old = f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}"
    unit = Unit(str(path), 0, status.st_size, status.st_size, old, 1)
    assert sources.scan(source, resolved.schema, [unit]).collect().rows() == [(1,)]
    shutil.copy(path, tmp_path / "b.csv")
    path.write_text("v\n2\n")
    with pytest.raises(of.InvalidValue, match="changed"):
        sources.scan(source, resolved.schema, [unit]).collect()


def test_a_listing_waits_for_the_clock_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    write(path, 1)
    status = path.stat()
    now, waits = [status.st_ctime_ns + 1_000_000], []
    monkeypatch.setattr(listing.time, "time_ns", lambda: now[0])

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += int(seconds * 1e9) + 1

    monkeypatch.setattr(listing.time, "sleep", sleep)
    sources.resolve(sources.make_source("csv", path))
    assert waits == [pytest.approx(0.019)]
    waits.clear()
    sources.resolve(sources.make_source("csv", path))
    assert waits == []
    coarse = os.stat_result(tuple(status), {"st_ctime_ns": 5_000_000_000})
    assert etags.settles_in_s(coarse, 5_500_000_000) == pytest.approx(1.5)
    assert etags.settles_in_s(coarse, 1_000_000_000) == 2.0, "a clock that is behind is not waited for"
