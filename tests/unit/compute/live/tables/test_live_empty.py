"""What is read of a live job has the same columns and types without rows as with them, as far as they are known."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg

N = datetime(2026, 1, 1, 12)
T = 120
TIMES = {
    "naive": lambda s: N + timedelta(seconds=s),
    "aware": lambda s: (N + timedelta(seconds=s)).replace(tzinfo=UTC),
}
WINDOWS = {
    "tumbling": of.window.tumbling("10s"),
    "sliding": of.window.sliding("10s", every="5s"),
    "session": of.window.session("3s"),
}


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path) as opened:
        yield opened


def aggregated(rows: Any, window: str) -> Any:
    return (
        rows.with_columns(y=pl.col("x") * 0.5)
        .window(WINDOWS[window])
        .group_by("page", even=pl.col("x") % 2 == 0)
        .agg(
            n=agg.count(),
            total=agg.sum("y"),
            hi=agg.max("x"),
            d=agg.approx_n_unique("x"),
            at=agg.min("at"),
            first=agg.first("x"),
        )
    )


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("zone", TIMES)
def test_an_empty_table_has_the_types_that_its_rows_will_have(
    db: of.Database, zone: str, window: str
) -> None:
    at, stream = TIMES[zone], db.stream("c", partitions=1)
    rows = db.read_stream("c", follow=True, event_time="at", watermark_delay="0s")
    run = aggregated(rows, window).into("t").start()
    table = db.table("t")
    before = table.to_polars()
    assert before.schema["n"] == pl.UInt32
    assert before.schema["window_start"] == pl.Null  # naive or not: nobody knows yet
    stream.append({"at": at(0), "page": "a", "x": 1})
    run.catch_up(T)
    empty = table.to_polars()
    assert empty.height == 0
    stream.append({"at": at(40), "page": "a", "x": 1})
    run.catch_up(T)
    assert table.to_polars().height
    assert dict(empty.schema) == dict(table.to_polars().schema)


def test_late_and_dead_records_have_their_columns_before_there_is_one(db: of.Database) -> None:
    stream = db.stream("c", partitions=1)
    rows = db.read_stream("c", follow=True, event_time="at", watermark_delay="0s", idle=None)
    run = (
        rows.window(WINDOWS["tumbling"]).group_by("page").agg(n=agg.count()).into("t").start(on_error="skip")
    )
    table = db.table("t")
    first = table.late().schema
    assert set(first) == {"_partition", "_offset", "_time", "reason"}
    stream.append({"at": N + timedelta(seconds=30), "page": "a", "x": 1}, key="k")
    run.catch_up(T)
    late, dead = table.late().schema, table.dead().schema
    stream.append({"at": N, "page": "a", "x": 1}, key="k")
    stream.append({"at": N, "page": "a", "x": "text"}, key="k")
    run.catch_up(T)
    assert table.late().height == table.dead().height == 1
    assert list(late.items()) == list(table.late().schema.items())
    assert list(dead.items()) == list(table.dead().schema.items())
    assert {name: late[name] for name in first} == dict(first)


def test_records_of_two_streams_are_late_in_the_columns_of_both(db: of.Database) -> None:
    one, other = db.stream("c", partitions=1), db.stream("d", partitions=1)
    both = [
        db.read_stream(name, follow=True, event_time="at", watermark_delay="0s", idle="1s") for name in "cd"
    ]
    joint = both[0].union(both[1]).window(WINDOWS["tumbling"]).group_by("page").agg(n=agg.count())
    run = joint.into("t").start()
    one.append({"at": N + timedelta(seconds=30), "page": "a", "x": 1})
    other.append({"at": N + timedelta(seconds=30), "page": "a", "y": "b"})
    run.catch_up(T)
    table = db.table("t")
    empty = table.late().schema
    assert {"x", "y"} <= set(empty)
    one.append({"at": N, "page": "a", "x": 1})
    run.catch_up(T)
    assert list(empty.items()) == list(table.late().schema.items())


def test_columns_of_functions_are_not_guessed(db: of.Database) -> None:
    stream = db.stream("c", partitions=1)
    rows = db.read_stream("c", follow=True, event_time="at", watermark_delay="0s").map(lambda row: row)
    run = rows.window(WINDOWS["tumbling"]).group_by("page").agg(n=agg.count()).into("t").start()
    stream.append({"at": N, "page": "a"})
    run.catch_up(T)
    schema = db.table("t").to_polars().schema
    assert schema["window_start"] in (pl.Null, pl.Datetime("us"))
    assert schema["page"] in (pl.Null, pl.String)
