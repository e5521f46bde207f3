"""The way of one operation through the code: how many files and calls it takes, how often it moves between files, how deep.

    python benches/ways.py                          # a table of all operations
    python benches/ways.py --show put               # every call of one operation, indented by depth
    PYTHONPATH=../other/src python benches/ways.py  # the same of another checkout

An operation is repeated after a warm-up, and the run with the median number of calls is shown. What is counted, of functions
of the package ``onefold`` in all threads that take part while the operation runs:

- calls: entries into functions, also into a generator that continues (a ``with`` block of a context manager is two);
- files: modules that any of these functions are in;
- moves: calls of a function in another file than the one that called it, libraries in between left out;
- depth: the most of these functions on the stack of one thread;
- threads: those that made a call.

Worker processes are not seen, so the job uses expressions only. Comprehensions are calls up to Python 3.11.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NamedTuple

WARM_UPS = 5
RUNS = 9
KEYS = ("ann", "bob", "cid", "eva", "hal")
"""Five keys that are in all four shards of a space of four."""


class Call(NamedTuple):
    thread: int
    depth: int
    file: str
    function: str
    caller_file: str | None
    """None: called from outside of the package."""


@dataclass
class Trace:
    """The calls of one operation, in order."""

    calls: list[Call] = field(default_factory=list)

    @property
    def files(self) -> int:
        return len({call.file for call in self.calls})

    @property
    def moves(self) -> int:
        return sum(call.caller_file not in (None, call.file) for call in self.calls)

    @property
    def depth(self) -> int:
        return max((call.depth for call in self.calls), default=0)

    @property
    def threads(self) -> int:
        return len({call.thread for call in self.calls})


class Tracer:
    """Sees the calls of every thread that is started after it was installed, and of this one; keeps them while recording."""

    def __init__(self, package: Path) -> None:
        self._package = f"{package}/"
        self._trace: Trace | None = None
        self._local = threading.local()
        self._names: dict[str, str | None] = {}

    def install(self) -> None:
        threading.setprofile(self._see)
        sys.setprofile(self._see)

    @contextmanager
    def recording(self) -> Iterator[Trace]:
        gc.collect()
        gc.disable()  # finalizers are not part of the operation
        trace = self._trace = Trace()
        try:
            yield trace
        finally:
            self._trace = None
            gc.enable()

    def _see(self, frame: FrameType, event: str, _: object) -> None:
        if event not in ("call", "return"):
            return
        file = self._file(frame.f_code.co_filename)
        if file is None:
            return
        stack: list[FrameType] = self._local.__dict__.setdefault("stack", [])
        if event == "return":
            if stack and stack[-1] is frame:  # not one that was entered before this thread was seen
                stack.pop()
            return
        caller = self._file(stack[-1].f_code.co_filename) if stack else None
        stack.append(frame)
        if (trace := self._trace) is not None:
            trace.calls.append(
                Call(threading.get_ident(), len(stack), file, frame.f_code.co_qualname, caller)
            )

    def _file(self, name: str) -> str | None:
        """The file's path in the package; None for files of others."""
        if name not in self._names:
            inside = name.startswith(self._package)
            self._names[name] = name.removeprefix(self._package) if inside else None
        return self._names[name]


def of_state(folder: Path, shards: int, stack: ExitStack) -> dict[str, Callable[[], object]]:
    """Operations on a map of a new space."""
    import onefold as of

    db = stack.enter_context(of.connect(folder, shards=shards))
    accounts = db.map("accounts")
    accounts.put_many(dict.fromkeys(KEYS, 0))

    def transaction() -> None:
        with db.transaction() as tx:
            changed = tx.map("accounts")
            for key in KEYS:
                changed[key] = changed[key] + 1

    return {
        "put": lambda: accounts.put("ann", 1),
        "get": lambda: accounts.get("ann"),
        "transaction of 5 keys": transaction,
    }


def of_a_job(folder: Path, stack: ExitStack) -> Callable[[], object]:
    """Four files of text grouped in four tasks, by one worker."""
    import polars as pl

    import onefold as of
    from onefold import agg

    texts = folder / "texts"
    texts.mkdir(parents=True)
    for number in range(4):
        (texts / f"{number}.txt").write_text(f"alpha beta {number}\n" * 20)
    db = stack.enter_context(of.connect(folder / "space"))
    tables = iter(range(1_000_000))

    def job() -> None:
        into = f"words{next(tables)}"  # another table, so that no finished task is taken over
        words = db.read_text(f"{texts}/*.txt").select(word=pl.col("line").str.slice(0, 5))
        run = words.group_by("word").agg(n=agg.count()).into(into).start(workers=1, target_splits=4)
        run.wait()
        assert run.progress().total == 4, run.progress()

    return job


def traced(tracer: Tracer, operation: Callable[[], object], warm_ups: int, runs: int) -> Trace:
    """The run with the median number of calls."""
    for _ in range(warm_ups):
        operation()
    traces = []
    for _ in range(runs):
        with tracer.recording() as trace:
            operation()
        traces.append(trace)
    middle = statistics.median_low([len(trace.calls) for trace in traces])
    return next(trace for trace in traces if len(trace.calls) == middle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--show", metavar="OPERATION", help="print every call of the operations that begin so"
    )
    parser.add_argument("--runs", type=int, default=RUNS, help="of each operation")
    args = parser.parse_args()

    import onefold

    package = Path(onefold.__file__).parent
    tracer = Tracer(package)
    tracer.install()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        root = Path(folder)
        operations = of_state(root / "one", 1, stack)
        over_four = of_state(root / "four", 4, stack)
        operations |= {f"{name}, 4 shards": operation for name, operation in over_four.items()}
        operations["job of 4 tasks"] = of_a_job(root / "job", stack)
        wanted = {name: each for name, each in operations.items() if name.startswith(args.show or "")}
        if not wanted:
            raise SystemExit(f"no operation begins with {args.show!r}; there are: {', '.join(operations)}")
        print(f"{package}, Python {sys.version.split()[0]}")
        print(f"{'':32}{'files':>7}{'calls':>7}{'moves':>7}{'depth':>7}{'threads':>9}")
        for name, operation in wanted.items():
            small = not name.startswith("job")
            trace = traced(
                tracer, operation, WARM_UPS if small else 1, args.runs if small else min(3, args.runs)
            )
            print(
                f"{name:32}{trace.files:7}{len(trace.calls):7}{trace.moves:7}{trace.depth:7}{trace.threads:9}"
            )
            if args.show:
                for call in trace.calls:
                    print(f"{'  ' * call.depth}{call.function}  {call.file}")
        sys.setprofile(None)
        threading.setprofile(None)


if __name__ == "__main__":
    main()
