"""Programs that a signal ends while something is taken or ended: that is undone or completed before they are gone."""

import ast
import os
import re
import signal
import subprocess
import sys
from contextlib import closing

import pytest

import onefold as of
from onefold.state.encoding.keys import encode_key
from support.traced import LIBRARY

pytestmark = pytest.mark.faults
PROGRAM = """
import contextlib, os, signal, sys, threading, time
import onefold as of
from onefold.state.core.client import StateClient

submit, main = StateClient.submit, threading.get_ident()

def slow(self, *args, **kwargs):
    if main != threading.get_ident():
        time.sleep(0.1)  # as on a busy machine: the main thread is at its end before this
    return submit(self, *args, **kwargs)

def trace(frame, event, _):
    if event == "call" and frame.f_code.co_name == "announce":  # after COMMIT
        sys.settrace(None)
        StateClient.submit = slow
        os.kill(os.getpid(), signal.SIGINT)

db = of.connect(sys.argv[1])
q, lock = db.queue("q", lease="1h", max_attempts=1), db.lock("l", ttl="1h")
taken = q.take(timeout=0) if sys.argv[2] == "ack" else None
act = {"take": lambda: q.take(timeout=0), "ack": lambda: taken.ack(), "lock": lock.acquire}[sys.argv[2]]
with db if sys.argv[3] == "closed" else contextlib.nullcontext():
    sys.settrace(trace)
    act()
"""


@pytest.mark.parametrize("how", ["closed", "open"])
@pytest.mark.parametrize("what", ["take", "ack", "lock"])
def test_what_the_interrupt_broke_off_is_mended_before_the_program_ends(tmp_path, what, how):
    with of.connect(tmp_path / "space") as db:
        q = db.queue("q", lease="1h", max_attempts=1)
        q.put("x")
        program = [sys.executable, "-c", PROGRAM, str(tmp_path / "space"), what, how]
        ended = subprocess.run(program, stderr=subprocess.PIPE, check=False)
        assert ended.returncode == -signal.SIGINT, ended.stderr.decode()
        assert b"KeyboardInterrupt" in ended.stderr
        assert db.lock("l").holder() is None
        if what == "ack":
            assert len(q) == 0
        else:
            with q.get(timeout=0) as message:
                assert message.attempt == 1
        assert q.dead() == []


ALL = {"Exception", "BaseException"}
ANSWERS = {"OnefoldError", "Unavailable", "Timeout", "Conflict", "SpaceError", "AppendUnknown", "Expired"}
"""What says of a submission what became of it, and nothing when a signal handler has raised it."""
ANSWERS_OF_LIVE_JOBS = {
    "PASSING",
    "FAULTS",
    "NotRunning",
    "OtherPlan",
    "Unreserved",
    "Overtaken",
    "BundleLost",
}
ANSWERS_OF_LIVE_JOBS |= {
    "JobFailed",
    "TaskError",
    "InvalidArgument",
    "InvalidValue",
    "InvalidPlan",
    "TooLarge",
}
IN_THE_MAIN_THREAD = (
    "state",
    "aio",
    "shard/appender.py",
    "shard/embedded.py",
    "shard/over_log.py",
    "shard/fold_version.py",
    "regions/folder.py",
    "regions/links.py",
    "regions/neighbours.py",
    "testing/links.py",
)
LIVE_JOBS_IN_THE_MAIN_THREAD = (
    "database",
    "compute/bounded",
    "compute/launching.py",
    "compute/live",
    "compute/live_dataset.py",
    "compute/live_runs.py",
    "compute/live_starting.py",
)
WORKERS = {
    "bundles.py",
    "job_worker.py",
    "keeper.py",
    "local_workers.py",
    "node_workers.py",
    "python_steps.py",
}
"""What runs in the threads of workers of live jobs alone."""
IN_A_THREAD_OF_ITS_OWN = {"leases.py"} | WORKERS


def handlers(folder):
    """(where, what is caught, whether an interrupt comes out again) of what handles exceptions."""
    files = [folder] if folder.suffix else sorted(folder.rglob("*.py"))
    for path in files:
        if path.name in IN_A_THREAD_OF_ITS_OWN:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type is not None else "BaseException"
                last, body = node.body[-1], ast.unparse(node)
                again = (
                    "is_interrupt(" in body
                    or "let_pass(" in body
                    or (isinstance(last, ast.Raise) and last.exc is None)
                )
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
                caught, again = " ".join(ast.unparse(one) for one in node.args), False
            else:
                continue
            yield f"{path.name}:{node.lineno}", set(re.findall(r"\w+", caught)), again


def taking(parts, kinds):
    """(where, whether an interrupt comes out again) of what handles these kinds of exceptions."""
    found = [one for part in parts for one in handlers(LIBRARY / part)]
    return [(where, again) for where, caught, again in found if caught & kinds]


def test_no_handler_of_exceptions_in_shared_state_swallows_an_interrupt():
    """Whatever catches every exception raises it again; what may fail is a ``best_effort``, or is mended apart."""
    swallowing = [where for where, caught, again in handlers(LIBRARY / "state") if caught & ALL and not again]
    assert not swallowing


def test_an_error_of_a_signal_handler_is_not_taken_for_the_answer_of_the_space():
    """A handler may raise this library's own errors."""
    answers = list(taking(IN_THE_MAIN_THREAD, ANSWERS))
    assert len(answers) > 20
    of_live_jobs = list(taking(LIVE_JOBS_IN_THE_MAIN_THREAD, ANSWERS | ANSWERS_OF_LIVE_JOBS))
    assert len(of_live_jobs) > 15
    assert [where for where, again in answers + of_live_jobs if not again] == []


@pytest.mark.parametrize("at", range(3))
def test_an_error_of_a_handler_never_decides_a_transaction_over_shards(tmp_path, at):
    """It comes after the decision to commit was appended, or before, and says of itself that nothing was written."""

    class Limit(of.Unavailable):
        pass

    def handler(*_):
        raise Limit("the time is up", definite=True)

    before = signal.signal(signal.SIGUSR1, handler)
    calls = []

    def trace(frame, event, _):
        if event == "call" and frame.f_code.co_name == "announce":  # after COMMIT
            calls.append(frame)
            if len(calls) == at + 1:  # a vote, another vote, the decision
                sys.settrace(None)
                os.kill(os.getpid(), signal.SIGUSR1)

    try:
        with closing(of.connect(tmp_path / "space", shards=2)) as db:
            m = db.map("m")
            keys = [next(k for k in range(100) if m.client.shard_of(encode_key(k)) == s) for s in range(2)]
            m.update(dict.fromkeys(keys, 0))

            def write():
                with db.transaction() as tx:
                    for key in keys:
                        tx.map("m")[key] = 1
                    sys.settrace(trace)

            with pytest.raises(Limit):
                write()
            sys.settrace(None)
            assert len(calls) == at + 1
            with db.transaction() as tx:
                assert [tx.map("m")[key] for key in keys] == ([1, 1] if at == 2 else [0, 0])
    finally:
        sys.settrace(None)
        signal.signal(signal.SIGUSR1, before)
