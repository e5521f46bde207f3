"""Columns that functions give: of the type of their first value, whatever the batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import agg

T = 120


def odd(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"x": "s" if row["x"] == 11 else row["x"]}


@pytest.mark.parametrize("sizes", [(4,), (1, 3), (3, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("grouped", [True, False])
def test_the_first_row_says_the_types_whatever_the_batch(
    tmp_path: Path, sizes: tuple[int, ...], grouped: bool
) -> None:
    values = [9, 10, 11, 12]
    for number, size in enumerate(sizes):
        with of.connect(
            tmp_path
        ) as db:  # each time another process of functions, which knows what was committed
            rows = db.read_stream("s", follow=True).map(odd)
            if grouped:
                rows = rows.group_by("page").agg(n=agg.count(), hi=agg.max("x"), lo=agg.min("x"))
            run = rows.into("t").start(on_error="skip")
            done = sum(sizes[:number])
            db.stream("s", partitions=1).append_many(
                [{"page": "a", "x": value} for value in values[done : done + size]]
            )
            run.catch_up(timeout=T)
            found, dead = db.table("t").to_polars(), run.status().dead
            letters = run.dead_letters()
            run.stop()
    assert dead == 1
    assert "'s' of type String" in letters["error"].item()
    if grouped:
        assert found.select("n", "hi", "lo").row(0) == (3, 12, 9)
    else:
        assert sorted(found["x"]) == [9, 10, 12]


def picky(row: dict[str, Any]) -> dict[str, Any]:
    if row["x"] == 2:
        raise ValueError("two")
    return row


def test_rows_of_unknown_records_stay_where_a_record_fails(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        db.stream("s", partitions=1).append_many([{"x": number} for number in range(5)])
        rows = db.read_stream("s", follow=True).map(picky).map_batches(lambda frame: frame)
        run = rows.into("t").start(on_error="skip")
        run.catch_up(timeout=T)
        assert sorted(db.table("t").to_polars()["x"]) == [0, 1, 3, 4]
        assert run.status().dead == 1
