"""Rows of two regions are joined in any order and grouping, as often as one likes, to what the model says of their effects."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.regions.clients import Requests
from kit.regions.desk import Desk
from kit.regions.model import Did, Model
from onefold.available import ops, reading
from onefold.available.kinds import places
from onefold.available.kinds.cells import Cells, Register
from onefold.available.kinds.counts import Base, Counter, Part
from onefold.available.kinds.dots import Dots
from onefold.available.kinds.row import Cell
from onefold.available.rows import all_places, table_of
from onefold.available.stamps import merged

KINDS = "rfksnb"


def history(seed, kinds, steps, *, lifetimes=False):
    """Three regions that did things and heard of each other, and the model of that. ``lifetimes``: values end, in each region
    when it does something."""
    rng = random.Random(seed)
    desk, model, requests = Desk(3), Model(), Requests(rng, kinds)
    requests.ttl_ms = lambda: rng.choice((None, rng.randrange(1, 60))) if lifetimes else None
    for _ in range(steps):
        desk.now_ms += rng.randrange(5)
        number = rng.randrange(1, 4)
        chance = rng.random()
        if chance < 0.6:
            before = desk[number].have()
            asked = requests.some([other for other in (1, 2, 3) if other != number])
            outcome = desk.do(number, *asked)
            if isinstance(outcome, ops.Committed):
                past = {**before, number: outcome.seq}
                model.add(Did(number, outcome.seq, past, outcome.hlc, desk[number].now_ms, asked))
        elif chance < 0.65:
            desk.append(number, ops.Beat())
        elif chance < 0.72:
            desk.round()  # so that what is gone is collected in some of them
        else:
            other = rng.choice([one for one in (1, 2, 3) if one != number])
            if desk.reply(number, other).effects:
                desk.pull(number, other)
    return desk, model


def rows_of(region):
    return {
        (place, key): places.read_row(place, data)
        for place in all_places(region.store)
        for key, data in region.store.scan(table_of(region.store, place))
    }, region.have()


def joined(one, other):
    """All rows of two states, as a full sync joins them."""
    (rows, mine), (others, theirs) = one, other
    found = {}
    for place, key in sorted({*rows, *others}):
        empty = places.empty(place)
        row = rows.get((place, key), empty).joined(others.get((place, key), empty), mine, theirs)
        if not row.is_empty():
            found[place, key] = row
    return found, merged(mine, theirs)


def shown(state):
    found = {}
    for (place, key), row in state[0].items():
        value = reading.visible(row, place)
        if value is None:
            continue
        if place[0] == places.SET:
            name, element = places.split_key(key)
            found.setdefault((place, name), set()).add(element)
        else:
            found[place, key] = value
    return found


@pytest.mark.parametrize("kinds", [*KINDS, KINDS])
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), steps=st.integers(5, 60))
def test_the_laws_of_joins(kinds, seed, steps):
    desk, model = history(seed, kinds, steps)
    a, b, c = map(rows_of, desk.regions.values())
    assert joined(a, a) == a
    assert joined(a, b) == joined(b, a)
    assert joined(joined(a, b), b) == joined(a, b)
    assert joined(joined(a, b), c) == joined(a, joined(b, c))
    for state in (a, b, c, joined(a, b), joined(joined(a, b), c)):
        assert shown(state) == model.state(state[1], desk.now_ms)


@pytest.mark.parametrize("kinds", ["r", "f", "k", "s", KINDS])
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), steps=st.integers(5, 60))
def test_the_laws_hold_where_values_have_ended_in_some_regions(kinds, seed, steps):
    desk, _ = history(seed, kinds, steps, lifetimes=True)
    a, b, c = map(rows_of, desk.regions.values())
    assert joined(a, a) == a
    assert joined(a, b) == joined(b, a)
    assert joined(joined(a, b), b) == joined(a, b)
    assert joined(joined(a, b), c) == joined(a, joined(b, c))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), steps=st.integers(5, 60))
def test_a_full_sync_ends_where_imports_end(seed, steps):
    desk, _ = history(seed, KINDS, steps)
    by_rows, by_effects = history(seed, KINDS, steps)[0], desk
    by_rows.sync(1, 2)
    if by_effects.reply(1, 2).effects:
        by_effects.pull(1, 2)
    assert by_rows[1].shown() == by_effects[1].shown()
    assert by_rows[1].me.content == by_effects[1].me.content


LIVE = Cell(9, 1, 5, b"v")
GONE = Cell(9, 1, 5)


@pytest.mark.parametrize(
    "row",
    [
        Register(LIVE),
        Register(GONE),
        Cells(LIVE),
        Cells(GONE, {"a": Cell(9, 1, 5, b"x")}),
        Cells(None, {"a": LIVE, "b": GONE}),
        Dots((LIVE,)),
        Counter({1: Part(5, 5, 3)}),
        Counter({}, {2: Base(3, 4, 2, 1, 5)}),
    ],
)
def test_a_part_that_one_side_lacks_is_taken_only_if_it_cannot_know_it(row):
    empty = type(row)()
    assert row.joined(empty, {1: 5}, {1: 4}) == row == empty.joined(row, {1: 4}, {1: 5})
    assert row.joined(empty, {1: 5}, {1: 5}).is_empty() and empty.joined(row, {1: 5}, {1: 5}).is_empty()
