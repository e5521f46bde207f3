"""Bad input as a stranger meets it: files, columns and functions, through the public API.

Each is an error that names the file, row or column. What is refused at submission leaves no table behind, and nothing leaves
temporary files.
"""

from __future__ import annotations

import ctypes
import gzip
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard

import onefold as of
from onefold import agg
from support.in_process import functions_in_process  # noqa: F401


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path / "space") as db:
        yield db
        assert temporary(tmp_path) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def temporary(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "space" / "blobs" / "tmp").glob("*"))


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def refused(
    db: of.Database, make: Callable[[], of.Dataset], *words: str, error: Any = of.InvalidArgument
) -> str:
    """The message of a job that must be refused before anything is there."""
    with pytest.raises(error) as caught:
        make().into("refused").run(progress=False, workers=1)
    assert db.tables() == [] and db.runs() == []
    return says(caught, *words)


def fails(dataset: of.Dataset, *words: str, **options: Any) -> of.JobFailed:
    """The failure of a job that can only be found to be broken by running it."""
    with pytest.raises(of.JobFailed) as caught:
        dataset.into("fails", mode="replace").run(progress=False, workers=1, **options)
    says(caught, *words)
    return caught.value


def says(caught: pytest.ExceptionInfo[BaseException], *words: str) -> str:
    message = str(caught.value)
    assert all(word in message for word in words), message
    return message


# -- files ---------------------------------------------------------------------------------------------------------------


READERS = ("text", "csv", "jsonl", "parquet", "files")


@pytest.mark.parametrize("kind", READERS)
def test_nothing_to_read(db: of.Database, folder: Path, kind: str) -> None:
    read = getattr(db, f"read_{kind}")
    (folder / "empty").mkdir()
    refused(db, lambda: read(folder / "nix.dat"), "nix.dat", "no such file")
    refused(db, lambda: read([folder / "*.nix"]), "*.nix", "no file matches")
    refused(db, lambda: read(folder / "empty"), "empty", "name the files or use a glob")
    write(folder / "other" / "a.dat", "x")
    if kind not in ("text", "files"):
        refused(db, lambda: read(folder / "other"), "other", f".{kind}", "name the files or use a glob")


@pytest.mark.parametrize("paths", [5, None, [], [5], "", b"x", {}, [""], ["a", None]])
@pytest.mark.parametrize("kind", READERS)
def test_paths_that_are_none(db: of.Database, kind: str, paths: Any) -> None:
    refused(db, lambda: getattr(db, f"read_{kind}")(paths), "path")


@pytest.mark.parametrize(
    ("url", "word"), [("foo://bar/x", "foo"), ("s3://", "bucket"), ("memory://x", "memory")]
)
def test_urls_that_cannot_be_read(db: of.Database, url: str, word: str) -> None:
    refused(db, lambda: db.read_text(url), url, word)


