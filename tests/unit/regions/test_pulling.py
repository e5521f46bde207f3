"""What one region decides on answers of another one: the fold itself, in simulated regions, and a clock of the test's own."""

from __future__ import annotations

from typing import Any

import pytest

from kit.regions.desk import START_MS, Desk
from onefold.available import exchange, ops
from onefold.available.effects import decode_effect
from onefold.available.exchange import Reply
from onefold.available.ops import Imported, Put, Rejected
from onefold.available.stamps import CLOCK_AHEAD_MAX_MS
from onefold.regions.pulling import BEAT_S, BYTES_MIN, CAP_RENEW_MS, RETRY_S, Beats, Pull

HOUR_MS = 3_600_000
NOW_S = 100.0


class Asking:
    """One region of a desk that pulls from another one."""

    def __init__(self, desk: Desk, asks: int, answers: int) -> None:
        self.desk, self.asks, self.answers = desk, asks, answers
        self.pull = Pull(answers)
        self.imports: list[ops.Import] = []

    @property
    def now_ms(self) -> int:
        """What the next record here will see as fold time."""
        region = self.desk[self.asks]
        return max(region.now_ms, self.desk.now_ms + region.skew_ms)

    def step(self, now_s: float = NOW_S) -> Any:
        """One question and what follows; the outcome of the import, None without one."""
        here, there = self.desk[self.asks], self.desk[self.answers]
        now_ms = self.desk.now_ms + there.skew_ms
        reply = exchange.answer(there.store, here.ask(), self.pull.bytes_max, now_ms)
        cap = self.pull.cap(here.me, reply, self.now_ms)
        if cap is not None:
            self.desk.append(self.asks, cap)
        found = self.pull.heard(here.me, reply, now_s, self.now_ms)
        if found is None:
            return None
        self.imports.append(found)
        outcome = self.desk.append(self.asks, found)
        self.pull.imported(outcome, now_s)
        return outcome


def put(desk: Desk, number: int, key: str) -> None:
    desk.ok(number, Put("r", "m", ((key.encode(), b"v"),)))


def test_it_asks_at_once_until_nothing_is_missing() -> None:
    desk = Desk(2)
    put(desk, 1, "a")
    asking = Asking(desk, 2, 1)
    assert asking.pull.again_s == 0.0
    assert asking.step().taken == 1
    assert asking.pull.again_s == NOW_S, "there may be more"
    assert asking.step() is None
    assert asking.pull.again_s is None, "nothing until something changes there"
    assert asking.pull.state == "linked" and len(asking.imports) == 1


def test_pauses_after_failures_double_up_to_two_seconds_and_begin_again() -> None:
    desk = Desk(2)
    asking = Asking(desk, 2, 1)
    pauses = []
    for _ in range(7):
        asking.pull.failed(NOW_S)
        assert asking.pull.again_s is not None
        pauses.append(round(asking.pull.again_s - NOW_S, 3))
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    asking.step()
    asking.pull.failed(NOW_S)
    assert asking.pull.again_s == NOW_S + RETRY_S[0]


def test_it_asks_nobody_who_is_evicted_or_unknown() -> None:
    desk = Desk(3)
    pull = Pull(2)
    assert pull.may_ask(desk[1].me)
    desk.append(1, ops.Evict(2, 1))
    assert not pull.may_ask(desk[1].me)
    assert not Pull(7).may_ask(desk[1].me)


def test_effects_from_the_future_are_appended_once_and_taken_in_time() -> None:
    desk = Desk(3)
    desk[2].skew_ms = HOUR_MS
    for key in "abc":
        put(desk, 2, key)
    asking = Asking(desk, 1, 2)
    first = asking.step()
    assert isinstance(first, Imported) and first.waiting == {2: "held"}
    for step in range(20):
        put(desk, 2, f"more{step}")
        assert asking.step(NOW_S + step) is None
    assert len(asking.imports) == 1, "what is held is not appended again"
    assert asking.pull.bytes_max == BYTES_MIN
    assert asking.pull.again_s == NOW_S + 19 + RETRY_S[1]
    put(desk, 3, "other")
    desk.append(2, desk.reply(2, 3).as_import())
    assert asking.step().taken == 1, "effects of others go on"
    desk.now_ms += HOUR_MS - CLOCK_AHEAD_MAX_MS + 1000
    outcome = asking.step()
    assert outcome.taken >= 3
    while asking.step() is not None:
        pass
    assert desk[1].have() == desk[2].have() and not asking.pull.waiting


def test_effects_that_were_accepted_are_taken() -> None:
    desk = Desk(2)
    desk[2].skew_ms = HOUR_MS
    put(desk, 2, "a")
    asking = Asking(desk, 1, 2)
    asking.step()
    assert asking.step() is None
    desk.append(1, ops.Accept(2, desk[2].me.hlc))
    assert asking.step().taken == 1


