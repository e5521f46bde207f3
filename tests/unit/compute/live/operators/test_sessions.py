"""Sessions batch by batch are those of all events at once, in whatever order events come within the delay."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute.live.operators.sessions import SessionAggregate
from onefold.compute.live.runs.open_state import OpenState

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
START = datetime(2026, 1, 1, tzinfo=UTC)
GAP_S = 5
AGGREGATES = (("n", agg.count()), ("total", agg.sum("v")))
SCHEMA = {"at": pl.Datetime("us", "UTC"), "k": pl.String, "v": pl.Int64}
Session = tuple[datetime, datetime, str | None, int, int]


def operator(lateness: float = 0) -> SessionAggregate:
    spec = of.window.session(GAP_S, allowed_lateness=lateness)
    return SessionAggregate(spec, "at", (pl.col("k"),), AGGREGATES, 8)


def micros(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1)


def once(rows: list[tuple[Any, ...]]) -> list[Session]:
    """Sessions by going through the events of each key in order."""
    found: list[list[Any]] = []
    for key in {row[1] for row in rows}:
        last = None
        for at, _, value in sorted(row for row in rows if row[1] == key):
            if last is None or at - last > timedelta(seconds=GAP_S):
                found.append([at, at, key, 0, 0])
            last = at
            found[-1][1] = at + timedelta(seconds=GAP_S)
            found[-1][3] += 1
            found[-1][4] += value
    return sorted((tuple(one) for one in found), key=repr)  # type: ignore[arg-type]


def events(seed: int, delay_s: float) -> list[tuple[datetime, str, int]]:
    """In the order of arrival: none is more than the delay behind one that came before."""
    random = Random(seed)
    now, rows = 0.0, []
    for _ in range(random.randint(1, 150)):
        now += random.choice((0, 0.5, 1, 2.5, GAP_S, 20)) * random.choice((0.2, 1))
        rows.append(
            (
                now + random.random() * delay_s,
                START + timedelta(seconds=round(now, 3)),
                random.choice("abc"),
                1,
            )
        )
    return [row[1:] for row in sorted(rows)]


def frame(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def sessions(table: pl.DataFrame) -> list[Session]:
    return sorted(table.select("window_start", "window_end", "k", "n", "total").rows(), key=repr)


@pytest.mark.parametrize("seed", range(25))
def test_sessions_are_those_of_all_events_at_once(seed: int) -> None:
    random = Random(seed)
    delay_s = random.choice((0, 2, 30))
    given = events(seed, delay_s)
    one = operator()
    state, watermark, newest = OpenState(one.layout), None, None
    final: list[Session] = []
    deltas = []
    taken: list[tuple[Any, ...]] = []
    while given:
        count = random.randint(1, 12)
        rows, given = given[:count], given[count:]
        taken += rows
        done = one.batch(frame(rows), state, watermark)
        assert done.late is None
        assert done.delta is not None
        deltas.append(done.delta)
        state = done.state
        newest = max(micros(row[0]) for row in taken)
        closed = one.close(state, watermark, newest - round(delay_s * 1_000_000))
        state, watermark = closed.state, newest - round(delay_s * 1_000_000)
        final += [] if closed.final is None else sessions(closed.final)
        if random.random() < 0.3:  # another worker takes over
            state = OpenState.of_runs(one.layout, deltas, watermark - 1)
        still = one.open_windows(state, watermark)
        shown = final + ([] if still is None else sessions(still))
        assert sorted(shown, key=repr) == once(taken)


def test_an_event_a_gap_behind_belongs_to_the_session() -> None:
    one = operator()
    first = one.batch(frame([(START, "a", 1)]), OpenState(one.layout), None)
    end = micros(START) + GAP_S * 1_000_000
    assert one.close(first.state, None, end).final is None
    assert one.close(first.state, None, end + 1).final is not None
    both = one.batch(frame([(START + timedelta(seconds=GAP_S), "a", 1)]), first.state, end)
    found = one.open_windows(both.state, end)
    assert found is not None
    assert found["n"].to_list() == [2]


def test_one_event_joins_two_sessions_and_begins_them_earlier() -> None:
    one = operator()
    rows = [(START + timedelta(seconds=second), "a", second) for second in (0, 8)]
    state = one.batch(frame(rows), OpenState(one.layout), None).state
    done = one.batch(frame([(START + timedelta(seconds=4), "a", 4)]), state, None)
    found = one.open_windows(done.state, None)
    assert found is not None
    assert sessions(found) == [(START, START + timedelta(seconds=13), "a", 3, 12)]
    earlier = one.batch(frame([(START - timedelta(seconds=1), "a", 1)]), done.state, None)
    found = one.open_windows(earlier.state, None)
    assert found is not None
    assert [row[0] for row in sessions(found)] == [START - timedelta(seconds=1)]


def test_late_events_are_apart_with_all_columns() -> None:
    one = operator(lateness=1)
    rows = [(START, "a", 1), (START + timedelta(seconds=10), "a", 2)]
    limit = micros(START) + (GAP_S + 1) * 1_000_000
    assert one.batch(frame(rows), OpenState(one.layout), limit).late is None
    done = one.batch(frame(rows), OpenState(one.layout), limit + 1)
    assert done.late is not None
    assert Counter(done.late.rows()) == Counter(rows[:1])
    assert done.rows == 1


def test_only_changed_sessions_are_written() -> None:
    one = operator()
    many = [(START, f"user {number}", 1) for number in range(1000)]
    state = one.batch(frame(many), OpenState(one.layout), None).state
    done = one.batch(frame([(START + timedelta(seconds=1), "user 7", 1)]), state, None)
    assert done.delta is not None
    assert done.delta.height == 1


def test_several_keys_and_not_a_number_have_sessions_of_their_own() -> None:
    nan = float("nan")
    keys = [(nan, 1, 0), (nan, 1, 1), (1.0, 1, 0), (None, 1, 0), (None, 2, 1)]
    schema = {"x": pl.Float64, "y": pl.Int64, "at": pl.Datetime("us", "UTC")}
    rows = [(x, y, START + timedelta(seconds=after)) for x, y, after in keys]
    spec = of.window.session(GAP_S)
    one = SessionAggregate(spec, "at", (pl.col("x"), pl.col("y")), (("n", agg.count()),), 8)
    for parts in ([rows], [[row] for row in rows]):
        state = OpenState(one.layout)
        for part in parts:
            state = one.batch(pl.DataFrame(part, schema=schema, orient="row"), state, None).state
        found = one.open_windows(state, None)
        assert found is not None
        expected = [("1.0", 1, 1), ("None", 1, 1), ("None", 2, 1), ("nan", 1, 2)]
        assert sorted((str(x), y, n) for x, y, n in found.select("x", "y", "n").rows()) == expected


def test_null_and_every_key_have_sessions_of_their_own() -> None:
    one = operator()
    rows: list[tuple[Any, ...]] = [(START, None, 1), (START, "a", 1), (START + timedelta(seconds=1), None, 1)]
    state = OpenState(one.layout)
    for row in rows:
        state = one.batch(frame([row]), state, None).state
    found = one.open_windows(state, None)
    assert found is not None
    assert sorted(found.select("k", "n").rows(), key=repr) == [("a", 1), (None, 2)]
