"""A column without a name, as tables saved with their index have one, goes through everything under that name."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

import onefold as of
from onefold import agg


@pytest.fixture
def db(tmp_path: Path) -> of.Database:
    (tmp_path / "a.csv").write_text(",a,b\n0,1,2\n1,3,4\n")
    (tmp_path / "b.csv").write_text(",a,b\n0,5,6\n1,x,7\n".replace("x", "7"))
    return of.connect(tmp_path / "space")


def table(dataset: of.Dataset) -> pl.DataFrame:
    return (
        dataset.into("t", mode="replace").run(progress=False, workers=1, target_splits=2).result().to_polars()
    )


def test_rows_and_published_files(db: of.Database, tmp_path: Path) -> None:
    rows = db.read_csv(tmp_path / "*.csv")
    assert table(rows).sort("a").rows() == [(0, 1, 2), (1, 3, 4), (0, 5, 6), (1, 7, 7)]
    assert table(rows).columns == ["", "a", "b"]
    rows.write_parquet(tmp_path / "out").run(progress=False, workers=1)
    assert pl.read_parquet(tmp_path / "out").columns == ["", "a", "b"]
    assert table(db.read_parquet(tmp_path / "out")).columns == ["", "a", "b"]
    rows.write_parquet(tmp_path / "parts", partition_by="a").run(progress=False, workers=1)
    assert sorted(pl.read_parquet(tmp_path / "parts" / "**" / "*.parquet").columns)[0] == ""


@pytest.mark.parametrize(
    "aggregate",
    [
        agg.count(),
        agg.sum("a"),
        agg.approx_n_unique("a"),
        agg.approx_quantile("a", 0.5),
        agg.most_frequent("a", 2),
        agg.first("a"),
        agg.std("a"),
    ],
    ids=lambda aggregate: type(aggregate).__name__,
)
def test_groups_by_it(db: of.Database, tmp_path: Path, aggregate: object) -> None:
    got = table(db.read_csv(tmp_path / "*.csv").group_by("").agg(n=aggregate))
    assert got.columns == ["", "n"] and sorted(got[""].to_list()) == [0, 1]
    assert db.table("t").estimate("n") is not None


def test_two_keys_and_values_by_it(db: of.Database, tmp_path: Path) -> None:
    got = table(db.read_csv(tmp_path / "*.csv").group_by("", "b").agg(s=agg.sum("")))
    assert got.columns == ["", "b", "s"] and sorted(got.rows()) == [
        (0, 2, 0),
        (0, 6, 0),
        (1, 4, 1),
        (1, 7, 1),
    ]


def test_joins_and_functions(db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = db.read_csv(tmp_path / "a.csv"), db.read_csv(tmp_path / "b.csv").select("", c="a")
    for limit in (1 << 30, 0):
        monkeypatch.setattr(of.config, "BROADCAST_BYTES_MAX", limit)
        joined = table(left.join(right, on=""))
        assert joined.columns == ["", "a", "b", "c"] and sorted(joined[""].to_list()) == [0, 1]
    mapped = table(left.map(lambda record: {"": record[""] + 1}))
    assert mapped.columns == [""] and sorted(mapped[""].to_list()) == [1, 2]
