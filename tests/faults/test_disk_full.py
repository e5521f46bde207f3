"""A full disk under the space, its blobs, or what is published: said clearly, blamed on no record, and gone on from.

A small tmpfs is the disk, so these need root and a Linux that lets it mount.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg

pytestmark = pytest.mark.faults
SMALL, LARGE = "4m", "64m"
FILES, LINES = 12, 8000


class Disk:
    """A file system of a few MB."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", self.path], check=True)

    @contextlib.contextmanager
    def filled(self, room: int = 0) -> Iterator[None]:
        """No byte is left while the block runs, or so many."""
        ballast = self.path / "ballast"
        with ballast.open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            file.truncate(file.tell() - room)
        try:
            yield
        finally:
            ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(path)]
    if os.getuid() != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield Disk(path)
    subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """About 8 MB that do not compress."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(FILES):
        lines = (f"{os.urandom(40).hex()}\n" for _ in range(LINES))
        (folder / f"{number}.txt").write_text("".join(lines))
    return folder


def expected(source: Path) -> list[str]:
    return sorted(line for file in source.iterdir() for line in file.read_text().splitlines())


def longer(record: dict[str, Any]) -> str:
    """Of module level, and in a worker process."""
    return f"{record['line']}!"


@pytest.mark.parametrize("on_error", ["fail", "skip"])
@pytest.mark.parametrize("python", [False, True], ids=["polars", "python"])
@pytest.mark.moving(4)
def test_no_room_for_results(disk: Disk, source: Path, python: bool, on_error: Any) -> None:
    with of.connect(disk.path / "space") as db:
        lines = db.read_text(source)
        job = (lines.map(longer) if python else lines).into("t")
        with pytest.raises((of.JobFailed, of.Unavailable)) as caught:  # a blob or the log meets the end first
            job.run(progress=False, workers=2, target_splits=FILES, on_error=on_error)
        message = str(caught.value).lower()
        assert (
            "no space is left on the disk (" in message or "is full" in message
        ) and "free some" in message
        assert "finished tasks are kept" in message and "traceback" not in message
        (run,) = db.runs()
        assert 0 < run.progress().done < FILES
        assert run.progress().skipped == 0 and not any(error.skipped for error in run.errors())
        assert list((disk.path / "space" / "blobs" / "tmp").iterdir()) == []
        disk.resize(LARGE)
        done = run.progress().done
        before = run.progress().rows
        table = run.resume(workers=2).wait(60).result()
        assert run.progress().rows == before + (FILES - done) * LINES  # what was finished is not run again
        rows = sorted(table.to_polars().to_series())
        assert rows == [f"{line}!" if python else line for line in expected(source)]


def test_no_room_for_what_is_published(disk: Disk, source: Path, tmp_path: Path) -> None:
    out = disk.path / "out"
    pl.DataFrame({"line": ["before"]}).write_parquet(_made(out) / "a.parquet")
    with of.connect(tmp_path / "space") as db:
        job = db.read_text(source).write_parquet(out)
        with pytest.raises(
            of.JobFailed, match=r"no space is left on the disk \(.*parquet\); free some"
        ) as caught:
            job.run(progress=False)
        assert "Traceback" not in str(caught.value)
        assert [path.name for path in disk.path.rglob("*")] == ["out", "a.parquet"]
        assert pl.read_parquet(out)["line"].to_list() == ["before"]
        disk.resize(LARGE)
        (run,) = db.runs()
        run.resume().wait(60)
        run.raise_if_failed()
        assert sorted(pl.read_parquet(out)["line"]) == expected(source)
        assert [path.name for path in disk.path.iterdir()] == ["out"]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_no_room_for_the_log(disk: Disk, source: Path) -> None:
    space = disk.path / "space"
    with (
        disk.filled(),
        pytest.raises(of.Unavailable, match=r"is full; nothing was written\. Free some space"),
    ):
        of.connect(space)
    with of.connect(space) as db:
        counted = db.read_text(source).group_by().agg(n=agg.count()).into("n")
        with disk.filled():
            with pytest.raises(
                of.Unavailable, match=r"the job was not submitted: no space is left.*free some"
            ) as e:
                counted.run(progress=False)
            assert e.value.definite
            assert db.runs() == [] and db.tables() == []
        assert counted.run(progress=False).result().to_polars().item() == FILES * LINES


def test_the_log_fills_up_while_the_job_runs(disk: Disk, source: Path, tmp_path: Path) -> None:
    disk.resize(LARGE)
    started, full = tmp_path / "started", tmp_path / "full"

    def wait_for_it(record: dict[str, Any]) -> int:
        started.touch()
        while not full.exists():
            pass
        return len(record["line"])

    with of.connect(disk.path / "space") as db:
        run = db.read_text(source).map(wait_for_it).group_by().agg(n=agg.count()).into("n").start(workers=1)
        while not started.exists():
            assert run.state == "running"
        with disk.filled():
            full.touch()
            with pytest.raises(of.Unavailable, match="full") as caught:
                run.wait(60)
            assert "nothing was written" in str(caught.value) and f"open_run({run.id!r}).resume()" in str(
                caught.value
            )
            assert run.state == "running"
        assert run.resume(workers=1).wait(60).result().to_polars().item() == FILES * LINES


@pytest.mark.parametrize("room", [0, 256 * 1024])
def test_a_live_job_waits_until_there_is_room(disk: Disk, room: int) -> None:
    """Where the log meets the end of the disk, and where only a blob does."""
    disk.resize(LARGE)
    # State that does not compress: a run of it is a blob, and larger than what is left.
    names = [os.urandom(40).hex() for _ in range(20_000)]
    with of.connect(disk.path / "space") as db:
        db.stream("clicks", partitions=1).append_many([{"k": name, "n": 1} for name in names])
        counted = db.read_stream("clicks", follow=True).group_by("k").agg(n=agg.sum("n"))
        run = counted.into("t").start(workers=0, latency=0)
        with disk.filled(room):
            run._workers.work(run._found, 1)  # type: ignore[attr-defined]
            limit = time.monotonic() + 60
            while "the disk" not in run.status().held_by:  # type: ignore[attr-defined]
                assert time.monotonic() < limit and run.state == "running"
                time.sleep(0.05)
        run.catch_up(timeout=60)  # type: ignore[attr-defined]
        assert db.table("t").to_polars().height == len(names)
        assert list((disk.path / "space" / "blobs" / "tmp").iterdir()) == []
