"""Persistent replicas over a log in memory: what they show, what they keep, what they throw away, and when they stop."""

import os
import random
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

import onefold as of
from onefold import config
from onefold.codec import Record, encode_record
from onefold.db import Database
from onefold.env import SYSTEM
from onefold.fold.log_space import LogSpace
from onefold.fold.replica_copy import OpenCopy
from onefold.fold.replica_space import ReplicaSpace
from onefold.fold.snapshot import state_digest, write_snapshot
from onefold.folds import folds as space_folds
from onefold.ids import client_id
from onefold.log.memory import MemoryLog
from onefold.log.wake import Bell, Listener
from onefold.testing.ledger import Ledger, entry, line, lines, receipt

SOON_S = 20


class Tail:
    """A log as one process has it open: it ends by itself, holds back what is not let go on, and counts."""

    def __init__(self, log, upto=10**9):
        self.real, self.held, self.ended = log, log.hold(upto), False
        self.reads, self.appends = [], 0

    def __getattr__(self, name):
        return getattr(self.held, name)

    def append(self, data):
        self.appends += 1
        return self.held.append(data)

    def read(self, start, max_bytes=1 << 20):
        self.reads.append(start)
        return self.held.read(start, max_bytes)

    def wait(self, after, timeout):
        changed = self.real._changed
        with changed:
            changed.wait_for(
                lambda: self.ended or self.held._seen(self.real._end()) > after or self.real._closed, timeout
            )
            return self.held._seen(self.real._end())

    def close(self):
        with self.real._changed:
            self.ended = True
            self.real._changed.notify_all()


@pytest.fixture
def opened(tmp_path):
    """Opens replicas that share a folder, and closes them in the end."""
    with ExitStack() as stack:

        def open_one(log, *, folds=None, **options):
            tail = log if isinstance(log, Tail) else Tail(log)
            options.setdefault("directory", tmp_path / "replica")
            space = ReplicaSpace(tail, folds or [Ledger()], SYSTEM, url="nats://here/space", **options)
            return stack.enter_context(closing(space))

        yield open_one


def fill(log, count, name=b"t"):
    with closing(LogSpace(log.hold(10**9), [Ledger()], SYSTEM)) as space:
        for number in range(count):
            space.submit([entry(b"%s%d" % (name, number))])


def ledger_of(space):
    with space.view() as view:
        return set(lines(view))


def until(condition):
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def copies(tmp_path):
    return sorted(path.name for path in (tmp_path / "replica").glob("copy_*"))


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
    oracle = LogSpace(log.hold(10**9), space_folds(0, 1), SYSTEM)
    folder = tmp_path / "replica"
    for _ in range(3):
        space = ReplicaSpace(Tail(log), space_folds(0, 1), SYSTEM, directory=folder, url="nats://h/s")
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
    bell, mine, other = Bell(tmp_path), Listener(tmp_path, "mine"), Listener(tmp_path, "other")
    with closing(bell), closing(mine), closing(other):
        bell.own = "mine"
        bell.ring()
        assert other.wait(SOON_S) and not mine.wait(0)
        bell.own = None
        bell.ring()
        assert mine.wait(SOON_S)


# -- what is kept


def test_a_replica_goes_on_where_it_was(opened, tmp_path):
    log = MemoryLog()
    fill(log, 30)
    with closing(opened(log)) as space:
        assert space.reach(30, SOON_S)
        digest = space.state_digest()
    fill(log, 3, b"u")
    tail = Tail(log)
    again = opened(tail)
    assert again.reach(33, SOON_S)
    assert again._holder.copy.path.name in copies(tmp_path) and len(copies(tmp_path)) == 1
    applied_from = [start for start in tail.reads if start > 1]
    assert min(applied_from) == 31, "only what came since is applied"
    with again.view(at=30) as view:
        assert len(lines(view)) == 30
    assert digest != again.state_digest() == LogSpace(log.hold(10**9), [Ledger()], SYSTEM).state_digest()


def test_opening_compares_only_what_follows_the_last_kept_digest(opened, monkeypatch):
    monkeypatch.setattr(config, "DIGEST_EVERY_OFFSETS", 10)
    log = MemoryLog()
    fill(log, 36)
    with closing(opened(log)) as space:
        assert space.reach(36, SOON_S)
        assert list(space.digests()) == [10, 20, 30]
    tail = Tail(log)
    opened(tail)
    assert min(tail.reads) == 31


