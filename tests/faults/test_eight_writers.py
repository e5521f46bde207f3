"""Eight writers at once: all have their turn, and nobody waits for long beyond what the disk costs.

Turns are counted in records between two puts of one writer, which no load of the machine changes much; times are compared with
``fdatasync`` alone, beside them in the same moments.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest

import onefold as of

pytestmark = pytest.mark.faults
PROGRAM = Path(__file__).with_name("state_writer.py")
_spec = importlib.util.spec_from_file_location("state_writer", PROGRAM)
program = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(program)
WRITERS = 8
SECONDS = 3
STALL_S = 0.1
TURNS_P99 = 5 * WRITERS
TRIES = 10
"""While other programs keep all processors busy, who has the lock writes on before the woken one runs (138 turns with three such
programs), whatever the lock does. So one try of these without such company is enough; a lock that is not fair fails in each."""
SHARE_MIN = 0.33


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def check_fairness(writers):
    """``writers``: of each the offsets of its puts."""
    counts = [len(offsets) for offsets in writers]
    assert min(counts) >= SHARE_MIN * statistics.mean(counts), f"somebody starves: {counts}"
    turns = [after - before for offsets in writers for before, after in pairwise(offsets)]
    assert percentile(turns, 0.99) <= TURNS_P99, f"overtaken too often: {sorted(turns)[-20:]}"


def check_stalls(took, synced):
    """``took``: how long puts took; ``synced``: how long syncs took meanwhile. A put waits for eight, and each may meet a
    checkpoint's sync too."""
    cost_s = 2 * WRITERS * percentile(synced, 0.99)
    assert percentile(took, 0.99) <= STALL_S + cost_s, (
        f"puts stall: p99 {percentile(took, 0.99):.3f} s, and {cost_s:.3f} s is what syncing costs"
    )


@contextmanager
def started(*jobs):
    processes = [
        subprocess.Popen([sys.executable, PROGRAM, *job], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for job in jobs
    ]
    try:
        for process in processes:
            with suppress(PermissionError):  # other tests keep the processors busy
                os.sched_setscheduler(process.pid, os.SCHED_RR, os.sched_param(1))
            assert json.loads(process.stdout.readline())["say"] == "ready"
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


def run(processes):
    for process in processes:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    return lambda: [json.loads(process.stdout.readline()) for process in processes]


def checked(attempt):
    """``attempt(n)`` gives what the checks take."""
    for n in range(TRIES):
        writers, took, synced = attempt(n)
        try:
            check_fairness(writers)
            check_stalls(took, synced)
        except AssertionError:
            if n == TRIES - 1:
                raise
        else:
            return


def test_eight_processes(tmp_path):
    def attempt(n):
        space = tmp_path / f"space{n}"
        of.connect(space).close()
        jobs = [("put", space, f"w{n}", str(SECONDS)) for n in range(WRITERS)]
        with started(("sync", tmp_path / "synced", "", str(SECONDS)), *jobs) as processes:
            disk, *said = run(processes)()
        return [one["offsets"] for one in said], [took for one in said for took in one["took"]], disk["took"]

    checked(attempt)


def test_eight_threads(tmp_path):
    def attempt(turn):
        found = [None] * WRITERS
        together = threading.Barrier(WRITERS)
        with (
            of.connect(tmp_path / f"space{turn}") as db,
            started(("sync", tmp_path / "synced", "", str(SECONDS))) as processes,
        ):
            answers = run(processes)

            def write(n):
                step = program.put_step(db, f"w{n}")
                together.wait()
                found[n] = program.timed(step, SECONDS)

            threads = [threading.Thread(target=write, args=(n,)) for n in range(WRITERS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            (disk,) = answers()
        return [offsets for _, offsets in found], [one for took, _ in found for one in took], disk["took"]

    checked(attempt)


def test_the_checks_notice_who_starves_and_who_stalls():
    fair = [list(range(n, 8000, 8)) for n in range(8)]
    check_fairness(fair)
    with pytest.raises(AssertionError, match="starves"):
        check_fairness([*fair[:7], fair[7][:50]])
    in_bursts = [[burst * 800 + n * 100 + i for burst in range(10) for i in range(5)] for n in range(8)]
    with pytest.raises(AssertionError, match="overtaken"):
        check_fairness(in_bursts)
    check_stalls([0.02] * 1000, [0.001] * 1000)
    tries = []

    def unfair(n):
        tries.append(n)
        return in_bursts, [0.02], [0.001]

    with pytest.raises(AssertionError, match="overtaken"):
        checked(unfair)
    assert tries == list(range(TRIES))
    checked(lambda n: (fair if n == 2 else in_bursts, [0.02], [0.001]))
    with pytest.raises(AssertionError, match="stall"):
        check_stalls([0.02] * 900 + [0.53] * 100, [0.001] * 1000)
