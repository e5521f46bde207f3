"""A folder of Parquet is published whole or not at all: killed anywhere, read at any time."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from onefold.compute.plan.stages import PublishOutput
from onefold.compute.publish import atomic_swap, folder_writer
from onefold.compute.publish.folder import Published, publish_folder
from onefold.compute.sources import partition_values
from onefold.errors import InvalidArgument, InvalidPlan, InvalidValue


def frame(lo: int, hi: int) -> pl.DataFrame:
    return pl.DataFrame({"id": range(lo, hi), "k": [("even", "odd")[i % 2] for i in range(lo, hi)]})


def put(
    path: Path, *frames: pl.DataFrame, run: str = "r1", by: tuple[str, ...] = (), mode: Any = "replace"
) -> Published:
    return publish_folder(iter(frames), PublishOutput(str(path), by, mode), run=run)


def read(path: Path) -> pl.DataFrame:
    return pl.read_parquet(path / "**/*.parquet", hive_partitioning=True).select("id", "k").sort("id")


def hidden(path: Path) -> list[str]:
    return [entry.name for entry in path.parent.iterdir() if entry.name.startswith(f".{path.name}.")]


@pytest.fixture(params=["exchange", "journal"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to swap; "journal" is what file systems without an exchange get."""
    if request.param == "journal":
        monkeypatch.setattr(atomic_swap, "_exchange", lambda one, other: False)
    return str(request.param)


def test_replace(tmp_path: Path, swap: str) -> None:
    out = tmp_path / "deep" / "out"
    assert put(out, frame(0, 10), frame(10, 20)).rows == 20
    assert read(out).equals(frame(0, 20))
    again = put(out, frame(0, 3), run="r2")
    assert (again.files, again.rows) == (1, 3)
    assert read(out).equals(frame(0, 3))
    assert hidden(out) == []


def test_same_run_again_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = put(out, frame(0, 10))
    inode = out.stat().st_ino
    assert put(out, frame(0, 99)) == first
    put(out, frame(0, 5), run="r2")
    put(out, frame(0, 10), run="r1")  # a zombie of the earlier run
    assert read(out).equals(frame(0, 5)) and out.stat().st_ino != inode


def test_append_and_replace_partitions(tmp_path: Path, swap: str) -> None:
    out = tmp_path / "out"
    put(out, frame(0, 10), by=("k",))
    put(out, frame(10, 20), by=("k",), run="r2", mode="append")
    assert read(out).equals(frame(0, 20))
    put(out, frame(100, 101), by=("k",), run="r3", mode="replace_partitions")  # only k=even occurs
    assert read(out)["id"].to_list() == [*range(1, 20, 2), 100]
    with pytest.raises(InvalidArgument, match="partitioned by"):
        put(out, frame(0, 1), run="r4", mode="append")
    with pytest.raises(InvalidArgument, match="needs partition_by"):
        put(out, frame(0, 1), run="r4", mode="replace_partitions")


def test_partition_names_are_read_back_by_polars(tmp_path: Path) -> None:
    values = ["a b", "x/y", "é", "50%", "a=b", "", None, "c:d", "..", "{[", "?*", "日本"]
    rows = pl.DataFrame({"k": values, "id": range(len(values))})
    put(tmp_path / "out", rows, by=("k",))
    assert read(tmp_path / "out").equals(rows.select("id", "k"))
    assert (tmp_path / "out" / f"k={partition_values.NULL_PARTITION}").is_dir()
    with pytest.raises(InvalidValue, match="stands for null"):
        put(
            tmp_path / "out",
            pl.DataFrame({"k": [partition_values.NULL_PARTITION], "id": [1]}),
            by=("k",),
            run="r2",
        )
    assert read(tmp_path / "out").height == len(values)


