"""Partition columns: every value has a folder of its own, and comes back as the value and type that it was."""

from __future__ import annotations

import datetime as dt
import random
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import config
from onefold.compute.plan.stages import PublishOutput
from onefold.compute.publish import folder_writer
from onefold.compute.publish.folder import publish_folder
from onefold.compute.sources import partition_values
from onefold.errors import InvalidPlan, InvalidValue

_US = 10**6
_FOLD = [1_730_611_800 * _US, 1_730_615_400 * _US]  # 01:30 in New York, an hour apart
COLUMNS: dict[str, pl.Series] = {
    "text": pl.Series(["a", "", "1", "2024-01-01", "true", "a/b", "a=b", "50%", "a%2Fb", "é", None, " ", "null"]),
    "category": pl.Series(["a", "b", None], dtype=pl.Categorical),
    "enum": pl.Series(["a", "b", None], dtype=pl.Enum(["b", "a", "c"])),
    "bool": pl.Series([True, False, None]),
    "int": pl.Series([1, -1, 2**63 - 1, -(2**63), None]),
    "int8": pl.Series([1, -128, None], dtype=pl.Int8),
    "uint64": pl.Series([0, 2**64 - 1], dtype=pl.UInt64),
    "int128": pl.Series([2**100, -(2**100), 1], dtype=pl.Int128),
    "float": pl.Series([1.0, 0.1, 0.30000000000000004, 1e300, 5e-324, float("inf"), float("-inf"), None]),
    "nan": pl.Series([float("nan"), 1.0]),
    "float32": pl.Series([0.1, 16777216.0, None], dtype=pl.Float32),
    "decimal": pl.Series([Decimal("1.50"), Decimal("-2"), None], dtype=pl.Decimal(20, 2)),
    "date": pl.Series([0, -1, 19_000, 2_932_896, 2_932_897, -719_528, -719_529, -10**6, None], dtype=pl.Int32).cast(pl.Date),
    "datetime_ms": pl.Series([0, 1, -1, None]).cast(pl.Datetime("ms")),
    "datetime_us": pl.Series([0, 1, -1, 10**17, -(10**17)]).cast(pl.Datetime("us")),
    "datetime_ns": pl.Series([1, 2, 1001, -1, None]).cast(pl.Datetime("ns")),
    "time": pl.Series([0, 1, 2, 1001, 10**6, 10**9, 86_399_999_999_999, None]).cast(pl.Time),
    "fold": pl.Series(_FOLD).cast(pl.Datetime("us", "America/New_York")),
    "half_hour": pl.Series([0, 1800 * _US]).cast(pl.Datetime("us", "Asia/Kolkata")),
    "local_mean_time": pl.Series([-5 * 10**9 * _US, -5 * 10**9 * _US + 1]).cast(pl.Datetime("us", "Europe/Zurich")),
    "nulls": pl.Series([None, None], dtype=pl.Null),
}  # fmt: skip


@pytest.fixture
def db() -> Iterator[of.Database]:
    with of.connect("memory://") as db:
        yield db


def put(path: Path, *frames: pl.DataFrame, run: str = "r1", by: Any = ("p",), mode: Any = "replace") -> Any:
    return publish_folder(iter(frames), PublishOutput(str(path), tuple(by), mode), run=run)


def rows_of(values: pl.Series) -> pl.DataFrame:
    return pl.DataFrame([values.alias("p"), pl.Series("i", range(len(values)))])