def test_large_batches_are_few_transactions_and_stop_at_boundaries(opened, monkeypatch, tmp_path):
    monkeypatch.setattr(config, "SNAPSHOT_EVERY_OFFSETS", 20)
    log = MemoryLog()
    fill(log, 50)
    applied, met = [], []
    apply = OpenCopy.apply

    def counted(self, entries, timeout):
        head = apply(self, entries, timeout)
        applied.append(head.applied)
        return head

    def boundary(offset, con):
        digest = state_digest(con, Ledger.history)
        made = write_snapshot(con, tmp_path / f"at-{offset}", Ledger.history, log.incarnation)
        met.append((offset, digest, made))

    monkeypatch.setattr(OpenCopy, "apply", counted)
    space = opened(log, on_boundary=boundary)
    assert space.reach(50, SOON_S)
    assert applied == [20, 40, 50]
    until(lambda: not space._boundaries.calling)
    assert [offset for offset, _, _ in met] == [20, 40]
    for offset, digest, made in met:
        oracle = LogSpace(log.hold(offset), [Ledger()], SYSTEM)
        assert digest == made.state_digest == oracle.state_digest() and made.offset == offset
        started = LogSpace(log.hold(10**9), [Ledger()], SYSTEM, snapshot=tmp_path / f"at-{offset}")
        assert started.state_digest() == space.state_digest()


def test_of_the_boundaries_that_come_during_a_slow_call_the_roundest_waits_and_the_others_are_told(
    opened, monkeypatch
):
    monkeypatch.setattr(config, "SNAPSHOT_EVERY_OFFSETS", 10)
    log = MemoryLog()
    fill(log, 75)
    go_on, met, missed = threading.Event(), [], []

    def boundary(offset, con):
        assert go_on.wait(SOON_S)
        met.append((offset, state_digest(con, Ledger.history)))

    space = opened(log, on_boundary=boundary, on_missed=missed.append)
    assert space.reach(75, SOON_S)
    assert sorted(missed) == [20, 30, 50, 60, 70]
    go_on.set()
    until(lambda: not space._boundaries.calling)
    at = {offset: LogSpace(log.hold(offset), [Ledger()], SYSTEM).state_digest() for offset in (10, 40)}
    assert met == list(at.items())
    fill(log, 5, b"u")
    until(lambda: len(met) == 3)
    assert met[2][0] == 80 and len(missed) == 5


def test_a_call_at_a_boundary_that_fails_keeps_nothing_waiting(opened, monkeypatch):
    monkeypatch.setattr(config, "SNAPSHOT_EVERY_OFFSETS", 10)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    log = MemoryLog()
    fill(log, 25)
    go_on, met, missed = threading.Event(), [], []

    def boundary(offset, con):
        assert go_on.wait(SOON_S)
        if offset == 10:
            raise ValueError("no")
        met.append(offset)

    space = opened(log, on_boundary=boundary, on_missed=missed.append)
    assert space.reach(25, SOON_S)
    go_on.set()
    until(lambda: not space._boundaries.calling)
    assert missed == [20]
    fill(log, 5, b"u")
    until(lambda: met == [30])


def test_what_waits_for_a_boundary_is_let_go_when_the_replica_closes(opened, monkeypatch):
    monkeypatch.setattr(config, "SNAPSHOT_EVERY_OFFSETS", 10)
    log = MemoryLog()
    fill(log, 25)
    go_on, met, missed = threading.Event(), [], []
    space = opened(
        log,
        on_boundary=lambda offset, con: go_on.wait(SOON_S) and met.append(offset),
        on_missed=missed.append,
    )
    assert space.reach(25, SOON_S)
    space.close()
    assert missed == [20]
    go_on.set()
    until(lambda: not space._boundaries.calling)
    assert met == [10]


def test_a_replica_starts_from_a_snapshot_where_the_log_was_trimmed(opened, tmp_path):
    log = MemoryLog()
    fill(log, 10)
    with closing(LogSpace(log.hold(10**9), [Ledger()], SYSTEM)) as space:
        space.snapshot(tmp_path / "snapshot")
    fill(log, 3, b"u")
    log.trim(8)
    with pytest.raises(of.TooOld, match="begins at offset 8"):
        opened(log, directory=tmp_path / "none")
    space = opened(log, snapshots=lambda: tmp_path / "snapshot")
    assert space.reach(13, SOON_S) and len(ledger_of(space)) == 13
    # One that stands so far back that the log does not lead on from there starts again, too.
    space.close()
    with closing(LogSpace(log.hold(10**9), [Ledger()], SYSTEM, snapshot=tmp_path / "snapshot")) as other:
        other.submit([entry(b"v")])
        other.snapshot(tmp_path / "later")
    log.trim(14 + 1)
    again = opened(log, snapshots=lambda: tmp_path / "later")
    assert again.applied == 14 and len(ledger_of(again)) == 14


