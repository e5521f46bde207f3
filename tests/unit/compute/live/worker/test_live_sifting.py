"""Records that a key or an aggregate fails for: set aside alone and once, or named by the error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg

T = 120


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path) as opened:
        yield opened


def add(state: int, row: dict[str, Any]) -> int:
    return state + int(row["x"])


def merge(a: int, b: int) -> int:
    return a + b


def unmergeable(a: int, b: int) -> int:
    raise ZeroDivisionError("no")


def zero() -> int:
    return 0


def same(row: dict[str, Any]) -> dict[str, Any]:
    return row


NUMBER = pl.col("x").cast(pl.Int64)
GROUPED: dict[str, Any] = {
    "key": lambda rows: rows.group_by("page", k=NUMBER % 1).agg(n=agg.count(), s=agg.count()),
    "sum": lambda rows: rows.group_by("page").agg(n=agg.count(), s=agg.sum(NUMBER)),
    "fold": lambda rows: rows.group_by("page").agg(n=agg.count(), s=agg.fold(zero, add, merge)),
    "hop": lambda rows: rows.map(same).group_by("page").agg(n=agg.count(), s=agg.sum(NUMBER)),
    "window": lambda rows: (
        rows.window(of.window.tumbling("1h")).group_by("page").agg(n=agg.count(), s=agg.sum(NUMBER))
    ),
    "session": lambda rows: (
        rows.window(of.window.session("1h")).group_by("page").agg(n=agg.count(), s=agg.sum(NUMBER))
    ),
}


def source(db: of.Database) -> Any:
    return db.read_stream("s", follow=True)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", GROUPED)
def test_a_record_that_fails_is_set_aside_alone(db: of.Database, how: str, workers: int) -> None:
    random = Random(workers)
    count = 60
    bad = sorted(random.sample(range(count), 4))
    texts = ["zz" if number in bad else str(number) for number in range(count)]
    pages = [random.choice("abcdefgh") for _ in range(count)]
    records = [{"page": page, "x": text} for page, text in zip(pages, texts, strict=True)]
    run = GROUPED[how](source(db)).into("t", emit="update").start(workers=workers, on_error="skip")
    for begin in (0, 25):  # with a bundle of its own for each worker by the second time
        db.stream("s", partitions=2).append_many(records[begin : begin + (25 if not begin else count)])
        run.catch_up(timeout=T)
    letters = run.dead_letters()
    assert run.status().dead == letters.height == len(bad)
    assert letters["error"].str.contains("zz").all()
    assert letters["record"].str.contains("'x': 'zz'").all()
    assert not letters["record"].str.contains("__onefold").any()
    rows = db.table("t").to_polars(final=False)
    assert rows["n"].sum() == count - len(bad)
    sound = [number for number in range(count) if number not in bad]
    assert rows["s"].sum() == (len(sound) if how == "key" else sum(sound))


@pytest.mark.parametrize("how", GROUPED)
def test_the_error_names_the_record(db: of.Database, how: str) -> None:
    db.stream("s", partitions=1).append_many([{"page": "a", "x": text} for text in ("1", "2", "zz", "3")])
    run = GROUPED[how](source(db)).into("t", emit="update").start()
    with pytest.raises(of.JobFailed, match=r"live job 't': record 2 of partition 0 of 's': .*zz") as error:
        run.catch_up(timeout=T)
    assert 'on_error="skip"' in str(error.value)


@pytest.mark.parametrize("skip", [False, True])
def test_a_merge_that_raises_names_its_aggregate(db: of.Database, skip: bool) -> None:
    rows = source(db).group_by("page").agg(best=agg.fold(zero, add, unmergeable))
    run = rows.into("t").start(on_error="skip" if skip else "fail")
    for _ in range(2):
        db.stream("s", partitions=1).append({"page": "a", "x": "1"})
        run.catch_up(timeout=T)
    with pytest.raises(of.OnefoldError, match=r"merge function of aggregate 'best' raised ZeroDivisionError"):
        db.table("t").to_polars()
    with pytest.raises(of.OnefoldError, match=r"aggregate 'best'"):
        db.table("t").get("a")


def quit_at(kind: type[BaseException], place: str) -> Any:
    """What raises for the value 3: a function of rows, of frames, of a fold, or of the rows that go out."""

    def stop(value: object) -> None:
        if value == "3":
            raise kind("three")

    def row(one: dict[str, Any]) -> dict[str, Any]:
        stop(one["x"])
        return one

    def frame(rows: pl.DataFrame) -> pl.DataFrame:
        for value in rows["x"]:
            stop(value)
        return rows

    async def later(one: dict[str, Any]) -> dict[str, Any]:
        return row(one)

    def add(state: int, one: dict[str, Any]) -> int:
        stop(one["x"])
        return state + 1

    return {
        "map": lambda rows: rows.map(row).into("t"),
        "async": lambda rows: rows.map(later).into("t"),
        "map_batches": lambda rows: rows.map_batches(frame).into("t"),
        "fold": lambda rows: rows.group_by("page").agg(n=agg.fold(zero, add, merge)).into("t"),
        "for_each": lambda rows: rows.for_each(frame, batch_rows=1, name="t"),
    }[place]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["map", "async", "map_batches", "fold", "for_each"])
def test_what_ends_a_program_costs_the_record_that_raised_it(db: of.Database, place: str, kind: Any) -> None:
    db.stream("s", partitions=1).append_many([{"page": "a", "x": str(number)} for number in range(6)])
    run = quit_at(kind, place)(source(db)).start(on_error="skip")
    run.catch_up(timeout=T)
    assert run.state == "running"
    assert run.status().dead == 1
    assert kind.__name__ in run.dead_letters()["error"].item()
