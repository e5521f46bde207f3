"""A live job gives the table of its plan over the same events, however they came: in whatever order within the delay, pieces and
partitions, committed where, by how many workers. Integers are equal, floats within 1e-9."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import onefold as of
from onefold import agg
from onefold.compute.aggregates import final, partial

START = datetime(2026, 1, 1, tzinfo=UTC)
DELAY_S, GAP_S = 5, 3
T = 60
TYPES = {"at": pl.Datetime("us", "UTC"), "page": pl.String, "v": pl.Int64, "f": pl.Float64}
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
    "first_by": agg.first("v", by="f"),
    "last_by": agg.last("v", by="f"),
    "distinct": agg.approx_n_unique("v"),
    "middle": agg.approx_quantile("f", 0.5),
    "frequent": agg.most_frequent("v", 2),
    "folded": agg.fold(
        lambda: 0, lambda state, row: state + (row["v"] or 0) % 7, lambda one, other: one + other
    ),
}
WINDOWS: dict[str, Any] = {
    "tumbling": of.window.tumbling("20s"),
    "sliding": of.window.sliding("30s", every="10s"),
    "session": of.window.session(f"{GAP_S}s"),
    "none": None,
}

Step = tuple[Callable[[Any], Any], Callable[[pl.DataFrame], pl.DataFrame]]
"""A step of a plan, and what it is of a frame."""


def of_both(step: Callable[[Any], Any]) -> Step:
    """Of Polars' own names, so the same for both."""
    return step, step


def tripled(row: dict[str, Any]) -> dict[str, Any]:
    return {**{name: row[name] for name in TYPES}, "v": None if row["v"] is None else row["v"] * 3}


def twice(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in TYPES}] * ((row["v"] or 0) % 3)


def halved(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(*TYPES).with_columns(f=pl.col("f") / 2)


STEPS: dict[str, Step] = {
    "with_columns": of_both(lambda rows: rows.with_columns(v=pl.col("v") * 2 + 1)),
    "filter": of_both(lambda rows: rows.filter(pl.col("v").fill_null(0) != 3)),
    "select": of_both(lambda rows: rows.select("v", "f", "at", pl.col("page").str.to_uppercase())),
    "explode": of_both(
        lambda rows: rows.with_columns(pl.concat_list("page", pl.lit("all")).alias("page")).explode("page")
    ),
}
FUNCTIONS: dict[str, Step] = {
    "map": (
        lambda rows: rows.map(tripled, schema=TYPES),
        lambda frame: pl.DataFrame([tripled(row) for row in frame.to_dicts()], schema=TYPES),
    ),
    "flat_map": (
        lambda rows: rows.flat_map(twice, schema=TYPES),
        lambda frame: pl.DataFrame([made for row in frame.to_dicts() for made in twice(row)], schema=TYPES),
    ),
    "map_batches": (lambda rows: rows.map_batches(halved, schema=TYPES), halved),
}


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path) as opened:
        yield opened


def second(number: float) -> datetime:
    return START + timedelta(seconds=number)


def events(random: Random, count: int, behind: float = 0.0) -> pl.DataFrame:
    """In the order of their arrival, which is that of their times but for the delay. ``behind``: how many of them come later."""
    times = [round(random.random() * 120, 3) for _ in range(count)]
    late = [random.uniform(20, 60) if random.random() < behind else 0.0 for _ in times]
    arrivals = sorted(
        (at + random.random() * DELAY_S * 0.99 + more, at) for at, more in zip(times, late, strict=True)
    )
    return pl.DataFrame(
        {
            "at": [second(at) for _, at in arrivals],
            "page": [random.choice("abc") for _ in arrivals],
            "v": [random.choice((None, *range(9))) for _ in arrivals],
            "f": [random.random() * 10 ** random.randint(-3, 6) for _ in arrivals],
        },
        schema=TYPES,
    )


def in_windows(rows: pl.DataFrame, kind: str) -> pl.DataFrame:
    """Each row once for each of its windows, slowly."""
    if kind == "none":
        return rows
    found: list[dict[str, Any]] = []
    begun = last = None
    for row in sorted(rows.to_dicts(), key=lambda row: (row["page"], row["at"])):
        if kind == "session":
            if (
                last is None
                or last["page"] != row["page"]
                or row["at"] - last["at"] > timedelta(seconds=GAP_S)
            ):
                begun = row["at"]
            last = row
            found.append({**row, "window_start": begun})
            continue
        length, every = (20, 20) if kind == "tumbling" else (30, 10)
        newest = math.floor((row["at"] - START).total_seconds() / every) * every
        found += [{**row, "window_start": second(start)} for start in range(newest, newest - length, -every)]
    return pl.DataFrame(found, schema={**rows.schema, "window_start": TYPES["at"]})


