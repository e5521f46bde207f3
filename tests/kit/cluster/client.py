"""One client process of the fault suite: does a workload's operations on a real space and writes down what it saw.

``PYTHONPATH=tests python -m kit.cluster.client '{"url": …, "workload": "register", "index": 1, "seed": 7, "history": FILE, …}'``

It continues until its stdin is closed. The first line that it prints says that it is connected.
"""

from __future__ import annotations

import os
import random
import select
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec

from kit.cluster.event_log import EventLog
from kit.cluster.reader import Reader
from kit.workloads import WORKLOADS
from kit.workloads.base import Workload
from onefold.db import Database, connect
from onefold.testing.history import History
from onefold.testing.sim.process import is_of_faults
from onefold.testing.sim.world import Simulation

_PROCESSES_PER_CLIENT = 10_000
_NUMBERS_PER_CLIENT = 10_000_000
_THINK_S = 0.02


class Instructions(msgspec.Struct, frozen=True):
    """The instructions of one client."""

    url: str
    workload: str
    index: int
    """Of this client, from 1; a client that is started again after its death gets a new one."""
    seed: int
    history: str
    """The file for its events."""
    consistency: str = "strong"
    replicas: str = "local"
    timeout_s: float = 5.0
    threads: int = 1
    think_s: float = _THINK_S


class Stage:
    """What a workload needs of the world that it runs in: here the real one."""

    def __init__(self, history: History, seed: int, shards: int) -> None:
        self.history = history
        self.seed = seed
        self.servers = range(shards)
        self.nodes = (1,)  # there are some, so a read may be answered by whichever comes first
        self.lines: list[str] = []

    def sleep(self, seconds: float) -> None:
        """Really sleeps."""
        time.sleep(seconds)

    def log(self, line: str) -> None:
        """To stderr."""
        print(f"{time.monotonic():.3f} {line}", file=sys.stderr, flush=True)


def workload_on(name: str, history: History, seed: int, shards: int, *, index: int = 0) -> Workload:
    """The simulator's workload, for one client of a real cluster: its numbers are its own."""
    stage = cast(Simulation, Stage(history, seed, shards))
    kind = Reader if name == Reader.name else WORKLOADS[name][0]
    workload = kind(stage, 0)
    workload._processes = index * _PROCESSES_PER_CLIENT
    workload._unique = index * _NUMBERS_PER_CLIENT
    workload.random = random.Random(f"{name} {seed} {index}")
    if hasattr(workload, "_free"):  # sessions that were numbered before
        workload._free = [(workload.new_process(), "") for _ in workload._free]
    return workload


def open_client(told: Instructions, *, timeout_s: float = 60.0) -> Database:
    """Connect; tried again while the cluster cannot be reached, which faults bring about."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            return connect(
                told.url,
                consistency=told.consistency,
                timeout=told.timeout_s,
                **cast(dict[str, Any], {"replicas": told.replicas}),
            )
        except Exception as error:
            if time.monotonic() > end or not _may_pass(error):
                raise
            time.sleep(0.2)


def _may_pass(error: Exception) -> bool:
    from onefold.errors import OnefoldError

    return isinstance(error, OnefoldError) and is_of_faults(error)


def main(arguments: list[str]) -> None:
    """Run the client described by the one argument."""
    told = msgspec.json.decode(arguments[0], type=Instructions)
    history = EventLog(Path(told.history))
    over = threading.Event()
    with open_client(told) as db:
        print("connected", flush=True)
        workload = workload_on(told.workload, history, told.seed, len(db._shards), index=told.index)
        threads = [
            threading.Thread(target=_guarded, args=(_work, workload, db, over, told.think_s))
            for _ in range(told.threads)
        ]
        for thread in threads:
            thread.start()
        _until_told(over)
        for thread in threads:
            thread.join()


def _until_told(over: threading.Event) -> None:
    while not over.is_set():
        ready, _, _ = select.select([sys.stdin], [], [], 1.0)
        if ready and not sys.stdin.readline():
            over.set()


def _work(workload: Workload, db: Database, over: threading.Event, think_s: float) -> None:
    process = workload.new_process()
    rng = random.Random(process)
    while not over.is_set():
        try:
            workload.step(db, process)
        except Exception as error:
            if not _may_pass(error):
                raise
            # A step that is not one operation (a message that was taken and not acknowledged): its parts are recorded.
            workload.simulation.log(f"a step ended with {type(error).__name__}: {error}")
            process = workload.new_process()
        if rng.random() < 0.7:
            over.wait(rng.expovariate(1 / think_s))


def _guarded(target: Callable[..., None], *arguments: Any) -> None:
    try:
        target(*arguments)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(3)  # a client that fails by itself must not look like one that was told to end


if __name__ == "__main__":
    main(sys.argv[1:])