def test_a_snapshot_of_another_log_is_refused(opened, tmp_path):
    log, other = MemoryLog(), MemoryLog()
    fill(other, 3)
    LogSpace(other, [Ledger()], SYSTEM).snapshot(tmp_path / "snapshot")
    fill(log, 3)
    with pytest.raises(of.LogCorrupt, match="another incarnation"):
        opened(log, snapshots=lambda: tmp_path / "snapshot")


def test_with_keep_all_every_table_can_be_read_in_the_past(opened):
    log = MemoryLog()
    space = opened(log, folds=space_folds(0, 1), keep_all=True)
    with Database([space]) as db:
        db.queue("q").put("a")
        offset = space.applied
        db.queue("q").put("b")
        with space.view(at=offset) as past, space.view() as now:
            table = next(name for name in now.tables("state/q") if now.count(name))
            assert past.count(table) < now.count(table)


# -- what is thrown away


def test_a_store_ahead_of_the_log_is_made_anew(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "REPLICA_OPEN_WAIT_S", 0.05)
    log = MemoryLog(syncs=False)
    fill(log, 5)
    log.sync()
    fill(log, 5, b"lost")
    with closing(opened(log)) as space:
        assert space.reach(10, SOON_S)
    before = copies(tmp_path)
    log.crash()
    again = opened(log)
    assert again.reach(5, SOON_S)
    until(lambda: ledger_of(again) == {b"t%d" % n for n in range(5)})
    assert copies(tmp_path) != before and len(copies(tmp_path)) == 1


def test_a_store_that_is_only_not_delivered_yet_is_kept_and_waited_for(opened, tmp_path, monkeypatch):
    log = MemoryLog()
    fill(log, 10)
    with closing(opened(log)) as space:
        assert space.reach(10, SOON_S)
    before = copies(tmp_path)
    behind = Tail(log, 4)
    timer = threading.Timer(0.1, behind.go_on)
    timer.start()
    with closing(opened(behind)) as space:
        assert len(ledger_of(space)) == 10 and behind.appends == 0
    timer.join()
    monkeypatch.setattr(config, "REPLICA_OPEN_WAIT_S", 0.05)
    monkeypatch.setattr(config, "APPEND_RETRY_S", 0.05)
    with pytest.raises(of.Unavailable, match="not delivered up to offset 10"):
        opened(Tail(log, 4))
    assert copies(tmp_path) == before


def test_a_store_of_another_incarnation_or_kind_is_not_used(opened, tmp_path):
    first, second = MemoryLog(), MemoryLog()
    fill(first, 3)
    fill(second, 3, b"u")
    with closing(opened(first)) as space:
        assert space.reach(3, SOON_S)
    with closing(opened(second)) as space:
        assert space.reach(3, SOON_S) and ledger_of(space) == {b"u0", b"u1", b"u2"}
    before = copies(tmp_path)
    with closing(opened(second, keep_all=True)) as space:
        assert space.reach(3, SOON_S)
    assert copies(tmp_path) != before


def test_a_store_that_tells_another_story_is_replaced_and_who_uses_it_halts(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "REPLICA_LOOK_S", 0.05)
    monkeypatch.setattr(config, "REPLICA_OPEN_WAIT_S", 0.05)
    log = MemoryLog(syncs=False)
    fill(log, 5)
    user = opened(log)
    assert user.reach(5, SOON_S)
    log._stored.clear()
    fill(log, 7, b"other")
    opener = opened(log)
    assert opener.reach(7, SOON_S)
    assert ledger_of(opener) == {b"other%d" % n for n in range(7)}
    until(lambda: user.halted is not None)
    for use in (lambda: user.peek("ledger/lines", b"t0"), user.view, lambda: user.submit([entry(b"x")])):
        with pytest.raises(of.LogCorrupt, match=r"disagrees|missing|halted"):
            use()


