"""The buffer of delivered records: in order, without gaps, bounded, whatever way they come."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.log.api import Entry
from onefold.log.jetstream.delivery_buffer import TailBuffer

ROOM = 1 << 20


def entry(offset: int, size: int = 10) -> Entry:
    return Entry(offset, b"%d" % offset * 1 + bytes(size), offset)


def entries(*offsets: int) -> list[Entry]:
    return [entry(offset) for offset in offsets]


def test_what_comes_in_order_is_given_in_order() -> None:
    buffer = TailBuffer(ROOM)
    assert buffer.offer(entries(1, 2, 3))
    assert (buffer.last, buffer.announced) == (3, 3)
    assert [found.offset for found in buffer.take(1, ROOM)] == [1, 2, 3]


def test_a_gap_holds_last_back_until_it_is_filled() -> None:
    buffer = TailBuffer(ROOM)
    buffer.offer(entries(1, 2))
    assert not buffer.offer(entries(4, 5))
    assert (buffer.last, buffer.announced) == (2, 5)
    assert buffer.offer(entries(3))
    assert buffer.last == 5
    assert [found.offset for found in buffer.take(1, ROOM)] == [1, 2, 3, 4, 5]


def test_doubles_change_nothing() -> None:
    buffer = TailBuffer(ROOM)
    buffer.offer(entries(1, 3, 2, 3, 1))
    held = buffer.held_bytes
    assert not buffer.offer(entries(1, 2, 3))
    assert buffer.held_bytes == held and len(buffer.take(1, ROOM)) == 3


def test_what_was_read_is_let_go() -> None:
    buffer = TailBuffer(ROOM)
    buffer.offer(entries(*range(1, 11)))
    assert len(buffer.take(1, 1)) == 1, "at least one, however small the page"
    assert [found.offset for found in buffer.take(6, ROOM)] == [6, 7, 8, 9, 10]
    assert buffer.kept_from() == 6
    assert buffer.take(5, ROOM) == [], "it is fetched again"
    assert buffer.take(11, ROOM) == []
    assert buffer.take(11, ROOM) == [] and buffer.kept_from() == 11 and buffer.held_bytes == 0


def test_the_oldest_are_dropped_beyond_the_bound() -> None:
    buffer = TailBuffer(2000)
    for offset in range(1, 101):
        buffer.offer([entry(offset, 100)])
        assert buffer.held_bytes <= 2000
    assert buffer.last == 100
    first = buffer.kept_from()
    assert 80 < first <= 100
    assert [found.offset for found in buffer.take(first, ROOM)] == list(range(first, 101))


def test_what_is_aside_is_bounded_too() -> None:
    buffer = TailBuffer(2000)
    for offset in range(2, 102):
        buffer.offer([entry(offset, 100)])
    assert buffer.held_bytes <= 2000 and buffer.announced == 101 and buffer.last == 0
    buffer.offer([entry(1, 100)])
    assert 0 < buffer.last < 101 and buffer.announced == 101, "what did not fit is known to be missing"


def test_a_single_record_above_the_bound_passes_through() -> None:
    buffer = TailBuffer(100)
    assert buffer.offer([entry(1, 500)])
    assert buffer.last == 1 and buffer.held_bytes == 0 and buffer.kept_from() == 2


def test_a_jump_leaves_what_it_passed_to_be_fetched() -> None:
    buffer = TailBuffer(ROOM)
    buffer.offer(entries(1, 2, 50, 51))
    assert buffer.jump(49)
    assert buffer.last == 51 and buffer.kept_from() == 50
    assert not buffer.jump(40) and buffer.last == 51
    buffer.offer(entries(60, 61))
    assert buffer.jump(60)
    assert (buffer.last, buffer.kept_from()) == (61, 61)


def test_announcing() -> None:
    buffer = TailBuffer(ROOM, last=5)
    assert not buffer.announce(5)
    assert buffer.announce(8) and buffer.last == 5 and buffer.announced == 8


@given(st.integers(0, 2**32), st.integers(60, 4000))
@settings(max_examples=200, deadline=None)
def test_any_order_with_refetching_gives_every_record_once(seed: int, room: int) -> None:
    rng = random.Random(seed)
    buffer = TailBuffer(room)
    count = 60
    coming = [offset for offset in range(1, count + 1) for _ in range(rng.choice((0, 1, 1, 2)))]
    coming = sorted(coming, key=lambda offset: offset + rng.uniform(0, 8))
    read: list[int] = []

    def read_some() -> None:
        while len(read) < buffer.last:
            found = buffer.take(len(read) + 1, rng.choice((1, 200)))
            if found:
                read.extend(each.offset for each in found)
            else:
                read.append(len(read) + 1)  # fetched again
            if rng.random() < 0.5:
                return

    for offset in coming:
        before = buffer.last
        moved = buffer.offer([entry(offset, rng.randrange(60))])
        assert moved == (buffer.last > before)
        assert buffer.held_bytes <= 2 * room
        if rng.random() < 0.3:
            read_some()
    while buffer.last < count:
        buffer.offer([entry(buffer.last + 1)])
    while len(read) < count:
        read_some()
    assert read == list(range(1, count + 1))


@pytest.mark.parametrize("start", [0, 1, 3])
def test_take_before_what_is_kept(start: int) -> None:
    buffer = TailBuffer(ROOM, last=3)
    assert buffer.take(start, ROOM) == []
    buffer.offer(entries(4))
    assert buffer.take(start, ROOM) == []
    assert [found.offset for found in buffer.take(4, ROOM)] == [4]