def test_parts_of_different_types_become_one_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_writer, "FILE_BYTES_TARGET", 1)  # a file for each part
    out = tmp_path / "out"
    done = put(out, pl.DataFrame({"id": [1], "k": [None]}), pl.DataFrame({"id": [2.5], "k": ["x"]}))
    assert done.files == 2
    assert read(out).equals(pl.DataFrame({"id": [1.0, 2.5], "k": [None, "x"]}))
    with pytest.raises(InvalidValue, match="'id' is"):
        put(out, pl.DataFrame({"id": ["text"], "k": ["x"]}), run="r2", mode="append")
    with pytest.raises(InvalidValue, match="is missing"):
        put(out, pl.DataFrame({"id": [1.0]}), run="r2", mode="append")
    put(out, pl.DataFrame({"k": [None], "id": [3]}), run="r2", mode="append")  # fits without loss
    assert read(out)["id"].to_list() == [1.0, 2.5, 3.0]


def test_no_rows(tmp_path: Path) -> None:
    put(tmp_path / "out", frame(0, 0))
    assert pl.read_parquet(tmp_path / "out" / "*.parquet").columns == ["id", "k"]
    assert put(tmp_path / "none") == Published(0, 0)


def test_refuses_to_delete_what_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidArgument, match="is a file"):
        put(tmp_path / "file", frame(0, 1))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "sub").mkdir()
    (folder / "sub" / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidArgument, match=r"thesis\.txt"):
        put(folder, frame(0, 1))
    assert (folder / "sub" / "thesis.txt").read_text() == "mine"
    put(folder, frame(0, 1), mode="append")
    assert (folder / "sub" / "thesis.txt").read_text() == "mine"
    for url in ("s3://bucket/x", "gs://b/x"):
        with pytest.raises(InvalidArgument, match="local file system"):
            publish_folder([frame(0, 1)], PublishOutput(url, (), "replace"), run="r")
    with pytest.raises(InvalidPlan, match="not a column"):
        put(tmp_path / "out", frame(0, 1), by=("nope",))
    with pytest.raises(InvalidPlan, match="every column"):
        put(tmp_path / "out", frame(0, 1), by=("id", "k"))
    assert hidden(tmp_path / "out") == []


