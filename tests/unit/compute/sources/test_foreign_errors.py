"""What other libraries raise over a user's files is an Onefold error that names the file, panics included."""

from __future__ import annotations

import datetime as dt
import io
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute import foreign, sources


class PanicException(BaseException):
    """As a library made with pyo3 has one of its own."""


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path / "space") as db:
        yield db


@pytest.mark.parametrize(
    "error",
    [PanicException("boom"), pl.exceptions.ComputeError("boom"), UnicodeError("boom"), KeyError("boom")],
)
def test_one_place_for_all_of_them(error: BaseException) -> None:
    with (
        pytest.raises(of.InvalidValue, match=r"cannot read a\.csv: .*boom.*; repair it") as caught,
        foreign.translated("cannot read a.csv", hint="repair it"),
    ):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), GeneratorExit(), OSError(5, "io"), of.Conflict("c"), SystemExit(1)]
)
def test_what_is_not_foreign_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, foreign.translated("x"):
        raise error
    assert caught.value is error


def test_a_header_that_polars_refuses(db: of.Database, tmp_path: Path) -> None:
    (tmp_path / "twice.csv").write_text("a,a,a_duplicated_0\n1,2,3\n")
    with pytest.raises(of.InvalidValue, match=r"twice\.csv"):
        db.read_csv(tmp_path / "twice.csv").into("t").run(progress=False, workers=1)
    assert db.runs() == []


def test_a_zone_at_which_polars_panics(db: of.Database, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "zone.parquet"
    pq.write_table(pa.table({"t": pa.array([dt.datetime(2024, 1, 1)], pa.timestamp("us", "+05:30"))}), path)
    with pytest.raises(of.InvalidValue, match=r"zone\.parquet"):
        db.read_parquet(path).into("t").run(progress=False, workers=1)
    assert db.runs() == []


@pytest.mark.parametrize("kind", ["text", "csv", "jsonl", "files"])
def test_a_name_that_is_not_utf_8(db: of.Database, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    suffix = {"text": b".txt", "csv": b".csv", "jsonl": b".jsonl", "files": b".bin"}[kind]
    path = os.fsencode(folder) + b"/caf\xe9" + suffix
    try:
        with open(path, "wb") as file:
            file.write(b'{"a": 1}\n')
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    read = getattr(db, f"read_{kind}")
    for given in (folder, os.fsdecode(path), f"{folder}/*"):
        with pytest.raises(of.InvalidArgument, match=r"caf.xe9.*rename") as caught:
            read(given).into("t").run(progress=False, workers=1)
        str(caught.value).encode()
    assert db.runs() == []


def test_damaged_pages_are_named_while_the_job_runs(db: of.Database, tmp_path: Path) -> None:
    for number in range(3):
        out = io.BytesIO()
        pl.DataFrame({"v": range(2000)}).write_parquet(out, compression="zstd")
        data = bytearray(out.getvalue())
        if number == 1:
            data[20:400] = bytes(380)
        (tmp_path / f"{number}.parquet").write_bytes(data)
    job = db.read_parquet(str(tmp_path / "*.parquet")).group_by().agg(s=agg.sum("v")).into("t")
    with pytest.raises(of.JobFailed, match=r"1\.parquet"):
        job.run(progress=False, workers=1, target_splits=1)


def _seed_file(kind: str) -> bytes:
    frame = pl.DataFrame({"a": [1, 2, 3] * 20, "b": ["x", "yy", None] * 20, "c": [[1], [], [2, 3]] * 20})
    out = io.BytesIO()
    if kind == "parquet":
        frame.write_parquet(out, row_group_size=20)
    elif kind == "csv":
        frame.drop("c").write_csv(out)
    else:
        frame.write_ndjson(out)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_broken_bytes_give_rows_or_an_error_of_ours(tmp_path: Path, kind: str) -> None:
    rng = random.Random(f"broken {kind}")
    whole = _seed_file(kind)
    path = tmp_path / f"broken.{kind}"
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3, 10))):
            at = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.randrange(1, 20)]
                case 2:
                    data[at:at] = bytes(
                        rng.choice(b'",{}[]\\\n\r\0\xff ') for _ in range(rng.randrange(1, 5))
                    )
                case _:
                    data = data[: max(1, at)] if rng.random() < 0.2 else data
        path.write_bytes(data)
        try:
            source = sources.make_source(kind, path)  # type: ignore[arg-type]
            resolved = sources.resolve(source)
            units = sources.units_of(source, resolved, split_bytes=1 << 40, min_units=2)
            for unit in units:
                for _ in sources.batches(source, resolved.schema, unit, 7):
                    pass
        except of.OnefoldError as error:
            refused += 1
            assert path.name in str(error)  # noqa: PT017
    assert refused > 10


@pytest.mark.parametrize("wrap", [lambda t: t, pl.List, lambda t: pl.Struct({"x": t})])
def test_a_time_zone_that_does_not_exist(db: of.Database, tmp_path: Path, wrap: Any) -> None:
    (tmp_path / "t.csv").write_text("t\n2024-01-01T00:00:00\n")
    (tmp_path / "t.jsonl").write_text('{"t": null}\n')
    kind = wrap(pl.Datetime("us", "Mars/X"))
    for make in (
        lambda: db.read_csv(tmp_path / "t.csv", schema_overrides={"t": kind}),
        lambda: db.read_csv(tmp_path / "t.csv", schema={"t": kind}),
        lambda: db.read_jsonl(tmp_path / "t.jsonl", schema={"t": kind}),
        lambda: db.read_jsonl(tmp_path / "t.jsonl").map(dict, schema={"t": kind}),
    ):
        with pytest.raises(of.InvalidArgument, match="Mars/X"):
            make()
