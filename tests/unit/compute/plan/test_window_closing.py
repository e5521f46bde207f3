"""When windows close, and which events are late, against the definition of windows."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onefold as of
from onefold.compute.plan.windows import WindowSpec, closing_us, last_closed_us
from onefold.errors import InvalidPlan

TIMES = st.lists(st.integers(-200, 400), min_size=1, max_size=30)
US = 1e-6


@st.composite
def specs(draw):
    length, offset, lateness = (
        draw(st.integers(1, 60)),
        draw(st.integers(-100, 100)),
        draw(st.integers(0, 30)),
    )
    kind = draw(st.sampled_from(["tumbling", "sliding", "session"]))
    every = draw(st.integers(1, length)) if kind == "sliding" else 0
    return WindowSpec(kind, length, every, 0 if kind == "session" else offset, lateness)


def last_end(spec, time):
    """By definition: of the windows that begin at a multiple of the step from the offset, and have the time in them."""
    step = spec.every_us or spec.length_us
    first = (time - spec.length_us - spec.offset_us) // step
    starts = (spec.offset_us + number * step for number in range(first - 1, first + 200))
    return max(start for start in starts if start <= time < start + spec.length_us) + spec.length_us


@settings(max_examples=60, deadline=None)
@given(specs(), TIMES)
def test_an_event_is_late_when_its_last_window_is_closed(spec, times):
    session = spec.kind == "session"
    ends = [time + spec.length_us if session else last_end(spec, time) for time in times]
    # An event exactly at the end of a session is still part of it.
    expected = [end + spec.lateness_us + session for end in ends]
    assert [closing_us(time, spec) for time in times] == expected
    assert closing_us(np.array(times, np.int64), spec).tolist() == expected
    assert pl.DataFrame({"at": times}).select(closing_us(pl.col("at"), spec))["at"].to_list() == expected
    for end, closing in zip(ends, expected, strict=True):
        assert last_closed_us(closing - 1, spec) < end <= last_closed_us(closing, spec)


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_times_of_every_unit_close_alike(unit):
    times = pl.Series("at", [datetime(1969, 12, 31, 23, 59, 59, 999_000), datetime(2024, 1, 1)]).cast(
        pl.Datetime(unit)
    )
    minute = of.window.tumbling("1m")
    found = times.to_frame().select(closing_us(pl.col("at").dt.epoch("us"), minute))["at"]
    assert found.to_list() == [0, 1_704_067_260_000_000]


def test_a_thousand_slices_are_the_limit():
    assert of.window.sliding("1h", every="7m").slice_us == 60_000_000
    assert of.window.sliding(1000 * US, every=US).slice_us == 1
    with pytest.raises(InvalidPlan, match=r"3,600,000 slices of 1ms, and at most 1,000 are allowed"):
        of.window.sliding("1h", every="1ms")
