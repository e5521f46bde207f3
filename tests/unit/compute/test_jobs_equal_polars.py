"""Jobs that read, change and join real files give what plain Polars gives, whatever the format, the splits and the space."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import onefold as of
from onefold import agg, config
from support.polars_files import (
    SPLITS,
    WORDS,
    Files,
    db_in_memory,  # noqa: F401
    db_on_disk_or_in_memory,  # noqa: F401
    files_of_each_format,  # noqa: F401
    result,
    same,
    same_by,
    small_splits,  # noqa: F401
)


@pytest.mark.moving(3)
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


@pytest.mark.moving(3)
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


@pytest.mark.moving(3)
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


@pytest.mark.moving(3)
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


def test_row_tables_are_scanned(db: of.Database, files: Files) -> None:
    table = files.onefold(db).into("t").run(progress=False, target_splits=17).result()
    lazy = table.scan().filter(pl.col("u") < 50).select("id", "k").collect()
    assert lazy.sort("id").equals(files.polars().filter(pl.col("u") < 50).select("id", "k").sort("id"))
    assert len(table) == table.scan().select(pl.len()).collect().item() == files.polars().height
    assert table.to_arrow().num_rows == files.polars().height