@pytest.mark.parametrize("how", ["cut", "no bytes", "text"])
def test_torn_parquet(db: of.Database, folder: Path, how: str) -> None:
    file = folder / "torn.parquet"
    pl.DataFrame({"a": range(1000)}).write_parquet(file)
    data = file.read_bytes()
    file.write_bytes({"cut": data[: len(data) // 2], "no bytes": b"", "text": b"no parquet\n" * 20}[how])
    refused(db, lambda: db.read_parquet(file), "torn.parquet", "replace the file", error=of.InvalidValue)


def test_broken_lines_are_named(db: of.Database, folder: Path) -> None:
    rows = "1,2\n" * 500
    ragged = write(folder / "ragged.csv", f"a,b\n{rows}3,4,5\n{rows}")
    fails(db.read_csv(ragged), "ragged.csv: line 502", "'3,4,5'")
    typed = write(folder / "typed.csv", f"a,b\n{rows}x,4\n{rows}")
    schema = {"a": pl.Int64, "b": pl.Int64}
    failure = fails(db.read_csv(typed, schema=schema), "typed.csv: line 502", "column 'a'", "'x,4'")
    assert "Fix that" in str(failure) and "on_error" not in str(failure)
    assert failure.traceback == ""  # of Polars' own code, which is no help
    objects = write(folder / "broken.jsonl", '{"a":1}\n' * 500 + '{"a":\n' + '{"a":1}\n')
    fails(db.read_jsonl(objects, schema={"a": pl.Int64}), "broken.jsonl: line 501", """'{"a":'""")
    bytes_ = write(folder / "bytes.txt", b"ok\n" * 500 + b"b\xff\xfe\n")
    fails(db.read_text(bytes_), "bytes.txt: line 501", "0xff", "errors='replace'")
    assert db.read_text(bytes_, errors="replace").into("ok").run(progress=False).progress().rows == 501


@pytest.mark.parametrize(
    ("line", "word"), [(b'{"a":', "no JSON"), (b"[1, 2]", "list"), (b'{"a": "\xff"}', "UTF-8")]
)
def test_a_broken_line_among_those_that_types_come_from(
    db: of.Database, folder: Path, line: bytes, word: str
) -> None:
    write(folder / "a.jsonl", '{"a":1}\n')
    write(folder / "b.jsonl", b'{"a":1}\n\n{"a":2}\n' + line + b"\n")
    message = refused(db, lambda: db.read_jsonl(folder), "b.jsonl: line 4", word, error=of.InvalidValue)
    assert "Traceback" not in message


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_cut_off_compressed_files(db: of.Database, folder: Path, kind: str) -> None:
    pack = {"gz": gzip.compress, "zst": zstandard.compress}[kind]
    whole = pack(os.urandom(40_000).hex().encode())
    text = write(folder / f"a.txt.{kind}", whole[: len(whole) // 2])
    fails(db.read_text(text), f"a.txt.{kind}", "cut off", "replace the file")


def test_files_that_differ_are_named_with_the_column(db: of.Database, folder: Path) -> None:
    write(folder / "csv" / "a.csv", "a,b\n1,2\n")
    write(folder / "csv" / "b.csv", "a,c\n1,2\n")
    refused(db, lambda: db.read_csv(folder / "csv"), "a.csv", "b.csv", "'b'", "'c'")
    for name, frame in {"a": {"x": [1]}, "b": {"x": ["t"]}}.items():
        pl.DataFrame(frame).write_parquet(write(folder / "parquet" / f"{name}.parquet", b""))
    refused(
        db, lambda: db.read_parquet(folder / "parquet"), "a.parquet", "b.parquet", "'x' is Int64 and String"
    )
    write(folder / "jsonl" / "a.jsonl", '{"a":1}\n')
    write(folder / "jsonl" / "b.jsonl", '{"a":"x"}\n')
    fails(db.read_jsonl(folder / "jsonl", schema={"a": pl.Int64}), "b.jsonl: line 1", '"x"')


def test_a_file_that_goes_or_changes_before_it_is_read(db: of.Database, folder: Path) -> None:
    for number in range(4):
        write(folder / f"{number}.txt", "a\n" * 10)
    job = db.read_text(folder).into("t")
    run = job.start(workers=0)
    (folder / "2.txt").unlink()
    write(folder / "3.txt", "b\n" * 20)
    run.resume(workers=1).wait()
    with pytest.raises(of.JobFailed, match=r"(2|3)\.txt changed while the job ran.*run it again") as caught:
        run.result()
    assert "Traceback" not in str(caught.value)
    again = job.run(progress=False)
    assert again.result().to_polars()["line"].value_counts().sort("line").rows() == [("a", 20), ("b", 20)]


# -- columns -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sales(db: of.Database, folder: Path) -> of.Dataset:
    return db.read_csv(write(folder / "sales.csv", "city,n\nBern,1\nBasel,2\n"))


COLUMNS: dict[str, Callable[[of.Dataset], of.Dataset]] = {
    "select": lambda ds: ds.select("zz"),
    "filter": lambda ds: ds.filter(pl.col("zz") > 1),
    "with_columns": lambda ds: ds.with_columns(x=pl.col("zz") + 1),
    "group_by": lambda ds: ds.group_by("zz").agg(x=agg.count()),
    "agg 'x'": lambda ds: ds.group_by("city").agg(x=agg.sum("zz")),
    "join: on the left side": lambda ds: ds.join(ds, on="zz"),
    "join: on the right side": lambda ds: ds.join(ds.select("city"), on="n"),
    "explode": lambda ds: ds.explode("zz"),
}


@pytest.mark.parametrize("step", COLUMNS)
def test_a_column_that_is_not_there(db: of.Database, sales: of.Dataset, step: str) -> None:
    name = "n" if "right" in step else "zz"
    there = "'city'" if name == "n" else "'city', 'n'"
    message = refused(db, lambda: COLUMNS[step](sales), step, error=of.InvalidPlan)
    assert message.endswith(f"column {name!r} is not there; there are: {there}")


@pytest.mark.parametrize("where", ["in this process", "in a worker"])
def test_a_column_that_is_not_there_after_a_function(
    sales: of.Dataset, where: str, request: pytest.FixtureRequest
) -> None:
    if where == "in this process":
        request.getfixturevalue("functions_in_process")
    made = sales.map(lambda record: {"a": record["n"]})
    for step in (
        ("select",)
        if where == "in a worker"
        else (
            "select",
            "filter",
            "with_columns",
            "group_by",
            "agg 'x'",
            "explode",
            "join: on the left side",
        )
    ):
        dataset = made.group_by("a").agg(x=agg.sum("zz")) if step == "agg 'x'" else COLUMNS[step](made)
        message = str(fails(dataset, "zz"))
        assert "__onefold" not in message and "Resolved plan" not in message and "Traceback" not in message


def test_write_parquet_partitions_that_are_not_there(
    db: of.Database, sales: of.Dataset, tmp_path: Path
) -> None:
    for columns, words in ((["zz"], "'zz' is not there"), (["city", "n"], "all columns")):
        with pytest.raises(of.InvalidPlan, match=words):
            sales.write_parquet(tmp_path / "out", partition_by=columns).run(progress=False)
    assert db.runs() == []
    with pytest.raises(of.JobFailed, match=r"'zz'.*'a'"):
        sales.map(lambda record: {"a": 1, "b": 2}).write_parquet(tmp_path / "out", partition_by="zz").run(
            progress=False, workers=1
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "space"]


NOT_ROW_LOCAL: dict[str, Callable[[of.Dataset], Any]] = {
    "select": lambda ds: ds.select(pl.col("n").shift()),
    "with_columns": lambda ds: ds.with_columns(x=pl.col("n").cum_sum()),
    "filter": lambda ds: ds.filter(pl.col("n") > pl.col("n").mean()),
    "group_by": lambda ds: ds.group_by(pl.col("n").rank()),
    "agg 'x'": lambda ds: ds.group_by("city").agg(x=agg.max(pl.col("n").max().over("city"))),
}


@pytest.mark.parametrize("step", NOT_ROW_LOCAL)
def test_expressions_that_look_at_other_rows(sales: of.Dataset, step: str) -> None:
    with pytest.raises(of.InvalidPlan, match=f"^{step}: "):
        NOT_ROW_LOCAL[step](sales)


def test_aggregates_that_are_none(sales: of.Dataset) -> None:
    with pytest.raises(AttributeError, match=r"no 'median'.*approx_quantile"):
        _ = agg.median  # type: ignore[attr-defined]
    groups = sales.group_by("city")
    for wrong, error in (
        (pl.col("n").n_unique(), of.InvalidPlan),
        (5, of.InvalidArgument),
        ("n", of.InvalidArgument),
    ):
        with pytest.raises(error, match=r"onefold\.agg"):
            groups.agg(x=wrong)  # type: ignore[arg-type]
    with pytest.raises(of.InvalidPlan, match=r"agg\.mean does not work here"):
        sales.group_by("n").agg(x=agg.mean("city")).into("t").start()


# -- functions -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def lines(db: of.Database, folder: Path) -> of.Dataset:
    return db.read_text(write(folder / "lines.txt", "".join(f"line {n}\n" for n in range(40))))


def test_what_cannot_be_sent_to_workers(db: of.Database, lines: of.Dataset) -> None:
    lock = threading.Lock()

    def guarded(record: Any) -> Any:
        with lock:
            return record

    refused(
        db, lambda: lines.map(guarded), "'test_what_cannot", "guarded'", "uses 'lock'", "inside the function"
    )


WRONG: dict[str, tuple[Callable[[of.Dataset], of.Dataset], str]] = {
    "flat_map gives None": (lambda ds: ds.flat_map(lambda r: None), "did it forget to return"),
    "flat_map gives a number": (lambda ds: ds.flat_map(lambda r: 5), "it gave int"),
    "flat_map gives text": (lambda ds: ds.flat_map(lambda r: "abc"), "it gave str"),
    "mixed": (lambda ds: ds.map(lambda r: {"a": 1} if r["line"] == "line 7" else 5), "dict"),
    "no keys": (lambda ds: ds.map(lambda r: {}), "dicts without keys"),
    "keys no text": (lambda ds: ds.map(lambda r: {1: 1}), "must be column names"),
    "an object": (lambda ds: ds.map(lambda r: object()), "holds object"),
    "too large": (lambda ds: ds.map(lambda r: 2**200), "too large"),
    "not the schema": (
        lambda ds: ds.map(lambda r: {"b": 1}, schema={"a": pl.Int64}),
        "schema= does not name",
    ),
    "batches give a list": (lambda ds: ds.map_batches(lambda f: [f]), "must give a polars DataFrame"),
    "no pair": (lambda ds: ds.map_reduce(map=lambda r: [1], reduce=lambda k, v: 1), "(key, value) pairs"),
    "a key that is none": (
        lambda ds: ds.map_reduce(map=lambda r: [([1], 1)], reduce=lambda k, v: 1),
        "make it a tuple",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_functions_that_give_something_else(lines: of.Dataset, case: str) -> None:
    make, words = WRONG[case]
    failure = fails(make(lines), words, max_attempts=1)
    assert failure.location is not None and "lines.txt: line " in failure.location
    assert failure.record is not None and "line " in failure.record


def test_values_of_types_that_do_not_meet(lines: of.Dataset) -> None:
    fails(lines.map(lambda r: "x" if r["line"] == "line 7" else 5), "'value' mixes int, str", max_attempts=1)


def _raises(record: Any) -> Any:
    raise KeyError("boom")


def _forever(record: Any) -> Any:
    return _forever(record)


BREAKS: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "raises": (_raises, "KeyError: 'boom'", "in _raises"),
    "never ends": (_forever, "RecursionError", "in _forever"),
    "leaves": (lambda record: sys.exit(3), "SystemExit: 3", "sys.exit"),
    "os._exit": (lambda record: os._exit(3), "exited with status 3", ""),
    "segfaults": (lambda record: ctypes.string_at(0), "SIGSEGV", ""),
}


@pytest.mark.parametrize("case", BREAKS)
@pytest.mark.moving(2)
def test_functions_that_break(db: of.Database, lines: of.Dataset, case: str) -> None:
    breaks, words, trace = BREAKS[case]

    def fn(record: Any) -> Any:
        return breaks(record) if record["line"] == "line 17" else record

    failure = fails(lines.map(fn), words, "lines.txt: line 18", "{'line': 'line 17'}", max_attempts=1)
    assert failure.location is not None and failure.location.endswith("lines.txt: line 18")
    assert trace in (failure.traceback or "")
    run = lines.map(fn).into("skips").run(progress=False, workers=1, on_error="skip", max_attempts=1)
    assert sorted(run.result().to_polars()["line"]) == sorted(f"line {n}" for n in range(40) if n != 17)
    (letter,) = [error for error in run.errors() if error.skipped]
    assert letter.record == "{'line': 'line 17'}" and words in letter.message
    assert letter.location is not None and letter.location.endswith("lines.txt: line 18")


# -- no rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("functions_in_process")
def test_files_without_rows(db: of.Database, folder: Path, tmp_path: Path) -> None:
    write(folder / "a.csv", "k,n\n")
    write(folder / "b.csv", "k,n\n")
    nothing = db.read_csv(folder, schema={"k": pl.String, "n": pl.Int64})
    aggregates = {
        "count": agg.count(),
        **{
            name: getattr(agg, name)("n")
            for name in ("sum", "mean", "min", "max", "std", "var", "first", "last")
        },
        "distinct": agg.approx_n_unique("n"),
        "median": agg.approx_quantile("n", 0.5),
        "often": agg.most_frequent("n", 3),
        "own": agg.fold(lambda: 0, lambda state, row: state + 1, lambda a, b: a + b),
    }
    one = nothing.group_by().agg(**aggregates).into("one").run(progress=False, workers=1).result()
    (row,) = one.to_polars().to_dicts()
    assert (row["count"], row["sum"], row["own"], row["distinct"], row["often"]) == (0, 0, 0, 0, [])
    assert all(row[name] is None for name in ("mean", "min", "max", "std", "var", "first", "last", "median"))
    assert one.status.exact and one.estimate("count").row(0, named=True)["kind"] == "exact"
    none = nothing.group_by("k").agg(**aggregates).into("none").run(progress=False, workers=1).result()
    assert none.to_polars().columns == ["k", *aggregates] and len(none) == 0
    assert none.get("x") is None and none.top().height == 0 and none.estimate("sum").height == 0
    assert nothing.into("rows").run(progress=False).result().to_polars().columns == ["k", "n"]
    assert nothing.map(dict).into("mapped").run(progress=False, workers=1).result().to_polars().height == 0
    reduced = db.map_reduce(nothing, map=lambda r: [(1, 1)], reduce=lambda k, v: 1, into="reduced", workers=1)
    assert reduced.result().to_polars().columns == ["key", "value"]
    for name, by in (("flat", None), ("parts", "k")):
        nothing.write_parquet(tmp_path / name, partition_by=by).run(progress=False)
        assert pl.read_parquet(tmp_path / name).height == 0


# -- where is published ---------------------------------------------------------------------------------------------------


def test_targets_that_cannot_be(db: of.Database, folder: Path, tmp_path: Path) -> None:
    file = write(folder / "a.txt", "x\n")
    rows = db.read_text(file)
    write(tmp_path / "foreign" / "notes.txt", "keep me")
    for target, words in (
        ("s3://bucket/out", "local file system"),
        (file, "is a file"),
        (file / "below", "is a file"),
        (tmp_path / "foreign", "notes.txt"),
    ):
        with pytest.raises(of.InvalidArgument, match=words):
            rows.write_parquet(target).run(progress=False)
    for wrong in (5, None, ""):
        with pytest.raises(of.InvalidArgument, match="path"):
            rows.write_parquet(wrong)  # type: ignore[arg-type]
    for by in (5, [5], ["line", "line"]):
        with pytest.raises(of.InvalidArgument, match="partition_by"):
            rows.write_parquet(tmp_path / "out", partition_by=by)  # type: ignore[arg-type]
    assert db.runs() == [] and file.read_text() == "x\n" and not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["notes.txt"]


def test_a_job_does_not_publish_over_its_input_or_into_it(
    db: of.Database, folder: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        pl.DataFrame({"x": [1]}).write_parquet(folder / f"{name}.parquet")
    before = sorted(folder.iterdir())
    for target in (folder, tmp_path / "link"):
        (tmp_path / "link").is_symlink() or (tmp_path / "link").symlink_to(folder)
        with pytest.raises(of.InvalidArgument, match="the folder that it publishes"):
            db.read_parquet(folder / "a.parquet").write_parquet(target).run(progress=False)
    for paths in (folder, folder / "**" / "*.parquet", tmp_path / "i*" / "**" / "*"):
        with pytest.raises(of.InvalidArgument, match="when it runs again"):
            db.read_parquet(paths).write_parquet(folder / "out", mode="append").run(progress=False)
    assert sorted(folder.iterdir()) == before and db.runs() == []
    job = db.read_parquet(folder / "*.parquet").write_parquet(folder / "out", mode="append")
    for _ in range(2):
        job.run(progress=False)
    assert pl.read_parquet(folder / "out" / "*.parquet").height == 2


def test_a_job_does_not_read_its_own_space(db: of.Database, tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "x\n")
    refused(db, lambda: db.read_text(tmp_path), "the space itself", "keep the space in another folder")
