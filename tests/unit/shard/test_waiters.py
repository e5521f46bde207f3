"""One thread looks for all who wait for a shard: each group is checked once, and nobody is left asleep."""

import onefold as of
from onefold import config
from onefold.shard.waiters import ALL, ONE, Notice, Waiters
from support.silent_shard import Noting, Silent, Told, wait_until


def test_each_group_is_checked_once_from_where_it_was_checked_before():
    shard = Silent()
    looking = Waiters(shard)
    first, second = Noting(Told(), 0), Noting(Told(), 0)
    second.interest.notice = Notice(2)
    for group in (first, second):
        looking.add(group)
    for moved in range(1, 4):
        shard.move()
        wait_until(lambda moved=moved: first.checked == second.checked == moved)
    assert first.interest.asked == second.interest.asked == [(0, 1), (1, 2), (2, 3)]
    assert first.notices == []
    # It is checked before it is notified, so that one who joins in between looks again.
    assert second.notices == [(1, Notice(2)), (2, Notice(2)), (3, Notice(2))]
    looking.remove(first)
    second.there = False
    shard.move()
    wait_until(lambda: not looking.running)  # the last group has left
    third = Noting(Told(), 2)
    third.interest.notice = ALL
    looking.add(third)  # it has looked as of 2
    assert looking.seen == 4  # so it looks again
    shard.move()
    wait_until(lambda: third.notices == [(5, ALL)])
    assert third.interest.asked == [(2, 5)]
    shard.close()
    looking.remove(third)
    wait_until(lambda: not looking.running)


def test_a_check_that_fails_wakes_everyone_and_so_does_the_end_of_the_shard():
    shard = Silent()
    looking = Waiters(shard)
    good, bad = Noting(Told(), 0), Noting(Told(), 0)
    bad.interest.notice = of.TooOld("too old")
    looking.add(bad)
    looking.add(good)
    shard.move()
    wait_until(lambda: bad.notices)
    assert bad.notices[0][1] == ALL
    shard.close()
    wait_until(lambda: good.notices and len(bad.notices) > 1)
    for group in (good, bad):
        looking.remove(group)
    wait_until(lambda: not looking.running)


def test_a_process_on_which_many_groups_depend_is_asked_after_once(monkeypatch):
    monkeypatch.setattr(config, "LEASE_LOOK_S", 0.01)
    shard = Silent()
    looking = Waiters(shard)
    groups = [Noting(Told("one"), 0) for _ in range(20)] + [Noting(Told("one", "two"), 0), Noting(Told(), 0)]
    for group in groups:
        looking.add(group)
    wait_until(lambda: shard.asked.count("one") >= 5)
    assert abs(shard.asked.count("one") - shard.asked.count("two")) <= 1  # and not twenty times as often
    assert not any(group.notices for group in groups)
    shard.dead.add("two")
    wait_until(lambda: groups[-2].notices)
    assert groups[-2].notices[0] == (0, ONE)  # one looks
    assert not any(group.notices for group in groups if group is not groups[-2])
    shard.close()
    for group in groups:
        looking.remove(group)
    wait_until(lambda: not looking.running)
