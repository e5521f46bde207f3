"""The pauses and deadlines of loops of tries, and that no loop computes its own."""

from __future__ import annotations

import random
import re
import threading
from pathlib import Path

import pytest

import onefold
from onefold.backoff import Backoff, Deadline, jittered, retried, wait_until
from onefold.env import SeededEnv

SOURCES = Path(onefold.__file__).parent
SEEDS = (1, 2, 3)
BY_HAND = re.compile(
    r"min\(2 ?\* ?\w*(pause|wait|delay)|(pause|wait|delay)\w* \*= 2|0\.5 \+ .*token\(1\)|random\.uniform"
)
"""Doubling a pause, or spreading it."""


def test_pauses_double_up_to_the_limit_and_start_again() -> None:
    backoff = Backoff(0.01, 0.05)
    assert [backoff.pause_s() for _ in range(5)] == [0.01, 0.02, 0.04, 0.05, 0.05]
    backoff.reset()
    assert backoff.next_s == 0.01
    assert backoff.pause_s() == 0.01
    assert backoff.next_s == 0.02


@pytest.mark.parametrize("seed", SEEDS)
def test_jitter_spreads_a_pause_by_half_and_keeps_its_mean(seed: int) -> None:
    env = SeededEnv(seed)
    found = [jittered(2.0, env) for _ in range(4000)]
    assert 1.0 <= min(found) < 1.05
    assert 2.95 < max(found) < 3.0
    assert sum(found) / len(found) == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_gives_the_same_pauses_with_one_byte_for_each(seed: int) -> None:
    backoff = Backoff(1.0, 4.0, SeededEnv(seed))
    draws = random.Random(seed)
    expected = [length * (0.5 + draws.randbytes(1)[0] / 256) for length in (1.0, 2.0, 4.0, 4.0)]
    assert [backoff.pause_s() for _ in range(4)] == expected


def test_a_deadline_cuts_what_would_last_longer() -> None:
    env = SeededEnv(1)
    deadline = Deadline.after(10.0, env)
    assert (deadline.left_s, deadline.passed, deadline.within(3.0), deadline.within(30.0)) == (
        10.0,
        False,
        3.0,
        10.0,
    )
    assert not deadline.before(9.0)
    assert deadline.before(10.0)
    env.advance(9.5)
    assert (deadline.left_s, deadline.passed, deadline.within(3.0)) == (0.5, False, 0.5)
    env.advance(0.5)
    assert deadline.passed
    env.advance(1.0)
    assert (deadline.left_s, deadline.within(3.0), deadline.before(0.0)) == (-1.0, 0.0, True)


def test_no_deadline_never_comes() -> None:
    never = Deadline.after(None, SeededEnv(1))
    assert (never.at_s, never.left_s, never.passed, never.within(3.0), never.before(1e9)) == (
        None,
        None,
        False,
        3.0,
        False,
    )


def test_a_failing_call_is_retried_until_it_returns() -> None:
    left, pauses = [KeyError("a"), KeyError("b")], []

    def work() -> str:
        if left:
            raise left.pop(0)
        return "done"

    assert retried(work, KeyError, 60.0, Backoff(0.1, 1.0), pauses.append) == "done"
    assert pauses == [0.1, 0.2]


def test_retries_end_when_the_next_pause_would_be_too_long() -> None:
    tries, pauses = [], []

    def work() -> None:
        tries.append(1)
        raise KeyError(len(tries))

    with pytest.raises(KeyError, match="3"):
        retried(
            work,
            KeyError,
            40.0,
            Backoff(1.0, 100.0),
            lambda pause_s: pauses.append(pause_s) or len(pauses) == 3,
        )
    assert pauses == [1.0, 2.0, 4.0]
    tries.clear()
    with pytest.raises(KeyError, match="1"):
        retried(work, KeyError, 1.0, Backoff(1.0, 1.0), pytest.fail)


def test_other_errors_are_not_retried() -> None:
    def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        retried(work, KeyError, 60.0, Backoff(1.0, 1.0), pytest.fail)


def test_a_set_event_ends_the_retries() -> None:
    closed = threading.Event()
    closed.set()
    tries = []

    def work() -> None:
        tries.append(1)
        raise KeyError

    with pytest.raises(KeyError):
        retried(work, KeyError, 600.0, Backoff(300.0, 300.0), closed.wait)
    assert len(tries) == 1


def test_wait_until_looks_at_least_once_and_tells_what_it_saw() -> None:
    looks: list[float] = []
    assert wait_until(lambda: True, 0.0, 1.0, looks.append)
    assert not wait_until(lambda: False, 0.0, 1.0, looks.append)
    assert not looks
    assert wait_until(lambda: len(looks) == 2, 60.0, 0.25, looks.append)
    assert looks == [0.25, 0.25]


def test_no_loop_computes_its_own_backoff_or_jitter() -> None:
    found = [
        f"{path.relative_to(SOURCES)}:{number}: {line.strip()}"
        for path in sorted(SOURCES.rglob("*.py"))
        if path.name != "backoff.py" and "testing" not in path.relative_to(SOURCES).parts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if BY_HAND.search(line)
    ]
    assert not found
