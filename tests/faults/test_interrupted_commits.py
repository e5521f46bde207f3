"""Exceptions of signal handlers in the main thread while what takes or ends something is being committed there."""

import contextlib
import itertools
import signal
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

import onefold as of
from onefold import config
from onefold.machine import undisturbed
from onefold.shard.appender import _Submission
from onefold.state.core import leases
from onefold.state.core.handover import Handover

sys.path.insert(0, str(Path(__file__).parent))
from interrupted_program import INTERRUPTS

from support.traced import check_met, library_files

pytestmark = pytest.mark.faults
WAIT_S = 60
COMMITS = ("shard/appender.py", "shard/embedded.py", "log/sqlite/pooled_file.py", "state/core/client.py")
FILES = library_files(*COMMITS)
ENDS = library_files(*COMMITS, "state/queues/queue.py", "state/queues/messages.py", "state/core/handover.py")
BEFORE = ("check_process", "receipt")
"""What is called before anything is begun."""


def handler(kind, _frame=None):
    raise kind


def until(condition, what):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def interrupts(action, files=FILES, since=None):
    """Runs it again and again, interrupted where it first passes one place after the other; gives the place each time.
    ``since``: from the call of that function on."""
    kinds = itertools.cycle(INTERRUPTS)
    seen = set()
    while True:
        hit, begun = [], {since: since is None}

        def trace(frame, event, _, hit=hit, begun=begun):
            name = frame.f_code.co_filename
            if frame.f_code.co_name == since:
                begun[since] = True
            place = (name, frame.f_code.co_name, frame.f_lineno)
            if begun[since] and name in files and event in ("call", "line") and place not in seen:
                seen.add(place)
                hit.append(place)
                sys.settrace(None)
                handler(next(kinds))
            return trace if "/onefold/" in name else None

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            action()
        except INTERRUPTS:
            pass
        else:
            if hit:
                pytest.fail(f"what the handler raised did not come out: {hit[0]}")
        finally:
            sys.settrace(before)
        if not hit:
            assert len(seen) > 60
            check_met(files, (name for name, _, _ in seen))
            return
        yield hit[0]


def test_a_message_whose_take_is_interrupted_while_it_is_committed_is_as_before(tmp_path):
    with closing(of.connect(tmp_path / "space")) as db:
        q, got = db.queue("q", lease="1h", max_attempts=1), []
        q.put("x")
        for place in interrupts(lambda: got.append(q.take(timeout=0))):
            message = got.pop() if got else q.take(timeout=WAIT_S)
            assert message is not None, place
            assert message.attempt == 1, place
            message.ack()
            assert q.counts() == (0, 0, 0, 0, 0), place
            q.put("x")


@pytest.mark.parametrize("how", ["ack", "nack", "extend"])
def test_what_ends_or_extends_a_lease_comes_to_its_end_when_it_is_interrupted(tmp_path, how):
    with closing(of.connect(tmp_path / "space")) as db:
        q = db.queue("q", lease="1h", max_attempts=1 << 40)
        q.put("x")
        message = q.take(timeout=0)
        for place in interrupts(lambda: getattr(message, how)()):  # noqa: B023, PLW0108
            if place[1] in BEFORE:
                assert not message.ended
                assert q.counts().in_flight == 1
                getattr(message, how)()
            if how == "ack":
                until(lambda: len(q) == 0, place)
                q.put("x")
            elif how == "nack":
                until(lambda: q.counts().ready == 1, place)
            else:
                message.extend()  # its epoch is known
                message.nack()
            with pytest.raises(of.InvalidArgument):
                message.ack()
            message = q.take(timeout=0)
            assert message is not None, place


class Broken(Exception):
    """What a block raises."""


def test_the_end_of_a_block_that_raises_swallows_no_interrupt_and_is_reached(tmp_path):
    with closing(of.connect(tmp_path / "space")) as db:
        q = db.queue("q", lease="1h", max_attempts=1 << 40)
        delivery = q.get(timeout=0)

        def block():
            with contextlib.suppress(Broken), delivery:
                raise Broken

        q.put("x")
        for place in interrupts(block, ENDS, "__exit__"):
            if place[1] == "__exit__" and delivery._end.message is not None:
                # At whose entry nothing has been called that could know it.
                delivery.__exit__(None, None, None)
                q.put("x")
            until(lambda: q.counts().in_flight == 0, place)
            assert q.counts().ready == 1, place


