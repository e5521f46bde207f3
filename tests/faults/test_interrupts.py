"""Exceptions of signal handlers, anywhere in the main thread: nothing stays locked, nothing is half done, nobody else notices."""

import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import onefold as of
from onefold.cluster.servers import LocalServers
from onefold.log.sqlite import pooled_file
from onefold.log.sqlite.pooled_file import Hold
from onefold.machine import undisturbed
from onefold.state.core.time_limits import end_of
from support.interrupting import EVERYTHING, handler, in_a_thread, interrupted_at, places_of

PROGRAM = Path(__file__).with_name("interrupted_program.py")
sys.path.insert(0, str(PROGRAM.parent))
from interrupted_program import INTERRUPTS, SoftLimit  # noqa: E402

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]
HANDLES = ("/onefold/state/",)
QUEUES = (
    "/state/queues/queue.py",
    "/state/queues/messages.py",
    "/state/queues/watcher.py",
    "/state/core/leases.py",
)
LIMITS = ("/state/core/time_limits.py", "/state/maps/map.py")
WAIT_S = 60
OTHER = """
import sys, onefold as of
m = of.connect(sys.argv[1], timeout=10).map("m")
for line in sys.stdin:
    m.put("other", line)
    print("ok", flush=True)
"""


@contextmanager
def other_process(folder):
    """Gives a function that has another process write to the space."""
    command = [sys.executable, "-c", OTHER, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:

        def write():
            process.stdin.write("x\n")
            process.stdin.flush()
            return process.stdout.readline().strip() == "ok"

        yield write
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


class Actions:
    """What is interrupted. Each write makes ``value`` the value of the key ``k``."""

    def __init__(self, db):
        self.db = db
        self.value = 0
        self.map = db.map("m")
        self.queue = db.queue("q", lease="1h", max_attempts=1 << 40)
        self.map["k"] = 0

    def put(self):
        self.map["k"] = self.value

    def transact(self):
        with self.db.transaction() as tx:
            one = tx.map("m")
            one["k"] = self.value

    def get(self):
        self.map.get("k")

    def modify(self):
        self.map.modify("k", lambda _: self.value)

    def scan(self):
        list(self.map.items())

    def pass_message(self):
        self.queue.put(self.value)
        with self.queue.get(timeout=0):
            pass

    def write_after(self):
        """Another thread's write, and what it had found."""
        found = self.map["k"]
        self.map["after"] = self.value
        later = self.map["k"]
        return found if later == found else ("what was broken off came with the next write", found, later)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # in a generator that nobody has any more
@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("put", EVERYTHING),
        ("get", EVERYTHING),
        ("scan", EVERYTHING),
        ("transact", HANDLES),
        ("pass_message", QUEUES),
        ("modify", LIMITS),
    ],
)
@pytest.mark.moving(3)
def test_an_interrupt_at_every_line_breaks_nothing(tmp_path, name, files):
    kinds = itertools.cycle(INTERRUPTS)
    with (
        closing(of.connect(tmp_path / "space", timeout=60)) as db,
        other_process(tmp_path / "space") as write,
    ):
        actions = Actions(db)
        action = getattr(actions, name)
        action()
        places = places_of(action, files)
        assert len(places) > 30
        for place in places:
            old, actions.value = actions.map["k"], actions.value + 1
            where = (place[0].co_filename, place[0].co_name, place[1:])
            interrupted_at(place, action, next(kinds))
            assert end_of(actions.map.client) is None, where
            found = in_a_thread(actions.write_after)
            assert found in (old, actions.value), where
            assert write(), where
        del actions
        file = db._shards[0]._file
        # As many as are kept for the next readers: one that is lost with each interrupt would be hundreds.
        assert len(file._readers) <= pooled_file._IDLE_READERS_MAX, "connections are taken back"


def wrapped(function):
    @functools.wraps(function)
    def calls(*args, **named):
        return function(*args, **named)

    return calls


