"""Wrong arguments, things that are not there, closed connections, spaces that cannot be opened: in Python and in the shell."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import polars as pl
import pytest

import onefold as of
from onefold import agg, files
from onefold.compute.blobs import store
from onefold.log.sqlite import checksums
from support.command_line import ask as in_process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / "in" / f"{name}.csv").write_text("k,n\n" + f"{name},1\nx,2\n" * 10)
    return tmp_path / "in"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path / "space") as db:
        yield db


@pytest.fixture
def grouped(db: of.Database, folder: Path) -> of.Dataset:
    return db.read_csv(folder).group_by("k").agg(n=agg.sum("n"))


class Nothing:
    """A value that no argument takes."""

    def __repr__(self) -> str:
        return "Nothing()"


# -- jobs ----------------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, list[Any]] = {
    "workers": [-1, "2", 1.5, True],
    "seed": ["x", -1, 1.5, 10**30],
    "target_splits": [0, -1, "3", 2.5],
    "on_error": ["maybe", None, 5],
    "max_attempts": [0, -1, None, 10**9],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in OPTIONS for value in OPTIONS[name]])
def test_options_of_start_and_run(db: of.Database, grouped: of.Dataset, name: str, value: Any) -> None:
    job = grouped.into("t")
    for begin in (job.start, job.run):
        with pytest.raises(of.InvalidArgument, match=f"^{name} must be"):
            begin(**{name: value})
    assert db.runs() == [] and db.tables() == []


SINKS: list[dict[str, Any]] = [
    *({"table": name} for name in ("", " ", 5, None, "a/b", "a\nb", "x" * 300, "..", " a")),
    *({"mode": mode} for mode in ("x", None, 5)),
    *({"version": version} for version in ("", 5, "a\n")),
    *({"keep": keep} for keep in ("", "x", -1, Nothing())),
]


@pytest.mark.parametrize("wrong", SINKS, ids=repr)
def test_arguments_of_into(grouped: of.Dataset, wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(of.InvalidArgument, match=f"^{name}"):
        grouped.into(**({"table": "t"} | wrong))


def test_map_reduce(db: of.Database, folder: Path) -> None:
    rows = db.read_csv(folder)
    right: dict[str, Any] = {"map": lambda r: [(1, 1)], "reduce": lambda k, v: 1, "into": "t"}
    for change, words in (
        ({"map": 5}, "map_reduce takes a function"),
        ({"reduce": lambda k: 1}, r"signature \(k\)"),
        ({"combine": "x"}, "combine takes a function"),
        ({"into": 5}, "table must be text"),
        ({"workers": "x"}, "workers must be"),
    ):
        with pytest.raises(of.InvalidArgument, match=words):
            db.map_reduce(rows, **(right | change))
    with pytest.raises(of.InvalidArgument, match="another dataset"):
        db.map_reduce(5, **right)  # type: ignore[arg-type]
    assert db.runs() == []


def test_the_environment(db: of.Database, grouped: of.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("abc", "0", "-1", "1.5", " "):
        monkeypatch.setenv("ONEFOLD_WORKERS", value)
        with pytest.raises(of.InvalidArgument, match="ONEFOLD_WORKERS must be"):
            grouped.into("t").run(progress=False)
    assert db.runs() == []
    assert grouped.into("t").run(progress=False, workers=1).state == "done"


def test_no_workers_leaves_the_work_to_others(db: of.Database, grouped: of.Dataset, tmp_path: Path) -> None:
    run = grouped.into("t").start(workers=0)
    with pytest.raises(of.Timeout, match=r"has not ended after 1.5 s; it continues") as caught:
        run.wait("1.5s")  # longer than the check for runs that nobody works on
    assert caught.value.definite and not run.abandoned and run.progress().done == 0
    with of.connect(tmp_path / "space") as other:
        other.open_run(run.id).resume()
        assert len(run.wait("120s").result()) == 4


def test_many_tasks(db: of.Database, grouped: of.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    assert grouped.into("t").run(progress=False, target_splits=10**9).state == "done"
    monkeypatch.setattr("onefold.config.TASKS_PER_JOB_MAX", 2)
    with pytest.raises(of.TooLarge, match=r"3 tasks; at most 2.*target_splits"):
        grouped.into("u").run(progress=False, target_splits=3)
    assert [table.name for table in db.tables()] == ["t"]


def test_tables_that_are_there_already(db: of.Database, grouped: of.Dataset, folder: Path) -> None:
    grouped.into("t").run(progress=False)
    before = db.table("t").to_polars().sort("k")
    with pytest.raises(of.InvalidArgument, match=r"'t' exists; use mode="):
        grouped.into("t", mode="error").run(progress=False)
    with pytest.raises(of.InvalidArgument, match=r"has the columns k, n, this job gives k, n_2; use mode="):
        db.read_csv(folder).group_by("k").agg(n_2=agg.count()).into("t").run(progress=False)
    assert len(db.runs()) == 1 and db.table("t").to_polars().sort("k").equals(before)
    grouped.into("new", mode="error").run(progress=False)


# -- tables and runs -----------------------------------------------------------------------------------------------------


def test_reading_tables(db: of.Database, grouped: of.Dataset) -> None:
    table = grouped.into("t").run(progress=False).result()
    for n in (-1, "x", 1.5, None, True):
        with pytest.raises(of.InvalidArgument, match="n must be"):
            table.top(n)  # type: ignore[arg-type]
    for column in ("zz", 5):
        with pytest.raises(of.InvalidArgument, match=f"no column {column!r}; there are: k, n"):
            table.top(by=column)  # type: ignore[arg-type]
    for key in (5, ("a", "b"), ["a"], Nothing()):
        with pytest.raises(of.InvalidArgument, match=r"cannot be a key of table 't'.* 'k' String"):
            table.get(key)
    assert table.get("nix") is None and table.get(None) is None
    for level in (2, 0, 1, -1, "x", None, True, float("nan")):
        with pytest.raises(of.InvalidArgument, match="level must be between 0 and 1"):
            table.estimate("n", level=level)  # type: ignore[arg-type]
    for name in ("zz", "k", 5):
        with pytest.raises(of.InvalidArgument, match=f"no aggregate {name!r}; there are: n"):
            table.estimate(name)  # type: ignore[arg-type]
    with pytest.raises(of.InvalidArgument, match="timeout must be"):
        table.watch(timeout="x")


def test_keys_of_several_columns_and_of_none(db: of.Database, folder: Path) -> None:
    rows = db.read_csv(folder)
    table = rows.group_by("k", "n").agg(c=agg.count()).into("two").run(progress=False).result()
    assert table.get(("x", 2)) == {"k": "x", "n": 2, "c": 30}
    for key in ("x", ("x",), ("x", 2, 3)):
        with pytest.raises(of.InvalidArgument, match=r"has 2 parts \('k', 'n'\)"):
            table.get(key)
    plain = rows.into("plain").run(progress=False).result()
    with pytest.raises(of.InvalidArgument, match="no key columns"):
        plain.get("x")
    with pytest.raises(of.InvalidArgument, match="no aggregates"):
        plain.estimate("n")


def test_names_that_are_not_there(db: of.Database) -> None:
    asks: list[tuple[Callable[[Any], Any], str]] = [
        (db.table, "there is no table 'nix'"),
        (db.explain, "there is no table 'nix'"),
        (db.open_run, "there is no run 'nix'"),
    ]
    for ask, words in asks:
        with pytest.raises(of.InvalidArgument, match=words):
            ask("nix")
        for wrong in (5, None, b"nix", Nothing()):
            with pytest.raises(of.InvalidArgument, match="must be text"):
                ask(wrong)
    assert db.runs(table="nix") == []
    with pytest.raises(of.InvalidArgument, match="unknown state 'x'; use one of running"):
        db.runs(state="x")  # type: ignore[arg-type]
    with pytest.raises(of.InvalidArgument, match="table must be text"):
        db.runs(table=5)  # type: ignore[arg-type]


def test_runs_after_their_end(db: of.Database, grouped: of.Dataset) -> None:
    run = grouped.into("t").start(workers=0)
    for timeout in ("x", -1, True, Nothing()):
        with pytest.raises(of.InvalidArgument, match="timeout must be"):
            run.wait(timeout)  # type: ignore[arg-type]
    with pytest.raises(of.Timeout):
        run.wait(0)
    run.cancel()
    run.cancel()
    assert run.state == "cancelled" and run.wait().id == run.id
    with pytest.raises(
        of.Unavailable, match=rf"was cancelled; continue with db.open_run\('{run.id}'\).resume\(\)"
    ):
        run.result()
    for workers in ("x", -1, True):
        with pytest.raises(of.InvalidArgument, match="workers must be"):
            run.resume(workers=workers)
    assert run.state == "cancelled"
    assert len(run.resume().wait(60).result()) == 4
    run.cancel()  # after the end it changes nothing
    assert run.resume().state == "done"


# -- closed --------------------------------------------------------------------------------------------------------------


def test_after_closing(tmp_path: Path, folder: Path) -> None:
    db = of.connect(tmp_path / "space")
    job = db.read_csv(folder).group_by("k").agg(n=agg.sum("n")).into("t")
    run = job.run(progress=False)
    table = run.result()
    db.close()
    db.close()
    uses: list[Callable[[], Any]] = [
        lambda: db.table("t"),
        db.tables,
        db.runs,
        lambda: db.explain("t"),
        lambda: db.open_run(run.id),
        job.start,
        lambda: job.run(progress=False),
        table.to_polars,
        table.scan,
        table.top,
        lambda: len(table),
        lambda: table.status,
        lambda: table.get("a"),
        lambda: table.estimate("n"),
        lambda: list(table.watch()),
        lambda: run.state,
        run.wait,
        run.cancel,
        run.resume,
        run.result,
        run.progress,
        run.errors,
    ]
    for use in uses:
        with pytest.raises(of.SpaceError, match="is closed"):
            use()


# -- spaces --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [5, b"x", "", ["a"], Nothing(), "x\0y", "foo://x", "redis://h/s", "S3://x", "memory://x", "sqlite://x/y", "sqlite:"],
)  # fmt: skip
def test_urls_that_name_no_space(url: Any) -> None:
    with pytest.raises(of.InvalidArgument, match=r"memory://|directory alone"):
        of.connect(url)


def test_arguments_of_connect(tmp_path: Path) -> None:
    for level in ("strong!", "", None, 5):
        with pytest.raises(of.UnsupportedConsistency, match="use 'strong', 'bounded:5s'"):
            of.connect(tmp_path / "s", consistency=level)  # type: ignore[arg-type]
    with pytest.raises(of.InvalidArgument, match="bound"):
        of.connect(tmp_path / "s", consistency="bounded:soon")
    for timeout in ("x", -1, True, Nothing()):
        with pytest.raises(of.InvalidArgument, match="timeout must be"):
            of.connect(tmp_path / "s", timeout=timeout)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_no_space(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "space.db").write_text("garbage" * 1000)
    (tmp_path / "foreign").mkdir()
    with sqlite3.connect(tmp_path / "foreign" / "space.db") as other:
        other.execute("CREATE TABLE x(a)")
    other.close()
    before = sorted(path for path in tmp_path.rglob("*"))
    for place, create, words in (
        ("file", True, "is a file; a space is a directory"),
        ("file/below", True, "cannot be made"),
        ("no/such", True, "Make that directory first"),
        ("nix", False, "there is no space"),
        ("empty", False, "there is no space"),
        ("garbage", True, "is not a space's file"),
        ("foreign", True, "SQLite file of another program"),
    ):
        with pytest.raises(of.SpaceError, match=words) as caught:
            of.connect(tmp_path / place, create=create)
        assert str(tmp_path / place.split("/", maxsplit=1)[0]) in str(caught.value)
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("statement", "words"),
    [("PRAGMA user_version=99", "has format 99"), ("UPDATE head SET fold_version=99", "fold version 99")],
)
def test_a_space_of_a_newer_program(tmp_path: Path, statement: str, words: str) -> None:
    of.connect(tmp_path / "space").close()
    file = apsw.Connection(str(tmp_path / "space" / "space.db"), vfs=checksums.VFS)
    file.execute(statement)
    file.close()
    with pytest.raises(of.SpaceError, match=f"{words}.*pip install -U onefold"):
        of.connect(tmp_path / "space")
    ended = onefold("tables", "--url", str(tmp_path / "space"))
    assert ended.returncode == 1 and words in ended.stderr and "Traceback" not in ended.stderr


def test_unfinished_blobs_of_the_dead_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of.connect(tmp_path / "space").close()
    folder = tmp_path / "space" / "blobs" / "tmp"
    folder.mkdir(parents=True)
    with subprocess.Popen(["true"]) as gone:
        pass
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        old, young, living, with_its_id = (
            folder / f"{pid}-{n:016x}" for n, pid in enumerate([gone.pid, gone.pid, os.getpid(), other.pid])
        )
        for file in (old, young, living, with_its_id):
            file.write_bytes(b"half")
        for file in (old, living, with_its_id):
            os.utime(file, (0, time.time() - 7200))
        began = {os.getpid(): time.time() - 9000, other.pid: time.time()}
        monkeypatch.setattr(store, "process_began", began.get)
        with of.connect(tmp_path / "space") as db:
            assert db.tables() == []  # the first use of jobs sweeps
    assert sorted(folder.iterdir()) == sorted([young, living])


def test_where_nothing_says_when_a_process_began_its_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "process_began", lambda _: None)
    blobs = store.BlobStore(tmp_path)
    file = blobs.temporary()
    file.write_bytes(b"half")
    os.utime(file, (0, time.time() - 7200))
    blobs.sweep_temporary()
    assert file.exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not say it")
def test_when_a_process_began() -> None:
    before = time.time()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        began, mine = files.process_began(other.pid), files.process_began(os.getpid())
    assert began is not None and mine is not None
    assert before - 5 <= began and mine <= began
    assert files.process_began(other.pid) is None


# -- the command line ----------------------------------------------------------------------------------------------------


def onefold(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ONEFOLD_")}
    return subprocess.run(
        [sys.executable, "-m", "onefold.cli", *args],
        capture_output=True,
        text=True,
        env=kept | environment,
        timeout=60,
        check=False,
    )


def test_commands_that_fail_exit_1_without_a_traceback(db: of.Database, grouped: of.Dataset) -> None:
    grouped.into("t").run(progress=False)
    space = ["--url", db.url]
    ended = onefold("table", "nix", *space)  # in a process of its own, as the rest would end there
    assert (ended.returncode, ended.stdout) == (1, "") and "Traceback" not in ended.stderr
    for args, words in (
        (["table", "nix"], "no table 'nix'"),
        (["table", "t", "--by", "zz"], "no column 'zz'"),
        (["table", "t", "--estimate", "zz"], "no aggregate 'zz'"),
        (["explain", "nix"], "nothing called 'nix'"),
        (["runs", "--state", "odd"], "unknown state 'odd'"),
    ):
        for as_json in ([], ["--json"]):
            ended = in_process(*args, *space, *as_json)
            assert (ended.returncode, ended.stdout) == (1, "")
            assert ended.stderr.startswith("onefold: ") and words in ended.stderr
            assert "Traceback" not in ended.stderr
    for args in (["table"], ["table", "t", "--top", "x"], ["table", "t", "--level", "2"], ["run", "nix.py"]):
        ended = in_process(*args, *space)
        assert (ended.returncode, ended.stdout) == (2, "") and "Traceback" not in ended.stderr


def test_a_program_whose_job_fails(tmp_path: Path, folder: Path) -> None:
    program = tmp_path / "job.py"
    space = str(tmp_path / "space")
    program.write_text(
        "import onefold as of\n"
        "def half(record): return 1 / (record['n'] - 2)\n"
        f"of.connect().read_csv({str(folder)!r}).map(half).into('t').run(progress=False, workers=1)\n"
    )
    ended = onefold("run", str(program), "--url", space)
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr and "record: {'k': 'x', 'n': 2}" in ended.stderr
    assert "dataset.py" not in ended.stderr  # the traceback is of the function, not of Onefold
    ended = onefold("run", str(program), "--url", space, "--json")
    told = json.loads(ended.stdout)
    assert ended.returncode == told["exit_code"] == 1 and "ZeroDivisionError" in told["error"]
    assert told["runs"][0]["state"] == "failed" and told["runs"][0]["errors"][0]["location"]
    program.write_text(
        program.read_text().replace("read_csv(", "read_csv('nix.csv', schema=").replace("half)", "len)")
    )
    ended = onefold("run", str(program), "--url", space, ONEFOLD_WORKERS="abc")
    assert ended.returncode == 1 and "Traceback" not in ended.stderr


def test_frames_are_not_changed_by_who_reads_them(grouped: of.Dataset) -> None:
    table = grouped.into("t").run(progress=False).result()
    for _ in range(2):
        frame = table.to_polars()
        frame.insert_column(0, pl.Series("mine", [0] * frame.height))
    assert table.to_polars().columns == ["k", "n"]