def test_a_full_disk_leaves_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    put(out, frame(0, 10))
    rows = pl.DataFrame({"id": range(100_000), "k": [os.urandom(4).hex() for _ in range(100_000)]})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # writes fail as on a full disk
    try:
        with pytest.raises((OSError, pl.exceptions.PolarsError)):
            put(out, rows, run="r2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert read(out).equals(frame(0, 10)) and hidden(out) == []


ZYGOTE = """
import os, signal, sys
import polars as pl
from onefold.compute.publish import atomic_swap as folder_swap
from onefold.compute.publish import folder_writer
from onefold.compute.publish import publication_log as publications
from onefold.compute.publish import folder as publish
from onefold.compute.plan.stages import PublishOutput

if sys.argv[1] == "journal":
    folder_swap._exchange = lambda one, other: False
files = {module.__file__ for module in (publish, folder_swap, folder_writer, publications)}

def work(out, mode, line, report):
    lines = []
    def trace(frame, event, argument):
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            if len(lines) == line:
                os.kill(os.getpid(), signal.SIGKILL)
            lines.append(frame.f_code.co_name)
        return trace
    rows = pl.DataFrame({"id": range(6, 10), "k": ["even", "odd"] * 2})
    sys.settrace(trace)
    publish.publish_folder([rows], PublishOutput(out, ("k",), mode), run="r2")
    sys.settrace(None)
    os.write(report, " ".join(lines).encode())

for command in sys.stdin:
    out, mode, line = command.rstrip().split("\t")
    reader, writer = os.pipe()
    child = os.fork()  # before Polars has made its threads
    if not child:
        try:
            work(out, mode, int(line), writer)
        finally:
            os._exit(0)
    os.close(writer)
    report = open(reader).read()
    print(os.waitpid(child, 0)[1], report, flush=True)
"""


@pytest.mark.faults
@pytest.mark.parametrize("mode", ["replace", "append", "replace_partitions"])
@pytest.mark.moving(2)
def test_killed_at_any_line(tmp_path: Path, mode: str, swap: str) -> None:
    before, new = frame(0, 6), frame(6, 10)
    after = new if mode != "append" else frame(0, 10)
    child = subprocess.Popen(
        [sys.executable, "-c", ZYGOTE, swap], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None and child.stdout is not None

    def publish_until(out: Path, line: int) -> tuple[int, list[str]]:
        """Publish in a process that kills itself before this line; (wait status, functions of the lines run)."""
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(f"{out}\t{mode}\t{line}\n")
        child.stdin.flush()
        status, *lines = child.stdout.readline().split()
        return int(status), lines

    with child:
        put(tmp_path / "whole" / "out", before, by=("k",))
        status, lines = publish_until(tmp_path / "whole" / "out", 1 << 30)
        assert status == 0 and read(tmp_path / "whole" / "out").equals(after)
        swapping = [at for at, name in enumerate(lines) if "swap" in name or name == "recover"]
        points = sorted({*range(0, len(lines), max(1, len(lines) // 5)), *swapping, len(lines) - 1})
        for line in points:
            out = tmp_path / str(line) / "out"  # alone in its folder, so that the same lines run
            put(out, before, by=("k",))
            status, _ = publish_until(out, line)
            assert status == signal.SIGKILL
            if swap == "exchange":
                assert read(out).equals(before) or read(out).equals(after), f"torn at line {line}"
            put(out, new, by=("k",), run="r2", mode=mode)
            assert read(out).equals(after), f"after a kill at line {line} in {lines[line]}"
            assert put(out, new, by=("k",), run="r2", mode=mode).rows == new.height
            assert hidden(out) == [], f"left behind after a kill at line {line} in {lines[line]}"
        child.stdin.close()


def test_readers_see_one_whole_version(tmp_path: Path) -> None:
    out = tmp_path / "out"
    put(out, frame(0, 50), run="r0")
    stop = threading.Event()
    seen: list[int] = []
    torn: list[object] = []

    def watch() -> None:
        while not stop.is_set():
            fd = os.open(out, os.O_RDONLY)  # never missing
            try:
                heights = []
                for name in os.listdir(fd):  # noqa: PTH208 (of a descriptor)
                    if name.endswith(".parquet"):
                        with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=fd), "rb") as file:
                            heights.append(pl.read_parquet(file).height)
                if not heights:
                    continue  # opened, then swapped out and removed before it was listed: no rows, never other rows
                seen.append(sum(heights))
            except FileNotFoundError:
                continue  # removed while it was listed: an error, never other rows
            finally:
                os.close(fd)

    thread = threading.Thread(target=lambda: _keep(watch, torn))
    thread.start()
    rounds = 0
    while rounds < 40 or (len(set(seen)) < 3 and rounds < 400):
        rounds += 1
        put(out, *(frame(i * 50, i * 50 + 50) for i in range(1 + rounds % 3)), run=f"r{rounds}")
    stop.set()
    thread.join()
    assert torn == []
    assert set(seen) <= {50, 100, 150} and len(set(seen)) > 1


def _keep(watch: Any, errors: list[object]) -> None:
    try:
        watch()
    except BaseException as error:
        errors.append(error)


def test_two_publishers_that_append_at_once_both_count(tmp_path: Path) -> None:
    out = tmp_path / "out"
    errors: list[object] = []

    def publish_one(number: int) -> None:
        _keep(lambda: put(out, frame(number * 10, number * 10 + 10), run=f"r{number}", mode="append"), errors)

    threads = [threading.Thread(target=publish_one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert read(out)["id"].to_list() == list(range(80)) and hidden(out) == []


@pytest.mark.faults
def test_kill_9_of_a_publisher_while_it_writes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    put(out, frame(0, 10))
    program = (
        "import sys, polars as pl\n"
        "from onefold.compute.publish.folder import publish_folder\n"
        "from onefold.compute.plan.stages import PublishOutput\n"
        "def parts():\n"
        "    yield pl.DataFrame({'id': [1], 'k': ['x']})\n"
        "    print('writing', flush=True)\n"
        "    sys.stdin.read()\n"
        "publish_folder(parts(), PublishOutput(sys.argv[1], (), 'replace'), run='r2')\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None and child.stdout.readline() == b"writing\n"
    assert len(hidden(out)) == 1
    put(out, frame(0, 20), run="r1b")  # somebody else publishes, and leaves the living one's work alone
    assert len(hidden(out)) == 1
    child.kill()
    child.communicate()
    assert read(out).equals(frame(0, 20))
    put(out, frame(0, 30), run="r3")
    assert read(out).equals(frame(0, 30)) and hidden(out) == []
