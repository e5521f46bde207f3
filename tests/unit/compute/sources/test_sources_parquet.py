"""Parquet: row ranges along row groups, schemas that differ, torn files, partitions; footers against pyarrow."""

from __future__ import annotations

import os
import random
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from onefold import config
from onefold.compute import sources
from onefold.compute.sources.formats import parquet
from onefold.compute.sources.formats.parquet_footer import BrokenFooter, parse_footer
from onefold.errors import InvalidArgument, InvalidValue


def prepared(paths: object, min_units: int = 1, **options: object):
    source = sources.make_source("parquet", paths, **options)  # type: ignore[arg-type]
    resolved = sources.resolve(source)
    return source, resolved, sources.units_of(source, resolved, split_bytes=1 << 40, min_units=min_units)


def read(paths: object, min_units: int = 1, **options: object) -> pl.DataFrame:
    source, resolved, units = prepared(paths, min_units, **options)
    return sources.scan(source, resolved.schema, units).collect()


def frame(rows: int, seed: int = 0) -> pl.DataFrame:
    rng = random.Random(seed)
    return pl.DataFrame(
        {
            "i": range(rows),
            "f": [rng.random() for _ in range(rows)],
            "s": [rng.choice(["a", "é", None]) for _ in range(rows)],
            "l": [[i, i + 1] for i in range(rows)],
            "t": [datetime(2024, 1, 1)] * rows,
        }
    )


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SPLIT_BYTES_MIN", 100)


def test_units_are_row_groups_and_tile_the_file(tmp_path: Path, small_units: None) -> None:
    expected = frame(1050)
    path = tmp_path / "a.parquet"
    expected.write_parquet(path, row_group_size=100)
    source, resolved, units = prepared(path, 1000)
    assert [(u.start, u.stop) for u in units] == [(i, min(i + 100, 1050)) for i in range(0, 1050, 100)]
    assert_frame_equal(sources.scan(source, resolved.schema, units).collect(), expected)
    assert_frame_equal(
        pl.concat(sources.scan(source, resolved.schema, [u]).collect() for u in units), expected
    )
    some = [units[7], units[1], units[2], units[10]]
    want = pl.concat([expected[700:800], expected[100:300], expected[1000:]])
    lazy = sources.scan(source, resolved.schema, some)
    assert_frame_equal(lazy.collect(), want)
    assert_frame_equal(lazy.collect(engine="streaming"), want)
    assert_frame_equal(
        lazy.filter(pl.col("s") == "a").select("i").collect(), want.filter(pl.col("s") == "a").select("i")
    )
    assert lazy.select(pl.len()).collect().item() == want.height
    assert_frame_equal(lazy.slice(150, 100).collect(), want.slice(150, 100))
    batched = [b for u in units for b in sources.batches(source, resolved.schema, u, 30)]
    assert_frame_equal(pl.concat(batched), expected)
    assert all(b.height <= 30 for b in batched)
    assert len(prepared(path, 3)[2]) in (3, 4)
    assert sources.locate(source, units[2], 5) == f"{path}: row 206"


def test_a_range_reads_its_row_groups_only(tmp_path: Path, small_units: None) -> None:
    """The bytes of the other row groups are destroyed: reading the range must not notice."""
    path = tmp_path / "a.parquet"
    expected = frame(10_000)
    expected.write_parquet(path, row_group_size=1000, compression="uncompressed", statistics=False)
    status = path.stat()
    _, _, units = prepared(path, 100)
    with path.open("r+b") as file:
        file.seek(4)
        file.write(b"\xff" * (units[0].cost + units[1].cost - 200))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    source, resolved, units = prepared(path, 100)
    for engine in ("in-memory", "streaming"):
        assert_frame_equal(
            sources.scan(source, resolved.schema, units[3:5]).collect(engine=engine), expected[3000:5000]
        )


def test_ranges_of_one_file_are_not_one_cached_scan(tmp_path: Path, small_units: None) -> None:
    """Polars' elimination of common subplans would read the whole file for any two ranges of it."""
    path = tmp_path / "a.parquet"
    frame(1000).write_parquet(path, row_group_size=100)
    source, resolved, units = prepared(path, 100)
    plan = sources.scan(source, resolved.schema, units[::3]).select("i").explain()
    assert "CACHE" not in plan
    assert plan.count("SLICE") == len(units[::3])
    assert "PROJECT 1/5" in plan


def test_many_files_and_paths(tmp_path: Path, small_units: None) -> None:
    frames = [frame(10, seed) for seed in range(30)]
    for i, one in enumerate(frames):
        one.write_parquet(tmp_path / f"p {i:02}[x].parquet")
    (tmp_path / "_hidden.parquet").write_bytes(b"nothing")
    (tmp_path / ".x.parquet").write_bytes(b"nothing")
    (tmp_path / "readme.txt").write_bytes(b"nothing")
    assert_frame_equal(read(tmp_path, 100), pl.concat(frames))
    with_paths = read(tmp_path, 100, include_file_paths="file")
    assert with_paths.columns == [*frames[0].columns, "file"]
    assert with_paths["file"].to_list() == [
        str(tmp_path / f"p {i:02}[x].parquet") for i in range(30) for _ in range(10)
    ]


