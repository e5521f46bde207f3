"""Merged runs say what a dictionary says that takes the same rows one by one."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import polars as pl
import pytest

from onefold import agg
from onefold.compute.live.runs.merging import live, merged
from onefold.compute.live.runs.open_state import FRAMES_PER_LEVEL, OpenState
from onefold.compute.live.runs.rows import ADD, DELETE, LANE, OPERATION, PUT, Layout, with_lanes

START = datetime(2026, 1, 1, tzinfo=UTC)
KEYS: list[float | None] = [None, math.nan, -1.5, 0.0, 1.0, 2.0, 3.0]
SUMS = Layout(("window_start", "window_end", "k"), (("n", agg.count()), ("s", agg.count())), "window_end")
VALUES = Layout(("k",))
Model = dict[tuple[Any, ...], tuple[int, int]]


def micros(**after: int) -> int:
    return (START + timedelta(**after) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def name(value: float | None) -> object:
    return "nan" if value is not None and math.isnan(value) else value


def frame_of(rows: list[tuple[int, int, float | None, int, int]], layout: Layout) -> pl.DataFrame:
    """(operation, minute, key, n, s), each group at most once."""
    starts = [START + timedelta(minutes=row[1]) for row in rows]
    schema = {OPERATION: pl.UInt8, "k": pl.Float64, "n:n": pl.UInt64, "s:n": pl.UInt64}
    frame = pl.DataFrame(
        {OPERATION: [row[0] for row in rows], "k": [row[2] for row in rows]}
        | {"n:n": [row[3] for row in rows], "s:n": [row[4] for row in rows]},
        schema=schema,
    )
    if layout.window_end is not None:
        times = pl.DataFrame(
            {"window_start": starts, "window_end": [start + timedelta(minutes=1) for start in starts]},
            schema={"window_start": pl.Datetime("us", "UTC"), "window_end": pl.Datetime("us", "UTC")},
        )
        frame = frame.hstack(times)
    return with_lanes(frame, ["k"], 8).sort(layout.group)


def said(frame: pl.DataFrame, layout: Layout) -> Model:
    rows = {}
    for row in frame.iter_rows(named=True):
        group = (row.get("window_start"), name(row["k"]))
        assert group not in rows, "each group once"
        rows[group] = (row["n:n"], row["s:n"])
    assert frame[LANE].is_sorted()
    return rows


def random_run(random: Random, layout: Layout, model: Model) -> pl.DataFrame:
    rows = []
    for minute in range(3) if layout.window_end is not None else (0,):
        for key in random.sample(KEYS, random.randint(0, len(KEYS))):
            group = (START + timedelta(minutes=minute) if layout.window_end else None, name(key))
            operation = (
                random.choices((ADD, PUT, DELETE), (8, 1, 1))[0]
                if layout.merges
                else random.choice((PUT, DELETE))
            )
            n, s = random.randint(1, 5), random.randint(0, 9)
            rows.append((operation, minute, key, n, s))
            if operation == ADD:
                before = model.get(group, (0, 0))
                model[group] = (before[0] + n, before[1] + s)
            elif operation == PUT:
                model[group] = (n, s)
            else:
                model.pop(group, None)
    return frame_of(rows, layout)


@pytest.mark.parametrize("layout", [SUMS, VALUES], ids=["aggregates", "values"])
@pytest.mark.parametrize("seed", range(12))
def test_runs_merged_in_any_stretches_say_the_same(seed: int, layout: Layout) -> None:
    random = Random(seed)
    model: Model = {}
    runs = [random_run(random, layout, model) for _ in range(random.randint(1, 12))]
    assert said(live(merged(runs, layout, complete=True)), layout) == model
    while len(runs) > 1:  # neighbours, as compaction takes them
        first = random.randrange(len(runs) - 1)
        last = random.randint(first + 1, len(runs) - 1)
        runs[first : last + 1] = [merged(runs[first : last + 1], layout, complete=first == 0)]
        assert said(live(merged(runs, layout, complete=True)), layout) == model


@pytest.mark.parametrize("seed", range(6))
def test_a_state_after_batches_says_the_same(seed: int) -> None:
    random = Random(seed)
    model: Model = {}
    states = [(OpenState(SUMS), dict(model))]
    for _ in range(20):
        states.append((states[-1][0].with_batch(random_run(random, SUMS, model)), dict(model)))
    for state, expected in states:  # the states before are as they were: a refused commit returns to them
        values = state.values()
        assert (said(values, SUMS) if values is not None else {}) == expected
        assert len(state.frames) <= 2 * FRAMES_PER_LEVEL


def test_windows_close_once_and_whole() -> None:
    random = Random(5)
    model: Model = {}
    state = OpenState(SUMS)
    for _ in range(7):
        state = state.with_batch(random_run(random, SUMS, model))
    open_after, closed = state.close(micros(minutes=2))
    assert closed is not None
    assert said(closed, SUMS) == {
        group: value for group, value in model.items() if group[0] < START + timedelta(minutes=2)
    }
    values = open_after.values()
    assert values is not None
    assert said(values, SUMS) == {
        group: value for group, value in model.items() if group[0] >= START + timedelta(minutes=2)
    }
    assert open_after.close(micros(minutes=2)) == (open_after, None)


SESSIONS = Layout(("window_start", "k"), window_end="window_end", replaces=True)


def session(operation: int, key: int, start: int, end: int | None, n: int = 0) -> dict[str, Any]:
    return {OPERATION: operation, "k": key, "window_start": START + timedelta(seconds=start), "n:n": n} | {
        "window_end": None if end is None else START + timedelta(seconds=end)
    }


def sessions(*rows: dict[str, Any]) -> pl.DataFrame:
    times = {"window_start": pl.Datetime("us", "UTC"), "window_end": pl.Datetime("us", "UTC")}
    frame = pl.DataFrame(list(rows), schema={OPERATION: pl.UInt8, "k": pl.Int64, "n:n": pl.UInt64} | times)
    return with_lanes(frame, ["k"], 8).sort(SESSIONS.group)


def test_a_session_that_grew_closes_at_its_new_end() -> None:
    many = [session(PUT, key, 0, 10, 1) for key in range(10)]
    state = OpenState(SESSIONS).with_batch(sessions(*many)).with_batch(sessions(session(PUT, 3, 0, 50, 2)))
    assert len(state.frames) == 2
    state, closed = state.close(micros(seconds=20))
    assert closed is not None
    assert sorted(closed["k"]) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    state, closed = state.close(micros(seconds=50))
    assert closed is not None
    assert closed.select("k", "n:n").rows() == [(3, 2)]
    assert state.values() is None or state.values().height == 0


def test_a_session_that_begins_earlier_leaves_no_row_behind() -> None:
    state = OpenState(SESSIONS).with_batch(sessions(*(session(PUT, key, 30, 40, 1) for key in range(10))))
    moved = sessions(session(DELETE, 3, 30, None), session(PUT, 3, 5, 40, 2))
    state = state.with_batch(moved)
    found = state.lookup(pl.DataFrame({"k": [3]}), ["k"])
    assert found is not None
    assert found["n:n"].to_list() == [2]
    again = OpenState.of_runs(SESSIONS, state.frames, micros(seconds=39))
    values = again.values()
    assert values is not None
    assert values.height == 10


def test_lanes_that_were_given_away_are_no_longer_held() -> None:
    random = Random(1)
    model: Model = {}
    state = OpenState(SUMS)
    for _ in range(4):
        state = state.with_batch(random_run(random, SUMS, model))
    some, others = state.of_lanes(range(4)), state.of_lanes(range(4, 8))
    held, given = some.values(), others.values()
    assert held is not None and given is not None
    assert set(held[LANE]) <= set(range(4))
    assert said(pl.concat([held, given]), SUMS) == model
