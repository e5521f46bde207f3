"""The simulator itself: one seed is one run, nothing runs at the same time, the dead do nothing, and what is stuck is said."""

import os
import subprocess
import sys
import threading

import pytest

import onefold as of
from onefold.testing import Faults, Simulation
from onefold.testing.sim import scheduler as scheduling
from onefold.testing.sim.scheduler import Scheduler, Stalled, Turn
from support import parts

SEEDS = parts.todays(range(6), 3)

PROGRAM = """
import hashlib, sys
import onefold as of
from onefold.testing import Simulation

def run(seed):
    with Simulation(seed, shards=2) as sim:
        def program(db):
            m = db.map("m")
            for i in range(15):
                try:
                    m.increment(i % 3)
                    sim.log(sorted(m.items()), db.session.token)
                except of.OnefoldError as error:
                    sim.log(repr(error))
        sim.client(program, program)
        sim.clients(2, program)
        sim.run("all", seconds=20)
        told = hashlib.sha256("\\n".join(sim.trace).encode())
        for server in sim.servers:
            for entry in server.truth.read(1, 1 << 30):
                told.update(repr(entry).encode())
        return told.hexdigest()
"""


def test_a_seed_gives_the_same_run_in_every_process():
    told = set()
    for hash_seed in ("0", "1234"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM + "\nfor seed in range(2): print(run(seed))"],
            env=dict(os.environ, PYTHONHASHSEED=hash_seed),
            capture_output=True,
            text=True,
            check=True,
        )
        told.add(done.stdout)
    assert len(told) == 1
    assert len(set(told.pop().split())) == 2


def test_only_one_task_runs_at_a_time_and_time_is_simulated():
    sim = Scheduler(1)
    inside, order = [], []

    def run(name):
        for _ in range(50):
            inside.append(name)
            assert inside == [name]
            order.append(sim.now)
            inside.remove(name)
            sim.sleep(sim.random.random() * 1000)

    tasks = [sim.spawn(f"t{at}", lambda at=at: run(at)) for at in range(4)]
    for task in tasks:
        assert sim.join(task)
        assert task.error is None
    assert order == sorted(order)
    assert sim.now > 10_000
    sim.close()


def test_events_and_turns_come_in_the_order_of_simulated_time():
    sim = Scheduler(2)
    seen = []
    turn = Turn(sim)

    def waits():
        assert not turn.wait(5.0)
        seen.append(("gave up", sim.now))
        assert turn.wait(None)
        seen.append(("continued", sim.now))

    task = sim.spawn("waits", waits)
    sim.call_at(7.0, turn.end)
    sim.call_at(3.0, lambda: seen.append(("event", sim.now)))
    assert not sim.join(task, 1.0)
    assert sim.join(task, 100.0)
    assert task.error is None
    assert seen == [("event", 3.0), ("gave up", 5.0), ("continued", 7.0)]
    sim.close()


def test_a_deadlock_is_noticed():
    sim = Scheduler(3)
    sim.spawn("waits for ever", lambda: sim.block(None))
    with pytest.raises(Stalled, match=r"deadlock.*waits for ever"):
        sim.block(None)
    sim.close()


def test_a_task_that_waits_outside_of_the_simulation_is_noticed(monkeypatch):
    monkeypatch.setattr(scheduling, "STALL_REAL_S", 0.2)
    sim = Scheduler(4)
    let_go = threading.Event()
    sim.spawn("sleeper", lambda: let_go.wait(60) and None)
    with pytest.raises(Stalled, match=r"sleeper has not come[\s\S]*let_go\.wait"):
        sim.sleep(1.0)
    sim.close()
    let_go.set()


def test_who_is_killed_unwinds_and_does_nothing_more():
    sim = Scheduler(5)
    seen = []

    def run():
        try:
            sim.sleep(100.0)
        except Exception:
            seen.append("an Exception catches it")
        finally:
            seen.append("unwinding")
            try:
                sim.sleep(1.0)
                seen.append("still acts")
            finally:
                seen.append(sim.now)

    task = sim.spawn("victim", run)
    sim.sleep(1.0)
    sim.kill(task, scheduling.Killed("now"))
    assert sim.join(task)
    assert seen == ["unwinding", 1.0]
    assert task.error is None
    sim.close()


