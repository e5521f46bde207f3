"""What a live job has not read is kept past the retention of its stream, for so long as it may be, and nothing else is."""

from __future__ import annotations

import random

import pytest

from onefold import config
from onefold.state.fold.live.ops import HOLDS_VERSION, LIVE_VERSION, Cancel, DropJob, HoldInput
from onefold.state.fold.ops import Commit
from onefold.state.fold.outcomes import Answer, Rejected
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.fold.streams.ops import Append, MakeStream, Retain
from support.live_rows import LiveRows

RETENTION_MS = 1000


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> LiveRows:
    monkeypatch.setattr(config, "STREAM_MERGE_MS", 0)  # each append is a segment
    found = LiveRows()
    found.do(MakeStream("s", 2, RETENTION_MS))
    return found


def append(rows: LiveRows, count: int = 1, partition: int = 0) -> None:
    rows.do(Commit((), (), (Append("s", partition, count, b"x"),)))


def hold(rows: LiveRows, offset: int, hold_ms: int, *, job: str = "j", partition: int = 0) -> object:
    return rows.do(HoldInput(job, 1, "p", "s", ((partition, offset),), hold_ms))


def first(rows: LiveRows, partition: int = 0) -> int:
    return stream_rows.head_of(rows.store, "s", partition).first


def test_unread_records_stay_for_the_hold_and_go_after_it(rows: LiveRows) -> None:
    for _ in range(4):
        append(rows)
        append(rows, partition=1)
    assert hold(rows, 2, 5000) == Answer(1)
    rows.now_ms += RETENTION_MS + 100
    rows.do(Retain("s", 0))
    rows.do(Retain("s", 1))
    assert (first(rows), first(rows, 1)) == (2, 4), "what was read goes, and so does what nobody holds"
    append(rows)
    assert first(rows) == 2, "an append removes no more than that"
    rows.now_ms += 5000
    rows.do(Retain("s", 0))
    assert first(rows) == 4, "the hold has an end, and the last record has not come to it"


def test_a_hold_moves_and_ends(rows: LiveRows) -> None:
    for _ in range(4):
        append(rows)
    hold(rows, 0, 5000)
    hold(rows, 2, 5000, job="k")
    assert hold(rows, 0, 5000) == Answer(0), "nothing new"
    rows.now_ms += RETENTION_MS + 100
    assert rows.do(Retain("s", 0)) == Answer(0)
    hold(rows, 3, 5000)
    assert rows.do(Retain("s", 0)) == Answer(2), "the slower of the two"
    assert hold(rows, 0, 0, job="k") == Answer(1)
    assert rows.do(Retain("s", 0)) == Answer(1)
    assert hold(rows, 0, 0) == Answer(1) and hold(rows, 0, 0) == Answer(0)
    assert rows.do(Retain("s", 0)) == Answer(1)
    assert not [*stream_rows.holders(rows.store)]


def test_what_cannot_be_held_is_refused(rows: LiveRows) -> None:
    assert isinstance(rows.do(HoldInput("j", 1, "p", "other", ((0, 0),), 1)), Rejected)
    assert isinstance(rows.do(HoldInput("j", 1, "p", "s", ((2, 0),), 1)), Rejected)
    assert isinstance(rows.do(HoldInput("j", 1, "p", "s" * 11_000, ((0, 0),), 1)), Rejected)
    many = tuple((0, 0) for _ in range(config.LIVE_POSITIONS_MAX + 1))
    assert isinstance(rows.do(HoldInput("j", 1, "p", "s", many, 1)), Rejected)
    assert not [*stream_rows.holders(rows.store)]
    early = LiveRows(version=LIVE_VERSION - 1)
    early.do(MakeStream("s", 1, RETENTION_MS))
    assert isinstance(early.do(HoldInput("j", 1, "p", "s", ((0, 0),), 1)), Rejected)


def test_nothing_is_held_for_what_is_known_to_be_over(rows: LiveRows) -> None:
    append(rows)
    assert hold(rows, 0, 5000) == Answer(1)
    for end in (Cancel("j", 1, ("p",)), DropJob("j", 1)):
        assert isinstance(rows.do(end), Answer)
        refused = hold(rows, 1, 5000)
        assert isinstance(refused, Rejected) and refused.reason == "over"
    assert hold(rows, 0, 0) == Answer(1), "and what is held is released"
    assert hold(rows, 0, 5000, job="k") == Answer(1), (
        "of whom nothing is known here: its rows are in another shard"
    )
    assert rows.do(HoldInput("j", 2, "p", "s", ((0, 0),), 5000)) == Answer(1), "of whom nothing is known yet"


def test_before_its_fold_version_a_hold_is_set_for_what_is_over() -> None:
    early = LiveRows(version=HOLDS_VERSION - 1)
    early.do(MakeStream("s", 2, RETENTION_MS))
    early.do(Cancel("j", 1, ("p",)))
    assert hold(early, 0, 5000) == Answer(1), "as records of that version were applied when they were written"


@pytest.mark.parametrize("seed", range(20))
def test_at_every_moment_what_is_kept_is_what_should_be(rows: LiveRows, seed: int) -> None:
    chance = random.Random(seed)
    times: list[int] = []
    """When each record was appended."""
    held: dict[str, tuple[int, int]] = {}

    for _ in range(200):
        before = first(rows)
        step = chance.random()
        if step < 0.5:
            count = chance.randint(1, 3)
            append(rows, count)
            times += [rows.now_ms] * count
        elif step < 0.8:
            job, offset = chance.choice("abc"), chance.randint(0, len(times))
            hold_ms = chance.choice((0, 300, 2000, 100_000))
            hold(rows, offset, hold_ms, job=job)
            held[job] = offset, hold_ms
            held = {name: one for name, one in held.items() if one[1]}
        else:
            rows.do(Retain("s", 0))
        due_ms = rows.now_ms - RETENTION_MS
        after = first(rows)
        for offset in range(before, after):
            assert times[offset] < due_ms
            for unread, hold_ms in held.values():
                assert offset < unread or times[offset] < due_ms - hold_ms, (seed, offset, held)
        if step >= 0.8 and after < len(times):
            last = max(at for at, time in enumerate(times) if time == times[after])  # of its segment
            kept = any(
                last >= unread and times[after] >= due_ms - hold_ms for unread, hold_ms in held.values()
            )
            assert times[after] >= due_ms or kept, (seed, after, held)
        rows.now_ms += chance.choice((0, 10, 100, 700))
