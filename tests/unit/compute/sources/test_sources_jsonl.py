"""JSON lines: any border, nested values, and broken lines named by file and number."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from onefold import config
from onefold.compute import sources
from onefold.compute.sources import reading
from onefold.errors import InvalidArgument, InvalidValue


def prepared(paths: object, min_units: int = 1, **options: object):
    source = sources.make_source("jsonl", paths, **options)  # type: ignore[arg-type]
    resolved = sources.resolve(source)
    return source, resolved, sources.units_of(source, resolved, split_bytes=1 << 40, min_units=min_units)


def read(paths: object, min_units: int = 1, **options: object) -> pl.DataFrame:
    source, resolved, units = prepared(paths, min_units, **options)
    return sources.scan(source, resolved.schema, units).collect()


@pytest.mark.parametrize("seed", range(6))
def test_any_cut_equals_polars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(config, "SPLIT_BYTES_MIN", rng.choice([10, 50, 300]))
    monkeypatch.setattr(reading, "SCAN_PIECE_BYTES", rng.choice([7, 64, 1000]))
    monkeypatch.setattr(reading, "BATCH_PIECE_BYTES", rng.choice([7, 64, 1000]))
    rows = [
        {
            "n": rng.choice([None, i]),
            "s": rng.choice(["é\n\u2028", "", '"', None]),
            "l": [rng.random() for _ in range(rng.randint(0, 3))],
            "o": {"x": i, "y": rng.choice(["a", None])},
        }
        for i in range(200)
    ]
    blank = rng.choice(["", "\n", "  \n"])
    eol = rng.choice(["\n", "\r\n"])
    text = eol.join(
        json.dumps(r, ensure_ascii=rng.random() < 0.5) + (eol + blank.strip("\n") if blank else "")
        for r in rows
    )
    path = tmp_path / "a.jsonl"
    path.write_bytes(text.encode())
    expected = pl.read_ndjson(path, infer_schema_length=None)
    source, resolved, units = prepared(path, 30)
    assert len(units) > 10
    assert_frame_equal(sources.scan(source, resolved.schema, units).collect(), expected)
    assert_frame_equal(
        pl.concat(sources.scan(source, resolved.schema, [u]).collect() for u in units), expected
    )
    batched = [b for u in units for b in sources.batches(source, resolved.schema, u, 3)]
    assert_frame_equal(pl.concat(batched), expected)
    packed = tmp_path / "b.ndjson.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert_frame_equal(read(packed), expected)


@pytest.mark.parametrize(
    "bad", ['{"a":1', '{"a":"x"}', "[1]", '{"a":1} {"a":2}', '{"a":1.5}', "null", '{"b":"\\ud800"}x']
)
def test_broken_line_is_named(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "b.jsonl"
    path.write_text('{"a":1,"b":"x"}\n\n' * 6_000 + bad + "\n" + '{"a":2}\n' * 50)
    with pytest.raises(InvalidValue, match=r"b\.jsonl: line 12001: .*schema="):
        read(path)


def test_union_of_keys_and_supertypes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a":1}\n{"a":2.5,"n":null,"e":[]}\n')
    (tmp_path / "b.ndjson").write_bytes(b'\xef\xbb\xbf{"b":{"x":null}}\n')
    (tmp_path / "c.jsonl").write_text("")
    frame = read(tmp_path)
    assert frame.schema == pl.Schema(
        {"a": pl.Float64, "n": pl.String, "e": pl.List(pl.String), "b": pl.Struct({"x": pl.String})}
    )
    assert frame["a"].to_list() == [1.0, 2.5, None]
    assert read(tmp_path, schema={"a": pl.Float32}).schema == pl.Schema({"a": pl.Float32})
    assert read(tmp_path, schema_overrides={"a": pl.String})["a"].to_list()[0] == "1"
    with pytest.raises(InvalidArgument, match=r"c\.jsonl has no columns"):
        read(tmp_path / "c.jsonl")


def test_locate_skips_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    path.write_text('\n{"a":1}\n\n  \n{"a":2}\n')
    source, _, units = prepared(path)
    assert [sources.locate(source, units[0], i).rsplit(" ", 1)[1] for i in (0, 1)] == ["2", "5"]


def test_path_column_and_pushdown(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(f'{{"k":"{name}","v":1}}\n' * 2)
    source, resolved, units = prepared(tmp_path, include_file_paths="p")
    frame = sources.scan(source, resolved.schema, units)
    assert frame.select("p").unique("p").sort("p").collect()["p"].to_list() == [
        str(tmp_path / "a.jsonl"),
        str(tmp_path / "b.jsonl"),
    ]
    assert frame.select(pl.len()).collect().item() == 4
    assert frame.filter(pl.col("k") == "b").select("v").collect().height == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\ud83d\ude00", "\U0001f600"),
        (r"\\ud800", r"\ud800"),
        (r"\\\ud83d\ude00", "\\\U0001f600"),
        (r"\ud800x", None),
        (r"\uDBFF", None),
        (r"\udc00x", None),
        (r"\\\ud800x", None),
        (r"\ud83d\ud83d\ude00", None),
        (r"\ud83d\\ude00", None),
    ],
)
def test_half_of_a_surrogate_pair(tmp_path: Path, text: str, value: str | None) -> None:
    path = tmp_path / "half.jsonl"
    path.write_text('{"a": "x"}\n{"a": "' + text + '"}\n')
    source = sources.make_source("jsonl", path, schema={"a": pl.String})
    resolved = sources.resolve(source)
    units = sources.units_of(source, resolved, split_bytes=1 << 40, min_units=1)
    rows = sources.scan(source, resolved.schema, units)
    if value is None:
        with pytest.raises(InvalidValue, match=r"half\.jsonl: line 2"):
            rows.collect()
    else:
        assert rows.collect()["a"].to_list() == ["x", value]