@pytest.mark.parametrize("typed", [False, True])
def test_what_gives_back_an_unreadable_message_swallows_no_interrupt(tmp_path, monkeypatch, typed):
    with closing(of.connect(tmp_path / "space")) as db:
        q = db.queue("q", lease="1h", max_attempts=1 << 40, type=int if typed else None)
        db.queue("q").put("x")
        if not typed:
            monkeypatch.setattr(q.codec, "decode", unreadable)

        def take():
            with contextlib.suppress(of.InvalidValue):
                q.take(timeout=0)

        for place in interrupts(take, ENDS, "received"):
            until(lambda: q.counts().in_flight == 0, place)
            assert q.counts().ready == 1, place
        if typed:  # nobody was given it
            with db.queue("q").get(timeout=0) as message:
                assert message.attempt == 1


def unreadable(_):
    raise of.InvalidValue("of a later version")


@pytest.mark.parametrize("how", ["acquire", "release"])
def test_a_lock_that_is_interrupted_while_that_is_committed_is_free(tmp_path, how):
    with closing(of.connect(tmp_path / "space")) as db:
        lock, got = db.lock("a", ttl="1h"), []
        act = {"acquire": lambda: got.append(lock.acquire(timeout=0)), "release": lock.release}[how]
        if how == "release":
            lock.acquire()
        for place in interrupts(act):
            if got:  # the interrupt came where it was too late
                got.clear()
                lock.release()
            until(lambda: lock.holder() is None, place)
            assert not lock.held, place
            with db.lock("a", timeout=0):
                pass
            lock.acquire()
            assert lock.held, place
            if how == "acquire":
                lock.release()


class Stopped:
    """Each commit of a space stops until it is let through, and notes how many operations it has."""

    def __init__(self, space):
        self.sizes, self.commit = [], space._appender._commit
        self.goes_on = threading.Semaphore(0)
        space._appender._commit = self

    def __call__(self, ops, deadline):
        self.sizes.append(len(ops))
        assert self.goes_on.acquire(timeout=WAIT_S)
        return self.commit(ops, deadline)


@pytest.mark.parametrize("kind", INTERRUPTS)
@pytest.mark.parametrize("what", ["take", "ack", "lock"])
@pytest.mark.parametrize("within", [False, True])
def test_what_another_thread_may_commit_after_the_interrupt(tmp_path, kind, what, within):
    """The main thread's operation waits for another one's commit, or is within it, when the interrupt comes."""
    before = signal.signal(signal.SIGUSR1, lambda *_: handler(kind))
    try:
        with closing(of.connect(tmp_path / "space")) as db:
            q, m, lock = db.queue("q", lease="1h", max_attempts=1), db.map("m"), db.lock("a", ttl="1h")
            q.put("x")
            message = q.take(timeout=0) if what == "ack" else None
            space = db._shards[0]
            stopped = Stopped(space)
            waiting = space._appender._waiting
            main = threading.get_ident()
            threads = [threading.Thread(target=m.put, args=(name, 1)) for name in "ab"]

            def interrupts_it():
                until(lambda: any(one.main for one in waiting), "the main thread waits")
                if within:
                    stopped.goes_on.release()
                    until(lambda: 2 in stopped.sizes, "it is within a commit")
                signal.pthread_kill(main, signal.SIGUSR1)

            threads[0].start()
            until(lambda: stopped.sizes == [1], "the first commit")
            threads[1].start()
            until(lambda: waiting, "the second one waits")
            third = threading.Thread(target=interrupts_it)
            third.start()
            act = {
                "take": lambda: q.take(timeout=0),
                "ack": getattr(message, "ack", None),
                "lock": lock.acquire,
            }[what]
            with pytest.raises(kind):
                act()
            for _ in range(20):
                stopped.goes_on.release()
            for thread in (*threads, third):
                thread.join(WAIT_S)
            if what == "take":
                again = q.take(timeout=WAIT_S)
                assert again is not None
                assert again.attempt == 1
            elif what == "ack":
                until(lambda: len(q) == 0, "acknowledged")
            else:
                until(lambda: lock.holder() is None, "free")
                lock.acquire(timeout=WAIT_S)
                lock.release()
    finally:
        signal.signal(signal.SIGUSR1, before)


