"""Columns without a query say what Polars' own expressions say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from onefold.compute.frames import columns

TIMES = [datetime(1969, 12, 31, 23, 59, 59, 999_000), None, datetime(2026, 1, 1, 12, 0, 0, 1000)]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_micros_are_those_of_polars(unit: str, zone: str | None) -> None:
    times = pl.Series(TIMES, dtype=pl.Datetime(unit, zone))
    expected = times.dt.epoch("us").cast(pl.Int64)
    assert columns.micros(times).equals(expected, null_equal=True, check_dtypes=True)
    assert columns.bounds_us(times) == (expected.min(), expected.max())
    assert columns.bounds_us(times.clear()) is None
    assert columns.bounds_us(pl.Series([None], dtype=times.dtype)) is None


def test_a_column_is_added_or_takes_the_place_of_its_name() -> None:
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    added = columns.with_column(frame, columns.constant("c", datetime(2026, 1, 1, tzinfo=UTC), None, 2))
    assert added.columns == ["a", "b", "c"] and added["c"].n_unique() == 1
    replaced = columns.with_column(frame, pl.Series("a", [0.5, None]))
    assert replaced.rows() == [(0.5, "x"), (None, "y")]
    assert columns.without(frame, "b", "gone").columns == ["a"]
    assert columns.only(frame, ["b", "a"]).columns == ["b", "a"]


def test_rows_come_by_lane_in_the_order_they_had() -> None:
    from onefold.compute.live.runs.rows import LANE, by_lane

    rng = np.random.default_rng(7)
    frame = pl.DataFrame({LANE: rng.integers(0, 64, 5000).astype(np.uint16), "n": np.arange(5000)})
    assert by_lane(frame).equals(frame.sort(LANE, maintain_order=True))


def test_a_batch_in_one_slice_has_the_groups_of_its_rows() -> None:
    from onefold import agg
    from onefold.compute.live.operators.windowed import WindowedAggregate
    from onefold.compute.live.runs.open_state import OpenState
    from onefold.compute.plan.windows import WindowSpec

    hour = 3_600_000_000
    for offset_us, kind in ((0, "tumbling"), (1_800_000_000, "tumbling"), (0, "sliding")):
        spec = WindowSpec(kind, hour, hour // 2 if kind == "sliding" else 0, offset_us)  # type: ignore[arg-type]
        one = WindowedAggregate(spec, "at", (pl.col("k"),), (("n", agg.count()),), 8)
        for first in (0, 10, 40):  # the last ones go over the end of an hour
            at = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=first + n) for n in range(25)]
            frame = pl.DataFrame({"at": at, "k": [n % 3 for n in range(25)]})
            batch = one.batch(frame, OpenState(one.layout), None)
            alone = [one.batch(frame[n], OpenState(one.layout), None).delta for n in range(25)]
            key = ["window_start", "window_end", "k"]
            assert batch.delta is not None
            found = batch.delta.group_by(key).agg(pl.col("n:n").sum()).sort(key)
            expected = pl.concat([d for d in alone if d is not None]).group_by(key).agg(pl.col("n:n").sum())
            assert found.equals(expected.sort(key)), (offset_us, kind, first)
