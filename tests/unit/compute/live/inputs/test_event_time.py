"""Watermarks, lateness, idleness and the order of reading, against slow and simple ones."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.compute.live import event_time
from onefold.compute.live.alignment import Unread, choose
from onefold.compute.live.idleness import IdleClock
from onefold.state.fold.live.ops import TIME_MAX_US, Position

US = 1_000_000
MINUTE = 60 * US


def at(partition, offset=0, max_us=None, idle=False):
    return Position(0, partition, offset, max_us, idle)


def advanced(position, upto, times, appended, max_ahead_us=MINUTE):
    return event_time.advanced(
        position, upto, np.array(times, np.int64), np.array(appended, np.int64), max_ahead_us
    )


def mark(before, *positions, delay_us=0):
    return event_time.operator_watermark(before, positions, {0: delay_us})


def test_a_row_a_year_ahead_moves_nothing_and_is_counted():
    year = 365 * 24 * 60 * MINUTE
    moved = advanced(at(0), 3, [10, year, 20], [30, 30, 30])
    assert moved == (at(0, 3, 20), 1)
    assert advanced(at(0), 3, [10, year, 20], [30, 30, 30], None) == (at(0, 3, year), 0)


def test_a_row_is_trusted_up_to_the_bound_ahead_of_its_own_append():
    assert advanced(at(0), 1, [MINUTE], [0]) == (at(0, 1, MINUTE), 0)
    assert advanced(at(0), 1, [MINUTE + 1], [0]) == (at(0, 1, None), 1)


def test_old_rows_of_a_replay_count_although_they_arrive_today():
    assert advanced(at(0, 5, 100), 6, [120], [10**15]) == (at(0, 6, 120), 0)
    assert advanced(at(0, 5, 100), 6, [80], [10**15]) == (at(0, 6, 100), 0)


def test_times_that_no_row_of_the_space_can_hold_move_nothing():
    assert advanced(at(0), 1, [TIME_MAX_US + 1], [0], None) == (at(0, 1, None), 1)


def test_only_rows_take_an_idle_flag_back():
    assert advanced(at(0, 4, 9, True), 4, [], []).position.idle
    assert not advanced(at(0, 4, 9, True), 5, [1], [1]).position.idle


def test_the_operator_waits_for_the_slowest_that_is_not_idle():
    assert mark(None, at(0, 1, 50), at(1, 1, 30), delay_us=5) == 25
    assert mark(None, at(0, 1, 50), at(1, 1, 30, True), delay_us=5) == 45
    assert mark(None, at(0, 1, 50), at(1)) is None
    assert mark(7, at(0, 1, 50), at(1)) == 7
    assert mark(None, at(0, 1, 50), at(1, 0, None, True)) == 50


def test_when_all_are_idle_the_most_advanced_counts_and_there_it_stays():
    idle = at(0, 1, 50, True), at(1, 1, 90, True), at(2, 0, None, True)
    assert mark(30, *idle) == 90
    assert mark(90, *idle) == 90
    assert mark(None, at(0, 0, None, True)) is None
    assert mark(90, at(0, 1, 50, True), at(1, 1, 90, True), at(2, 1, 60)) == 90


def test_each_input_has_its_own_delay():
    positions = Position(0, 0, 1, 100), Position(1, 0, 1, 100)
    assert event_time.operator_watermark(None, positions, {0: 10, 1: 40}) == 60


STEPS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 100), st.booleans()), max_size=40)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(0, 20))
def test_the_watermark_never_goes_back_and_never_passes_an_active_partition(steps, delay):
    positions = {partition: at(partition) for partition in range(3)}
    before = None
    for partition, time, idle in steps:
        one = positions[partition]
        if idle:
            positions[partition] = Position(0, partition, one.next, one.max_us, True)
        else:
            positions[partition] = advanced(one, one.next + 1, [time], [time]).position
        after = mark(before, *positions.values(), delay_us=delay)
        assert before is None or (after is not None and after >= before)
        if after != before:
            active = [one.max_us for one in positions.values() if not one.idle]
            known = [one.max_us for one in positions.values() if one.max_us is not None]
            assert after == (min(active) if active else max(known)) - delay
        before = after


# -- idleness


def test_a_partition_is_idle_after_a_silence_seen_from_its_head():
    clock = IdleClock({0: 10})
    one = at(0, 5, 1)
    assert clock.found_idle([one], {(0, 0): 5}, 100.0) == []
    assert clock.found_idle([one], {(0, 0): 5}, 109.9) == []
    assert clock.found_idle([one], {(0, 0): 5}, 110.0) == [at(0, 5, 1, True)]


def test_unread_records_and_reads_begin_the_silence_again():
    clock = IdleClock({0: 10})
    clock.found_idle([at(0, 5)], {(0, 0): 5}, 100.0)
    assert clock.found_idle([at(0, 5)], {(0, 0): 6}, 120.0) == []
    assert clock.found_idle([at(0, 6)], {(0, 0): 6}, 121.0) == []
    assert clock.found_idle([at(0, 7)], {(0, 0): 7}, 131.0) == []
    assert clock.found_idle([at(0, 7)], {(0, 0): 7}, 141.0) == [at(0, 7, None, True)]


def test_heads_are_asked_for_once_a_partition_has_stood_for_long_enough():
    clock = IdleClock({0: 10})
    assert not clock.due([at(0, 5)], 100.0)
    assert not clock.due([at(0, 6)], 109.0)
    assert not clock.due([at(0, 6)], 118.9)
    assert clock.due([at(0, 6)], 119.0)
    assert clock.found_idle([at(0, 6)], {(0, 0): 6}, 119.0) == [at(0, 6, None, True)]


def test_what_is_not_known_to_be_read_is_not_idle():
    clock = IdleClock({0: 10})
    for boot_s in (0.0, 50.0, 100.0):
        assert clock.found_idle([at(0, 5)], {}, boot_s) == []


def test_a_partition_never_written_to_is_idle_by_the_same_rule():
    clock = IdleClock({0: 10})
    clock.found_idle([at(0)], {(0, 0): 0}, 0.0)
    assert clock.found_idle([at(0)], {(0, 0): 0}, 10.0) == [at(0, 0, None, True)]


def test_without_a_time_nothing_is_ever_idle():
    clock = IdleClock({0: None})
    clock.found_idle([at(0)], {(0, 0): 0}, 0.0)
    assert clock.found_idle([at(0)], {(0, 0): 0}, 1e9) == []


# -- the order of reading


def test_the_partition_that_is_behind_is_read_first():
    waiting = [Unread(at(0, 5, 900), True), Unread(at(1, 5, 300), True)]
    assert choose(waiting, 60) == (at(1, 5, 300), 960)
    assert choose(waiting[:1], 60) == (at(0, 5, 900), None)
    assert choose([], 60) is None


def test_an_untouched_partition_comes_before_all_others():
    assert choose([Unread(at(0, 5, 1), True), Unread(at(1), False)], 60).position == at(1)


def test_a_partition_whose_rows_are_all_ahead_of_their_time_keeps_nobody_waiting():
    ahead, known = Unread(at(0, 5), True), Unread(at(1, 5, 7), True)
    assert choose([ahead, known], 60) == (at(1, 5, 7), None)
    assert choose([ahead], 60) == (at(0, 5), None)
    assert choose([ahead, known, Unread(at(2), False)], 60).position == at(2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 50), max_size=60), min_size=1, max_size=4), st.integers(1, 30))
def test_no_partition_is_read_further_ahead_than_the_skew(gaps, skew):
    times = [np.cumsum(one).tolist() for one in gaps]
    positions = [at(partition) for partition in range(len(times))]
    read = 0
    while True:
        unread = [Unread(one, one.next > 0) for one in positions if one.next < len(times[one.partition])]
        choice = choose(unread, skew)
        if choice is None:
            break
        one = choice.position
        time = times[one.partition][one.next]
        others = [other.position.max_us for other in unread if other.position is not one]
        if choice.until_us is not None and None not in others:
            assert (one.max_us or 0) <= min(others) + skew
        positions[one.partition] = at(one.partition, one.next + 1, max(time, one.max_us or 0))
        read += 1
    assert read == sum(map(len, times))
