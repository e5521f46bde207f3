"""What live jobs read: several streams, columns that change, records that cannot be processed, time by append."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import onefold as of
from onefold import agg, config
from onefold.compute.aggregates import ORDER_COLUMN, final, partial
from onefold.compute.live.inputs import preparing, reading
from support.at_rest import comes_to_rest

START = datetime(2026, 1, 1, tzinfo=UTC)
T = 120


def second(number: float) -> datetime:
    return START + timedelta(seconds=number)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path) as opened:
        yield opened


def source(db: of.Database, name: str = "clicks", **options: Any) -> Any:
    given = {"event_time": "at", "watermark_delay": "0s", "max_ahead": None, "idle": None}
    return db.read_stream(name, follow=True, **(given | options))


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + T
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


# -- every aggregate

AGGREGATES: dict[str, Any] = {
    "n": agg.count(),
    "known": agg.count("v"),
    "total": agg.sum("v"),
    "mean": agg.mean("v"),
    "least": agg.min("v"),
    "most": agg.max("v"),
    "std": agg.std("f"),
    "var": agg.var("f", ddof=0),
    "floats": agg.sum("f"),
    "text": agg.max("page"),
    "first_by": agg.first("v", by="at"),
    "last_by": agg.last("v", by="at"),
    "first": agg.first("v"),
    "last": agg.last("f"),
    "distinct": agg.approx_n_unique("v"),
    "middle": agg.approx_quantile("f", 0.5),
    "frequent": agg.most_frequent("v", 2),
    "folded": agg.fold(
        lambda: 0, lambda state, row: state + (row["v"] or 0) % 7, lambda one, other: one + other
    ),
}
AT = pl.Datetime("us", "UTC")
WINDOWS: dict[str, Any] = {
    "tumbling": of.window.tumbling("20s"),
    "sliding": of.window.sliding("30s", every="10s"),
    "session": of.window.session("3s"),
    "none": None,
}


def in_windows(rows: pl.DataFrame, kind: str) -> pl.DataFrame:
    """Each row once for each of its windows, slowly."""
    if kind == "none":
        return rows
    found: list[dict[str, Any]] = []
    held = sorted(rows.to_dicts(), key=lambda row: (row["page"], row["at"]))
    begun = last = None
    for row in held:
        at = (row["at"] - START).total_seconds()
        if kind == "session":
            if last is None or last["page"] != row["page"] or row["at"] - last["at"] > timedelta(seconds=3):
                begun = row["at"]
            last = row
            found.append({**row, "window_start": begun})
            continue
        length, every = (20, 20) if kind == "tumbling" else (30, 10)
        newest = math.floor(at / every) * every
        found += [{**row, "window_start": second(start)} for start in range(newest, newest - length, -every)]
    return pl.DataFrame(found, schema={**rows.schema, "window_start": pl.Datetime("us", "UTC")})


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("seed", range(2))
def test_a_stream_equals_the_batch_over_every_aggregate(db: of.Database, kind: str, seed: int) -> None:
    random = Random(f"{kind} {seed}")
    clicks = db.stream("clicks", partitions=3)
    clicks.create()
    rows = source(db, watermark_delay="200s")
    if (kind, seed) in (("session", 1), ("none", 0)):  # over a hop
        types = {"at": AT, "page": pl.String, "v": pl.Int64, "f": pl.Float64}
        rows = rows.map(lambda row: {name: row[name] for name in types}, schema=types)
    grouped = rows.group_by("page") if WINDOWS[kind] is None else rows.window(WINDOWS[kind]).group_by("page")
    job = grouped.agg(**AGGREGATES).into("t")
    run = job.start(latency=0, workers=random.randint(1, 2), lanes=random.choice((1, 16)))
    times = [second(random.random() * 100) for _ in range(90)]
    while times:
        batch, times = times[: (size := random.randint(1, 30))], times[size:]
        frame = pl.DataFrame(
            {
                "at": batch,
                "page": [random.choice("abc") for _ in batch],
                "v": [random.choice((None, *range(9))) for _ in batch],
                "f": [random.random() * 10 ** random.randint(-3, 6) for _ in batch],
            },
            schema_overrides={"v": pl.Int64, "at": pl.Datetime("us", "UTC")},
        )
        clicks.append_many(frame, key=random.choice((None, "page")))
        if random.random() < 0.4:
            run.catch_up(timeout=T)
        if random.random() < 0.2:
            run.stop()
            run = job.start(latency=0)
    run.stop(drain=True, timeout=T)
    given = in_windows(clicks.to_polars(), kind)
    order = pl.struct(
        path=pl.col("_time").dt.epoch("ms").cast(pl.String).str.zfill(20),
        start=pl.col("_partition").cast(pl.Int64),
        row=pl.col("_offset"),
    )
    keys = [pl.col(name) for name in ("window_start", "page") if name in given.columns]
    named = tuple(AGGREGATES.items())
    expected = final(
        partial(given.with_columns(order.alias(ORDER_COLUMN)).lazy(), keys, named),
        [key.meta.output_name() for key in keys],
        named,
    )
    found = run.result().to_polars()
    assert_frame_equal(found.select(expected.columns), expected, rel_tol=1e-9, check_dtypes=False)


@pytest.mark.parametrize("kind", WINDOWS)
def test_a_column_gets_its_type_from_its_first_value(db: of.Database, kind: str) -> None:
    """The state of what came before it is of no type."""
    clicks = db.stream("clicks")
    clicks.create()
    rows = source(db, watermark_delay="200s")
    grouped = rows.group_by("page") if WINDOWS[kind] is None else rows.window(WINDOWS[kind]).group_by("page")
    job = grouped.agg(**AGGREGATES).into("t")
    run = job.start(latency=0)
    given = [(None, None), (None, 0.5), (3, None), (4, 1.5)]
    for number, (v, f) in enumerate(given):
        clicks.append({"at": second(number), "page": "a", "v": v, "f": f})
        run.catch_up(timeout=T)
        if number == 1:
            run.stop()
            run = job.start(latency=0)
    run.stop(drain=True, timeout=T)
    found = run.result().to_polars().sort("page", maintain_order=True).tail(1)
    if kind != "sliding":
        assert found.select("n", "known", "total", "mean", "floats", "first", "last", "last_by").rows() == [
            (4, 2, 7, 3.5, 2.0, None, 1.5, 4)
        ]


# -- several streams


def test_a_union_waits_for_the_slower_stream(db: of.Database) -> None:
    for name in ("clicks", "taps"):
        db.stream(name, partitions=2).create()
    both = source(db).select("page").union(source(db, "taps", watermark_delay="5s").select("page"))
    run = both.window(of.window.tumbling("10s")).group_by("page").agg(n=agg.count()).into("t").start()
    for name, at in (("clicks", 0), ("taps", 1), ("clicks", 30), ("taps", 12)):
        for partition_key in range(8):
            db.stream(name).append({"at": second(at), "page": name}, key=partition_key)
    run.catch_up(timeout=T)
    assert run.result().to_polars().height == 0
    for partition_key in range(8):
        db.stream("taps").append({"at": second(15), "page": "taps"}, key=partition_key)
    run.catch_up(timeout=T)
    assert run.result().to_polars().select("page", "n").rows() == [("clicks", 8), ("taps", 8)]


def test_each_stream_of_a_union_is_idle_by_its_own_time(db: of.Database) -> None:
    for name in ("clicks", "taps"):
        db.stream(name).create()
    both = source(db).select("page").union(source(db, "taps", idle="0.1s").select("page"))
    run = both.window(of.window.tumbling("10s")).group_by("page").agg(n=agg.count()).into("t").start()
    for at in (0, 20):
        db.stream("clicks").append({"at": second(at), "page": "a"})
    wait_for(lambda: run.result().to_polars().height == 1)
    assert [idle for *_, idle in run.status().partitions] == [False, True]


@pytest.mark.parametrize("event_time", ["at", None])
def test_a_busy_partition_keeps_no_silent_one_from_being_idle(
    db: of.Database, event_time: str | None
) -> None:
    """Each commit has rows of one partition; windows close all the same, while the others have never had a record."""
    clicks = db.stream("clicks", partitions=3)
    clicks.create()
    rows = db.read_stream("clicks", follow=True, event_time=event_time, max_ahead=None, idle="0.2s")
    run = rows.window(of.window.tumbling("0.2s")).group_by("page").agg(n=agg.count()).into("t")
    run = run.start(latency=0)
    clicks.append({"at": second(0), "page": "a"}, key="k")
    run.catch_up(timeout=T)
    done = threading.Event()

    def feed() -> None:
        number = 0
        while not done.is_set():
            number += 1
            clicks.append({"at": second(number / 10), "page": "a"}, key="k")

    feeding = threading.Thread(target=feed)
    feeding.start()
    try:
        wait_for(lambda: run.result().to_polars().height > 1)
        assert run.status().late == 0
    finally:
        done.set()
        feeding.join()
    if event_time is not None:
        assert sorted(idle for *_, idle in run.status().partitions)[1:] == [True, True]


# -- columns


def test_columns_are_those_of_the_first_records(db: of.Database) -> None:
    clicks = db.stream("clicks")
    job = source(db).group_by("page").agg(n=agg.count(), v=agg.sum("v"), f=agg.sum("f")).into("t")
    clicks.append({"at": second(0), "page": "a", "v": 1, "f": None})
    run = job.start(on_error="skip")
    run.catch_up(timeout=T)
    clicks.append({"at": second(1), "page": "a", "f": 0.5})  # without v
    clicks.append({"at": second(2), "page": "a", "v": 2.0, "new": 1})  # 2.0 is 2
    run.catch_up(timeout=T)
    run.stop()
    clicks.append({"at": second(3), "page": "a", "v": 2.5})  # is no integer, for another worker too
    clicks.append({"at": second(3), "page": "a", "v": 3, "f": "x"})
    run = job.start(on_error="skip")
    run.catch_up(timeout=T)
    assert run.result().to_polars().rows() == [("a", 3, 3, 0.5)]
    status = run.status()
    assert (status.dead, status.left_out) == (2, 1)
    reasons = run.dead_letters()["error"].to_list()
    assert reasons == [
        "column 'v' holds 2.5 of type Float64, which does not fit into Int64",
        "column 'f' holds 'x' of type String, which does not fit into Float64",
    ]
    records = run.dead_letters()["record"].to_list()
    assert "'v': 2.5" in records[0] and "'f': 'x'" in records[1]  # as they were read


def test_a_column_that_is_not_there_is_named(db: of.Database) -> None:
    db.stream("clicks").append({"at": second(0), "page": "a"})
    run = source(db).filter(pl.col("pgae") == "a").into("t").start(on_error="skip")
    with pytest.raises(of.JobFailed, match="names column 'pgae'; the records have 'at', 'page'"):
        run.catch_up(timeout=T)


# -- records that cannot be processed


def test_a_stream_of_text_times_says_what_to_do(db: of.Database) -> None:
    db.stream("clicks").append({"at": "2026-01-01", "page": "a"})
    run = source(db).group_by("page").agg(n=agg.count()).into("t").start()
    with pytest.raises(of.JobFailed, match="'at' holds String and cannot be an event time: append datetimes"):
        run.catch_up(timeout=T)


def test_a_first_record_that_is_no_row_says_nothing_of_the_columns(db: of.Database) -> None:
    db.stream("clicks").append({"at": second(0), "page": [1, "x"]})
    db.stream("clicks").append({"at": second(0), "page": "a"})
    run = source(db).group_by("page").agg(n=agg.count()).into("t").start(on_error="skip")
    run.catch_up(timeout=T)
    assert run.result().to_polars().rows() == [("a", 1)]
    assert run.status().dead == 1


# -- processing time


@pytest.mark.parametrize("hop", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_windows_by_append_time_close_in_a_quiet_stream(db: of.Database, hop: bool, workers: int) -> None:
    """With a function before the key or none, and in workers that have nothing open."""
    clicks = db.stream("clicks", partitions=3)
    clicks.create()
    rows = source(db, event_time=None)
    rows = rows.map(lambda row: row) if hop else rows
    counts = rows.window(of.window.tumbling("0.3s")).group_by("page").agg(n=agg.count())
    run = counts.into("t").start(latency=0, workers=workers)
    wait_for(lambda: run.status().workers == workers)
    for closed in range(1, 3 if workers == 1 else 5):  # bundles are given away at commits
        clicks.append({"page": "a"}, key="a")
        wait_for(lambda: run.result().to_polars()["n"].to_list() == [1] * closed)  # noqa: B023
    wait_for(lambda: len(run.status().held_by) == 0)
    assert run.status().late == 0
    # Nothing is open, so nothing is appended.
    comes_to_rest(lambda: (run.status().commits, db._shards[0].applied))


@pytest.mark.parametrize("hop", [False, True])
@pytest.mark.parametrize("kind", ["sliding", "session"])
def test_other_windows_by_append_time_close_too(db: of.Database, kind: str, hop: bool) -> None:
    clicks = db.stream("clicks")
    clicks.create()
    spec = of.window.sliding("0.2s", every="0.1s") if kind == "sliding" else of.window.session("0.2s")
    rows = source(db, event_time=None)
    rows = (rows.map(lambda row: row) if hop else rows).window(spec).group_by("page")
    run = rows.agg(n=agg.count()).into("t").start(latency=0)
    clicks.append_many([{"page": "a"}, {"page": "b"}])
    wait_for(lambda: run.result().to_polars()["n"].to_list() == [1] * (4 if kind == "sliding" else 2))
    assert run.status().late == 0


@pytest.mark.parametrize("hop", [False, True])
def test_time_is_not_asked_for_while_another_stream_holds_the_windows(db: of.Database, hop: bool) -> None:
    for name in ("clicks", "taps"):
        db.stream(name).create()
    both = source(db, event_time=None).select("page").union(source(db, "taps").select("page"))
    both = both.map(lambda row: row) if hop else both
    run = both.window(of.window.tumbling("0.1s")).group_by("page").agg(n=agg.count()).into("t").start()
    db.stream("clicks").append({"page": "a"})
    run.catch_up(timeout=T)
    comes_to_rest(lambda: db._shards[0].applied)
    assert run.result().to_polars().height == 0


# -- reading ahead


def two_partitions(db: of.Database) -> tuple[Any, dict[int, str]]:
    """(a stream of which both partitions have records of one time, a page of each partition)."""
    clicks = db.stream("clicks", partitions=2)
    keys: dict[int, str] = {}
    for key in "abcdefgh":
        clicks.append({"at": second(0), "page": key}, key=key)
    for record in clicks.read():
        keys.setdefault(record.partition, record.value["page"])
    return clicks, keys


@pytest.mark.parametrize("begins", ["ahead", "latest"])
def test_a_partition_is_read_by_what_was_read_of_it(
    db: of.Database, monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    """Last if none of its times counts, since it holds nobody back; first if nothing was read of it, wherever it begins."""
    clicks, keys = two_partitions(db)
    run = source(db, max_ahead="60s", start="latest")
    run = run.window(of.window.tumbling("60s")).group_by("page").agg(n=agg.count()).into("t").start()
    later = datetime.now(UTC) + timedelta(days=365)
    if begins == "ahead":
        clicks.append({"at": later, "page": keys[0]}, key=keys[0])
    clicks.append({"at": second(1), "page": keys[1]}, key=keys[1])
    run.catch_up(timeout=T)
    run.stop()
    for partition in (1, 0):
        clicks.append({"at": second(2), "page": keys[partition]}, key=keys[partition])
    places: list[int] = []
    read: Any = reading.Inputs.read

    def noted(self: Any, place: Any, *args: Any) -> Any:
        places.append(place[1])
        return read(self, place, *args)

    monkeypatch.setattr(reading.Inputs, "read", noted)
    run.resume().catch_up(timeout=T)
    assert places[0] == (1 if begins == "ahead" else 0)


def test_what_was_read_ahead_is_not_read_again(db: of.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition that is an hour ahead of another one is read a little at a time."""
    clicks, keys = two_partitions(db)
    run = source(db).window(of.window.tumbling("60s")).group_by("page").agg(n=agg.count()).into("t").start()
    run.catch_up(timeout=T)
    run.stop()
    for partition, step in ((0, 60), (1, 1)):
        frame = pl.DataFrame({"at": [second(number * step) for number in range(1, 200)]})
        clicks.append_many(frame.with_columns(page=pl.lit(keys[partition])), key="page")
    decoded: list[int] = []
    read = reading.frames_of_runs
    monkeypatch.setattr(
        reading, "frames_of_runs", lambda *given, **options: (decoded.append(1), read(*given, **options))[1]
    )
    run.resume().stop(drain=True, timeout=T)
    assert run.result().to_polars()["n"].sum() == 8 + 2 * 199
    assert len(decoded) == 2


