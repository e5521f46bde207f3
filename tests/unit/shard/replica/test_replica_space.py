"""Persistent replicas over a log in memory: what they show, when they stop, and how several of one machine go on."""

import os
import random
import threading
from contextlib import closing

import pytest

import onefold as of
from kit.ledger import Ledger, entry, line, lines, receipt
from onefold import config
from onefold.codec import Record, encode_record
from onefold.db import Database
from onefold.env import SYSTEM
from onefold.folds import folds as space_folds
from onefold.ids import client_id
from onefold.log.memory import MemoryLog
from onefold.machine.wake import Listener, Notifier
from onefold.shard.memory import MemoryShard
from onefold.shard.replica.copy import OpenCopy
from onefold.shard.replica.shard import LocalReplica
from support.replicas import (
    SOON_S,
    Tail,
    fill,
    ledger_of,
    open_replicas,  # noqa: F401
    until,
)

# -- the same as any space


def test_outcomes_come_in_order_and_reads_see_ones_own(opened):
    space = opened(MemoryLog())
    assert space.submit([]) == []
    assert space.submit([entry(b"a"), entry(b"b"), entry(b"")]) == [
        receipt(1, 1),
        receipt(1, 2),
        b"refused",
    ]
    assert space.submit([entry(b"c")]) == [receipt(2, 0)]
    assert ledger_of(space) == {b"a", b"b", b"c"}
    assert space.peek("ledger/lines", b"c")[1] == space.applied == 2
    with space.view(at=1) as view:
        assert set(lines(view)) == {b"a", b"b"}
    assert not space.strong_reads and space.halted is None


@pytest.mark.parametrize("seed", range(4))
def test_the_same_operations_give_the_same_state_as_in_memory(seed, opened, tmp_path):
    """Maps, lifetimes, queues, locks, streams and transactions, with replicas opened and closed in between."""
    log, rng = MemoryLog(seed=seed), random.Random(seed)
    oracle = MemoryShard(log.hold(10**9), space_folds(0, 1), SYSTEM)
    folder = tmp_path / "replica"
    for _ in range(3):
        space = LocalReplica(Tail(log), space_folds(0, 1), SYSTEM, directory=folder, url="nats://h/s")
        with (
            Database([space]) as db,
            Database([oracle.__class__(log.hold(10**9), space_folds(0, 1), SYSTEM)]) as other,
        ):
            for _ in range(40):
                work(rng, rng.choice([db, other]))
            space.barrier()
            assert space.state_digest() == oracle.state_digest()
            space.verify()
    oracle.close()


def work(rng, db):
    key = ("k", rng.randrange(20))
    match rng.randrange(9):
        case 0:
            db.map("m").put(key, rng.random(), ttl=rng.choice([None, 0.01, 60]))
        case 1:
            db.map("m").delete(key)
        case 2:
            db.map("m").put_many(
                {("k", n): n for n in range(rng.randrange(20))}, request_id=str(rng.random())
            )
        case 3:
            db.map("counts").increment("n", rng.randrange(5))
        case 4:
            db.queue("q").put(rng.random(), delay=rng.choice([0, 0.01]))
        case 5:
            message = db.queue("q").take(timeout=0)
            if message is not None:
                message.ack()
        case 6:
            db.stream("s", partitions=2).append(rng.random(), key=key[0])
        case 7:
            with db.lock("l", timeout=5):
                pass
        case 8:
            with db.transaction() as tx:
                tx.map("m")["tx"] = rng.random()
                tx.queue("q").put("from tx")


def test_threads_share_records_and_barriers(opened):
    space = opened(MemoryLog())
    told, failed = [], []

    def work(number):
        try:
            for at in range(20):
                token = b"%d.%d" % (number, at)
                told.append((token, space.submit([entry(token)])[0]))
                space.barrier(10.0)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    with space.view() as view:
        for token, answer in told:
            found = line(view, token)
            assert (found.times, receipt(found.offset, found.place)) == (1, answer)


# -- levels


def test_weak_reads_show_what_was_delivered_and_stronger_ones_wait_or_say_so(opened):
    log = MemoryLog()
    fill(log, 5)
    tail = Tail(log, 3)
    space = opened(tail)
    assert space.reach(3, SOON_S)
    assert ledger_of(space) == {b"t0", b"t1", b"t2"}
    assert not space.reach(5, 0.01)
    with pytest.raises(of.Unavailable, match=r"gave no answer within 0\.1 s") as caught:
        space.barrier(0.1)
    assert caught.value.definite
    with pytest.raises(of.TooStale, match="any age"):
        space.fresh(10.0, 0.1)
    timer = threading.Timer(0.05, tail.go_on)
    timer.start()
    assert space.barrier(SOON_S) >= 6
    assert ledger_of(space) == {b"t%d" % n for n in range(5)}
    space.fresh(10.0, 0.0)
    timer.join()