def once(*_):
    """The usual soft limit: it is not installed any more when its exception arrives."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    raise SoftLimit


@wrapped
def decorated(*_):
    raise SoftLimit


@wrapped
def decorated_once(number, _frame):
    signal.signal(number, signal.SIG_DFL)
    raise SoftLimit


def without_its_frame(number, frame):
    del frame
    raise SoftLimit(number)


class Limit:
    def __call__(self, _number, frame=None):
        raise SoftLimit

    def told(self, kind, _number, _frame):
        raise kind


HANDLERS = [
    once,
    decorated,
    decorated_once,
    without_its_frame,
    Limit(),
    functools.partial(Limit().told, SoftLimit),
    lambda *_: wrapped(lambda: handler(SoftLimit))(),
]


@pytest.mark.parametrize("installed", HANDLERS)
def test_an_interrupt_in_a_fold_is_not_the_folds_fault(tmp_path, installed):
    from onefold.state.fold.machine import StateFold

    before = signal.getsignal(signal.SIGUSR1)
    with closing(of.connect(tmp_path / "space")) as db:
        m = db.map("m")
        m["k"] = 1
        try:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(StateFold, "apply", lambda *_: signal.raise_signal(signal.SIGUSR1))
                signal.signal(signal.SIGUSR1, installed)
                with pytest.raises(SoftLimit):
                    m["k"] = 2
                patched.setattr(StateFold, "apply", lambda *_: 1 // 0)
                with pytest.raises(of.SpaceError, match="ZeroDivisionError"):
                    m["k"] = 2
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert m["k"] == 1


def test_an_interrupted_open_and_close_leave_nothing_behind(tmp_path):
    members = tmp_path / "space" / "members"
    opened = []

    def opens():
        opened.append(of.connect(tmp_path / "space"))

    def closes():
        opened[-1].close()

    opens()
    closes()
    # Not when it returns: nobody can close what nobody has.
    places = [place for place in places_of(opens) if place[2] != "return"]
    closes()
    assert len(places) > 10
    for place in places:
        opened.clear()
        interrupted_at(place, opens, KeyboardInterrupt)
        if opened:
            closes()
        until(lambda: not list(members.iterdir()))
    opens()
    places = places_of(closes)
    assert len(places) > 10
    for place in places:
        opens()
        interrupted_at(place, closes, KeyboardInterrupt)
        closes()
        assert not list(members.iterdir())


def test_closing_what_nobody_wants_does_not_delay_the_mending_of_a_write(tmp_path):
    """The close queues for the write lock that the broken-off write holds, and comes before it in the mending."""
    with closing(of.connect(tmp_path / "space", timeout=WAIT_S / 3)) as db:
        m = db.map("m")
        m["k"] = 1
        two = of.connect(tmp_path / "space", timeout=WAIT_S)
        file = db._shards[0]._file
        hold = Hold(file, file.timeout)
        hold.__enter__()
        call = undisturbed._Call(lambda: two, of.Database.close)
        call.run()
        undisturbed.mend_later(call)
        undisturbed.mend_later(hold)
        assert in_a_thread(lambda: m.put("k", 2)) is not None
        until(lambda: two._shards[0]._file._writer is None)


@pytest.mark.parametrize("fails", [False, True])
def test_a_write_block_that_is_interrupted_anywhere_lets_the_next_writer_in(tmp_path, fails):
    """Nobody but the block keeps track of it."""
    with closing(of.connect(tmp_path / "space", timeout=WAIT_S)) as db:
        m = db.map("m")
        m["k"] = 1
        file = db._shards[0]._file

        def write():
            try:
                with file.writing() as con:
                    con.execute("CREATE TABLE IF NOT EXISTS t(a)")
                    if fails:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                pass

        # Handlers run at entries and between lines, and not where a function returns or an exception enters a generator.
        files = ("/log/sqlite/pooled_file.py", "/machine/flock.py")
        places = [
            (code, line, event)
            for code, line, event in places_of(write, files)
            if event != "return" and not (fails and event == "call" and line > code.co_firstlineno + 1)
        ]
        assert len(places) > 20
        for place in places:
            interrupted_at(place, write, KeyboardInterrupt)
            assert in_a_thread(lambda: m.put("k", 2)) is not None, place


def until(condition):
    """Wait for a state that another thread brings about."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_write_in_a_handler_that_interrupts_a_write_is_refused(tmp_path):
    with closing(of.connect(tmp_path / "space")) as db:
        m = db.map("m")
        m["k"] = 1
        caught = []

        def writes(*_):
            try:
                m["h"] = 1
            except of.Unavailable as error:
                caught.append(error)

        def trace(frame, _event, _):
            if frame.f_code.co_name == "append_in":
                sys.settrace(None)
                writes()

        sys.settrace(trace)
        try:
            m["k"] = 2
        finally:
            sys.settrace(None)
        assert [error.definite for error in caught] == [True]
        assert m["k"] == 2
        assert "h" not in m


def run_storm(url, seed, wanted, cache):
    """Let a program be interrupted; then this process writes beside it."""
    program = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(url), str(seed), str(wanted)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "ONEFOLD_CACHE": str(cache)},
        text=True,
    )
    try:
        line = program.stdout.readline()
        if line:
            with closing(of.connect(url)) as db:
                db.map("m")["other"] = 1
        _, errors = program.communicate("x", timeout=300)
        assert program.returncode == 0, f"seed {seed}: {errors[-3000:]}"
        return json.loads(line)["hits"]
    finally:
        program.kill()
        program.wait()


def test_a_storm_of_signals_embedded(tmp_path):
    assert run_storm(tmp_path / "space", 1, 3600, tmp_path / "cache") == 3600


def test_a_storm_of_signals_with_a_local_replica(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))
    servers = LocalServers.start(tmp_path / "server", 1, secure=False)
    try:
        url = servers.url("storm")
        of.connect(url).close()
        assert run_storm(url, 2, 1500, tmp_path / "cache") == 1500
    finally:
        servers.stop(delete=True)
