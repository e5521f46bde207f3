"""Who owns which lanes: shares, splits, fusions, and workers that are gone."""

from __future__ import annotations

import random

import pytest

from onefold import config
from onefold.state.fold import blobs as named_blobs
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import sharing
from onefold.state.fold.live.ops import STANDBY_VERSION, Beat, Expire, Fuse, Give, Leave
from onefold.state.fold.live.rows import Bundle, BundleRow
from onefold.state.fold.outcomes import Answer, Rejected
from support.live_rows import LiveRows, at, packed, run_of, spec


def give(rows, bundle, *lanes, to="", **changed):
    row = rows.bundle(bundle)
    fields = {"owner": row.owner, "epoch": row.epoch, "seq": row.seq} | changed
    return rows.do(Give("j", 1, "p", bundle, lanes=packed(*lanes), to=to, **fields))


def fuse(rows, first, second, **changed):
    one, two = rows.bundle(first), rows.bundle(second)
    places = (first, one.epoch, one.seq), (second, two.epoch, two.seq)
    return rows.do(Fuse("j", 1, "p", changed.get("owner", one.owner), *places))


def test_the_first_worker_gets_everything_in_one_bundle():
    rows = LiveRows()
    assert rows.claim("a") == [0]
    assert rows.claim("a") == [0]
    assert rows.bundles() == {0: ("a", [0, 1, 2, 3])}
    assert rows.bundle().epoch == 1


def test_a_newcomer_marks_lanes_as_wanted_and_the_next_commit_says_so():
    rows = LiveRows()
    rows.claim("a")
    assert rows.claim("b") == []
    assert rows.wanted() == 2
    assert rows.commit().results[0] == [1, 2, 0]
    assert give(rows, 0, 2, 3, to="b").value == 1
    assert rows.bundles() == {0: ("a", [0, 1]), 1: ("b", [2, 3])}
    assert rows.wanted() == 0


def test_a_worker_that_stands_by_is_known_and_has_no_share_until_it_claims():
    rows = LiveRows()
    rows.claim("a")
    for _ in range(2):
        assert rows.claim("b", standby=True) == []
        assert rows.workers() == {"a", "b"}
        assert (rows.sharing(), rows.wanted()) == ({"a"}, 0)
    assert rows.claim("a", standby=True) == [0]  # who works stays at it
    assert rows.sharing() == {"a"}
    assert give(rows, 0, 3, to="b").value == 1
    assert rows.bundle(1).owner == ""  # who stands by is given nothing
    assert rows.claim("b", standby=True) == []
    assert rows.claim("b") == [1]
    assert (rows.sharing(), rows.wanted()) == ({"a", "b"}, 1)


@pytest.mark.parametrize("end", [Leave("j", 1, "b"), Expire("j", 1, "b", 0, 0, True)])
def test_a_worker_that_stood_by_and_comes_again_shares(end):
    rows = LiveRows()
    rows.claim("a")
    rows.claim("b", standby=True)
    assert rows.do(end).value is True
    assert rows.workers() == {"a"} and rows.claim("b") == []
    assert (rows.sharing(), rows.wanted()) == ({"a", "b"}, 2)


def test_before_its_fold_version_nobody_stands_by():
    rows = LiveRows(version=STANDBY_VERSION - 1)
    assert rows.claim("a", standby=True) == [0]
    assert rows.claim("b", standby=True) == []
    assert (rows.sharing(), rows.wanted()) == ({"a", "b"}, 2)


def test_both_halves_of_a_split_keep_position_watermark_and_runs():
    rows = LiveRows()
    rows.claim("a")
    rows.commit(positions=(at(0, 9, 90),), watermark_us=80, runs=(run_of(0, 1, 2, 3),))
    give(rows, 0, 3)
    kept, given = rows.bundle(0), rows.bundle(1)
    assert kept.positions == given.positions == (at(0, 9, 90), at(1, 0))
    assert kept.watermark_us == given.watermark_us == 80
    assert (kept.epoch, kept.seq, given.seq, given.owner) == (1, 1, 0, "")
    assert len(rows.runs()) == 1
    assert rows.claim("a") == [0, 1]


def test_a_claim_takes_no_more_than_its_share_and_splits_for_it():
    rows = LiveRows(spec(lanes=5))
    for worker in "abc":
        rows.claim(worker)
    rows.do(Leave("j", 1, "a"))
    assert rows.bundles() == {0: ("", [0, 1, 2, 3, 4])}
    rows.claim("b")
    rows.claim("c")
    assert rows.bundles() == {0: ("c", [3, 4]), 1: ("b", [0, 1, 2])}


