"""Jobs on real files give what plain Polars gives on the same files, whatever the format, the splits and the space."""

from __future__ import annotations

import datetime
import itertools
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import onefold as of
from onefold import agg, config

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


@pytest.fixture(params=["memory", "disk"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[of.Database]:
    with of.connect("memory://" if request.param == "memory" else tmp_path / "space") as opened:
        yield opened


@pytest.fixture
def memory() -> Iterator[of.Database]:
    with of.connect("memory://") as opened:
        yield opened


@pytest.fixture(params=["csv", "jsonl", "parquet"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
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


@pytest.mark.parametrize("splits", SPLITS)
def test_rows(db: of.Database, files: Files, splits: int) -> None:
    found = result(files.onefold(db), splits)
    assert found.schema == files.polars().schema
    assert found.sort("id").equals(files.polars().sort("id"))


STEPS: dict[str, Callable[[Any], Any]] = {
    "select": lambda d: d.select("id", pl.col("k").str.to_uppercase(), half=pl.col("i") / 2),
    "with_columns": lambda d: d.with_columns(
        pl.col("u").cast(pl.Int64) * pl.col("i"), month=pl.col("t").dt.month(), one=pl.lit(1)
    ),
    "filter": lambda d: d.filter(pl.col("b"), pl.col("k").str.len_chars() > 2).select("id", "k", "b"),
    "filter equal": lambda d: d.filter(k="café").select("id", "k"),
    "chain": lambda d: (
        d.filter(pl.col("f").is_not_null())
        .with_columns(w=pl.when(pl.col("f") > 0).then(pl.lit("up")).otherwise(pl.lit("down")))
        .select("id", "w", pl.col("day").dt.weekday())
        .filter(pl.col("w") == "up")
    ),
    "nobody": lambda d: d.filter(pl.col("id") < 0),
}


@pytest.mark.parametrize("name", STEPS)
def test_expression_steps(memory: of.Database, files: Files, name: str) -> None:
    step = STEPS[name]
    found, expected = result(step(files.onefold(memory))), step(files.polars())
    assert found.schema == expected.schema
    same_by(found, expected, "id")


def test_explode(memory: of.Database, tmp_path: Path) -> None:
    for kind in ("parquet", "jsonl"):
        files = Files(tmp_path / kind, kind, seed=5)
        found = result(files.onefold(memory).select("id", "list").explode("list"), table=kind)
        expected = files.polars().select("id", "list").filter(pl.col("list").list.len() > 0).explode("list")
        assert found.sort("id", maintain_order=True).equals(expected)


def most_frequent(column: str, k: int) -> Callable[[pl.DataFrame], list[dict[str, Any]]]:
    def of_group(frame: pl.DataFrame) -> list[dict[str, Any]]:
        counts = frame[column].drop_nulls().value_counts(name="count").rename({column: "value"})
        return counts.sort(["count", "value"], descending=[True, False]).head(k).to_dicts()

    return of_group


def add(state: int, row: dict[str, Any]) -> int:
    return state + row["u"]


AGGREGATES: dict[str, Any] = {
    "rows": agg.count(),
    "count": agg.count("f"),
    "sum": agg.sum("i"),
    "sum_u8": agg.sum("u"),
    "sum_f": agg.sum("f"),
    "sum_b": agg.sum("b"),
    "mean": agg.mean("f"),
    "mean_i": agg.mean("i"),
    "mean_none": agg.mean("nothing"),
    "sum_none": agg.sum("nothing"),
    "min": agg.min("f"),
    "max": agg.max("i"),
    "min_text": agg.min("k"),
    "max_t": agg.max("t"),
    "min_day": agg.min("day"),
    "max_b": agg.max("b"),
    "std": agg.std("f"),
    "std0": agg.std("u", ddof=0),
    "var": agg.var("f"),
    "var0": agg.var("i", ddof=0),
    "first": agg.first("k"),
    "last": agg.last("f"),
    "first_by": agg.first("id", by=pl.col("u").cast(pl.Int64) * 1000 + pl.col("id")),
    "last_by": agg.last("id", by="id"),
    "n_unique": agg.approx_n_unique("k"),
    "median": agg.approx_quantile("u", 0.5),
    "q90": agg.approx_quantile("f", 0.9),
    "expr": agg.sum(pl.col("u").cast(pl.Int64) * 2 + 1),
    "plain_sum": pl.col("i").sum(),
    "plain_mean": pl.col("f").mean(),
    "plain_min": pl.col("t").min(),
    "plain_max": pl.col("k").max(),
    "plain_len": pl.len(),
}
BY_U = pl.col("u").cast(pl.Int64) * 1000 + pl.col("id")
EXPECTED: dict[str, pl.Expr] = {
    "rows": pl.len(),
    "count": pl.col("f").count(),
    "sum": pl.col("i").sum(),
    "sum_u8": pl.col("u").sum(),
    "sum_f": pl.col("f").sum(),
    "sum_b": pl.col("b").sum(),
    "mean": pl.col("f").mean(),
    "mean_i": pl.col("i").mean(),
    "mean_none": pl.col("nothing").mean(),
    "sum_none": pl.col("nothing").sum(),
    "min": pl.col("f").min(),
    "max": pl.col("i").max(),
    "min_text": pl.col("k").min(),
    "max_t": pl.col("t").max(),
    "min_day": pl.col("day").min(),
    "max_b": pl.col("b").max(),
    "std": pl.col("f").std(),
    "std0": pl.col("u").std(ddof=0),
    "var": pl.col("f").var(),
    "var0": pl.col("i").var(ddof=0),
    "first": pl.col("k").first(),
    "last": pl.col("f").last(),
    "first_by": pl.col("id").sort_by(BY_U).first(),
    "last_by": pl.col("id").last(),
    "n_unique": pl.col("k").n_unique(),
    "median": pl.col("u").quantile(0.5, "nearest"),
    "q90": pl.col("f").quantile(0.9, "nearest"),
    "expr": (pl.col("u").cast(pl.Int64) * 2 + 1).sum(),
    "plain_sum": pl.col("i").sum(),
    "plain_mean": pl.col("f").mean(),
    "plain_min": pl.col("t").min(),
    "plain_max": pl.col("k").max(),
    "plain_len": pl.len(),
}
KEYS: dict[str, list[Any]] = {
    "text": ["k"],
    "several": ["g", "b"],
    "day": ["day"],
    "expression": [pl.col("t").dt.truncate("1d"), (pl.col("u") % 3).alias("third")],
    "none": [],
}


@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("keys", KEYS)
def test_every_aggregate(memory: of.Database, files: Files, keys: str, splits: int) -> None:
    found = result(files.onefold(memory).group_by(*KEYS[keys]).agg(**AGGREGATES), splits)
    plain = files.polars()
    expected = (
        plain.group_by(KEYS[keys], maintain_order=True).agg(**EXPECTED)
        if KEYS[keys]
        else plain.select(**EXPECTED)
    )
    assert found.columns == expected.columns
    names = expected.columns[: len(KEYS[keys])]
    for name in expected.columns:
        assert (name, found.schema[name]) == (name, expected.schema[name])
        one = [*names, name] if name not in names else names
        if names:
            same(found.select(one).sort(names), expected.select(one).sort(names))
        else:
            same(found.select(name), expected.select(name))


@pytest.mark.parametrize("splits", SPLITS)
def test_aggregates_of_types_that_only_parquet_keeps(
    memory: of.Database, tmp_path: Path, splits: int
) -> None:
    files = Files(tmp_path / "in", "parquet", seed=23)
    found = result(
        files.onefold(memory)
        .group_by("cat")
        .agg(
            total=agg.sum("dec"),
            mean=agg.mean("dec"),
            least=agg.min("dec"),
            most=agg.max("nan"),
            nan=agg.sum("nan"),
            unique=agg.approx_n_unique("dec"),
            first=agg.first("list"),
            kinds=agg.approx_n_unique("cat"),
        ),
        splits,
    )
    expected = (
        files.polars()
        .group_by("cat")
        .agg(
            total=pl.col("dec").sum(),
            mean=pl.col("dec").mean(),
            least=pl.col("dec").min(),
            most=pl.col("nan").max(),
            nan=pl.col("nan").sum(),
            unique=pl.col("dec").n_unique(),
            first=pl.col("list").first(),
            kinds=pl.col("cat").n_unique(),
        )
    )
    assert found.columns == expected.columns
    by = pl.col("cat").cast(pl.String)
    same(found.sort(by), expected.sort(by))


@pytest.mark.parametrize("splits", SPLITS)
def test_most_frequent_and_fold(db: of.Database, files: Files, splits: int) -> None:
    found = result(
        files.onefold(db)
        .group_by("b")
        .agg(
            words=agg.most_frequent("k", 3),
            all=agg.fold(int, add, lambda a, b: a + b),
            longest=agg.fold(str, lambda s, v: max(s, v or ""), max, col="k"),
        ),
        splits,
    )
    top = most_frequent("k", 3)
    for row in found.to_dicts():
        group = files.polars().filter(pl.col("b").eq_missing(row["b"]))
        assert row["words"] == top(group)
        assert row["all"] == group["u"].cast(pl.Int64).sum()
        assert row["longest"] == group["k"].max()
    assert found.height == 3


def test_float_keys(memory: of.Database, tmp_path: Path) -> None:
    """NaN is one group, and so are both zeros."""
    files = Files(tmp_path / "in", "parquet", seed=3)
    found = result(files.onefold(memory).group_by("nan").agg(n=agg.count()), 17)
    same_by(found, files.polars().group_by("nan").agg(n=pl.len()), "nan")


@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("how", ["inner", "left"])
def test_join(
    memory: of.Database,
    files: Files,
    tmp_path: Path,
    how: Any,
    shuffled: bool,
    splits: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if shuffled:
        monkeypatch.setattr(config, "BROADCAST_BYTES_MAX", 0)
    right = pl.DataFrame(
        {
            "k": ["café", "日本", None, "café", "unheard"],
            "g": pl.Series([1, -1, 0, 2, 1], dtype=pl.Int16),
            "f": [1.0, 2.0, 3.0, 4.0, 5.0],
            "label": ["a", "b", "c", "d", "e"],
        }
    )
    right.write_parquet(tmp_path / "right.parquet")
    left = files.polars().select("id", "k", pl.col("g").cast(pl.Int16), "f")
    for on in ("k", ["k", "g"]):
        found = result(
            files.onefold(memory)
            .select("id", "k", pl.col("g").cast(pl.Int16), "f")
            .join(memory.read_parquet(tmp_path / "right.parquet"), on=on, how=how),
            splits,
            table=f"on{len(on)}",
        )
        expected = left.join(right, on=on, how=how)
        assert found.schema == expected.schema
        same_by(found, expected, "id", "label")


@pytest.mark.parametrize("shuffled", [False, True])
def test_group_by_after_join_and_union(
    memory: of.Database, files: Files, shuffled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shuffled:
        monkeypatch.setattr(config, "BROADCAST_BYTES_MAX", 0)
    data, plain = files.onefold(memory), files.polars()
    low, high = data.filter(pl.col("u") < 100), data.filter(pl.col("u") > 50)
    found = result(
        low.union(high)
        .join(data.select("id", other=pl.col("u")), on="id")
        .group_by("k")
        .agg(n=agg.count(), s=agg.sum(pl.col("other").cast(pl.Int64)))
    )
    both = pl.concat([plain.filter(pl.col("u") < 100), plain.filter(pl.col("u") > 50)])
    expected = both.group_by("k").agg(n=pl.len(), s=pl.col("u").cast(pl.Int64).sum())
    same_by(found, expected, "k")


def longer(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "twice": None if record["i"] is None else record["i"] * 2}


@pytest.mark.parametrize(("kind", "splits"), [("csv", 17), ("jsonl", 1), ("parquet", 3)])
def test_python_steps(memory: of.Database, tmp_path: Path, kind: str, splits: int) -> None:
    files = Files(tmp_path / "in", kind, seed=31)
    data, plain = files.onefold(memory), files.polars()
    columns = [name for name in plain.columns if name != "nothing"]
    found = result(data.select(columns).map(longer), splits, "map")
    expected = plain.select(*columns, twice=pl.col("i") * 2)
    assert found.columns == expected.columns
    for name in ("k", "b", "t", "day", "f", "twice"):
        same_by(found.select("id", name), expected.select("id", name), "id")
    again = data.flat_map(lambda row: [row["u"]] * (row["u"] % 3)).map_batches(
        lambda frame: frame.filter(pl.col("value") > 9).with_columns(n=pl.lit(frame.height)), batch_rows=7
    )
    repeated = plain.select(value=pl.col("u").cast(pl.Int64).repeat_by(pl.col("u") % 3)).explode("value")
    found = result(again, splits, "flat")
    same_by(found.select("value"), repeated.filter(pl.col("value") > 9), "value")
    assert found["n"].is_between(1, 7).all()


@pytest.mark.parametrize("splits", SPLITS)
def test_text(db: of.Database, tmp_path: Path, splits: int) -> None:
    chance = random.Random(splits)
    folder = tmp_path / "in"
    folder.mkdir()
    lines: list[str] = []
    for number in range(3):
        mine = [" ".join(chance.choices(WORDS, k=chance.randint(0, 6))) for _ in range(200)]
        end = "\n" if number else ""
        (folder / f"{number}.txt").write_text("\n".join(mine) + end, encoding="utf-8")
        lines += mine if end or mine[-1] else mine[:-1]
    found = result(db.read_text(folder), splits)
    assert sorted(found["line"].to_list()) == sorted(lines)
    words = db.read_text(folder).select(pl.col("line").str.split(" ").alias("w")).explode("w")
    expected = pl.DataFrame({"w": lines}).select(pl.col("w").str.split(" ")).explode("w")
    same_by(
        result(words.group_by("w").agg(n=agg.count()), splits, "w"),
        expected.group_by("w").agg(n=pl.len()),
        "w",
    )


def test_types_that_a_reader_is_asked_for(memory: of.Database, tmp_path: Path) -> None:
    """Types may stand without parameters, as in Polars; JSON lines take those too that Polars' own reader does not."""
    path = tmp_path / "a.csv"
    path.write_text("t,c\n2024-01-01T00:00:00,x\n2024-01-02T00:00:00,\n")
    asked = {"t": pl.Datetime, "c": pl.Categorical}
    found = result(memory.read_csv(path, schema_overrides=asked), table="csv")
    assert_frame_equal(found, pl.read_csv(path, schema_overrides=asked))
    path = tmp_path / "a.jsonl"
    path.write_text('{"u":7,"e":"on","c":"x"}\n{"u":null,"e":null}\n{"u":255,"e":"off","c":"y"}\n')
    schema = {"u": pl.UInt8(), "e": pl.Enum(["on", "off"]), "c": pl.Categorical()}
    data = memory.read_jsonl(path, schema={**schema, "c": pl.Categorical})
    expected = pl.DataFrame({"u": [7, None, 255], "e": ["on", None, "off"], "c": ["x", None, "y"]}, schema)
    assert_frame_equal(result(data, table="jsonl"), expected)
    same(result(data.filter(pl.col("u") > 9).select("e"), table="some"), expected[2:].select("e"))
    path.write_text('{"u":7}\n{"u":256}\n')
    with pytest.raises(of.JobFailed, match="256"):
        result(memory.read_jsonl(path, schema={"u": pl.UInt8}), table="bad")


def test_whole_files(memory: of.Database, tmp_path: Path) -> None:
    for name, content in (("a.bin", b"\x00\xff"), ("b.bin", b""), ("é.txt", "日本".encode())):
        (tmp_path / name).write_bytes(content)
    found = result(memory.read_files(tmp_path)).sort("path")
    assert found.to_dicts() == [
        {"path": str(path), "size": path.stat().st_size, "data": path.read_bytes()}
        for path in sorted(tmp_path.iterdir())
    ]


READER = """
import sys
import onefold as of
with of.connect(sys.argv[1]) as db:
    db.table("t").to_polars().write_parquet(sys.argv[2])
    print(len(db.table("t")), db.table("t").status)
"""


def test_another_process_reads_the_same_table(tmp_path: Path) -> None:
    files = Files(tmp_path / "in", "parquet", seed=8)
    with of.connect(tmp_path / "space") as db:
        job = files.onefold(db).group_by("k", "g").agg(**AGGREGATES).into("t")
        table = job.run(progress=False, target_splits=7).result()
        here = table.to_polars()
        command = [sys.executable, "-c", READER, str(tmp_path / "space"), str(tmp_path / "there.parquet")]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert said == f"{here.height} {table.status}\n" and table.status.exact
    there = pl.read_parquet(tmp_path / "there.parquet")
    assert there.sort("k", "g").equals(here.sort("k", "g"))  # bit for bit
    with of.connect(tmp_path / "space") as db:
        assert db.table("t").to_polars().equals(there)


def test_the_ways_to_read_a_table(db: of.Database, files: Files) -> None:
    job = files.onefold(db).group_by("k").agg(n=agg.count(), s=agg.sum("i"))
    table = job.into("t").run(progress=False, target_splits=5).result()
    expected = files.polars().group_by("k").agg(n=pl.len(), s=pl.col("i").sum())
    assert len(table) == expected.height
    assert table.status == of.TableStatus(done=table.status.total, total=table.status.total, exact=True)
    for row in expected.to_dicts():
        assert table.get(row["k"]) == row
    assert table.get("not there") is None
    top = table.top(3, by="n")
    assert top["n"].to_list() == expected["n"].sort(descending=True).head(3).to_list()
    assert table.top()["n"].to_list() == expected["n"].sort(descending=True).to_list()
    assert isinstance(table.scan(), pl.LazyFrame)
    lazy = table.scan().filter(pl.col("n") > 10).select("k", "n").collect()
    same_by(lazy, expected.filter(pl.col("n") > 10).select("k", "n"), "k")
    arrow = table.to_arrow()
    assert arrow.num_rows == expected.height and arrow.column_names == ["k", "n", "s"]
    (last,) = table.watch()
    assert (last.done, last.total, last.exact) == (table.status.total, table.status.total, True)
    assert last.to_polars().equals(table.to_polars())
    several = files.onefold(db).group_by("g", "b").agg(n=agg.count()).into("two").run(progress=False)
    for row in files.polars().group_by("g", "b").agg(n=pl.len()).to_dicts():
        assert several.result().get((row["g"], row["b"])) == row
    nothing = files.onefold(db).group_by().agg(n=agg.count()).into("one").run(progress=False).result()
    assert nothing.to_polars().to_dicts() == [{"n": files.polars().height}]


def test_row_tables_are_scanned(db: of.Database, files: Files) -> None:
    table = files.onefold(db).into("t").run(progress=False, target_splits=17).result()
    lazy = table.scan().filter(pl.col("u") < 50).select("id", "k").collect()
    assert lazy.sort("id").equals(files.polars().filter(pl.col("u") < 50).select("id", "k").sort("id"))
    assert len(table) == table.scan().select(pl.len()).collect().item() == files.polars().height
    assert table.to_arrow().num_rows == files.polars().height


ESTIMATED: dict[str, tuple[Any, str]] = {
    "rows": (agg.count(), "estimate"),
    "some": (agg.count("f"), "estimate"),
    "sum": (agg.sum("u"), "estimate"),
    "mean": (agg.mean("u"), "estimate"),
    "median": (agg.approx_quantile("u", 0.5), "estimate"),
    "least": (agg.min("u"), "bound"),
    "most": (agg.max("u"), "bound"),
    "unique": (agg.approx_n_unique("u"), "bound"),
    "std": (agg.std("u"), "estimate"),
    "var": (agg.var("u"), "estimate"),
    "first": (agg.first("u"), "estimate"),
    "last": (agg.last("u"), "estimate"),
    "often": (agg.most_frequent("u", 2), "estimate"),
    "folded": (agg.fold(int, add, lambda a, b: a + b), "estimate"),
}
COLUMNS = ["value", "lo", "hi", "level", "kind", "n", "N", "reason"]


def test_estimates_half_way_and_at_the_end(tmp_path: Path) -> None:
    """Half of the tasks wait for a file; what the table says meanwhile is called what it is."""
    folder, gate = tmp_path / "in", tmp_path / "gate"
    folder.mkdir()
    chance = random.Random(4)
    for number in range(40):
        pl.DataFrame(
            {
                "g": [chance.choice("ab") for _ in range(50)],
                "u": [chance.randint(0, 99) for _ in range(50)],
                "f": [chance.choice((1.0, None)) for _ in range(50)],
            }
        ).write_parquet(folder / f"{number:02d}.parquet")
    started = tmp_path / "started"
    started.mkdir()

    def wait(frame: pl.DataFrame) -> pl.DataFrame:
        import time
        import uuid

        if len(list(started.iterdir())) >= 20:
            while not gate.exists():
                time.sleep(0.01)
        (started / uuid.uuid4().hex).touch()
        return frame

    plain = pl.read_parquet(folder)
    with of.connect(tmp_path / "space") as db:
        job = (
            db.read_parquet(folder)
            .map_batches(wait, schema={"g": pl.String, "u": pl.Int64, "f": pl.Float64})
            .group_by("g")
            .agg(**{name: made for name, (made, _) in ESTIMATED.items()})
        )
        run = job.into("t").start(workers=1, target_splits=40)
        table = db.table("t")
        for snapshot in table.watch(timeout=60):
            if snapshot.done == 20:
                break
        assert run.state == "running"
        assert table.status == of.TableStatus(done=20, total=40, exact=False)
        for name, (_, kind) in ESTIMATED.items():
            half = table.estimate(name, level=0.9)
            assert half.columns == ["g", *COLUMNS], name
            assert set(half["kind"]) == {kind}, name
            assert set(half["N"]) == {40} and set(half["n"]) == {20}, name
            assert half.sort("g")["g"].to_list() == ["a", "b"]
        for name in ("rows", "some", "sum", "mean", "median"):
            half = table.estimate(name, level=0.9)
            assert half["reason"].null_count() == 2 and set(half["level"]) == {0.9}, (name, half)
            assert (half["lo"] < half["value"]).all() and (half["value"] < half["hi"]).all(), (name, half)
        low, high = table.estimate("least"), table.estimate("most")
        assert low["lo"].null_count() == 2 and low["hi"].equals(low["value"], check_names=False)
        assert high["hi"].null_count() == 2 and high["lo"].equals(high["value"], check_names=False)
        assert run.progress().done == 20 and run.progress().eta is not None
        gate.touch()
        assert run.wait(timeout=60).state == "done"
        exact = plain.group_by("g").agg(
            rows=pl.len(), some=pl.col("f").count(), sum=pl.col("u").sum(), mean=pl.col("u").mean(),
            median=pl.col("u").quantile(0.5, "nearest"), least=pl.col("u").min(), most=pl.col("u").max(),
            unique=pl.col("u").n_unique(), std=pl.col("u").std(), var=pl.col("u").var(),
            folded=pl.col("u").sum(),
        ).sort("g")  # fmt: skip
        final = table.to_polars().sort("g")
        for name in ESTIMATED:
            done = table.estimate(name).sort("g")
            assert done.columns == ["g", *COLUMNS]
            assert set(done["kind"]) == {"exact"} and set(done["n"]) == set(done["N"]) == {40}
            for column in ("value", "lo", "hi"):
                assert done[column].equals(final[name], check_names=False), name
            if name in exact.columns and name != "median":
                same(final.select("g", name), exact.select("g", name))
