"""Keys of ``map_reduce`` are grouped as ``map(...).group_by`` groups them, whatever comes first and however input is split."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest

import onefold as of
from onefold.compute.code.canonical.reduce_keys import encode_key
from onefold.errors import InvalidValue, JobFailed
from support.in_process import functions_in_process  # noqa: F401

NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)


def total(key: Any, values: Iterable[int]) -> int:
    return sum(values)


def reduced(
    folder: Path, keys: list[Any], splits: int, combine: bool, reduce: Callable[..., Any] = total
) -> pl.DataFrame:
    for number in range(len(keys)):
        (folder / f"{number}.csv").write_text(f"n\n{number}\n")

    def pairs(record: dict[str, Any]) -> list[tuple[Any, int]]:
        return [(keys[record["n"]], 1)]

    with of.connect("memory://") as db:
        rows = db.read_csv(folder / "*.csv").map_reduce(
            map=pairs, reduce=reduce, combine=total if combine else None
        )
        run = rows.into("t").run(progress=False, workers=1, target_splits=splits)
        return run.result().to_polars()


@pytest.mark.moving(2)
@pytest.mark.usefixtures("functions_in_process")
@pytest.mark.parametrize(("splits", "combine"), [(1, False), (1, True), (4, False), (4, True)])
@pytest.mark.parametrize(
    "keys", [[True, 1], [("a", 1), ("a", True)], [0, False, 1.0], [1, Decimal(1)]], ids=repr
)
def test_keys_that_no_column_holds(tmp_path: Path, keys: list[Any], splits: int, combine: bool) -> None:
    for number, order in enumerate((keys, keys[::-1])):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises((JobFailed, InvalidValue), match="column"):
            reduced(folder, order, splits, combine)


@pytest.mark.usefixtures("functions_in_process")
def test_equal_numbers_are_one_float(tmp_path: Path) -> None:
    keys: list[Any] = [1, 1.0, 2, 2, 0, -0.0, 1]
    for number, (splits, combine) in enumerate([(1, False), (1, True), (7, False), (7, True)]):
        for order in (keys, keys[::-1]):
            folder = tmp_path / f"{number}{order[0]!r}{order is keys}"
            folder.mkdir()
            found = reduced(folder, order, splits, combine)
            assert found.schema == {"key": pl.Float64, "value": pl.Int64}
            assert sorted(found.rows()) == [(0.0, 2), (1.0, 3), (2.0, 2)]
            assert "-0.0" not in map(repr, found["key"].to_list())


@pytest.mark.parametrize("splits", [1, 3])
def test_the_function_sees_the_common_key(tmp_path: Path, splits: int) -> None:
    def shown(key: Any, values: Iterable[int]) -> str:
        return f"{key!r} {sum(values)}"

    found = reduced(tmp_path, [("a", 1, 1.0), ("a", 1.0, 1), ("a", 1, 1)], splits, False, shown)
    assert found["value"].to_list() == ["('a', 1.0, 1.0) 3"]


def test_keys_with_equal_bytes_are_those_that_a_column_holds_as_one() -> None:
    berlin = NOON.astimezone(ZoneInfo("Europe/Berlin"))
    keys = [
        True,
        1,
        1.0,
        Decimal(1),
        "1",
        b"1",
        None,
        0,
        False,
        -0.0,
        NOON,
        berlin,
        NOON.replace(tzinfo=None),
        NOON.date(),
    ]
    keys += [(key,) for key in keys]
    groups = Counter(map(encode_key, keys))
    assert sorted(groups.values()) == [1] * 20 + [2] * 4  # 1 and 1.0, 0 and -0.0, and these in tuples
    for same in (dt.UTC, ZoneInfo("UTC"), dt.timezone(dt.timedelta(hours=2))):
        assert encode_key(NOON.astimezone(same)) == encode_key(NOON)


def test_floats_of_several_tasks_are_one_key(tmp_path: Path) -> None:
    inf = float("inf")
    keys: list[Any] = [inf, -inf, 0.5, inf, -inf, 0.5, 5, 5.0, 5 / 3, inf]
    found = reduced(tmp_path, keys, len(keys), False)
    assert sorted(found.rows()) == [(-inf, 2), (0.5, 2), (5 / 3, 1), (5.0, 2), (inf, 3)]


@pytest.mark.parametrize("splits", [1, 12])
def test_whole_numbers_that_no_float_holds_are_not_made_floats(tmp_path: Path, splits: int) -> None:
    # As floats 2**53 and 2**53 + 1 are one number. A map task sees all of its keys, a reduce task those of its partition.
    floats = [number + 0.5 for number in range(splits)]
    for name, keys in (
        ("plain", [2**53 + 1, *floats]),
        ("tuple", [("a", 2**60 + 1), *(("a", f) for f in floats)]),
    ):
        (tmp_path / name).mkdir()
        with pytest.raises((JobFailed, InvalidValue), match="no float holds"):
            reduced(tmp_path / name, keys, splits, False)


def test_whole_numbers_of_other_places_stay_exact(tmp_path: Path) -> None:
    keys: list[Any] = [(2**53 + 1, 0.5), (2**53, 0.5), (2**60, 1.5)]
    found = reduced(tmp_path, keys, 1, False)
    assert sorted(tuple(key.values()) for key in found["key"].to_list()) == sorted(keys)


@pytest.mark.usefixtures("functions_in_process")
@pytest.mark.parametrize("splits", [1, 2, 4])
@pytest.mark.parametrize("combine", [False, True])
@pytest.mark.parametrize(
    "keys",
    [
        [2**53 + 1, 2**53 + 1, float(2**53), float(2**53)],
        [2**53, 2**53 + 1, 0.5, 2**53 + 1],
        [("a", 2**60 + 1), ("b", 2**60 + 1), ("c", 0.5), ("d", 1.5)],
    ],
    ids=repr,
)
def test_floats_and_whole_numbers_of_any_two_reduce_tasks_are_refused(
    tmp_path: Path, keys: list[Any], splits: int, combine: bool
) -> None:
    with pytest.raises((JobFailed, InvalidValue), match=r"is a whole number that no float holds"):
        reduced(tmp_path, keys, splits, combine)