def interrupted_in(function, action, before=lambda: None):
    """Run the action with an interrupt at the entry of the function, after ``before``; it must come out."""

    def trace(frame, event, _):
        if event == "call" and frame.f_code.co_name == function:
            sys.settrace(None)
            before()
            handler(KeyboardInterrupt)

    sys.settrace(trace)
    try:
        with pytest.raises(KeyboardInterrupt):
            action()
    finally:
        sys.settrace(None)


class Later:
    """What is to be mended of these kinds is kept, until ``mend``."""

    def __init__(self, monkeypatch, *kinds):
        self.kept, self.now = [], undisturbed.mend_later
        keeps = lambda one: (self.kept.append if isinstance(one, kinds) else self.now)(one)  # noqa: E731
        monkeypatch.setattr(undisturbed, "mend_later", keeps)

    def mend(self):
        for one in self.kept:
            self.now(one)


@pytest.mark.parametrize("what", ["put", "take", "lock"])
def test_a_thread_that_waits_when_a_write_is_interrupted_and_the_space_closed_has_its_answer(
    tmp_path, monkeypatch, what
):
    monkeypatch.setattr(config, "APPEND_RETRY_S", 10 * WAIT_S)
    errors = []
    with closing(of.connect(tmp_path / "space")) as db:
        m, q, lock = db.map("m"), db.queue("q"), db.lock("a")
        q.put(1)
        waiting = db._shards[0]._appender._waiting

        def put():
            try:
                m["other"] = 1
            except of.OnefoldError as error:
                errors.append(error)

        other = threading.Thread(target=put, daemon=True)

        def before():
            other.start()
            until(lambda: waiting, "the other one waits")

        later = Later(monkeypatch, _Submission)
        act = {"put": lambda: m.put("mine", 1), "take": lambda: q.take(timeout=0), "lock": lock.acquire}[what]
        interrupted_in("append_in", act, before)
        db.close()
        later.mend()
        other.join(WAIT_S)
        assert [type(error) for error in errors] == [of.SpaceError]


def test_what_an_interrupted_take_has_taken_is_known_after_later_writes(tmp_path, monkeypatch):
    with closing(of.connect(tmp_path / "space")) as db:
        m, q = db.map("m"), db.queue("q", lease="1h", max_attempts=1)
        q.put("x")
        later = Later(monkeypatch, Handover)
        interrupted_in("announce", lambda: q.take(timeout=0))
        assert q.counts().in_flight == 1
        for number in range(3):
            m[number] = 1
        later.mend()
        until(lambda: q.counts().ready == 1, "given back")
        with q.get(timeout=0) as message:
            assert message.attempt == 1


def test_a_handler_that_ends_the_message_which_is_being_ended_is_refused(tmp_path):
    with closing(of.connect(tmp_path / "space")) as db:
        q = db.queue("q", lease="1h")
        q.put("x")
        message, caught = q.take(timeout=0), []

        def trace(frame, _event, _):
            if frame.f_code.co_name == "append_in":
                sys.settrace(None)
                try:
                    message.nack()
                except of.Unavailable as error:
                    caught.append(error.definite)

        sys.settrace(trace)
        try:
            message.ack()
        finally:
            sys.settrace(None)
        assert caught == [True]
        assert len(q) == 0


def test_nothing_that_passes_without_an_interrupt_is_handed_to_another_thread(tmp_path, monkeypatch):
    with closing(of.connect(tmp_path / "space")) as db:
        q = db.queue("q")

        def pass_one():
            q.put(1)
            with q.get(timeout=0), db.lock("a"):
                pass

        pass_one()  # which starts what renews locks
        handed = []
        with monkeypatch.context() as patched:
            patched.setattr(undisturbed, "mend_later", handed.append)
            patched.setattr(undisturbed, "undisturbed", handed.append)
            patched.setattr(leases, "undisturbed", handed.append)
            for _ in range(10):
                pass_one()
        assert not handed
