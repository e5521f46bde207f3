"""Windowed aggregates batch by batch give what one pass over the same events gives; nothing is counted twice or lost."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from random import Random

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute.live.operators.running import RunningAggregate
from onefold.compute.live.operators.windowed import WindowedAggregate
from onefold.compute.live.runs.open_state import OpenState
from onefold.compute.live.runs.rows import LANE, OPERATION
from onefold.compute.plan.windows import WindowSpec

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
START = datetime(2026, 1, 1, tzinfo=UTC)
LANES = 8
AGGREGATES = (("n", agg.count()), ("total", agg.sum("v")), ("most", agg.max("v")))
SPECS = [
    of.window.tumbling("10s"),
    of.window.tumbling("10s", allowed_lateness="7s", offset="3s"),
    of.window.sliding("30s", every="10s"),
    of.window.sliding("25s", every="10s", allowed_lateness="5s"),
]
SCHEMA = {"at": pl.Datetime("us", "UTC"), "k": pl.String, "v": pl.Int64}


def operator(spec: WindowSpec, lanes: int = LANES) -> WindowedAggregate:
    return WindowedAggregate(spec, "at", (pl.col("k"),), AGGREGATES, lanes)


def micros(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1)


def batches(seed: int) -> list[pl.DataFrame]:
    """Events that are mostly in order and some far behind."""
    random = Random(seed)
    found, now = [], 0.0
    for _ in range(random.randint(3, 12)):
        rows = []
        for _ in range(random.randint(0, 40)):
            now += random.random() * 2
            behind = random.choice((0, 1, 3, 30)) * random.random()
            rows.append(
                (START + timedelta(seconds=now - behind), random.choice("abcdef"), random.randint(-5, 5))
            )
        found.append(pl.DataFrame(rows, schema=SCHEMA, orient="row"))
    return found


def once(spec: WindowSpec, rows: pl.DataFrame) -> pl.DataFrame:
    """All windows of these events, in one pass with other code."""
    made = []
    length, step = spec.length_us, spec.every_us or spec.length_us
    for at, key, value in rows.rows():
        first = micros(at) - (micros(at) - spec.offset_us) % step
        made += [(start, key, value) for start in range(first, micros(at) - length, -step)]
    frame = pl.DataFrame(made, schema={"s": pl.Int64, "k": pl.String, "v": pl.Int64}, orient="row")
    start = pl.from_epoch("s", "us").dt.replace_time_zone("UTC").alias("window_start")
    return (
        frame.group_by("s", "k")
        .agg(n=pl.len(), total=pl.col("v").sum(), most=pl.col("v").max())
        .select(start, "k", "n", "total", "most")
        .sort("window_start", "k")
    )


def run(
    spec: WindowSpec, given: list[pl.DataFrame], mine: list[int] | None
) -> tuple[pl.DataFrame, pl.DataFrame, list[pl.DataFrame]]:
    """(final rows of all commits, late rows, deltas) of a worker that commits after each batch and closes all at the end."""
    one, state, watermark = operator(spec), OpenState(operator(spec).layout), None
    shown, late, deltas = [], [], []
    for rows in given:
        done = one.batch(rows, state, watermark, mine)
        state = done.state
        late += [] if done.late is None else [done.late]
        deltas += [] if done.delta is None else [done.delta]
        newest = micros(rows["at"].max()) if rows.height else None  # type: ignore[arg-type]
        if newest is not None:
            after = max(newest - 2_000_000, watermark or newest - 2_000_000)
            closed = one.close(state, watermark, after)
            state, watermark = closed.state, after
            shown += [] if closed.final is None else [closed.final]
    closed = one.close(state, watermark, micros(START) * 2)
    assert not closed.state.frames
    shown += [] if closed.final is None else [closed.final]
    columns = ["window_start", "k", "n", "total", "most"]
    results = pl.concat(shown) if shown else pl.DataFrame(schema={LANE: pl.UInt16, OPERATION: pl.UInt8})
    assert not results.height or (results["window_end"] - results["window_start"]).unique().to_list() == [
        timedelta(microseconds=spec.length_us)
    ]
    return (
        results.select(columns) if results.height else once(spec, pl.DataFrame(schema=SCHEMA)),
        pl.concat(late) if late else pl.DataFrame(schema=SCHEMA),
        deltas,
    )


def same(left: pl.DataFrame, right: pl.DataFrame) -> bool:
    names = ["window_start", "k", "n", "total", "most"]
    one, two = (
        frame.select(names).cast({"n": pl.Int64}).sort("window_start", "k") for frame in (left, right)
    )
    return one.equals(two)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_windows_and_late_rows_are_all_events(seed: int, spec: WindowSpec) -> None:
    given = batches(seed)
    events = pl.concat(given)
    results, late, _ = run(spec, given, None)
    timely = Counter(events.rows()) - Counter(late.rows())
    assert sum(timely.values()) + late.height == events.height
    rows = pl.DataFrame(list(timely.elements()), schema=SCHEMA, orient="row")
    expected = once(spec, rows)
    if spec.kind == "tumbling":
        assert same(results, expected)
    else:  # of a sliding window some may have closed before an event that others still take
        keys = ["window_start", "k"]
        joined = expected.join(results, on=keys, how="left", suffix="_found")
        assert results.select(keys).is_duplicated().sum() == 0
        assert (joined["n_found"].fill_null(0) <= joined["n"]).all()
    if not late.height and spec.kind == "tumbling":
        assert same(results, once(spec, events))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_events_in_order_close_complete_windows(spec: WindowSpec) -> None:
    given = [rows.sort("at") for rows in [pl.concat(batches(3)).sort("at")]]
    pieces = [piece for rows in given for piece in rows.iter_slices(17)]
    results, late, _ = run(spec, pieces, None)
    assert not late.height
    assert same(results, once(spec, pl.concat(pieces)))


@pytest.mark.parametrize("spec", SPECS[:3], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_bundles_of_lanes_give_together_what_one_gives(seed: int, spec: WindowSpec) -> None:
    given = [rows for rows in batches(seed) if rows.height]
    whole, whole_late, _ = run(spec, given, None)
    parts = [run(spec, given, mine) for mine in ([0, 1, 2], [3], [4, 5, 6, 7])]
    assert same(pl.concat([part[0] for part in parts]), whole)
    assert Counter(row for part in parts for row in part[1].rows()) == Counter(whole_late.rows())


def test_a_restart_reads_its_state_from_the_deltas() -> None:
    spec = SPECS[2]
    one = operator(spec)
    given = [rows for rows in batches(4) if rows.height]
    state = OpenState(one.layout)
    deltas = []
    for rows in given:
        done = one.batch(rows, state, None)
        state = done.state
        assert done.delta is not None
        deltas.append(done.delta)
    again = OpenState.of_runs(one.layout, deltas)
    held, before = again.values(), state.values()
    assert held is not None
    assert before is not None
    assert held.equals(before)
    found = one.open_windows(again, None)
    assert found is not None
    assert same(found, once(spec, pl.concat(given)))


def test_an_event_is_one_group_however_many_windows_it_is_in() -> None:
    spec = of.window.sliding("1h", every="1m")
    rows = pl.DataFrame([(START, "a", 1)], schema=SCHEMA, orient="row")
    done = operator(spec).batch(rows, OpenState(operator(spec).layout), None)
    assert done.delta is not None
    assert done.delta.height == 1
    found = operator(spec).open_windows(done.state, None)
    assert found is not None
    assert found.height == 60


def test_lateness_is_judged_by_the_watermark_before_the_batch() -> None:
    spec = of.window.tumbling("10s", allowed_lateness="5s")
    one = operator(spec)
    empty = OpenState(one.layout)
    rows = pl.DataFrame([(START, "a", 1), (START + timedelta(hours=1), "a", 1)], schema=SCHEMA, orient="row")
    assert one.batch(rows, empty, micros(START) + 14_999_999).late is None
    done = one.batch(rows, empty, micros(START) + 15_000_000)
    assert done.late is not None
    assert done.late.rows() == rows.rows()[:1]
    assert done.rows == 1


def test_running_aggregates_merge_over_batches() -> None:
    one = RunningAggregate((pl.col("k"),), AGGREGATES, LANES)
    given = [rows for rows in batches(5) if rows.height]
    for lanes in (None, [0, 1, 2, 3]):
        state = OpenState(one.layout)
        for rows in given:
            state = one.batch(rows, state, None, lanes).state
        found = one.values(state)
        assert found is not None
        expected = (
            pl.concat(given)
            .group_by("k")
            .agg(n=pl.len(), total=pl.col("v").sum(), most=pl.col("v").max())
            .sort("k")
        )
        if lanes is not None:
            expected = expected.filter(pl.col("k").is_in(found["k"].implode()))
            assert set(found[LANE]) <= set(lanes)
        assert found.drop(LANE).sort("k").equals(expected)