def test_ids_of_bundles_are_never_given_twice():
    rows = LiveRows()
    rows.claim("a")
    seen = {0}
    for _ in range(3):
        number = give(rows, 0, 3, to="a").value
        assert number not in seen
        seen.add(number)
        assert fuse(rows, 0, number) == Answer(None)
    assert rows.bundle().epoch == 4


def test_ids_are_not_given_twice_after_the_claim_of_a_new_worker_that_splits():
    rows = LiveRows()
    rows.claim("a")
    rows.claim("b")
    rows.do(Leave("j", 1, "a"))
    assert rows.claim("c") == [1]
    assert rows.claim("b") == [0]
    assert give(rows, 0, 3, to="b").value == 2
    assert rows.bundles() == {0: ("b", [2]), 1: ("c", [0, 1]), 2: ("b", [3])}


@pytest.mark.parametrize(
    ("lanes", "changed", "word"),
    [
        ((), {}, "lanes"),
        ((0, 1, 2, 3), {}, "lanes"),
        ((7,), {}, "lanes"),
        ((1,), {"epoch": 9}, "fenced"),
        ((1,), {"owner": "b"}, "fenced"),
        ((1,), {"seq": 3}, "out_of_order"),
    ],
)
def test_only_the_owner_gives_and_only_some_of_its_lanes(lanes, changed, word):
    rows = LiveRows()
    rows.claim("a")
    outcome = give(rows, 0, *lanes, **changed)
    assert isinstance(outcome, Rejected) and outcome.reason == word
    assert rows.bundles() == {0: ("a", [0, 1, 2, 3])}


def test_bundles_are_fused_only_at_equal_positions_and_watermarks():
    rows = LiveRows()
    rows.claim("a")
    give(rows, 0, 2, 3, to="a")
    rows.commit(0, positions=(at(0, 5, 50),), watermark_us=40)
    assert fuse(rows, 0, 1).detail == "their watermarks differ"
    rows.commit(1, watermark_us=40)
    assert fuse(rows, 0, 1).detail == "their positions differ"
    rows.commit(1, positions=(at(0, 5, 50, True),))
    assert fuse(rows, 0, 1).detail == "their positions differ"
    rows.commit(0, positions=(at(0, 5, 50, True),))
    assert fuse(rows, 0, 0).reason == "malformed"
    assert fuse(rows, 0, 1, owner="b").reason == "fenced"
    assert fuse(rows, 0, 1) == Answer(None)
    assert rows.bundles() == {0: ("a", [0, 1, 2, 3])}
    assert rows.bundle().counters.commits == 4


def test_what_fused_bundles_send_late_is_refused():
    rows = LiveRows()
    rows.claim("a")
    give(rows, 0, 2, 3, to="a")
    late_first, late_second = rows.bundle(0), rows.bundle(1)
    fuse(rows, 0, 1)
    for number, row in ((0, late_first), (1, late_second)):
        outcome = rows.commit_of(
            0, (), {"bundle": number, "epoch": row.epoch, "seq": row.seq + 1, "lanes": row.lanes}
        )
        assert outcome.reason in ("fenced", "no_bundle")


def test_lanes_by_partition_keep_the_positions_of_their_own():
    rows = LiveRows(spec(lanes=3, partitions=3, by_partition=True))
    rows.claim("a")
    rows.commit(positions=(at(0, 4, 40), at(2, 6, 60)), watermark_us=10)
    give(rows, 0, 1, 2, to="a")
    assert rows.bundle(0).positions == (at(0, 4, 40),)
    assert rows.bundle(1).positions == (at(1, 0), at(2, 6, 60))
    rows.commit(1, positions=(at(1, 3, 30),), watermark_us=30)
    assert fuse(rows, 0, 1).reason == "unequal"
    rows.commit(0, watermark_us=30)
    assert fuse(rows, 0, 1) == Answer(None)
    assert rows.bundle().positions == (at(0, 4, 40), at(1, 3, 30), at(2, 6, 60))


def test_a_beat_or_a_commit_that_comes_first_keeps_a_worker():
    rows = LiveRows()
    rows.claim("a")
    assert rows.do(Beat("j", 1, "a")).value is True
    assert rows.do(Expire("j", 1, "a", 0, 0, False)).value is False
    rows.commit()
    assert rows.do(Expire("j", 1, "a", 1, 0, False)).value is False
    assert rows.do(Expire("j", 1, "a", 1, 1, False)).value is True
    assert rows.do(Expire("j", 1, "a", 1, 1, False)).value is False
    assert rows.do(Beat("j", 1, "a")).value is False
    assert rows.bundles() == {0: ("", [0, 1, 2, 3])}
    assert rows.bundle().deaths == 0


