"""Who is in a batch: those who wait when it begins, and those whom its leader waits for."""

import threading
import time
from types import SimpleNamespace

from onefold.backoff import wait_until
from onefold.codec import Op
from onefold.env import SYSTEM
from onefold.shard import appender
from onefold.shard.appender import Appender

OPS = (Op("fold", b"x"),)


def until(condition):
    assert wait_until(condition, 120, 0.001)


def test_a_leader_waits_for_all_who_take_part_also_the_late_ones(monkeypatch):
    """Two come during the commit of a third. They wait for it to come back, as long as a commit takes: here for ever, since the
    clock stands still. Otherwise the three would be two and one, again and again."""
    lingers, begun, batches = threading.Event(), threading.Event(), []

    def sleep(seconds):
        lingers.set()
        time.sleep(seconds)

    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now, sleep=sleep)
    monkeypatch.setattr(appender, "time", clock)
    monkeypatch.setattr(appender, "_LINGER_S_MAX", 10.0)

    def commit(ops, _deadline):
        batches.append(len(ops))
        if len(batches) == 1:
            begun.set()
            until(lambda: len(group._waiting) == 2)
            clock.now = 5.0
        return [b"done"] * len(ops)

    group = Appender(commit, SYSTEM)

    def twice():
        group.submit(OPS)
        until(lambda: lingers.is_set() or len(batches) > 1)  # the next one leads before this one is back
        group.submit(OPS)

    def late():
        begun.wait()
        group.submit(OPS)

    threads = [threading.Thread(target=one) for one in (twice, late, late)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert batches == [1, 3]


def test_one_that_stays_away_is_waited_for_as_long_as_a_commit_takes(monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now, sleep=lambda _: step())
    monkeypatch.setattr(appender, "time", clock)
    monkeypatch.setattr(appender, "_LINGER_S_MAX", 10.0)
    begun, batches, steps = threading.Event(), [], []

    def step():
        steps.append(clock.now)
        clock.now += 1.0

    def commit(ops, _deadline):
        batches.append(len(ops))
        if len(batches) == 1:
            begun.set()
            until(lambda: len(group._waiting) == 2)
            clock.now += 5.0
        return [b"done"] * len(ops)

    group = Appender(commit, SYSTEM)

    def late():
        begun.wait()
        group.submit(OPS)

    threads = [threading.Thread(target=one) for one in (lambda: group.submit(OPS), late, late)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert batches == [1, 2]
    assert steps == [5.0, 6.0, 7.0, 8.0, 9.0]
