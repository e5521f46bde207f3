"""The stores of persistent replicas over a log in memory: what is kept, what is thrown away, and what several share."""

import os
import random
import threading
from contextlib import closing
from pathlib import Path

import pytest

import onefold as of
from kit.ledger import Ledger, entry, line, lines, receipt
from onefold import config
from onefold.db import Database
from onefold.env import SYSTEM
from onefold.folds import folds as space_folds
from onefold.log.memory import MemoryLog
from onefold.shard.memory import MemoryShard
from onefold.shard.replica.copy import OpenCopy
from onefold.store.snapshot import state_digest, write_snapshot
from support.replicas import (
    SOON_S,
    Tail,
    copies,
    fill,
    ledger_of,
    open_replicas,  # noqa: F401
    until,
)

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
    assert digest != again.state_digest() == MemoryShard(log.hold(10**9), [Ledger()], SYSTEM).state_digest()


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
        oracle = MemoryShard(log.hold(offset), [Ledger()], SYSTEM)
        assert digest == made.state_digest == oracle.state_digest() and made.offset == offset
        started = MemoryShard(log.hold(10**9), [Ledger()], SYSTEM, snapshot=tmp_path / f"at-{offset}")
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
    at = {offset: MemoryShard(log.hold(offset), [Ledger()], SYSTEM).state_digest() for offset in (10, 40)}
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
    with closing(MemoryShard(log.hold(10**9), [Ledger()], SYSTEM)) as space:
        space.snapshot(tmp_path / "snapshot")
    fill(log, 3, b"u")
    log.trim(8)
    with pytest.raises(of.TooOld, match="begins at offset 8"):
        opened(log, directory=tmp_path / "none")
    space = opened(log, snapshots=lambda: tmp_path / "snapshot")
    assert space.reach(13, SOON_S) and len(ledger_of(space)) == 13
    # One that stands so far back that the log does not lead on from there starts again, too.
    space.close()
    with closing(MemoryShard(log.hold(10**9), [Ledger()], SYSTEM, snapshot=tmp_path / "snapshot")) as other:
        other.submit([entry(b"v")])
        other.snapshot(tmp_path / "later")
    log.trim(14 + 1)
    again = opened(log, snapshots=lambda: tmp_path / "later")
    assert again.applied == 14 and len(ledger_of(again)) == 14


def test_a_snapshot_of_another_log_is_refused(opened, tmp_path):
    log, other = MemoryLog(), MemoryLog()
    fill(other, 3)
    MemoryShard(other, [Ledger()], SYSTEM).snapshot(tmp_path / "snapshot")
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
        assert digest == MemoryShard(log.hold(10**9), [Ledger()], SYSTEM).state_digest()
        return True

    until(whole)
    assert all("damaged" in error for error in met)
    assert space.halted is None


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
