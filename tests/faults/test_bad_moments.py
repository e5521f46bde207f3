"""Several programs at once, interrupted ones, and folders that may not be written to: real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

import onefold as of
from onefold import agg

pytestmark = pytest.mark.faults
FILES, LINES = 16, 20

PROGRAM = """
import sys, time
from pathlib import Path
import onefold as of
from onefold import agg, config

config.BACKUP_FACTOR, config.LEASE_S = 1e9, 600.0  # a busy machine is no reason to do a task twice
space, source, out, table, go = sys.argv[1:]
out = Path(out)

def seen(record):
    with (out / record["line"]).open("a") as file:
        file.write("x")
    while not Path(go).exists() or len(list(out.iterdir())) > int(Path(go).read_text() or 10**9):
        time.sleep(0.01)
    return record

with of.connect(space) as db:
    job = db.read_text(source).map(seen).group_by("line").agg(n=agg.count()).into(table)
    print("ready", flush=True)
    try:
        run = job.run(progress=False, workers=1, target_splits=16)
    except of.OnefoldError as error:
        print(type(error).__name__, error, flush=True)
        raise SystemExit(3)
    print(run.id, run.progress().reused, len(run.result()), flush=True)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number}.txt").write_text("".join(f"{number}-{line}\n" for line in range(LINES)))
    return folder


@pytest.fixture
def program(tmp_path: Path, source: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the program; ``go`` is the file that it waits for before it ends its first record. A number in it: more records
    than that it does not end."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "seen").mkdir()
    of.connect(tmp_path / "space").close()
    started: list[subprocess.Popen[str]] = []

    def start(table: str = "t", *, go: Path) -> subprocess.Popen[str]:
        arguments = ["program.py", "space", source, "seen", table, go]
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def test_the_same_job_twice_at_once(tmp_path: Path, program: Callable[..., subprocess.Popen[str]]) -> None:
    go = tmp_path / "go"
    both = [program(go=go) for _ in range(2)]
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    with of.connect(tmp_path / "space") as db:
        until(lambda: db.runs() and db.runs()[0].progress().workers == 2)
        go.touch()
        ends = [process.communicate(timeout=60) for process in both]
        ids = {out.split()[0] for out, _ in ends}
        assert all(process.returncode == 0 for process in both), ends
        assert ids == {run.id for run in db.runs()} and len(ids) == 1
        frame = db.table("t").to_polars()
    assert frame.height == FILES * LINES and frame["n"].to_list() == [1] * frame.height
    assert {(tmp_path / "seen" / line).read_text() for line in frame["line"]} == {"x"}, "worked on once"


def test_another_job_into_the_table_while_the_first_runs(
    tmp_path: Path, source: Path, program: Callable[..., subprocess.Popen[str]]
) -> None:
    go = tmp_path / "go"
    first = program(go=go)
    with of.connect(tmp_path / "space") as db:
        until(lambda: db.runs() and db.runs()[0].progress().workers)
        other = (
            db.read_text(source)
            .group_by("line")
            .agg(n=agg.count(), m=agg.max("line"))
            .into("t", mode="replace")
        )
        with pytest.raises(of.Conflict, match="'t'") as caught:
            other.run(progress=False)
        assert caught.value.definite and db.runs()[0].id in str(caught.value)
        assert len(db.runs()) == 1
        go.touch()
        assert first.wait(60) == 0
        assert db.table("t").to_polars().columns == ["line", "n"]
        assert other.run(progress=False).result().to_polars().columns == ["line", "n", "m"]


def test_interrupted(tmp_path: Path, program: Callable[..., subprocess.Popen[str]]) -> None:
    go = tmp_path / "go"
    process = program(go=go)
    with of.connect(tmp_path / "space") as db:
        until(lambda: db.runs() and db.runs()[0].progress().workers)
        (run,) = db.runs()
        (tmp_path / "some").write_text(f"{2 * LINES + 1}")
        (tmp_path / "some").rename(go)
        until(lambda: run.progress().done == 2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: the workers get it too
        _, errors = process.communicate(timeout=60)
        assert f"Run {run.id} is cancelled" in errors and "finished and kept" in errors
        assert f"db.open_run('{run.id}').resume()" in errors
        assert run.state == "cancelled" and process.returncode != 0
        done = run.progress().done
        assert done == 2 and not run.errors()
        assert list((tmp_path / "space" / "blobs" / "tmp").glob("*")) == []
    go.write_text("")
    again = program(go=go)
    out, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert int(out.split()[2]) >= done
    counts = [len(file.read_text()) for file in (tmp_path / "seen").iterdir()]
    assert (
        len(counts) == FILES * LINES and sum(counts) <= FILES * LINES + 2 * LINES
    )  # the task in hand, no more


# -- folders that may not be written to -----------------------------------------------------------------------------------


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Makes a folder one that not even root may write to."""
    if os.getuid() != 0:

        def forbid(folder: Path) -> Path:
            folder.chmod(0o555)
            return folder

        yield forbid
        return
    mounted: list[Path] = []

    def mount(folder: Path) -> Path:
        for options in (["--bind", folder, folder], ["-o", "remount,ro,bind", folder]):
            ended = subprocess.run(["mount", *map(str, options)], capture_output=True, text=True, check=False)
            if ended.returncode:
                pytest.skip(f"nothing can be mounted here: {ended.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def test_a_space_where_nothing_may_be_written(tmp_path: Path, read_only: Callable[[Path], Path]) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    of.connect(shelf / "space").close()
    (shelf / "empty").mkdir()
    read_only(shelf)
    for name in ("new", "empty", "space"):
        with pytest.raises(of.SpaceError, match=r"Choose a place|use another place") as caught:
            of.connect(shelf / name)
        assert str(shelf / name) in str(caught.value)
    assert sorted(path.name for path in shelf.iterdir()) == ["empty", "space"]


def test_publishing_where_nothing_may_be_written(
    tmp_path: Path, source: Path, read_only: Callable[[Path], Path]
) -> None:
    shelf = tmp_path / "shelf"
    (shelf / "out").mkdir(parents=True)
    pl.DataFrame({"line": ["before"]}).write_parquet(shelf / "out" / "a.parquet")
    read_only(shelf)
    with of.connect(tmp_path / "space") as db:
        for target in (shelf / "out", shelf / "new", shelf / "new" / "below"):
            with pytest.raises(of.InvalidArgument, match=r"may not be written to\. Choose another folder"):
                db.read_text(source).write_parquet(target).run(progress=False)
        assert db.runs() == []
    assert pl.read_parquet(shelf / "out")["line"].to_list() == ["before"]


def test_input_that_may_not_be_read() -> None:
    program = (
        "import sys, onefold as of\n"
        "with of.connect('memory://') as db:\n"
        "    try: db.read_text(sys.argv[1]).into('t').run(progress=False)\n"
        "    except of.InvalidArgument as error: print(error, db.runs())\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        Path(folder).chmod(0o755)
        (Path(folder) / "a.txt").write_text("x\n")
        (Path(folder) / "secret.txt").write_text("x\n")
        (Path(folder) / "secret.txt").chmod(0)
        command = [sys.executable, "-c", program, folder]
        if os.getuid() == 0:
            command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
        except FileNotFoundError:
            pytest.skip("there is no setpriv to give up the rights of root")
    if "No module named" in ended.stderr or "Permission denied" in ended.stderr:
        pytest.skip("another user may not read this Python")
    assert "secret.txt" in ended.stdout and "permission" in ended.stdout, ended.stderr
    assert ended.stdout.endswith("[]\n")