def test_different_schemas_name_files_and_columns(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1], "b": ["x"]}).write_parquet(tmp_path / "a.parquet")
    cases = {
        "the second has no column 'b'": {"a": [1]},
        "only the second has 'c'": {"a": [1], "b": ["x"], "c": [1]},
        "column 'a' is Int64 and Float64": {"a": [1.5], "b": ["x"]},
    }
    for message, columns in cases.items():
        pl.DataFrame(columns).write_parquet(tmp_path / "b.parquet")
        with pytest.raises(
            InvalidArgument, match=rf"a\.parquet and .*b\.parquet have different schemas: {message}"
        ):
            read(tmp_path)
    pl.DataFrame({"b": ["y"], "a": [2]}).write_parquet(tmp_path / "b.parquet")
    assert read(tmp_path).rows() == [(1, "x"), (2, "y")]


@pytest.mark.parametrize("cut", [0, 3, 11, 100, -1, -4, -8, -30])
def test_torn_file_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "torn.parquet"
    frame(100).write_parquet(path)
    data = path.read_bytes()
    path.write_bytes(data[:cut])
    with pytest.raises(InvalidValue, match=r"torn\.parquet"):
        read(path)


def test_damaged_footer_never_crashes(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    frame(300).write_parquet(path, row_group_size=50)
    data = path.read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - size : -8]
    rng = random.Random(4)
    for _ in range(500):
        broken = bytearray(footer)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            parse_footer(bytes(broken[: rng.choice([None, rng.randrange(len(broken))])]))
        except BrokenFooter:
            pass


@pytest.mark.parametrize("columns", [1, 40])
@pytest.mark.parametrize("writer", ["polars", "pyarrow"])
def test_footer_says_what_pyarrow_says(tmp_path: Path, writer: str, columns: int) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    data = pl.DataFrame({f"c{i}": range(777) for i in range(columns)})
    if writer == "polars":
        data.write_parquet(path, row_group_size=100)
    else:
        pq.write_table(data.to_arrow(), path, row_group_size=100)
    source, resolved, _ = prepared(path)
    footer = parquet.read_footer(source, resolved.files[0])
    metadata = pq.ParquetFile(path).metadata
    assert footer.rows == metadata.num_rows
    assert [g.rows for g in footer.row_groups] == [
        metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)
    ]
    stored = [
        sum(metadata.row_group(i).column(c).total_compressed_size for c in range(columns))
        for i in range(metadata.num_row_groups)
    ]
    assert [g.stored_bytes for g in footer.row_groups] == stored


def test_partition_folders(tmp_path: Path) -> None:
    for year, name in ((2023, "a b"), (2024, "é"), (2024, "__HIVE_DEFAULT_PARTITION__")):
        folder = tmp_path / "data" / f"year={year}" / f"name={name.replace(' ', '%20')}"
        folder.mkdir(parents=True)
        pl.DataFrame({"v": [1, 2]}).write_parquet(folder / "0.parquet")
    found = read(tmp_path / "data")
    assert found.schema == pl.Schema({"v": pl.Int64, "year": pl.Int64, "name": pl.String})
    assert sorted(found.rows(), key=str) == sorted(
        [(v, y, n) for y, n in ((2023, "a b"), (2024, "é"), (2024, None)) for v in (1, 2)], key=str
    )
    assert read(str(tmp_path / "data" / "year=2024" / "*" / "*.parquet")).schema == pl.Schema(
        {"v": pl.Int64, "name": pl.String}
    )
    assert read(str(tmp_path / "data" / "**" / "*.parquet")).filter(pl.col("year") == 2024).height == 4
    one = next((tmp_path / "data" / "year=2023").rglob("*.parquet"))
    assert read(one).columns == ["v"]
    odd = tmp_path / "data" / "other=1"
    odd.mkdir()
    pl.DataFrame({"v": [1]}).write_parquet(odd / "0.parquet")
    with pytest.raises(InvalidArgument, match="different partition folders: name, other, year"):
        read(tmp_path / "data")


def test_empty_and_rowless_files(tmp_path: Path) -> None:
    pl.DataFrame(schema={"a": pl.Int64}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "b.parquet")
    source, resolved, units = prepared(tmp_path, 5)
    assert sources.scan(source, resolved.schema, units).collect().rows() == [(1,)]
    assert sources.scan(source, resolved.schema, units[:1]).collect().schema == pl.Schema({"a": pl.Int64})
    assert sources.scan(source, resolved.schema, []).collect().schema == pl.Schema({"a": pl.Int64})
    assert list(sources.batches(source, resolved.schema, units[0], 5)) == []


def test_changed_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"a": [1]}).write_parquet(path)
    source, resolved, units = prepared(path)
    pl.DataFrame({"a": [1, 2]}).write_parquet(path)
    with pytest.raises(InvalidValue, match=r"a\.parquet changed while the job ran"):
        sources.scan(source, resolved.schema, units).collect()


def test_path_column_that_exists(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(InvalidArgument, match="include_file_paths='a'"):
        read(tmp_path, include_file_paths="a")