def test_each_slice_of_a_partition_costs_what_is_in_it(
    db: of.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the columns are fitted nor the values that are left out are counted again for what stays behind."""
    clicks, keys = two_partitions(db)
    rows = source(db, schema={"at": AT, "page": pl.String})
    run = rows.window(of.window.tumbling("60s")).group_by("page").agg(n=agg.count()).into("t").start()
    run.catch_up(timeout=T)
    run.stop()
    count = 1000
    for key in keys.values():
        frame = pl.DataFrame({"at": [second(number * 10) for number in range(count)]})
        clicks.append_many(frame.with_columns(page=pl.lit(key), extra=pl.lit(7)), key="page")
    fitted: list[int] = []
    fit = preparing.Schema.fitted
    monkeypatch.setattr(
        preparing.Schema,
        "fitted",
        lambda self, frame: (fitted.append(frame.height), fit(self, frame))[1],
    )
    run.resume().stop(drain=True, timeout=T)
    assert run.status().left_out == sum(fitted) == 2 * count
    assert len(fitted) > 20  # it was read in slices
    assert run.result().to_polars()["n"].sum() == 8 + 2 * count


def test_what_is_not_kept_is_decoded_in_small_pieces(
    db: of.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clicks, keys = two_partitions(db)
    rows = source(db).window(of.window.tumbling("60s")).group_by("page").agg(n=agg.count())
    run = rows.into("t").start()
    run.catch_up(timeout=T)
    run.stop()
    count = 600
    for begin in range(0, count, 20):
        for key in keys.values():
            frame = pl.DataFrame({"at": [second(number * 10) for number in range(begin, begin + 20)]})
            clicks.append_many(frame.with_columns(page=pl.lit(key)), key="page")
    decoded: list[int] = []
    read = reading.frames_of_runs

    def seen(*given: Any, **options: Any) -> list[pl.DataFrame]:
        found = list(read(*given, **options))
        decoded.append(sum(frame.height for frame in found))
        return found

    monkeypatch.setattr(reading, "frames_of_runs", seen)
    monkeypatch.setattr(reading, "_PAGE_BYTES_MIN", 1)
    monkeypatch.setattr(config, "LIVE_READ_AHEAD_BYTES_MAX", 0)
    run.resume().stop(drain=True, timeout=T)
    assert run.result().to_polars()["n"].sum() == 8 + 2 * count
    assert sum(decoded) <= 16 * count


def test_a_slice_may_begin_with_a_record_without_a_time(db: of.Database) -> None:
    clicks, keys = two_partitions(db)
    rows = source(db).window(of.window.tumbling("60s")).group_by("page").agg(n=agg.count())
    run = rows.into("t").start(on_error="skip")
    run.catch_up(timeout=T)
    run.stop()
    for key in keys.values():
        times = [None, second(1), None, second(2)]
        clicks.append_many(
            pl.DataFrame({"at": times, "page": [key] * 4}, schema_overrides={"at": AT}), key="page"
        )
    run.resume().stop(drain=True, timeout=T)
    assert (run.status().dead, run.status().rows) == (4, 8 + 4)