def test_a_task_that_will_not_die_is_noticed():
    sim = Scheduler(6)

    def run():
        while True:
            try:
                sim.sleep(1.0)
            except BaseException:
                pass

    task = sim.spawn("immortal", run)
    sim.sleep(1.0)
    sim.kill(task, scheduling.Killed("now"))
    with pytest.raises(Stalled, match="immortal was killed and never ends"):
        sim.join(task)
    sim.close()


def test_a_foreign_thread_is_told_so():
    with Simulation(7) as sim:
        told = []

        def program(db):
            def other():
                try:
                    db.map("m").put("a", 1)
                except Stalled as error:
                    told.append(str(error))

            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

        sim.client(program)
        sim.run("none")
        assert "sim.client(first, second)" in told[0]


def test_all_threads_end(request):
    before = threading.active_count()
    for seed in SEEDS:
        with Simulation(seed) as sim:

            def program(db):
                while True:
                    db.map("m").increment("n")
                    sim.sleep(1.0)

            sim.client(program, program)
            sim.clients(2, program)
            sim.run("all", seconds=5, grace=5)
            with sim.healed() as db:
                assert db.map("m")["n"] > 0
        assert threading.active_count() <= before  # one of an earlier test may have ended meanwhile


def test_programs_start_again_after_crashes_and_must_come_to_their_end():
    begun = []
    with Simulation(8) as sim:

        def program(db):
            begun.append(sim.now)
            for _ in range(20):
                db.map("m").increment("n")
                sim.sleep(0.2)

        sim.client(program)
        sim.run(Faults(crash=5.0, every_s=0.5))
        assert len(begun) > 1
        with sim.healed() as db:
            assert db.map("m")["n"] >= 20


def test_a_program_may_close_its_database():
    with Simulation(13) as sim:

        def program(db):
            with db:
                db.map("m").put("a", 1)

        sim.clients(2, program)
        sim.run("none")
        with sim.healed() as db:
            assert db.map("m")["a"] == 1


def test_what_a_program_raises_fails_the_run_with_seed_and_trace():
    with Simulation(9, rerun="the command") as sim:

        def program(db):
            sim.log("about to fail")
            raise KeyError("mine")

        sim.client(program)
        with pytest.raises(KeyError, match="mine") as caught:
            sim.run("all")
        (note,) = caught.value.__notes__
        assert "seed 9" in note
        assert "the command" in note
        assert "about to fail" in note


def test_a_program_that_makes_no_progress_is_noticed():
    with Simulation(10) as sim:

        def stuck(db):
            while True:
                sim.sleep(1.0)

        sim.client(lambda db: db.map("m").put("a", 1))
        sim.client(stuck, name="the stuck one")
        with pytest.raises(AssertionError, match="no progress: the stuck one"):
            sim.run("all", seconds=5, grace=5)


def test_setup_sees_no_faults_and_everything_is_healed_in_the_end():
    for seed in SEEDS:
        with Simulation(seed) as sim:
            sim.setup(lambda db: db.map("m").update(dict.fromkeys(range(10), 0)))

            def program(db):
                for key in range(10):
                    try:
                        db.map("m").increment(key)
                    except of.OnefoldError as error:
                        sim.log(error)

            sim.clients(3, program)
            sim.run(Faults(refused=0.3, lost_answer=0.3, vanished=0.3, late=0.3))
            with sim.healed() as db:
                before = sim.now
                assert len(db.map("m")) == 10
                assert sim.now - before < 1.0


def test_sessions_and_levels_of_clients():
    with Simulation(11) as sim:
        levels = []

        def program(db):
            levels.append(str(db._state.level))

        sim.client(program)
        sim.client(program, consistency="session")
        sim.client(program, consistency="bounded:5s")
        sim.run("none")
        assert sorted(levels) == ["bounded:5s", "session", "strong"]


@pytest.mark.parametrize("faults", ["some", 3, object()])
def test_unknown_faults_are_refused(faults):
    with Simulation(0) as sim, pytest.raises(ValueError, match="faults must be"):
        sim.run(faults)


def test_suspended_machines_stand_still_while_time_goes_on():
    with Simulation(12) as sim:
        seen = []

        def program(db):
            env = db._shard.env
            for _ in range(100):
                before_s = env.boot_s(), sim.now
                sim.sleep(0.1)
                seen.append((env.boot_s() - before_s[0], sim.now - before_s[1]))

        sim.client(program)
        sim.run(Faults(partition=0, hold_back=0, crash=0, outage=0, clock_jump=0))
        assert max(own for own, _ in seen) > 0.5
        assert all(own == pytest.approx(true) for own, true in seen)