def test_deaths_are_counted_until_a_commit():
    rows = LiveRows()
    for worker in "ab":
        rows.claim(worker)
        rows.do(Expire("j", 1, worker, 0, 0, True))
    rows.claim("c")
    assert rows.bundle().deaths == 2
    rows.commit()
    assert rows.bundle().deaths == 0


def test_a_lane_given_to_a_worker_that_is_gone_is_anybodys():
    rows = LiveRows()
    rows.claim("a")
    give(rows, 0, 3, to="nobody")
    assert rows.bundles()[1] == ("", [3])


def test_a_job_has_so_many_workers(monkeypatch):
    monkeypatch.setattr(config, "LIVE_WORKERS_MAX", 2)
    rows = LiveRows()
    rows.claim("a")
    rows.claim("b")
    assert rows.claim("c").reason == "too_many"
    assert rows.claim("a") == [0]


@pytest.mark.parametrize("seed", range(30))
def test_gifts_bring_everybody_to_a_fair_share(seed):
    chance = random.Random(seed)
    lanes, workers = chance.choice((1, 4, 64)), [f"w{n}" for n in range(chance.randint(1, 6))]
    left, bundles = lane_sets.all_lanes(lanes), []
    while left:
        part = lane_sets.first_of(left, chance.randint(1, lanes))
        left &= ~part
        row = BundleRow(lane_sets.pack(part), chance.choice(workers), 1, 0, 0, ())
        bundles.append(Bundle(len(bundles), row))
    for _ in range(len(workers) * len(bundles) + 1):
        gifts = [gift for worker in workers for gift in sharing.gifts(lanes, bundles, workers, worker)[:1]]
        if not gifts:
            break
        gift = gifts[0]
        old = bundles[gift.bundle]
        mine = lane_sets.unpack(old.row.lanes)
        assert lane_sets.covers(mine, gift.lanes) and mine != gift.lanes
        bundles[gift.bundle] = Bundle(
            old.id, BundleRow(lane_sets.pack(mine & ~gift.lanes), old.row.owner, 1, 0, 0, ())
        )
        bundles.append(Bundle(len(bundles), BundleRow(lane_sets.pack(gift.lanes), gift.to, 1, 0, 0, ())))
    else:
        raise AssertionError("it never ends")
    have = sharing.owned(bundles)
    whole = [worker for worker in workers if have.get(worker, 0) < sharing.share_min(lanes, len(workers))]
    # What is left uneven are whole bundles of one lane, which no split can give away.
    assert not whole or all(
        lane_sets.count(lane_sets.unpack(one.row.lanes)) == 1
        for one in bundles
        if have[one.row.owner] > sharing.share_min(lanes, len(workers))
    )
    assert sum(have.values()) == lanes


def test_sets_of_lanes():
    lanes = lane_sets.lanes_of((0, 3, 9))
    assert [*lane_sets.numbers_of(lanes)] == [0, 3, 9]
    assert lane_sets.unpack(lane_sets.pack(lanes)) == lanes
    assert lane_sets.first_of(lanes, 2) == lane_sets.lanes_of((0, 3))
    assert lane_sets.last_of(lanes, 2) == lane_sets.lanes_of((3, 9))
    assert lane_sets.last_of(lanes, 9) == lanes and lane_sets.last_of(lanes, 0) == 0
    assert lane_sets.pack(0) == b"" and lane_sets.unpack(b"") == 0
    assert named_blobs.read_garbage_key(named_blobs.garbage_key(5, "b")) == (5, "b")


@pytest.mark.parametrize("lanes", [1, 2, 3, 7, 16, 64, 100, 1024])
def test_partitions_have_lanes_of_their_own_and_spread_over_workers(lanes):
    placed = [lane_sets.of_partition(partition, lanes) for partition in range(lanes)]
    assert sorted(placed) == list(range(lanes))
    for workers in range(2, 5):
        for partitions in (workers, 2 * workers, 16):
            if partitions > lanes or lanes < 16:
                continue
            share = sharing.share_max(lanes, workers)
            owned = [
                sum(lane // share == worker for lane in placed[:partitions]) for worker in range(workers)
            ]
            assert min(owned) >= partitions // (2 * workers), (workers, partitions, owned)
