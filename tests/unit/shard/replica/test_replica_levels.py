"""Replicas whose log arrives with delay: what each level shows, what it waits for, and what it says when it cannot be served."""

import threading
from contextlib import closing

import pytest

import onefold as of
from kit.ledger import Ledger, entry, line, receipt
from onefold import config
from onefold.codec import Record, encode_record
from onefold.env import SYSTEM
from onefold.ids import client_id
from onefold.log.memory import MemoryLog
from onefold.shard.freshness import Freshness
from onefold.shard.memory import MemoryShard
from onefold.testing import Simulation

FAR = 1e9


def simulate(program, *, before=lambda sim, process: None, seed=1, **options):
    """Run a program on one replica, without faults but those that it makes itself."""
    with Simulation(seed) as sim:
        sim.setup(lambda db: db.map("m").put("k", "old"))
        process = sim.client(lambda db: program(sim, process, db), **options)
        before(sim, process)
        sim.run("none", seconds=100.0)
        return sim


def other_writes(sim, value):
    """Somebody else puts a value, acknowledged when this returns."""
    with sim._visitor("other") as db:
        db.map("m").put("k", value)


def test_a_weak_read_shows_what_was_delivered_and_a_strong_one_waits_for_all():
    def program(sim, process, db):
        m = db.map("m")
        assert m["k"] == "old"
        process.machine.held_until = sim.now + 3.0
        other_writes(sim, "new")
        before = sim.now
        for level in ("prefix", "eventual", "session"):
            assert m.get("k", consistency=level) == "old"
        assert sim.now - before < 0.5
        assert m["k"] == "new"
        assert sim.now - before > 2.0

    simulate(program)


def test_a_strong_read_that_gets_no_answer_is_unavailable_after_its_timeout_and_definitely():
    def program(sim, process, db):
        m = db.map("m")
        assert m["k"] == "old"
        process.machine.held_until = FAR
        before = sim.now
        with pytest.raises(of.Unavailable, match=r"gave no answer within 1\.5 s") as caught:
            m.get("k")
        assert caught.value.definite
        assert 1.0 < sim.now - before < 4.0
        process.machine.held_until = 0.0
        process.machine.cut = True
        with pytest.raises(of.Unavailable) as caught:
            m.get("k")
        assert caught.value.definite
        assert m.get("k", consistency="eventual") == "old"
        process.machine.cut = False
        assert m["k"] == "old"

    simulate(program, timeout=1.5)


def test_reads_that_arrive_together_share_a_barrier_and_later_ones_do_not_join_it():
    def program(sim, process, db):
        space = db._shards[0]
        before = sim.servers[0].end
        readers = []
        for at in range(5):
            readers.append(sim.scheduler.spawn(f"reader {at}", lambda: space.barrier(5.0), process.machine))
        for reader in readers:
            sim.scheduler.join(reader)
            assert reader.error is None
        # The first has one of its own; the others arrived while it was under way and share the next.
        assert sim.servers[0].end - before == 2

    simulate(program)


def test_a_barrier_starts_after_the_read_arrived_also_when_one_is_under_way():
    def program(sim, process, db):
        m = db.map("m")
        seen = []
        first = sim.scheduler.spawn("first", lambda: m.get("k"), process.machine)
        process.machine.held_until = sim.now + 2.0
        sim.sleep(1.0)  # the first read's barrier is in the log, and not delivered
        other_writes(sim, "new")
        second = sim.scheduler.spawn("second", lambda: seen.append(m.get("k")), process.machine)
        sim.scheduler.join(first)
        sim.scheduler.join(second)
        assert seen == ["new"]

    simulate(program)


