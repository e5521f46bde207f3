"""A process that forks with an open database: the child is told, may open it anew, and neither harms the other."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import onefold as of
from onefold.machine import inherited
from onefold.machine.flock import WriteLock

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
OPEN = "was opened before this process was forked. Open it again in the child"
SOON_S = 60


def in_child(fn):
    """Run it in a forked child; what it returned, as text. A child that hangs is killed."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(out)
            signal.alarm(SOON_S)  # ends the child if nobody else does
            said = str(fn())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(into, said.encode())
        os._exit(0)
    os.close(into)
    with open(out, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child hung or died: {status}"
    return said


@contextmanager
def busy(*work):
    """Threads that do this over and over, so that a fork meets them in the middle of it; each has begun."""
    stop, begun = threading.Event(), [threading.Event() for _ in work]

    def run(fn, event):
        while not stop.is_set():
            fn()
            event.set()

    threads = [threading.Thread(target=run, args=pair) for pair in zip(work, begun, strict=True)]
    for thread in threads:
        thread.start()
    try:
        for event in begun:
            assert event.wait(SOON_S)
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.fixture(params=[1, 3], ids=["one shard", "three shards"])
def db(request, tmp_path):
    with of.connect(tmp_path / "space", shards=request.param) as opened:
        opened.map("m").put_many({n: n for n in range(20)})
        yield opened


def handles(db):
    """Each made before the fork, and a use of it after."""
    m, q, s = db.map("m"), db.queue("q"), db.stream("s")
    session = db.map("m", consistency="session")
    assert session[1] == 1
    s.append("there")
    for value in ("a", "b", "c"):
        q.put(value)
    message = q.take(timeout=0)
    lock, held = db.lock("free"), db.lock("held")
    held.acquire()
    watch, reader, consumer = m.watch(initial=True), s.read(follow=True), s.consumer("group")
    next(watch)
    transaction = db.transaction()
    scan = m.scan()
    uses = {
        "get": lambda: m[1], "session get": lambda: session[1], "put": lambda: m.put("x", 1), "len": lambda: len(m),
        "increment": lambda: m.increment("n"), "put_many": lambda: m.put_many(dict.fromkeys(range(9), 1)),
        "scan": lambda: list(m.scan()), "a scan made before": lambda: list(scan), "another map": lambda: db.map("other"),
        "transaction": transaction.__enter__, "another transaction": lambda: db.run_transaction(lambda tx: tx.map("m").get(1)),
        "queue put": lambda: q.put(1), "queue take": lambda: q.take(timeout=0), "queue len": lambda: len(q),
        "ack": message.ack, "extend": message.extend, "nack": message.nack,
        "lock": lambda: lock.acquire(timeout=0), "held": lambda: held.held, "check": held.check, "release": held.release,
        "watch": lambda: next(watch), "watch anew": m.watch,
        "stream": lambda: s.append("x"), "read": lambda: list(s.read()), "reader": lambda: next(reader),
        "consumer": lambda: next(iter(consumer)), "session": lambda: db.session.token, "outcome": lambda: db.outcome("x"),
        "at": lambda: db.at("of1.x"), "runs": db.runs, "table": lambda: db.table("t").to_polars(),
    }  # fmt: skip
    return uses, (held, message, consumer)


def test_every_inherited_handle_says_that_it_must_be_opened_again(db):
    uses, _ = handles(db)
    before = [space.applied for space in db._shards]

    def use_all():
        wrong = []
        for name, use in uses.items():
            try:
                wrong.append(f"{name} gave {use()!r}")
            except of.SpaceError as error:
                if OPEN not in str(error) or not error.definite:
                    wrong.append(f"{name}: {error}")
            except BaseException as error:
                wrong.append(f"{name} raised {type(error).__name__}: {error}")
        db.close()
        return "; ".join(wrong)

    assert in_child(use_all) == ""
    assert [space.applied for space in db._shards] == before
    uses["put"]()
    uses["ack"]()
    uses["check"]()
    uses["release"]()


def test_a_child_keeps_what_has_the_number_of_a_lock_that_was_given_up(tmp_path):
    """A lock that was closed while its thread waited is closed by that thread, later; its number is somebody else's then."""
    holder, waiter = WriteLock(tmp_path / "lock"), WriteLock(tmp_path / "lock")
    holder.acquire(SOON_S)
    with pytest.raises(of.Timeout):
        waiter.acquire(0.01)
    number = waiter._fd
    waiter.close()
    holder.release()
    end = time.monotonic() + SOON_S
    while Path(f"/proc/self/fd/{number}").exists():
        assert time.monotonic() < end
        time.sleep(0.001)
    other = os.open(tmp_path / "of somebody else", os.O_CREAT | os.O_RDWR)
    if other != number:
        os.dup2(other, number)
        os.close(other)
    assert in_child(lambda: os.fstat(number).st_size) == "0"
    os.close(number)
    holder.acquire(0)
    holder.release()
    holder.close()


def test_a_memory_space_is_not_taken_for_shared_after_a_fork():
    with of.connect("memory://") as db:
        m = db.map("m")
        assert OPEN in in_child(lambda: m.put("a", 1))
        m["b"] = 1
        assert dict(m) == {"b": 1}


def test_handles_of_a_fork_amid_commits_and_reads_raise_and_do_not_hang(db):
    m, session = db.map("m"), db.map("m", consistency="session")
    with busy(
        lambda: m.put("w", 1),
        lambda: m.put_many(dict.fromkeys(range(5), 1)),
        lambda: list(m.items()),
        lambda: session[1],
    ):
        for use in (lambda: m.put("x", 1), lambda: m[1], lambda: session[1], lambda: len(m), db.close) * 3:
            said = in_child(use)
            assert said == "None" or OPEN in said


def test_a_child_that_opens_anew_works_whatever_the_parent_was_doing(db):
    m = db.map("m")

    def anew():
        with of.connect(db.url, timeout=60) as own:
            with own.transaction() as tx:
                tx.map("m").increment("children")
                tx.map("m").increment("others")
            assert own.map("m")["children"] >= 1
            return "done"

    with busy(lambda: m.put("w", 1), lambda: m.increment("x"), lambda: list(m.items())):
        assert [in_child(anew) for _ in range(10)] == ["done"] * 10
    assert m["children"] == m["others"] == 10
    for space in db._shards:
        space.verify()


def test_what_a_child_commits_is_kept_when_its_parent_closes_first(tmp_path):
    """The child's locks must be its own: else the parent is the last one to close, and resets the log under the child."""
    go, went = os.pipe(), os.pipe()
    db = of.connect(tmp_path / "space")
    db.map("m")["parent"] = 1

    def child():
        with of.connect(tmp_path / "space") as own:
            own.map("m")["early"] = 1
            os.write(went[1], b".")
            os.read(go[0], 1)
            for n in range(200):
                own.map("m")[n] = n
        return "done"

    def close():
        os.read(went[0], 1)
        db.close()
        with of.connect(tmp_path / "space") as other:
            other.map("m")["between"] = 1
        os.write(go[1], b".")

    closing = threading.Thread(target=close)
    saying = []
    forking = threading.Thread(target=lambda: saying.append(in_child(child)))
    forking.start()
    closing.start()
    forking.join()
    closing.join()
    assert saying == ["done"]
    with of.connect(tmp_path / "space") as other:
        assert set(other.map("m")) == {"parent", "early", "between", *range(200)}
        other._shard.verify()
    for end in (*go, *went):
        os.close(end)


DAEMON = """
import os, sys
import onefold as of
db = of.connect(sys.argv[1])
db.map("m")["parent"] = 1
if os.fork():
    os._exit(0)
os.setsid()
with of.connect(sys.argv[1]) as own:
    own.map("m")["early"] = 1
    if os.fork() == 0:
        with of.connect(sys.argv[1]) as grandchild:
            grandchild.map("m")["early too"] = 1
            print("ready", flush=True)
            sys.stdin.readline()
            for n in range(200):
                grandchild.map("m")["late", n] = 1
        print("done", flush=True)
        os._exit(0)
    os.wait()
"""


def test_a_daemon_whose_parents_are_gone_keeps_what_it_commits(tmp_path):
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, tmp_path / "space"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    daemon.wait()
    assert daemon.stdout.readline() == b"ready\n"
    for n in range(3):
        with of.connect(tmp_path / "space") as db:  # alone, as far as a child without locks could tell
            db.map("m")["opener", n] = 1
    daemon.stdin.write(b"go\n")
    daemon.stdin.flush()
    for n in range(3, 6):
        with of.connect(tmp_path / "space") as db:
            db.map("m")["opener", n] = 1
    assert daemon.stdout.readline() == b"done\n"
    with of.connect(tmp_path / "space") as db:
        assert len(db.map("m")) == 3 + 6 + 200
        db._shard.verify()
    daemon.stdin.close()
    daemon.stdout.close()


def test_a_fork_inside_a_transaction_commits_in_the_parent_only(db):
    with db.transaction() as tx:
        inside = tx.map("m")
        inside[1] = inside[1] + 1

        def go_on():
            for use in (lambda: inside[2], lambda: inside.put("c", 1), lambda: tx.__exit__(None, None, None)):
                with pytest.raises(of.SpaceError, match="Open it again in the child"):
                    use()
            return "refused"

        assert in_child(go_on) == "refused"
        inside["p"] = 1
    assert (db.map("m")[1], db.map("m")["p"]) == (2, 1)
    assert "c" not in db.map("m")


def test_a_fork_while_a_view_is_open_tells_the_child_to_start_otherwise(db, monkeypatch):
    with monkeypatch.context() as hasty, db._shard.view() as view:
        hasty.setattr("onefold.config.FORK_WAIT_S", 0.2)
        assert view.offset

        def anew():
            with pytest.raises(of.SpaceError, match="'spawn'"):
                of.connect(db.url)
            return "refused"

        assert in_child(anew) == "refused"
    db.map("m")["still"] = 1
    assert in_child(lambda: of.connect(db.url).map("m")["still"]) == "1"


def test_a_lock_and_a_message_stay_the_parents(db):
    q = db.queue("q")
    q.put("a")
    with db.lock("nightly", ttl="1h") as lock, q.get(timeout=0, renew=True) as message:

        def leave():
            with pytest.raises(of.SpaceError):
                lock.__exit__(None, None, None)
            with of.connect(db.url) as own, pytest.raises(of.Timeout):
                own.lock("nightly", timeout=0).acquire()
            return "left"

        assert in_child(leave) == "left"
        lock.check()
        message.extend()
    assert len(q) == 0


POOL = """
import onefold as of
with of.connect({url!r}) as own:
    own.map("m")["pool", {n}] = {n}
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(db, method):
    context = multiprocessing.get_context(method)
    with busy(lambda: db.map("m").increment("parent")):
        children = [context.Process(target=exec, args=(POOL.format(url=db.url, n=n),)) for n in range(3)]
        for child in children:
            child.start()
        for child in children:
            child.join(SOON_S)
            assert child.exitcode == 0
    assert [key for key in db.map("m") if isinstance(key, tuple)] == [("pool", n) for n in range(3)]


EXIT = """
import os, sys, threading
import onefold as of
with of.connect(sys.argv[1]) as db:
    m = db.map("m")
    threads = [threading.Thread(target=lambda: [m.increment("n") for _ in range(100)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    with db.lock("l"):
        if os.fork() == 0:
            sys.exit(0)  # through the blocks, atexit and all
        status = os.wait()[1]
    for thread in threads:
        thread.join()
    print(os.waitstatus_to_exitcode(status), m["n"])
"""


def test_a_child_that_ends_as_a_program_does_leaves_the_parents_work_alone(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", EXIT, tmp_path / "space"],
        capture_output=True,
        text=True,
        timeout=SOON_S,
        check=False,
    )
    assert done.stdout.split() == ["0", "400"], done.stderr
    with of.connect(tmp_path / "space") as db:
        db._shard.verify()


def test_without_the_locks_the_check_finds_lost_writes(tmp_path, monkeypatch):
    """The planted bug: a child that takes no locks of its own."""
    monkeypatch.setattr(inherited, "keep", lambda *args, **kwargs: None)
    with pytest.raises((AssertionError, of.LogCorrupt)):
        test_what_a_child_commits_is_kept_when_its_parent_closes_first(tmp_path)
