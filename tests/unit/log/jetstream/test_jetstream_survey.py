"""What several copies of a log say together. Simulated: which copy answers is drawn at random, as servers do."""

from __future__ import annotations

import random

import pytest

from onefold.codec import Op, Record, encode_record
from onefold.errors import LogCorrupt, OnefoldError, Unavailable
from onefold.log.api import Entry
from onefold.log.jetstream.quorum_read import Absent, Behind, Health, Missing, Sample, certain, judge

GOOD = encode_record(Record("c0-aa", 1, 1, (Op("x", b"good"),)))
OTHER = encode_record(Record("c0-aa", 2, 1, (Op("x", b"other"),)))
BAD = b"no record"
WORSE = b"no record either"
HOLE, BEHIND = Absent.HOLE, Absent.BEHIND


def sample(copy: bytes | Absent) -> Sample:
    if isinstance(copy, bytes):
        return Sample({5: Entry(5, copy, 1)}, 5)
    return Sample({6: Entry(6, GOOD, 1)}, 6) if copy is HOLE else Sample({}, 4, complete=True)


def settle(
    copies: list[bytes | Absent],
    *,
    replicas: int = 3,
    current: int | None = None,
    seed: int = 0,
    thorough: bool = False,
) -> bytes:
    """Ask copies at random until it is settled, as ``quorum_read.settle`` does."""
    rng = random.Random(seed)
    health = Health(replicas, len(copies) if current is None else current)
    samples: list[Sample] = []
    while len(samples) < health.samples_max:
        samples += [sample(rng.choice(copies)) for _ in range(4)]
        entry = judge(5, samples, health, "the log", thorough=thorough)
        if entry is not None:
            assert entry.offset == 5
            return entry.data
    raise AssertionError("not settled")


SETTLED = [
    ([GOOD, GOOD, GOOD], GOOD),
    ([GOOD, HOLE, HOLE], GOOD),
    ([BAD, BAD, GOOD], GOOD),
    ([BAD, WORSE, GOOD], GOOD),
    ([GOOD, BEHIND, BEHIND], GOOD),
    ([BAD, BAD, BAD], BAD),
    ([BAD, BAD, HOLE], BAD),
    ([BAD, BAD, WORSE], BAD),
    ([BAD] * 5, BAD),
    ([BAD] * 3 + [HOLE] * 2, BAD),
    ([BAD], BAD),
]


@pytest.mark.parametrize(("copies", "expected"), SETTLED)
@pytest.mark.parametrize("seed", range(5))
def test_what_counts(copies: list[bytes | Absent], expected: bytes, seed: int) -> None:
    assert settle(copies, replicas=len(copies), seed=seed) == expected


CORRUPT = [
    ([BAD, WORSE, b"nor this"], LogCorrupt),
    ([BAD, HOLE, HOLE], LogCorrupt),
    ([HOLE, HOLE, HOLE], Missing),
    ([HOLE], Missing),
    ([HOLE] * 5, Missing),
]


@pytest.mark.parametrize(("copies", "raised"), CORRUPT)
@pytest.mark.parametrize("seed", range(5))
def test_what_no_server_can_fill_is_corrupt(
    copies: list[bytes | Absent], raised: type[OnefoldError], seed: int
) -> None:
    with pytest.raises(raised):
        settle(copies, replicas=len(copies), seed=seed)


def test_good_copies_that_differ_are_corrupt() -> None:
    with pytest.raises(LogCorrupt, match="disagree"):
        judge(5, [sample(GOOD), sample(OTHER)], Health(3, 3), "the log")


UNSETTLED = [
    ([HOLE, HOLE], 2),
    ([HOLE], 1),
    ([HOLE, HOLE, HOLE], 0),
    ([BEHIND, BEHIND, BEHIND], 3),
    ([HOLE, HOLE, BEHIND], 3),
    ([BAD], 1),
    ([BAD, BAD], 0),
    ([BAD, WORSE], 2),
    ([BAD, HOLE], 2),
    ([BAD, BEHIND, BEHIND], 3),
]


@pytest.mark.parametrize(("copies", "current"), UNSETTLED)
@pytest.mark.parametrize("seed", range(5))
def test_what_a_missing_copy_may_know_is_not_decided(
    copies: list[bytes | Absent], current: int, seed: int
) -> None:
    with pytest.raises(Unavailable):
        settle(copies, current=current, seed=seed)


def test_a_copy_that_is_behind_is_told_apart() -> None:
    with pytest.raises(Behind):
        settle([BEHIND, BEHIND, BEHIND])


@pytest.mark.parametrize("seed", range(20))
def test_who_doubts_asks_all_copies(seed: int) -> None:
    with pytest.raises(LogCorrupt, match="disagree"):
        settle([GOOD, GOOD, OTHER], seed=seed, thorough=True)
    assert settle([GOOD, GOOD, HOLE], seed=seed, thorough=True) == GOOD
    assert settle([GOOD, GOOD], current=2, seed=seed, thorough=True) == GOOD
    with pytest.raises(Unavailable):
        settle([GOOD], current=1, seed=seed, thorough=True)
    with pytest.raises(Unavailable):
        settle([GOOD, GOOD, GOOD], current=0, seed=seed, thorough=True)


def test_two_of_three_are_enough_for_a_refused_record() -> None:
    assert settle([BAD, BAD], current=2) == BAD


@pytest.mark.parametrize(("part", "of"), [(1, 2), (1, 3), (2, 3), (2, 5), (4, 5)])
def test_certainty(part: int, of: int) -> None:
    count = certain(part, of)
    assert (part / of) ** count <= 1e-6 < (part / of) ** (count - 1)
    assert certain(0, of) == 1


def test_a_rare_good_copy_is_not_missed() -> None:
    """One good copy of five: over many seeds a hole is never reported."""
    for seed in range(300):
        assert settle([HOLE, HOLE, HOLE, HOLE, GOOD], replicas=5, seed=seed) == GOOD


def test_offsets_beyond_a_sample_say_nothing() -> None:
    cut = Sample({5: Entry(5, GOOD, 1)}, 5)
    assert cut.at(6) is Absent.NOT_ASKED
    assert judge(6, [cut] * 100, Health(3, 3), "the log") is None