def test_bounded_reads_are_served_by_ones_own_records_and_too_stale_tells_the_age():
    def program(sim, process, db):
        m = db.map("m")
        m.put("mine", 1)
        process.machine.held_until = FAR
        other_writes(sim, "new")
        end = sim.servers[0].end
        sim.sleep(3.0)
        assert m.get("k", consistency="bounded:10s") == "old"
        assert sim.servers[0].end == end  # its own write was fresh enough
        with pytest.raises(of.TooStale, match=r"complete only as of .* ago, and 2 s are allowed") as caught:
            m.get("k", consistency="bounded:2s")
        assert caught.value.definite
        process.machine.held_until = 0.0
        assert m.get("k", consistency="bounded:2s") == "new"

    simulate(program, timeout=1.0)


def test_an_idle_log_proves_nothing():
    def program(sim, process, db):
        m = db.map("m")
        process.machine.cut = True
        with pytest.raises(of.TooStale, match="may be of any age"):
            m.get("k", consistency="bounded:1h")
        process.machine.cut = False
        end = sim.servers[0].end
        assert m.get("k", consistency="bounded:1h") == "old"
        assert sim.servers[0].end == end + 1  # a record of its own tells
        assert m.get("k", consistency="bounded:1h") == "old"
        assert sim.servers[0].end == end + 1

    simulate(program, timeout=1.0)


def test_freshness_counts_from_before_the_append_and_also_suspended_time():
    fresh = Freshness()
    assert not fresh.within(FAR, 0.0)
    fresh.prove(100.0)
    fresh.prove(90.0)
    assert fresh.within(5.0, 105.0)
    assert not fresh.within(5.0, 105.1)
    assert not fresh.within(0.0, 100.0)
    assert fresh.age(103.0) == 3.0

    def program(sim, process, db):
        m = db.map("m")
        m.put("mine", 1)
        process.machine.suspended_until = sim.now + 60.0
        sim.sleep(0.1)
        assert sim.now > 50.0
        process.machine.cut = True
        with pytest.raises(of.TooStale):
            m.get("k", consistency="bounded:30s")

    simulate(program, timeout=1.0)


def test_a_session_reads_what_its_token_has_seen_or_says_that_it_cannot():
    def program(sim, process, db):
        m = db.map("m")
        assert m["k"] == "old"
        process.machine.held_until = sim.now + 2.0
        with sim._visitor("other") as other:
            other.map("m").put("k", "new")
            token = other.session.token
        assert m.get("k", consistency="session") == "old"
        db.session.merge(token)
        assert m.get("k", consistency="session") == "new"
        process.machine.held_until = FAR
        with sim._visitor("other") as other:
            other.map("m").put("k", "newer")
            db.session.merge(other.session.token)
        with pytest.raises(of.TokenAhead):
            m.get("k", consistency="session")
        assert m.get("k", consistency="prefix") == "new"

    simulate(program, timeout=3.0)


def test_a_write_is_answered_when_it_is_applied_here_and_reads_see_it():
    def program(sim, process, db):
        m = db.map("m")
        process.machine.held_until = sim.now + 2.0
        m.put("k", "mine")
        assert sim.now > 2.0
        assert m.get("k", consistency="eventual") == "mine"

    simulate(program)


def test_a_write_that_is_not_delivered_in_time_has_an_unknown_outcome_that_can_be_asked_for():
    def program(sim, process, db):
        process.machine.held_until = sim.now + 2 * config.APPEND_RETRY_S
        with pytest.raises(of.Timeout, match=r"Ask db\.outcome") as caught:
            db.map("m").put("k", "mine", request_id="r1")
        assert not caught.value.definite
        sim.sleep(2 * config.APPEND_RETRY_S)
        assert db.outcome("r1") == "committed"
        assert db.map("m")["k"] == "mine"
        db.map("m").put("k", "again", request_id="r1")
        assert db.map("m")["k"] == "mine"

    simulate(program)


def test_others_of_the_space_are_not_known_to_be_alive_or_dead():
    def program(sim, process, db):
        space = db._shards[0]
        assert space.member_alive(space.member) is True
        assert space.member_alive("somebody else") is None
        assert not space.strong_reads

    simulate(program)


