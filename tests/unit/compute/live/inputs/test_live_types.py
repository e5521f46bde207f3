"""Columns without a type at first, and columns of two streams whose types do not go together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute.frames.shown_values import shown_value, unreadable_rows
from onefold.compute.live.operators.running import RunningAggregate
from onefold.compute.live.operators.sessions import SessionAggregate
from onefold.compute.live.operators.windowed import WindowedAggregate
from onefold.compute.live.runs.open_state import OpenState
from onefold.compute.live.runs.rows import side_by_side

START = datetime(2026, 1, 1, tzinfo=UTC)
T = 120
WINDOWS: dict[str, Any] = {
    "tumbling": of.window.tumbling("10m"),
    "sliding": of.window.sliding("20m", every="10m"),
    "session": of.window.session("1m"),
    "none": None,
}
KEYS: dict[str, list[Any]] = {
    "number": [1, 2],
    "text": ["a", "b"],
    "float": [1.5, float("nan")],
    "date": [date(2026, 1, 1)],
    "truth": [True],
}


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path) as opened:
        yield opened


def source(db: of.Database, name: str = "clicks") -> Any:
    return db.read_stream(name, follow=True, event_time="at", watermark_delay="0s", max_ahead=None, idle=None)


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("sink", ["table", "stream"])
def test_a_key_may_be_null_until_it_has_a_type(db: of.Database, kind: str, sink: str) -> None:
    random = Random(f"{kind} {sink}")
    clicks = db.stream("clicks", partitions=1)
    clicks.create()
    values = KEYS[random.choice(sorted(KEYS))]
    grouped = (
        source(db).group_by("k", "l")
        if kind == "none"
        else source(db).window(WINDOWS[kind]).group_by("k", "l")
    )
    counted = grouped.agg(n=agg.count(), most=agg.max("v"))
    job = counted.into("t") if sink == "table" else counted.into_stream("out", emit="update")
    run = job.start(latency=0, workers=random.randint(1, 2))
    wanted: Counter[Any] = Counter()
    for number in range(6):
        keys = [None] if number < 2 else random.choices([None, *values], k=3)
        rows = [{"at": START + timedelta(seconds=number), "k": key, "l": "x", "v": None} for key in keys]
        clicks.append_many(pl.DataFrame(rows, infer_schema_length=None), key=None)
        wanted.update(str(key) for key in keys)
        run.catch_up(timeout=T)
        if random.random() < 0.4:
            run.stop()
            run = job.start(latency=0, workers=random.randint(1, 2))
    if sink == "table":
        found = run.result().to_polars(final=False).to_dicts()
    else:
        shown: dict[Any, Any] = {}
        for record in db.stream("out").read():
            row = record.value
            name = (row.get("window_start"), str(row["k"]))
            assert row["op"] == "put" or shown.pop(name)
            if row["op"] == "put":
                shown[name] = row
        found = list(shown.values())
    counts = Counter({str(key): 0 for key in wanted})
    for row in found:
        counts[str(row["k"])] += row["n"]
    assert counts == {key: count * (2 if kind == "sliding" else 1) for key, count in wanted.items()}


@pytest.mark.parametrize("kind", WINDOWS)
def test_batches_of_one_commit_may_differ_in_type(kind: str) -> None:
    """A key without a type in one partition, and with one in another."""
    spec, keys, aggregates = WINDOWS[kind], (pl.col("k"),), (("n", agg.count()),)
    if spec is None:
        one: Any = RunningAggregate(keys, aggregates, 8)
    elif kind == "session":
        one = SessionAggregate(spec, "at", keys, aggregates, 8)
    else:
        one = WindowedAggregate(spec, "at", keys, aggregates, 8)
    state, deltas = OpenState(one.layout), []
    for given in ([None], [1, None], [2]):
        batch = one.batch(pl.DataFrame({"at": [START] * len(given), "k": given}), state, None)
        state = batch.state
        deltas.append(batch.delta)
    rows, gone = one.changed(deltas, OpenState(one.layout), state, None)
    assert gone is None
    times = 2 if kind == "sliding" else 1
    assert Counter(rows.select("k", "n").rows()) == {(None, 2): times, (1, 1): times, (2, 1): times}


@pytest.mark.parametrize("together", [True, False], ids=["one commit", "two commits"])
def test_late_and_dead_rows_of_streams_that_differ(db: of.Database, together: bool) -> None:
    """Their other columns need not have types that go together."""
    odd: dict[str, Any] = {"a": [1], "b": [[1, 2]]}
    for name in odd:
        db.stream(name, partitions=1).create()
    rows = source(db, "a").select("k").union(source(db, "b").select("k"))
    windowed = rows.window(of.window.tumbling("1m")).group_by("k").agg(n=agg.count())
    run = windowed.into("t").start(latency=0, on_error="skip")

    def append(name: str, at: datetime | None) -> None:
        column = pl.Series("at", [at], dtype=pl.Datetime("us", "UTC"))
        db.stream(name).append_many(pl.DataFrame({"at": column, "k": [1], "x": odd[name]}), key=None)

    for name in odd:
        append(name, START + timedelta(hours=1))
    run.catch_up(timeout=T)
    run.stop()
    for name in odd:
        append(name, START)
        append(name, None)
        if not together:
            run.resume()
            run.catch_up(timeout=T)
            run.stop()
    run.resume()
    run.catch_up(timeout=T)
    assert (run.status().late, run.status().dead) == (2, 2)
    assert sorted(run.result().late()["x"].to_list()) == ["1", "[1, 2]"]
    assert run.dead_letters().height == 2


def test_columns_of_one_kind_keep_their_types() -> None:
    frames = [
        pl.DataFrame({"a": [1], "b": [None], "c": [b"x"]}),
        pl.DataFrame({"a": [2.5], "b": [START], "c": ["y"], "d": [{"e": 1}]}),
    ]
    found = side_by_side(frames)
    assert found["a"].to_list() == [1.0, 2.5]
    assert found["b"].to_list() == [None, START]
    assert found["c"].to_list() == ["b'x'", "y"]
    assert found["d"].to_list() == [None, {"e": 1}]


# -- values that Python does not have

ODD: dict[str, pl.Series] = {
    "year 10000": pl.Series([0, 253_402_300_800_000_000]).cast(pl.Datetime("us")),
    "highest": pl.Series([0, 2**63 - 1]).cast(pl.Datetime("us", "UTC")),
    "lowest ms": pl.Series([0, -(2**63)]).cast(pl.Datetime("ms")),
    "date": pl.Series([0, 2_932_897], dtype=pl.Int32).cast(pl.Date),
    "in a list": pl.Series([[0], [1, 253_402_300_800_000_000]]).cast(pl.List(pl.Datetime("us"))),
    "in a struct": pl.DataFrame({"t": [0, -(2**62)]}).cast(pl.Datetime("us")).to_struct(),
    "duration": pl.Series([0, 2**62]).cast(pl.Duration("ms")),
}


@pytest.mark.parametrize("name", ODD)
def test_rows_that_python_cannot_read_are_told_from_the_others(name: str) -> None:
    column = ODD[name].alias("e")
    found = unreadable_rows(pl.DataFrame({"k": ["a", "b"]}).with_columns(column))
    assert list(found) == [1]
    assert "column 'e' holds" in found[1]
    assert shown_value(column, 0) == column.head(1).to_list()[0]
    assert isinstance(shown_value(column, 1), str)
    assert not unreadable_rows(column.head(1).to_frame())
    assert not unreadable_rows(pl.Series("e", [None], dtype=column.dtype).to_frame())


@pytest.mark.parametrize("name", ["year 10000", "date", "in a list"])
@pytest.mark.parametrize("plan", ["map of groups", "map of rows", "function"])
def test_a_value_that_python_lacks_costs_its_record(db: of.Database, name: str, plan: str) -> None:
    clicks = db.stream("clicks", partitions=1)
    frame = pl.DataFrame({"at": [START] * 4, "k": ["a", "b", "c", "d"]})
    odd = ODD[name]
    clicks.append_many(frame.with_columns(e=pl.concat([odd.head(1), odd.head(1), odd])), key=None)
    rows = source(db)
    if plan == "map of groups":
        rows = rows.group_by("k").agg(e=agg.last("e", by="at"))
    elif plan == "map of rows":
        rows = rows.select("k", "e")
    else:
        rows = rows.map(lambda row: {"k": row["k"]}, schema={"k": pl.String})
    run = rows.into_map("m", key="k").start(latency=0, on_error="skip")
    run.catch_up(timeout=T)
    assert sorted(db.map("m").keys()) == ["a", "b", "c"]
    assert run.status().dead == 1
    letters = run.dead_letters()
    assert letters.height == 1
    assert "Python has no value for" in letters["error"][0]
    assert "'k': 'd'" in letters["record"][0]


# -- names


@pytest.mark.parametrize("kind", ["tumbling", "session", "none"])
def test_keys_and_aggregates_may_be_called_what_they_like(db: of.Database, kind: str) -> None:
    """But for ``window_start`` and ``window_end`` next to those of a window."""
    names = ["_lane", "_op", "op", "reason", "_record"] + ["window_start", "window_end"] * (kind == "none")
    clicks = db.stream("clicks", partitions=1)
    clicks.append_many(pl.DataFrame({"at": [START, START], **{name: [1, 1] for name in names}}), key=None)
    rows = source(db) if kind == "none" else source(db).window(WINDOWS[kind])
    for number, name in enumerate(names):
        other = names[number - 1]
        job = rows.group_by(name).agg(**{other: agg.sum(other)}).into(f"t{number}")
        run = job.start(latency=0, workers=1 + number % 2)
        run.catch_up(timeout=T)
        found = run.result().to_polars(final=False)
        assert found.select(name, other).rows() == [(1, 2)]
        assert run.result().known_columns()[0] == found.columns
        run.cancel()


def test_rows_keep_columns_of_any_name(db: of.Database) -> None:
    names = ["_lane", "_op", "op", "reason", "_record"]
    clicks = db.stream("clicks", partitions=1)
    clicks.append_many(pl.DataFrame({"at": [START], **{name: [1] for name in names}}), key=None)
    for job in (source(db).into("t"), source(db).into_stream("out", emit="final", partitions=1)):
        job.start(latency=0).catch_up(timeout=T)
    for shown in (db.table("t").to_polars(), db.stream("out").to_polars()):
        assert shown.select(names).rows() == [(1,) * len(names)]


# -- workers that come later


NEXT: dict[str, dict[str, Any]] = {
    "a column that is missing": {"at": START, "k": "a"},
    "times of another unit": {"at": START.replace(tzinfo=None), "k": "a", "v": 1},
    "a number as text": {"at": START, "k": "a", "v": "1"},
    "a key of another type": {"at": START, "k": 5, "v": 1},
}
"""A record that fits the columns of the first one, and would make others."""


@pytest.mark.parametrize("case", NEXT)
@pytest.mark.parametrize("window", [False, True])
def test_a_worker_takes_the_columns_of_whom_it_gets_keys_from(case: str, window: bool) -> None:
    """The columns are those of the first record, also for a worker that was there before it and read nothing of it."""
    with of.connect("memory://") as db:
        stream = db.stream("s", partitions=1)
        stream.create()
        rows: Any = db.read_stream("s", follow=True, event_time="at", idle=None)
        rows = rows.window(of.window.tumbling("10m")) if window else rows
        grouped = rows.group_by("k").agg(n=agg.count(), v=agg.sum("v"))
        run = grouped.into("t", emit="update").start(workers=2)
        for record in ({"at": START, "k": "5", "v": 1}, NEXT[case]):
            stream.append(record)
            run.catch_up(timeout=T)
        found = db.table("t").to_polars(final=False)
        assert found.schema["v"] == pl.Int64 and found.schema["k"] == pl.String and found["n"].sum() == 2


@pytest.mark.parametrize("seed", range(6))
def test_two_workers_agree_about_the_columns(seed: int) -> None:
    rng = Random(seed)
    rows = [{"at": START + timedelta(minutes=n), "k": "abcdefgh"[n % 8]} for n in range(40)]
    frame = pl.DataFrame(rows).with_columns(pl.col("at").cast(pl.Datetime("ns", "UTC")))
    with of.connect("memory://") as db:
        stream = db.stream("s", partitions=1)
        stream.create()
        windows = db.read_stream("s", follow=True, event_time="at").window(of.window.tumbling("7m"))
        run = windows.group_by("k").agg(n=agg.count()).into("t").start(workers=2)
        for number, framed in enumerate((seed % 2, 1 - seed % 2) * 2):
            part = frame[number * 10 : number * 10 + 10]
            stream.append_many(part if framed else part.rows(named=True))
            if rng.random() < 0.5:
                run.catch_up(timeout=T)
        run.stop(drain=True, timeout=T)
        assert db.table("t").to_polars()["n"].sum() == 40
