"""Programs that a signal ends while something is taken or ended: that is undone or completed before they are gone."""

import ast
import signal
import subprocess
import sys

import pytest

import onefold as of
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


def test_no_handler_of_exceptions_in_shared_state_swallows_an_interrupt():
    """Whatever catches every exception raises it again; what may fail is a ``best_effort``, or is mended apart."""
    swallowing = []
    for path in sorted((LIBRARY / "state").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type is not None else "BaseException"
                last = node.body[-1]
                again = "is_interrupt(" in ast.unparse(node) or (
                    isinstance(last, ast.Raise) and last.exc is None
                )
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
                caught, again = ast.unparse(node.args[0]), False
            else:
                continue
            if caught in ("Exception", "BaseException") and not again:
                swallowing.append(f"{path.name}:{node.lineno}")
    assert not swallowing
