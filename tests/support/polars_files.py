"""The same rows as files of several formats, read by plain Polars and by jobs, and when both results are the same."""

from __future__ import annotations

import datetime
import itertools
import math
import random
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import onefold as of
from onefold import config

SPLITS = (1, 3, 17)
WORDS = ("café", "naïve", "日本", "Straße", "a,b", 'say "x"', "emoji 🎈", " pad ", "x")


def rows(seed: int, n: int = 400) -> pl.DataFrame:
    """Columns of many types with nulls, NaN, infinities and non-ASCII text."""
    chance = random.Random(seed)

    def maybe(value: Any, nulls: float = 0.1) -> Any:
        return None if chance.random() < nulls else value

    start = datetime.datetime(2024, 2, 28, 23)
    return pl.DataFrame(
        {
            "id": range(n),
            "k": [maybe(chance.choice(WORDS)) for _ in range(n)],
            "g": [maybe(chance.randint(-2, 2)) for _ in range(n)],
            "b": [maybe(chance.random() < 0.5) for _ in range(n)],
            "i": [maybe(chance.randint(-(10**9), 10**9)) for _ in range(n)],
            "u": [chance.randint(0, 200) for _ in range(n)],
            "f": [maybe(chance.gauss(0, 1e6)) for _ in range(n)],
            "nan": [chance.choice((1.5, -0.0, 0.0, math.nan, math.inf, None)) for _ in range(n)],
            "dec": [maybe(Decimal(chance.randint(-(10**6), 10**6)) / 100) for _ in range(n)],
            "t": [maybe(start + datetime.timedelta(seconds=chance.randint(0, 10**6))) for _ in range(n)],
            "day": [maybe((start + datetime.timedelta(days=chance.randint(0, 5))).date()) for _ in range(n)],
            "cat": [maybe(chance.choice(("red", "green", "blau"))) for _ in range(n)],
            "list": [maybe([chance.randint(0, 9) for _ in range(chance.randint(0, 4))]) for _ in range(n)],
            "nothing": [None] * n,
        },
        schema_overrides={
            "u": pl.UInt8,
            "g": pl.Int16,
            "dec": pl.Decimal(18, 2),
            "t": pl.Datetime("us"),
            "cat": pl.Categorical,
            "list": pl.List(pl.Int64),
            "nothing": pl.Float64,
        },
    )


NO_LISTS = ("list",)
JSON_ONLY = ("dec", "cat", "nan")


class Files:
    """The same rows as files of one format, and how Polars and Onefold read them."""

    def __init__(self, folder: Path, kind: str, seed: int) -> None:
        frame = rows(seed)
        frame = frame.drop({"csv": NO_LISTS, "jsonl": JSON_ONLY}.get(kind, ()))
        if kind == "csv":
            frame = frame.with_columns(pl.col("cat").cast(pl.String))
        if kind == "jsonl":  # whose reader in Polars has no smaller ones
            frame = frame.with_columns(pl.col("g").cast(pl.Int32), pl.col("u").cast(pl.UInt32))
        self.kind, self.schema = kind, dict(frame.schema)
        folder.mkdir()
        cuts = [0, 150, 151, frame.height]
        for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
            part, path = frame[start:stop], folder / f"{number}.{kind}"
            match kind:
                case "csv":
                    part.write_csv(path)
                case "jsonl":
                    part.write_ndjson(path)
                case "parquet":
                    part.write_parquet(path, row_group_size=40)
        self.glob = f"{folder}/*.{kind}"

    def polars(self) -> pl.DataFrame:
        match self.kind:
            case "csv":
                return pl.read_csv(self.glob, schema=self.schema)
            case "jsonl":
                return pl.read_ndjson(self.glob, schema=self.schema)
        return pl.read_parquet(self.glob)

    def onefold(self, db: of.Database) -> of.Dataset:
        match self.kind:
            case "csv":
                return db.read_csv(self.glob, schema=self.schema)
            case "jsonl":
                return db.read_jsonl(self.glob, schema=self.schema)
        return db.read_parquet(self.glob)


@pytest.fixture(autouse=True)
def small_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files are cut as large ones are."""
    monkeypatch.setattr(config, "SPLIT_BYTES_MIN", 500)


@pytest.fixture(name="db", params=["memory", "disk"])
def db_on_disk_or_in_memory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[of.Database]:
    with of.connect("memory://" if request.param == "memory" else tmp_path / "space") as opened:
        yield opened


@pytest.fixture(name="memory")
def db_in_memory() -> Iterator[of.Database]:
    with of.connect("memory://") as opened:
        yield opened


@pytest.fixture(name="files", params=["csv", "jsonl", "parquet"])
def files_of_each_format(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return Files(tmp_path / "in", request.param, seed=11)


def result(dataset: of.Dataset, splits: int = 3, table: str = "t") -> pl.DataFrame:
    run = dataset.into(f"{table}_{splits}").run(progress=False, workers=1, target_splits=splits)
    return run.result().to_polars()


def same(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    """Equal as sets of rows: whole numbers exactly, floats to 1e-9."""
    assert_frame_equal(
        found, expected, check_row_order=False, rel_tol=1e-9, abs_tol=1e-12, categorical_as_str=True
    )


def same_by(found: pl.DataFrame, expected: pl.DataFrame, *keys: str) -> None:
    """The same, for rows that cannot be sorted whole."""
    assert found.columns == expected.columns
    same(found.sort(keys, nulls_last=True), expected.sort(keys, nulls_last=True))