@pytest.mark.parametrize(
    "harm", ["empty", "cut", "garbage", "gone", "pointer", "no pointer", "other program"]
)
def test_a_store_that_is_no_store_is_made_anew(harm, opened, tmp_path):
    log = MemoryLog()
    fill(log, 20)
    with closing(opened(log)) as space:
        assert space.reach(20, SOON_S)
        path = space._holder.copy.file.path
    match harm:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            os.truncate(path, path.stat().st_size // 2)
        case "garbage":
            path.write_bytes(random.Random(1).randbytes(50_000))
        case "gone":
            path.unlink()
        case "pointer":
            (tmp_path / "replica" / "current").write_bytes(b"\xff\x00../..")
        case "no pointer":
            (tmp_path / "replica" / "current").unlink()
        case "other program":
            import apsw

            path.unlink()
            apsw.Connection(str(path)).execute("CREATE TABLE t(x)")
    again = opened(log)
    assert again.reach(20, SOON_S) and len(ledger_of(again)) == 20
    assert len(copies(tmp_path)) == 1


@pytest.mark.parametrize("seed", range(6))
def test_flipped_bits_are_never_served(seed, opened, tmp_path):
    """Every page is damaged in turn: reads are right or fail, and a little later the replica is whole again."""
    log, rng = MemoryLog(), random.Random(seed)
    fill(log, 300)
    with closing(opened(log)) as space:
        assert space.reach(300, SOON_S)
        path = space._holder.copy.file.path
    data = bytearray(path.read_bytes())
    for _ in range(3):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    space = opened(log)
    met = []

    def whole():
        try:
            space.submit([entry(b"t%d" % rng.randrange(300))])
            found = {}
            for number in range(300):
                data, _ = space.peek("ledger/lines", b"t%d" % number)
                assert data is not None, "a key is missing"
                found[number] = data
            assert len(ledger_of(space)) == 300
            digest = space.state_digest()
        except (of.LogCorrupt, of.AppendUnknown) as error:
            met.append(str(error))
            return False
        assert digest == LogSpace(log.hold(10**9), [Ledger()], SYSTEM).state_digest()
        return True

    until(whole)
    assert all("damaged" in error for error in met)
    assert space.halted is None


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
        def append(self, data):
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
    space = opened(MemoryLog())
    ended = []
    waiter = threading.Thread(target=lambda: ended.append(space.wait(0, None)))
    waiter.start()
    until(lambda: space._watcher is not None)
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
    names = {thread.name for thread in threading.enumerate()}
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


def test_a_folder_that_cannot_be_is_told_of(opened, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(of.SpaceError, match="ONEFOLD_CACHE"):
        opened(MemoryLog(), directory=tmp_path / "file" / "replica")


# -- several of one machine


def test_replicas_share_a_store(opened, tmp_path):
    log = MemoryLog()
    spaces = [opened(log) for _ in range(3)]
    assert len(copies(tmp_path)) == 1
    told = {}

    def write(number):
        for at in range(15):
            token = b"%d.%d" % (number, at)
            told[token] = spaces[number].submit([entry(token)])[0]
            assert token in ledger_of(spaces[number])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 45
    for space in spaces:
        space.barrier()
        with space.view() as view:
            assert all(receipt((at := line(view, token)).offset, at.place) == told[token] for token in told)
    assert len({space.state_digest() for space in spaces}) == 1


def test_who_is_cut_off_sees_what_the_others_apply_and_is_woken(opened):
    log = MemoryLog()
    cut_off, other = opened(Tail(log, 0)), opened(log)
    seen = []
    waiter = threading.Thread(target=lambda: seen.append(cut_off.reach(1, SOON_S)))
    waiter.start()
    until(lambda: cut_off._watcher is not None)
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
    with log._changed:
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


def test_no_path_is_left_of_what_was_thrown_away(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "REPLICA_RETIRE_S", 0.0)
    monkeypatch.setattr(config, "REPLICA_LOOK_S", 0.02)
    log = MemoryLog()
    fill(log, 3)
    space = opened(log)
    assert space.reach(3, SOON_S)
    old = Path(space._holder.copy.path)
    space._holder.copy.file.damaged = True
    until(lambda: space._holder.copy.path != old and not old.exists())
    assert ledger_of(space) == {b"t0", b"t1", b"t2"} and len(copies(tmp_path)) == 1