def table_of(rows: pl.DataFrame, kind: str, aggregates: dict[str, Any]) -> pl.DataFrame:
    given = in_windows(rows, kind)
    keys = [pl.col(name) for name in ("window_start", "page") if name in given.columns]
    named = tuple(aggregates.items())
    return final(partial(given.lazy(), keys, named), [key.meta.output_name() for key in keys], named)


def source(db: of.Database, name: str) -> Any:
    return db.read_stream(
        name, follow=True, event_time="at", watermark_delay=f"{DELAY_S}s", max_ahead=None, idle=None
    )


def appended(random: Random, job: Any, left: dict[Any, pl.DataFrame], workers: int) -> Any:
    """Start the job, and append the rest in pieces, with commits, stops and other workers between them; the run."""
    run = job.start(workers=workers, latency=random.choice((0, "2ms")))
    while left:
        stream = random.choice(sorted(left, key=lambda one: one.name))
        size = random.randint(1, 25)
        piece, left[stream] = left[stream].head(size), left[stream].slice(size)
        if random.random() < 0.1:
            for row in piece.to_dicts():
                stream.append(row)
        else:
            stream.append_many(piece, key=random.choice((None, "page")))
        if not left[stream].height:
            del left[stream]
        if random.random() < 0.3:
            run.catch_up(timeout=T)
        if random.random() < 0.15:
            run.stop()
            run = job.start(workers=random.randint(1, 2), latency=0)
    return run


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("seed", range(3))
def test_a_stream_equals_the_batch(db: of.Database, kind: str, seed: int) -> None:
    """Any steps before the key, several streams or one, and windows that close while events come."""
    random = Random(f"{kind} {seed}")
    names = ["clicks", "taps"][: 1 + (seed == 1)]
    frames = {name: events(random, 60) for name in names}
    steps = [STEPS[name] for name in random.sample(sorted(STEPS), random.randint(0, 3))]
    if seed == 2:
        steps.insert(random.randint(0, len(steps)), FUNCTIONS[random.choice(sorted(FUNCTIONS))])
    streams = {db.stream(name, partitions=random.randint(1, 3)): frame for name, frame in frames.items()}
    for stream in streams:
        stream.create()
    rows, expected = source(db, names[0]), pl.concat(frames.values())
    for name in names[1:]:
        rows = rows.select(*TYPES).union(source(db, name).select(*TYPES))
    for of_plan, of_frame in steps:
        rows, expected = of_plan(rows), of_frame(expected)
    grouped = rows.group_by("page") if WINDOWS[kind] is None else rows.window(WINDOWS[kind]).group_by("page")
    job = grouped.agg(**AGGREGATES).into("t")
    run = appended(random, job, streams, random.randint(1, 3))
    run.stop(drain=True, timeout=T)
    status = run.status()
    assert (status.late, status.dead, status.rows) == (0, 0, expected.height)
    wanted = table_of(expected, kind, AGGREGATES)
    assert_frame_equal(
        run.result().to_polars().select(wanted.columns), wanted, rel_tol=1e-9, check_dtypes=False, check_row_order=False
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["tumbling", "session"])
@pytest.mark.parametrize("seed", range(2))
def test_each_event_is_in_a_window_or_late(db: of.Database, kind: str, seed: int) -> None:
    random = Random(f"{kind} {seed}")
    clicks = db.stream("clicks", partitions=2)
    clicks.create()
    rows = source(db, "clicks")
    if seed == 1:  # over a hop
        rows = rows.map(lambda row: {name: row[name] for name in TYPES}, schema=TYPES)
    job = rows.window(WINDOWS[kind]).group_by("page").agg(n=agg.count(), total=agg.sum("v")).into("t")
    run = appended(random, job, {clicks: events(random, 99, behind=0.2)}, 2)
    run.catch_up(timeout=T)
    long_ago = pl.col("at") - timedelta(days=1)  # late however the others fell into commits
    clicks.append_many(events(random, 1).with_columns(long_ago), key=None)
    run.stop(drain=True, timeout=T)
    late, table = run.result().late(), run.result().to_polars()
    assert late.height == run.status().late > 0
    place = ["_partition", "_offset"]
    assert late.unique(place).height == late.height
    assert set(TYPES) <= set(late.columns)
    timely = clicks.to_polars().join(late.select(place), on=place, how="anti", nulls_equal=True)
    assert timely.height + late.height == 100
    assert table["n"].sum() == timely.height == run.status().rows
    assert table["total"].sum() == timely["v"].sum()
    if kind == "tumbling":
        wanted = table_of(timely, kind, {"n": agg.count(), "total": agg.sum("v")})
        assert_frame_equal(table.select(wanted.columns), wanted, check_dtypes=False, check_row_order=False)