def test_a_clock_that_is_ahead_is_capped_and_the_cap_renewed() -> None:
    desk = Desk(2)
    desk[2].skew_ms = HOUR_MS
    put(desk, 2, "a")
    Asking(desk, 1, 2).step()
    asking = Asking(desk, 2, 1)
    asking.step()
    me = desk[2].me
    assert me.cap_ms == desk.now_ms + CLOCK_AHEAD_MAX_MS
    assert me.cap_until_ms == desk.now_ms + HOUR_MS + 2 * CAP_RENEW_MS
    assert asking.pull.again_s == NOW_S + CAP_RENEW_MS / 1000
    count = len(desk[2].log)
    asking.step()
    assert len(desk[2].log) == count, "it is not due yet"
    desk.now_ms += CAP_RENEW_MS + 1
    asking.step()
    assert len(desk[2].log) == count + 1 and desk[2].me.cap_ms == desk.now_ms + CLOCK_AHEAD_MAX_MS


def test_a_clock_that_is_right_is_never_capped() -> None:
    desk = Desk(2)
    pull = Pull(1)
    me = desk[2].me
    assert pull.cap(me, Reply(1, "same", held=5, now_ms=START_MS), START_MS) is None
    assert pull.cap(me, Reply(1, "same", held=0, now_ms=START_MS), START_MS + HOUR_MS) is None


@pytest.mark.parametrize("state", ["lost", "diverged", "differs"])
def test_alarms_bring_nothing_and_stay(state: Any) -> None:
    desk = Desk(2)
    pull = Pull(1)
    assert pull.heard(desk[2].me, Reply(1, state, 1), NOW_S, START_MS) is None
    assert pull.state == state and pull.again_s is None


def test_a_region_that_has_lost_its_end_takes_nothing() -> None:
    desk = Desk(2)
    for key in "abc":
        put(desk, 2, key)
    desk.pull(1, 2)
    desk[2].back_to(len(desk[2].log) - 2)
    asking = Asking(desk, 2, 1)
    reply = desk.reply(2, 1)
    assert asking.pull.heard(desk[2].me, reply, NOW_S, START_MS, lost=True) is None
    assert asking.pull.state == "lost"


def test_an_import_that_diverges_is_an_alarm() -> None:
    pull = Pull(1)
    pull.imported(Rejected("diverged", here=1), NOW_S)
    assert pull.state == "diverged" and pull.again_s is None


def test_a_full_sync_is_asked_for() -> None:
    desk = Desk(2)
    pull = Pull(1)
    assert pull.heard(desk[2].me, Reply(1, "sync", 1), NOW_S, START_MS) is None
    assert pull.state == "behind"


def test_effects_that_wait_for_others_come_when_those_are_here() -> None:
    """Only one that relays knows them: what they depend on is further ahead."""
    desk = Desk(3)
    desk[3].skew_ms = HOUR_MS
    put(desk, 3, "x")
    desk.append(1, ops.Accept(3, 1 << 61))
    desk.pull(1, 3)
    put(desk, 1, "y")  # stamped above what it has seen
    asking = Asking(desk, 2, 1)
    asking.step()
    assert asking.step() is None
    desk.append(2, ops.Accept(3, 1 << 61))
    desk.append(2, ops.Accept(1, 1 << 61))
    assert asking.step().taken == 2
    kept = [decode_effect(data) for one in asking.imports for data in one.effects]
    assert len(kept) <= 5


def test_appends_that_take_long_get_smaller() -> None:
    pull = Pull(1)
    first = pull.bytes_max
    taken = Imported({1: 5}, 5)
    pull.imported(taken, NOW_S, 0.1)
    assert pull.bytes_max == first
    for _ in range(9):
        pull.imported(taken, NOW_S, 1.0)
    assert pull.bytes_max == BYTES_MIN
    for _ in range(9):
        pull.imported(taken, NOW_S, 0.01)
    assert pull.bytes_max == exchange.EXCHANGE_BYTES_MAX


def test_a_beat_is_made_two_seconds_after_the_last_own_effect_if_one_is_owed() -> None:
    desk = Desk(2)
    put(desk, 1, "a")
    beats = Beats()
    assert beats.due_s(desk[2].me, NOW_S) is None
    desk.pull(2, 1)
    assert beats.due_s(desk[2].me, NOW_S + 1) == NOW_S + BEAT_S
    put(desk, 2, "b")
    assert beats.due_s(desk[2].me, NOW_S + 1.5) is None, "an effect says it too"
    put(desk, 1, "c")
    desk.pull(2, 1)
    assert beats.due_s(desk[2].me, NOW_S + 1.7) == NOW_S + 1.5 + BEAT_S
    desk.append(2, ops.Beat())
    beats.made(NOW_S + 4)
    assert beats.due_s(desk[2].me, NOW_S + 4) is None


def test_a_region_that_has_said_everything_makes_no_beats() -> None:
    """A region that is cut off keeps gone rows in all others: they would beat for as long as that lasts."""
    desk = Desk(3)
    put(desk, 1, "a")
    desk.ok(1, ops.Delete("r", "m", (b"a",)))
    desk.pull(2, 1)
    desk.append(2, ops.Beat())
    desk.pull(1, 2)
    desk.append(1, ops.Beat())
    assert desk[1].me.gone_rows and desk[1].me.owes_beat()
    assert Beats().due_s(desk[1].me, NOW_S) is None
