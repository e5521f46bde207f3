"""However the lanes of a job are spread over bundles, these give together what one bundle gives, whatever the keys are."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import onefold as of
from onefold import agg
from onefold.compute.live.operators.running import RunningAggregate
from onefold.compute.live.operators.sessions import SessionAggregate
from onefold.compute.live.operators.windowed import WindowedAggregate
from onefold.compute.live.runs.open_state import OpenState

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
START = datetime(2026, 1, 1, tzinfo=UTC)
LANES = 8
SPREADS = [([0, 1, 2], [3], [4, 5, 6, 7]), ([1, 3, 5, 7], [0, 2, 4, 6])]
AGGREGATES = (("n", agg.count()), ("total", agg.sum("v")))
KEYS: dict[str, tuple[pl.Expr, ...]] = {
    "none": (),
    "one": (pl.col("k"),),
    "two": (pl.col("k"), pl.col("f")),
    "an expression": ((pl.col("v") % 3).alias("rest"),),
    "a constant": (pl.lit("all").alias("name"),),
    "a constant and one": (pl.lit(1).alias("name"), pl.col("k")),
    "floats": (pl.col("f"),),
}
SPECS: dict[str, Any] = {
    "tumbling": of.window.tumbling("10s"),
    "sliding": of.window.sliding("30s", every="10s"),
    "session": of.window.session("2s"),
    "none": None,
}


def operator(kind: str, keys: tuple[pl.Expr, ...]) -> Any:
    spec = SPECS[kind]
    if spec is None:
        return RunningAggregate(keys, AGGREGATES, LANES)
    one = SessionAggregate if kind == "session" else WindowedAggregate
    return one(spec, "at", keys, AGGREGATES, LANES)


def batches(random: Random) -> list[pl.DataFrame]:
    found, now = [], 0.0
    for _ in range(6):
        rows = []
        for _ in range(random.randint(1, 30)):
            now += random.random()
            behind = random.choice((0, 1, 60)) * random.random()
            at = START + timedelta(seconds=now - behind)
            floats = (None, math.nan, 0.0, -0.0, 1.5)
            rows.append((at, random.choice("abcdef"), random.randint(-5, 5), random.choice(floats)))
        schema = {"at": pl.Datetime("us", "UTC"), "k": pl.String, "v": pl.Int64, "f": pl.Float64}
        found.append(pl.DataFrame(rows, schema=schema, orient="row"))
    return found


def run(one: Any, given: list[pl.DataFrame], mine: list[int] | None) -> tuple[pl.DataFrame, int, int]:
    """(all rows of the table, rows taken, late rows) of a bundle that commits after each batch."""
    state, watermark, taken, late = OpenState(one.layout), None, 0, 0
    shown = []
    for rows in given:
        done = one.batch(rows, state, watermark, mine)
        state, taken = done.state, taken + done.rows
        late += 0 if done.late is None else done.late.height
        newest = (rows["at"].max() - EPOCH) // timedelta(microseconds=1)  # type: ignore[operator]
        after = max(newest - 2_000_000, watermark or newest - 2_000_000)
        if not isinstance(one, RunningAggregate):
            closed = one.close(state, watermark, after)
            state = closed.state
            shown += [] if closed.final is None else [closed.final]
        watermark = after
    still = one.values(state) if isinstance(one, RunningAggregate) else one.open_windows(state, watermark)
    shown += [] if still is None else [still]
    columns = [*one.key_names, "n", "total"]
    if not isinstance(one, RunningAggregate):
        columns = ["window_start", "window_end", *columns]
    table = pl.concat(frame.select(columns) for frame in shown) if shown else pl.DataFrame()
    return table, taken, late


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("kind", SPECS)
def test_bundles_give_together_what_one_gives(kind: str, keys: tuple[pl.Expr, ...]) -> None:
    for seed in range(2):
        given = batches(Random(f"{kind} {seed}"))
        one = operator(kind, keys)
        whole, taken, late = run(one, given, None)
        assert taken + late == sum(rows.height for rows in given)
        assert (late > 0) == (kind != "none")
        parts = [run(one, given, mine) for mine in SPREADS[seed]]
        table = pl.concat(part[0] for part in parts if part[0].height)
        assert_frame_equal(table, whole, check_row_order=False)
        assert (sum(part[1] for part in parts), sum(part[2] for part in parts)) == (taken, late)
