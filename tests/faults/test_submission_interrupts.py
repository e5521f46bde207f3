"""A signal handler's exception while a job is described, submitted or waited for comes out as it is, and the job runs later."""

import ast
import random
import signal
import sys
from pathlib import Path

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute import foreign

pytestmark = pytest.mark.faults
COMPUTE = Path(foreign.__file__).parent
ONLY_WORKERS = {"kernels.py", "pipeline.py", "python_steps.py", "reduce.py", "row_steps.py", "worker.py"}
"""What runs in worker processes and in the runner's threads alone, where no handler of the program does."""
ONLY_RUNNERS = {"attempts.py", "compaction.py", "local_workers.py", "runner.py", "sifting.py", "writers.py"}
PLACES = 40


class SoftLimit(Exception):
    """What a handler raises: an error like any other."""


def handler(kind, _frame=None):
    raise kind("time is up")


@pytest.fixture(autouse=True)
def known_handler():
    before = signal.signal(signal.SIGUSR1, handler)
    yield
    signal.signal(signal.SIGUSR1, before)


def traced(action, hit):
    """Run the action; ``hit`` is called with the number and the name of each line that it passes in this thread."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if "/onefold/compute/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            count += 1
            hit(count, f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return action()
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("kind", [SoftLimit, TimeoutError, KeyboardInterrupt])
def test_it_comes_out_as_it_is_wherever_it_is_raised(tmp_path, kind):
    source = tmp_path / "in.csv"
    source.write_text("k,v\na,1\nb,2\na,3\n")
    text = "x"
    with of.connect(tmp_path / "space") as db:

        def described():
            rows = db.read_csv(source, schema={"k": pl.String, "v": pl.Int64}).filter(pl.col("v") > 0)
            grouped = rows.map(lambda row: row | {"w": text}).group_by("k").agg(n=agg.sum("v"))
            return grouped.into("t", mode="replace")

        def start():
            return described().start(workers=0)

        lines = 0

        def counted(number, _):
            nonlocal lines
            lines = number

        start().cancel()  # imports, and what is kept from then on
        traced(start, counted).cancel()
        assert lines > 300
        met = 0
        rng = random.Random(f"{kind.__name__} 1")
        for chosen in sorted(rng.sample(range(1, lines), PLACES)):
            at = ""

            def hit(number, where, chosen=chosen):
                nonlocal at
                if number == chosen:
                    at = where
                    sys.settrace(None)
                    handler(kind)

            raised = None
            try:
                traced(start, hit).cancel()
            except BaseException as error:
                raised = error
            if at:
                assert type(raised) is kind, (at, raised)
                met += 1
        assert met > PLACES // 2
        run = described().run(progress=False, workers=1)
        assert run.state == "done"
        assert db.table("t").to_polars().sort("k").rows() == [("a", 4), ("b", 2)]


def test_submission_and_work_are_done_where_no_signal_arrives(tmp_path):
    """A storm of real signals over jobs: what was interrupted can be run again at once, and gives the right result."""
    (tmp_path / "in.csv").write_text("k,v\na,1\nb,2\na,3\n")
    rng = random.Random(5)

    def alarm(_number, _frame):
        raise SoftLimit

    before = signal.signal(signal.SIGALRM, alarm)
    interrupted = 0
    try:
        with of.connect(tmp_path / "space") as db:
            for number in range(80):
                job = db.read_csv(tmp_path / "in.csv").group_by("k").agg(n=agg.sum("v"), c=agg.count())
                try:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0005, 0.02))
                        job.into(f"t{number}").start(workers=0)
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except SoftLimit:
                    interrupted += 1
                run = job.into(f"t{number}").run(progress=False, workers=1)
                assert run.state == "done"
                assert db.table(f"t{number}").to_polars().sort("k").rows() == [("a", 4, 2), ("b", 2, 1)]
            assert interrupted >= 20
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", [SoftLimit, ValueError, KeyboardInterrupt])
def test_it_is_not_translated(kind):
    with pytest.raises(kind), foreign.translated("x"):
        handler(kind)
    assert not foreign.is_foreign(kind()) or kind is not KeyboardInterrupt


def test_no_handler_of_exceptions_takes_it():
    """Whatever catches every exception in the program's own thread raises it again, or lets a handler's pass."""
    taking = []
    for path in sorted(COMPUTE.rglob("*.py")):
        if path.name in ONLY_WORKERS | ONLY_RUNNERS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = ast.unparse(node.type) if node.type is not None else "BaseException"
            if caught not in ("Exception", "BaseException"):
                continue
            body = ast.unparse(node)
            passes = "is_interrupt(" in body or "is_foreign(" in body
            again = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            if not passes and not again:
                taking.append(f"{path.name}:{node.lineno}")
    allowed = {name for name in taking if name.startswith(("failures.py", "values_as_text.py"))}  # text only
    assert set(taking) == allowed