def test_others_records_are_applied_without_being_asked_for_and_waiters_are_woken(opened):
    log = MemoryLog()
    space = opened(log)
    fill(log, 1)
    assert space.wait(0, SOON_S) >= 1
    seen = []
    waiter = threading.Thread(target=lambda: seen.append(space.reach(3, SOON_S)))
    waiter.start()
    fill(log, 2, b"u")
    waiter.join()
    assert seen == [True]
    assert space.wait(10**6, 0.01) == space.applied


def test_a_read_only_replica_writes_no_record(opened):
    log = MemoryLog()
    fill(log, 2)
    space = opened(log, read_only=True)
    assert space.reach(2, SOON_S)
    with pytest.raises(of.SpaceError, match="read-only"):
        space.submit([entry(b"x")])
    with pytest.raises(of.Unavailable, match="read-only"):
        space.barrier(1.0)
    assert log.last == 2


def test_who_is_far_behind_catches_up_before_it_appends(opened, monkeypatch):
    monkeypatch.setattr(config, "REPLICA_BEHIND_OFFSETS_MAX", 3)
    monkeypatch.setattr(config, "APPEND_RETRY_S", 0.2)
    log = MemoryLog()
    fill(log, 10)
    tail = Tail(log)
    begun, held = threading.Event(), threading.Event()
    apply = OpenCopy.apply

    def slow(*args):
        begun.set()
        assert held.wait(SOON_S)
        return apply(*args)

    monkeypatch.setattr(OpenCopy, "apply", slow)
    space = opened(tail)
    assert begun.wait(SOON_S)
    with pytest.raises(of.Timeout, match="nothing was done") as caught:
        space.submit([entry(b"x")])
    assert caught.value.definite and tail.appends == 0
    monkeypatch.setattr(config, "APPEND_RETRY_S", SOON_S)
    held.set()
    assert space.reach(10, SOON_S)
    assert space.submit([entry(b"x")]) == [receipt(11, 0)]


def test_what_nobody_waits_for_is_applied_together(opened, monkeypatch):
    monkeypatch.setattr(config, "REPLICA_GATHER_S", SOON_S)
    batches, apply = [], OpenCopy.apply

    def counted(copy, entries, timeout):
        batches.append(len(entries))
        return apply(copy, entries, timeout)

    monkeypatch.setattr(OpenCopy, "apply", counted)
    log = MemoryLog()
    tail = Tail(log)
    space = opened(tail)
    for number in range(10):
        fill(log, 1, b"%d" % number)
    assert space.applied == 0 and not batches, "nobody asked for it"
    assert space.reach(10, SOON_S), "who waits does not wait for the rest of that time"
    assert batches == [10]
    assert space.submit([entry(b"x")]) == [receipt(11, 0)]
    assert batches == [10, 1], "a writer applies its own record"


def test_a_process_does_not_ring_itself(tmp_path):
    notifier, mine, other = Notifier(tmp_path), Listener(tmp_path, "mine"), Listener(tmp_path, "other")
    with closing(notifier), closing(mine), closing(other):
        notifier.own = "mine"
        notifier.notify()
        assert other.wait(SOON_S) and not mine.wait(0)
        notifier.own = None
        notifier.notify()
        assert mine.wait(SOON_S)


# -- when it stops


def test_a_replica_halts_on_a_hole_and_serves_nothing_any_more(opened):
    log = MemoryLog()
    fill(log, 3)
    tail = Tail(log, 1)
    space = opened(tail)
    assert space.reach(1, SOON_S)
    log.lose(2)
    tail.go_on()
    until(lambda: space.halted is not None)
    assert isinstance(space.halted, of.LogCorrupt)
    for use in (
        lambda: space.peek("ledger/lines", b"t0"),
        space.view,
        space.barrier,
        lambda: space.wait(1, 1.0),
        lambda: space.reach(3, 1.0),
        lambda: space.submit([entry(b"x")]),
    ):
        with pytest.raises(of.LogCorrupt, match="halted"):
            use()


@pytest.mark.parametrize("before", [True, False])
def test_an_acknowledged_record_that_was_replaced_halts(before, opened):
    class Liar(MemoryLog):
        def append(self, data, deadline=None):
            offset = super().append(encode_record(Record(client_id(0, SYSTEM), 1, 0, ())))
            if before:
                until(lambda: space.applied == offset)
            return offset

    space = opened(Liar())
    with pytest.raises((of.LogCorrupt, of.AppendUnknown), match="acknowledged at offset 1"):
        space.submit([entry(b"a")])
    assert isinstance(space.halted, of.LogCorrupt)
    with pytest.raises(of.LogCorrupt, match="halted"):
        space.peek("ledger/lines", b"a")


