"""Exceptions of signal handlers while something is taken in the main thread: it is the caller's, or it is as before."""

import itertools
import random
import signal
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

import onefold as of

sys.path.insert(0, str(Path(__file__).parent))
from interrupted_program import INTERRUPTS

from support.traced import check_met, library_files

pytestmark = pytest.mark.faults
WAIT_S = 60
QUEUES = library_files(
    "state/queues/queue.py", "state/queues/taking.py", "state/queues/messages.py", "state/core/handover.py"
)
RENEWED = QUEUES | library_files("state/core/leases.py")
LOCKS = library_files(
    "state/locks/lock.py",
    "state/locks/asking.py",
    "state/locks/holds.py",
    "state/core/handover.py",
    "state/core/leases.py",
)


def handler(kind, _frame=None):
    raise kind


@pytest.fixture(autouse=True)
def known_handler():
    before = signal.signal(signal.SIGUSR1, handler)
    yield
    signal.signal(signal.SIGUSR1, before)


def is_place(frame, event, files):
    """Where CPython may run a handler. It does not when a block's ``__enter__`` or what its caller called returns."""
    code = frame.f_code
    if event == "exception" or code.co_filename not in files:
        return False
    return event != "return" or frame.f_back.f_code.co_filename in files


def traced(action, hit, files):
    """Run it, and call ``hit`` with each place's number and the place, for which the n-th pass of a line counts as one."""
    count = itertools.count()

    def trace(frame, event, _):
        if is_place(frame, event, files):
            hit(next(count), (frame.f_code.co_name, frame.f_lineno, event), frame.f_code.co_filename)
        return trace if "/onefold/" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return next(count)


def interrupts(action, files):
    """Runs it again and again, interrupted at one place after the other; gives the place each time."""
    kinds, met = itertools.cycle(INTERRUPTS), set()
    for chosen in itertools.count():
        where = []

        def hit(number, place, name, chosen=chosen, where=where):
            if number == chosen:
                met.add(name)
                where.append(place)
                sys.settrace(None)
                handler(next(kinds))

        try:
            traced(action, hit, files)
        except INTERRUPTS:
            pass
        else:
            if where:
                pytest.fail(f"what the handler raised did not come out: {where[0]}")
        if not where:
            assert chosen > 30
            check_met(files, met)
            return
        yield where[0]


@pytest.mark.parametrize("renew", [False, True])
def test_a_message_that_no_block_saw_was_not_tried(tmp_path, renew):
    with closing(of.connect(tmp_path / "space")) as db:
        seen, names = [], itertools.count()

        def queue_with_one():
            made = db.queue(f"q{next(names)}", lease="1h", max_attempts=1)
            made.put("x")
            return made

        def action():
            with q.get(timeout=0, renew=renew) as message:
                seen.append(q)
                assert message.value == "x"

        q = queue_with_one()
        for place in interrupts(action, RENEWED if renew else QUEUES):
            if q not in seen:
                message = q.take(timeout=WAIT_S)
                assert message is not None, place
                assert message.attempt == 1, place
                message.ack()
            elif place[0] != "__exit__":
                # At the entry of __exit__ the block is over and nothing has been called that could know it.
                until(lambda q=q: q.counts().in_flight == 0, place)
            q = queue_with_one()


def until(condition, what):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


@pytest.mark.timeout(300, method="thread")  # the test has the alarm for itself
def test_a_storm_of_signals_makes_no_dead_letters(tmp_path):
    rng = random.Random(7)
    hits = 0

    def alarm(*_):
        raise INTERRUPTS[1]

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        with closing(of.connect(tmp_path / "space")) as db:
            q = db.queue("q", max_attempts=1, lease="1h")
            q.put_many(range(200))
            entered, end_s, latest_s = 0, time.monotonic() + 4 * WAIT_S, 0.004
            # What an interrupted take has taken is back when the disk has it: no number of tries tells when that is.
            while entered < 200:
                assert time.monotonic() < end_s, (entered, hits, q.counts(), q.dead())
                began = False
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0001, latest_s))
                    with q.get(timeout=0) as message:
                        began = message is not None
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except INTERRUPTS:
                    hits += 1
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                entered += began
                # On a slow machine a take needs longer: the alarm must not always come before its end.
                latest_s = max(0.004, 0.8 * latest_s) if began else min(1.01 * latest_s, 1.0)
            assert hits > 20
            assert len(q.dead()) <= entered
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kept", [False, True])
def test_an_interrupted_lock_is_free(tmp_path, kept):
    with closing(of.connect(tmp_path / "space")) as db:
        names = itertools.count()
        name = "first"
        lock = None

        def forgotten():
            with db.lock(name, ttl="1h"):
                pass

        def remembered():
            with lock:
                pass

        lock = db.lock(name, ttl="1h")
        for place in interrupts(remembered if kept else forgotten, LOCKS):
            if kept and place[0] == "__exit__" and lock.held:
                lock.release()  # at whose entry nothing has been called that could know it
            until(lambda name=name: db.lock(name).holder() is None, place)
            with db.lock(name, timeout=0):
                pass
            if kept:
                with lock:
                    assert lock.held, place
            assert db.lock(name).holder() is None, place
            name = f"lock-{next(names)}"
            lock = db.lock(name, ttl="1h")


def test_a_lock_that_was_acquired_and_forgotten_is_not_released(tmp_path):
    with closing(of.connect(tmp_path / "space")) as db:
        db.lock("a", ttl="1h").acquire()
        with db.lock("b"):
            pass
        with pytest.raises(of.Timeout):
            db.lock("a").acquire(timeout=0.2)


def test_another_threads_wrong_release_does_not_end_a_wait(tmp_path):
    with closing(of.connect(tmp_path / "space")) as db:
        waiter = db.lock("a")
        with db.lock("a") as holder:
            thread = threading.Thread(target=waiter.acquire)
            thread.start()
            until(lambda: holder.holder().waiting == 1, "waiting")
            with pytest.raises(of.InvalidArgument):
                waiter.release()
        thread.join()
        assert waiter.held
        waiter.release()
