"""``read_parquet(schema=)``: what the files must have, and the types of columns that are folders."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

import onefold as of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for day in ("01", "02"):
        (tmp_path / "in" / f"day={day}").mkdir(parents=True)
        pl.DataFrame({"a": [1], "b": ["x"]}).write_parquet(tmp_path / "in" / f"day={day}" / "a.parquet")
    return tmp_path / "in"


def test_order_and_types_of_folders(folder: Path, tmp_path: Path) -> None:
    with of.connect(tmp_path / "space") as db:
        rows = db.read_parquet(folder, schema={"b": pl.String, "day": pl.String, "a": pl.Int64})
        got = rows.into("t").run(progress=False, workers=1).result().to_polars()
        assert got.columns == ["b", "day", "a"] and sorted(got["day"].to_list()) == ["01", "02"]
        less = db.read_parquet(folder, schema={"b": pl.String, "a": pl.Int64})
        assert less.into("u").run(progress=False, workers=1).result().to_polars().columns == ["b", "a", "day"]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"a": pl.Int64}, ("lacks 'b'", "a.parquet")),
        ({"a": pl.Int64, "b": pl.String, "c": pl.Int64}, ("names 'c'", "a.parquet")),
        ({"a": pl.Int32, "b": pl.String}, ("'a' is Int32 in schema= but Int64", "a.parquet")),
        ({"a": pl.Int64, "b": pl.String, "day": pl.Date}, ("day=0", "Date")),
    ],
)
def test_files_that_differ(
    folder: Path, tmp_path: Path, schema: dict[str, object], words: tuple[str, ...]
) -> None:
    with of.connect(tmp_path / "space") as db:
        with pytest.raises(of.InvalidArgument) as caught:
            db.read_parquet(folder, schema=schema).into("t").run(progress=False, workers=1)
        assert all(word in str(caught.value) for word in words), caught.value
        assert db.runs() == []