def test_a_fold_with_a_bug_halts_its_replica(opened):
    class Raiser(Ledger):
        def apply(self, store, context, body, fold_version):
            if body == b"t2":
                raise ValueError("a bug")
            return super().apply(store, context, body, fold_version)

    log = MemoryLog()
    fill(log, 4)
    space = opened(log, folds=[Raiser()])
    until(lambda: space.halted is not None)
    with pytest.raises(of.SpaceError, match="a bug"):
        space.applied  # noqa: B018


def test_a_disk_that_is_full_for_a_while_halts_nothing(opened, monkeypatch):
    log = MemoryLog()
    full = [3]
    apply = OpenCopy.apply

    def fails(self, entries, timeout):
        if full[0]:
            full[0] -= 1
            raise of.Unavailable("the disk is full")
        return apply(self, entries, timeout)

    monkeypatch.setattr(OpenCopy, "apply", fails)
    space = opened(log)
    fill(log, 2)
    assert space.reach(2, SOON_S) and not full[0] and space.halted is None


def test_closing_ends_waits_and_uses(opened, tmp_path):
    before = set(threading.enumerate())
    space = opened(MemoryLog())
    ended = []
    waiter = threading.Thread(target=lambda: ended.append(space.wait(0, None)))
    waiter.start()
    until(lambda: space._watch.started)
    space.close()
    waiter.join()
    space.close()
    for use in (
        lambda: space.applied,
        space.view,
        lambda: space.peek("ledger/lines", b"a"),
        lambda: space.submit([entry(b"x")]),
        lambda: space.reach(1, 1.0),
    ):
        with pytest.raises(of.SpaceError, match="closed"):
            use()
    names = {thread.name for thread in set(threading.enumerate()) - before}
    assert not names & {"onefold-apply", "onefold-watch"}
    assert not list((tmp_path / "replica" / "wake").iterdir())
    assert not list((tmp_path / "replica" / "members").iterdir())


def test_a_forked_child_is_told_and_the_parent_goes_on(opened):
    space = opened(MemoryLog())
    space.submit([entry(b"a")])
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = b"nothing"
        try:
            space.peek("ledger/lines", b"a")
        except of.SpaceError as error:
            said = str(error).encode()
        finally:
            os.write(writer, said)
            space.close()
            os._exit(0)
    os.close(writer)
    assert b"forked" in os.read(reader, 1000)
    os.close(reader)
    assert os.waitpid(child, 0)[1] == 0
    assert space.submit([entry(b"b")]) == [receipt(2, 0)]


# -- several of one machine


def test_who_is_cut_off_sees_what_the_others_apply_and_is_woken(opened):
    log = MemoryLog()
    cut_off, other = opened(Tail(log, 0)), opened(log)
    seen = []
    waiter = threading.Thread(target=lambda: seen.append(cut_off.reach(1, SOON_S)))
    waiter.start()
    until(lambda: cut_off._watch.started)
    other.submit([entry(b"a")])
    waiter.join()
    assert seen == [True] and ledger_of(cut_off) == {b"a"}


def test_who_reads_while_it_begins_to_apply_may_be_beyond_what_was_delivered_here(opened, monkeypatch):
    log = MemoryLog()
    tail = Tail(log, 0)
    behind, other = opened(tail), opened(log)
    for name in (b"a", b"b"):
        other.submit([entry(name)])
    left = behind._left

    def read_first(deadline, own):
        assert behind.applied == log.last  # what others have applied is seen
        return left(deadline, own)

    monkeypatch.setattr(behind, "_left", read_first)
    tail.held.go_on(1)
    until(lambda: behind._known == log.last)
    until(lambda: not behind._applying)
    assert behind.halted is None and ledger_of(behind) == {b"a", b"b"}


def test_members_of_this_machine_are_known_and_others_are_not(opened):
    log = MemoryLog()
    first, second = opened(log), opened(log)
    assert first.member_alive(first.member) is first.member_alive(second.member) is True
    second.close()
    assert first.member_alive(second.member) is False
    assert first.member_alive("m_elsewhere_1") is first.member_alive("m_1") is None


def test_the_past_is_read_through_the_history_and_the_log(opened):
    log = MemoryLog()
    with Database([opened(log, folds=space_folds(0, 1))]) as db:
        db.map("m")["k"] = "old"
        db.queue("q").put("first")
        token = db.session.token
        db.map("m")["k"] = "new"
        db.queue("q").put("second")
        past = db.at(token)
        assert past.map("m")["k"] == "old" and len(past.queue("q")) == 1
        assert db.map("m")["k"] == "new" and len(db.queue("q")) == 2
        past.close()