def same(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    found = found.select(expected.columns).sort("i")
    assert found.schema == expected.schema
    physical = pl.all().to_physical() if expected.schema["p"].is_temporal() else pl.all()
    assert found.select(physical).equals(expected.sort("i").select(physical))


@pytest.mark.parametrize("name", COLUMNS)
def test_every_value_comes_back(db: of.Database, tmp_path: Path, name: str) -> None:
    expected = rows_of(COLUMNS[name])
    expected.write_parquet(tmp_path / "in.parquet")
    out = tmp_path / "out"
    db.read_parquet(tmp_path / "in.parquet").write_parquet(out, partition_by="p").run(progress=False)
    plain = pl.read_parquet(out / "**/*.parquet", hive_partitioning=False)
    assert plain["i"].sort().to_list() == expected["i"].to_list()
    partitions = len([folder for folder in out.iterdir() if folder.is_dir()])
    assert partitions == COLUMNS[name].n_unique(), "values share a folder"
    same(db.read_parquet(out).into("back").run(progress=False).result().to_polars(), expected)


def test_other_readers_see_the_values(tmp_path: Path) -> None:
    for name in ("text", "int", "bool", "date"):
        values = COLUMNS[name].drop_nulls().head(3)
        out = tmp_path / name
        put(out, rows_of(values))
        found = pl.read_parquet(out, hive_schema={"p": pl.String}).sort("i")["p"].to_list()
        assert found == [partition_values.text(values[at : at + 1]) for at in range(len(values))]


def test_drawn_times_round_trip() -> None:
    draw = random.Random(20_241_103)
    zones = [None, "UTC", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Monrovia"]
    for _ in range(400):
        unit = draw.choice(["ms", "us", "ns"])
        dtype = draw.choice([pl.Datetime(unit, draw.choice(zones)), pl.Date(), pl.Time()])
        reach = {pl.Date: 10**6, pl.Time: 86_400 * 10**9 - 1}.get(dtype.base_type(), 4 * 10**18)
        if unit == "ms" and reach > 10**15:
            reach = 10**14
        number = draw.randint(0 if dtype == pl.Time else -reach, reach)
        if unit == "us" and isinstance(dtype, pl.Datetime):
            number //= 100
        value = pl.Series([number], dtype=pl.Int32 if dtype == pl.Date else pl.Int64).cast(dtype)
        found = partition_values.text(value)
        assert partition_values.parse(found, dtype).to_physical().item() == number, (found, dtype)


def test_a_text_that_is_not_a_value_is_not_parsed() -> None:
    for dtype, texts in {
        pl.Date(): ["2023-02-29", "2024-13-01", "2024-1-1", "x"],
        pl.Time(): ["24:00:00", "12:60:00", "12:00", "12:00:00.1234567890"],
        pl.Datetime("us"): ["2024-01-01", "2024-01-01 00:00:00.1234567", "2024-01-01 00:00:00+00:00"],
        pl.Datetime("us", "UTC"): ["2024-01-01 00:00:00"],
        pl.Boolean(): ["True", "1", ""],
        pl.Int8(): ["128", "1.0", ""],
        pl.Null(): ["x"],
    }.items():
        assert [text for text in texts if partition_values.fits(text, dtype)] == []


NAMES = ["a/b", "a=b", "a%20b", "a%2Fb", "_k", ".k", "..", "#", "a b", "é", "k", "a:b", "[x]"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_escaped_as_values_are(db: of.Database, tmp_path: Path, name: str) -> None:
    rows = pl.DataFrame({name: ["x", "y=z", None], "i": [1, 2, 3]})
    rows.write_parquet(tmp_path / "in.parquet")
    out = tmp_path / "out"
    db.read_parquet(tmp_path / "in.parquet").write_parquet(out, partition_by=name).run(progress=False)
    assert all("=" in folder.name and next(folder.iterdir()).is_file() for folder in out.iterdir())
    found = db.read_parquet(out).into("back").run(progress=False).result().to_polars()
    assert found.select(name, "i").sort("i").equals(rows)


def test_a_column_without_a_name_is_refused(db: of.Database, tmp_path: Path) -> None:
    with pytest.raises(InvalidPlan, match="without a name"):
        put(tmp_path / "out", pl.DataFrame({"": [1], "i": [1]}), by=("",))


@pytest.mark.parametrize("name", [name for name in COLUMNS if name != "nulls"])
def test_later_publications_meet_the_same_partitions(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    first = rows_of(COLUMNS[name])
    put(out, first)
    folders = sorted(folder.name for folder in out.iterdir())
    put(out, first.with_columns(i=pl.col("i") + 100), run="r2", mode="append")
    assert sorted(folder.name for folder in out.iterdir()) == folders
    put(out, first.with_columns(i=pl.col("i") + 200), run="r3", mode="replace_partitions")
    assert sorted(folder.name for folder in out.iterdir()) == folders
    found = pl.read_parquet(out / "**/*.parquet", hive_partitioning=False)["i"].sort().to_list()
    assert found == [at + 200 for at in range(len(first))]


def test_folders_named_by_earlier_releases_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for old in ("a=b=1", "a/b=1"):
        folder = out / old
        folder.mkdir(parents=True)
        pl.DataFrame({"i": [1]}).write_parquet(folder / "r0-00000.parquet")
    put(out, pl.DataFrame({"a=b": [1], "i": [2]}), by=("a=b",), mode="replace_partitions")
    assert not (out / "a=b=1").exists() and (out / "a/b=1").exists()
    put(out, pl.DataFrame({"a=b": [1], "i": [3]}), by=("a=b",), run="r2", mode="append")
    assert len(list((out / "a%3Db=1").iterdir())) == 2


def test_parts_of_other_types_share_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_writer, "FILE_BYTES_TARGET", 1)  # a file for each part
    parts = [
        pl.DataFrame({"i": [1]}),
        pl.DataFrame({"p": [None], "i": [2]}),
        pl.DataFrame({"p": [1, 2], "i": [3, 4]}),
        pl.DataFrame({"p": [1.0, 2.5], "i": [5, 6]}),
    ]
    out = tmp_path / "out"
    assert put(out, *parts).rows == 6
    whole = pl.concat(parts, how="diagonal_relaxed")
    put(tmp_path / "whole", whole)
    assert sorted(f.name for f in out.iterdir()) == sorted(f.name for f in (tmp_path / "whole").iterdir())
    with of.connect("memory://") as db:
        same(db.read_parquet(out).into("t").run(progress=False).result().to_polars(), whole.select("p", "i"))
    with pytest.raises(InvalidValue, match="'p' mixes int, str"):
        put(out, pl.DataFrame({"p": [1], "i": [1]}), pl.DataFrame({"p": ["x"], "i": [1]}), run="r2")
    with pytest.raises(InvalidValue, match="cast it to one type"):
        put(out, *(rows_of(COLUMNS[name]) for name in ("datetime_us", "datetime_ns")), run="r2")
    with pytest.raises(InvalidPlan, match="not a column"):
        put(out, pl.DataFrame({"q": [1], "i": [1]}), run="r2")
    assert pl.read_parquet(out / "**/*.parquet", hive_partitioning=False).height == 6


def test_values_of_another_type_are_not_appended(tmp_path: Path) -> None:
    out = tmp_path / "out"
    put(out, pl.DataFrame({"p": [1], "i": [1]}))
    for other in (pl.Series([1.5]), pl.Series(["1"]), COLUMNS["date"]):
        with pytest.raises(InvalidValue, match=r"'p' (mixes|is)|fit"):
            put(out, rows_of(other), run="r2", mode="append")
    put(out, rows_of(pl.Series([1, 7], dtype=pl.Int8)), run="r3", mode="append")  # fits without loss
    assert {folder.name for folder in out.iterdir()} == {"p=1", "p=7"}


def test_files_that_say_no_type_are_read_as_before(db: of.Database, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for day in ("2024-01-01", "2024-01-02"):
        (out / f"p={day}").mkdir(parents=True)
        pl.DataFrame({"i": [1]}).write_parquet(out / f"p={day}" / "other.parquet")
    read = db.read_parquet(out).into("a").run(progress=False).result().to_polars()
    assert read.schema["p"] == pl.String
    put(out, rows_of(pl.Series([dt.date(2024, 1, 3)])), run="r2", mode="append")
    read = db.read_parquet(out).into("b").run(progress=False).result().to_polars()
    assert read["p"].sort().to_list() == [dt.date(2024, 1, day) for day in (1, 2, 3)]
    (out / "p=soon").mkdir()
    pl.DataFrame({"i": [1]}).write_parquet(out / "p=soon" / "other.parquet")
    read = db.read_parquet(out).into("c").run(progress=False).result().to_polars()
    assert read.schema["p"] == pl.String and read.height == 4


@pytest.mark.parametrize("mode", ["ms", "us", "ns"])
def test_a_year_that_python_does_not_have(tmp_path: Path, mode: Any) -> None:
    values = pl.Series([-(10**15), 10**15]).cast(pl.Datetime(mode))
    put(tmp_path / "out", rows_of(values))
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_date_that_cannot_be_written_is_named_with_its_column() -> None:
    far = pl.Series("day", [2**30], dtype=pl.Int32).cast(pl.Date)
    with pytest.raises(InvalidValue, match=r"'day' \(1073741824.*out of range"):
        partition_values.text(far)


@pytest.mark.parametrize("mode", ["replace", "append", "replace_partitions"])
@pytest.mark.parametrize("name", ["p", "a/b"])
def test_values_that_no_folder_can_stand_for_are_named_and_nothing_is_published(
    tmp_path: Path, mode: Any, name: str
) -> None:
    out, room = tmp_path / "out", config.PARTITION_FOLDER_BYTES_MAX - len("p=") - 2 * (name == "a/b") * 2
    good = pl.DataFrame({name: ["x" * room, "y"], "i": [0, 1]})
    put(out, good, by=(name,))
    before = sorted(out.rglob("*"))
    bad = {
        "x" * (room + 1): f"{room + 1} characters, '{'x' * 60}…'",
        "é" * (room // 2 + 1): "characters, 'éé",
        "%" * (room // 3 + 1): "characters, '%%",
        partition_values.NULL_PARTITION: "has the value '__HIVE_DEFAULT_PARTITION__'",
    }
    for value, said in bad.items():
        part = pl.DataFrame({name: ["y", value], "i": [2, 3]})
        with pytest.raises(InvalidValue, match=re.escape(f"column {name!r} has ")) as caught:
            put(out, good, part, run="r2", by=(name,), mode=mode)
        assert said in str(caught.value) and "nothing was published" in str(caught.value)
        assert sorted(out.rglob("*")) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_name_that_is_too_long_for_a_folder_is_refused_in_the_plan(db: of.Database, tmp_path: Path) -> None:
    name = "x" * 255
    pl.DataFrame({name: [1], "i": [1]}).write_parquet(tmp_path / "in.parquet")
    with pytest.raises(InvalidPlan, match="too long for the name of a folder"):
        db.read_parquet(tmp_path / "in.parquet").write_parquet(tmp_path / "out", partition_by=name).start()
    assert not (tmp_path / "out").exists()


BAD: dict[str, pl.Series] = {
    "long": pl.Series(["x" * 300, "a"]),
    "escaped": pl.Series(["%" * 90, "a"]),
    "the null's name": pl.Series([partition_values.NULL_PARTITION, None]),
    "category": pl.Series(["x" * 300, "a"], dtype=pl.Categorical),
    "date": pl.Series([2**30, 0], dtype=pl.Int32).cast(pl.Date),
}


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_value_fails_the_first_task_that_gives_it(
    db: of.Database, tmp_path: Path, case: str, grouped: bool
) -> None:
    bad = BAD[case]
    for number in range(4):
        pl.DataFrame({"p": bad, "i": [number, 0]}).write_parquet(tmp_path / f"{number}.parquet")
    rows: Any = db.read_parquet(str(tmp_path / "*.parquet"))
    if grouped:
        rows = rows.group_by("p").agg(n=of.agg.count())
    run = rows.write_parquet(tmp_path / "out", partition_by="p").start(workers=1, target_splits=4)
    assert run.wait(timeout=60).state == "failed"
    (error,) = run.errors()
    assert error.stage == 0 and run.progress().done == 0 and "'p'" in error.message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", COLUMNS)
def test_values_that_make_folders_pass_the_check_of_tasks(name: str) -> None:
    partition_values.check_values(COLUMNS[name].alias("p").to_frame())


@pytest.mark.parametrize("seed", range(5))
def test_tasks_check_values_as_the_publication_does(seed: int) -> None:
    rng = random.Random(seed)
    letters = ["a", "é", "%", "/", "\U0001f600"]
    for _ in range(40):
        value = "".join(rng.choices(letters, k=rng.randint(50, 300)))
        row = pl.DataFrame({"p": [value]})
        try:
            partition_values.folder_of(row)
        except InvalidValue:
            with pytest.raises(InvalidValue):
                partition_values.check_values(pl.DataFrame({"p": ["a", value, None]}))
        else:
            partition_values.check_values(pl.DataFrame({"p": ["a", value, None]}))


def test_zero_below_zero_is_published_as_zero(db: of.Database, tmp_path: Path) -> None:
    pl.DataFrame({"p": [-0.0, 0.0], "i": [1, 2]}).write_parquet(tmp_path / "in.parquet")
    db.read_parquet(tmp_path / "in.parquet").write_parquet(tmp_path / "out", partition_by="p").run(
        progress=False
    )
    found = db.read_parquet(tmp_path / "out").into("t").run(progress=False).result().to_polars()
    assert [str(value) for value in found["p"]] == ["0.0", "0.0"] and found.height == 2
