"""How far a job's inputs are committed, over bundles that are at different places."""

from __future__ import annotations

from collections import defaultdict
from random import Random

import pytest

from onefold.compute.live.job.committed import committed, unread
from onefold.compute.live.plan import StreamInput
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live.ops import Position
from onefold.state.fold.live.rows import BundleRow

INPUTS = (StreamInput("a", "at"), StreamInput("b", "at"), StreamInput("", None, history="t@history"))


@pytest.mark.parametrize("seed", range(20))
def test_the_last_bundle_counts_and_a_history_is_not_counted(seed: int) -> None:
    random = Random(seed)
    places = [(number, partition) for number in (0, 1) for partition in range(3)] + [(2, 0)]
    bundles, seen = [], defaultdict(list)
    for _ in range(random.randint(1, 4)):
        mine = random.sample(places, random.randint(1, len(places)))
        at = [
            Position(*place, random.randrange(4), random.choice([None, 5]), random.random() < 0.5)
            for place in mine
        ]
        for one in at:
            seen[one.input, one.partition].append(one)
        bundles.append(BundleRow(lane_sets.pack(1), "w", 1, 1, 1, tuple(at), None))
    found = committed(bundles)
    assert list(found) == sorted(seen)
    for place, positions in seen.items():
        assert found[place].next == min(one.next for one in positions)
        assert found[place].idle == all(one.idle for one in positions)
        assert found[place].max_us in [one.max_us for one in positions if one.next == found[place].next]
    heads = {place: random.randrange(5) for place in places[1:]}
    assert unread(found, heads, INPUTS) == {
        place: heads[place] - one.next
        for place, one in found.items()
        if place[0] != 2 and place in heads and heads[place] > one.next
    }