def test_an_acknowledged_record_that_was_replaced_halts_also_when_it_was_already_applied():
    class Liar(MemoryLog):
        def append(self, data, deadline=None):
            offset = super().append(encode_record(Record(client_id(0, SYSTEM), 1, 0, ())))
            space.applied  # noqa: B018 - somebody else catches up before the answer comes
            return offset

    space = MemoryShard(Liar(), [Ledger()], SYSTEM, replica=True)
    with pytest.raises(of.LogCorrupt, match="acknowledged at offset 1"):
        space.submit([entry(b"a")])
    with pytest.raises(of.LogCorrupt, match="halted"):
        space.barrier(1.0)


def test_a_replica_starts_from_a_snapshot_and_waits_until_the_log_is_delivered_up_to_it(
    tmp_path, monkeypatch
):
    log = MemoryLog()
    with closing(MemoryShard(log.hold(10**9), [Ledger()], SYSTEM)) as space:
        for token in (b"a", b"b", b"c"):
            space.submit([entry(token)])
        space.snapshot(tmp_path / "s")
    behind = log.hold(1)
    monkeypatch.setattr(config, "APPEND_RETRY_S", 0.05)
    with pytest.raises(of.Unavailable, match="offset 3, where the snapshot stands"):
        MemoryShard(behind, [Ledger()], SYSTEM, snapshot=tmp_path / "s", replica=True)
    monkeypatch.setattr(config, "APPEND_RETRY_S", 30.0)
    timer = threading.Timer(0.05, behind.go_on)
    timer.start()
    with (
        closing(MemoryShard(behind, [Ledger()], SYSTEM, snapshot=tmp_path / "s", replica=True)) as space,
        space.view() as view,
    ):
        assert line(view, b"c") is not None
    timer.join()


def test_a_read_only_replica_cannot_read_strongly_and_says_what_to_do():
    log = MemoryLog()
    MemoryShard(log, [Ledger()], SYSTEM).submit([entry(b"a")])
    space = MemoryShard(log, [Ledger()], SYSTEM, replica=True, read_only=True)
    with pytest.raises(of.Unavailable, match="read-only"):
        space.barrier(1.0)
    with pytest.raises(of.TooStale, match="read-only"):
        space.fresh(10.0, 1.0)
    assert space.reach(1, 1.0)
    assert not space.reach(5, 0.01)


def test_real_threads_share_barriers_and_appends():
    log = MemoryLog()
    space = MemoryShard(log, [Ledger()], SYSTEM, replica=True)
    told, failed = [], []

    def work(number):
        try:
            for at in range(20):
                told.append((b"%d.%d" % (number, at), space.submit([entry(b"%d.%d" % (number, at))])[0]))
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


def test_a_barrier_that_waits_for_a_slow_write_gives_up_in_time():
    class Slow(MemoryLog):
        def append(self, data, deadline=None):
            if b"slow" in data:
                begun.set()
                assert let_go.wait(60)
            return super().append(data, deadline)

    begun, let_go = threading.Event(), threading.Event()
    space = MemoryShard(Slow(), [Ledger()], SYSTEM, replica=True)
    writer = threading.Thread(target=lambda: space.submit([entry(b"slow")]))
    writer.start()
    assert begun.wait(60)
    with pytest.raises(of.Unavailable, match="took too long") as caught:
        space.barrier(0.05)
    assert caught.value.definite
    let_go.set()
    writer.join()
    assert space.barrier(10.0) == 2


def test_a_machine_whose_clock_is_ahead_does_not_flood_the_log_with_ticks():
    def program(sim, process, db):
        process.machine.skew_s = 15.0
        m = db.map("m")
        m.put("ends", 1, ttl=10.0)
        for read in (
            lambda: m.get("ends"),
            lambda: m.get("ends", consistency="session"),
            lambda: m.get_many(["ends"]),
            lambda: dict(m.items()),
            lambda: len(m),
            lambda: db.run_transaction(lambda tx: tx.map("m").get("ends")),
        ):
            before = sim.servers[0].end
            read()
            assert sim.servers[0].end - before < 50

    simulate(program)
