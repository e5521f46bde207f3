"""One run of the fault suite: workloads on a stand while the nemesis is at work, then their histories are checked."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from kit.cluster.client import workload_on
from kit.cluster.event_log import Recorded, load_events
from kit.cluster.job import JobUnderFaults
from kit.cluster.log_oracle import records_of
from kit.cluster.nemesis import FAULTS, Happened, Nemesis
from kit.cluster.reader import Reader
from kit.cluster.stand import Client, Stand
from kit.workloads.sessions import GROUP, Prefix
from onefold.db import connect
from onefold.testing.history import Verdict

LEVELS: Final = {"session": "session", "prefix": "prefix", "reader": "session"}
"""The consistency of a workload's connections, where it is not strong."""
DEFAULT_WORKLOADS: Final = ("register", "bank", "list-append", "queue", "session", "prefix", "reader")
WRITES: Final = frozenset({"write", "cas", "transfer", "txn", "put", "add", "transaction", "append"})
_FINISH_S: Final = 60.0
_JOB_S: Final = 300.0


@dataclass(frozen=True)
class Report:
    """What a run showed."""

    verdicts: dict[str, Verdict]
    faults: tuple[Happened, ...]
    skipped: dict[str, str]
    """Faults that this machine cannot show, with the reason."""
    operations: dict[str, tuple[int, int, int]]
    """For each workload how many were ok, failed, and of unknown outcome."""
    writes_paused_s: dict[str, float]
    """For each kind of fault the longest time in which no write of any client was acknowledged."""
    reads_paused_s: dict[str, float]
    """The same for the reads of those who only read, at ``session``, ``prefix`` and ``eventual``."""

    @property
    def good(self) -> bool:
        """Whether every history was found valid."""
        return all(self.verdicts.values())


def possible(stand: Stand, names: Sequence[str] | None = None) -> tuple[list[str], dict[str, str]]:
    """The faults that can be shown on the stand, and the others with the reason."""
    shown, skipped = [], {}
    for name in names or list(FAULTS):
        reason = FAULTS[name].needs(stand)
        if reason is None:
            shown.append(name)
        else:
            skipped[name] = reason
    return shown, skipped


def run(
    directory: Path,
    seed: int,
    *,
    workloads: Sequence[str] = DEFAULT_WORKLOADS,
    faults: Sequence[str] | None = None,
    rounds: int | None = None,
    shards: int = 1,
    clients: int = 2,
    think_s: float = 0.05,
    small_disk_bytes: int | None = None,
    job_tasks: int = 0,
    removes: bool = False,
) -> Report:
    """``faults``: which (default: all that this machine can show), in an order from the seed. ``rounds``: how many happen
    (default: each once). ``clients``: of each workload, every second one without a replica of its own. ``job_tasks``: nodes
    also work on a job of so many. ``removes``: see ``Stand``.

    Raises AssertionError when the cluster does not come back after a fault, or a client fails by itself.
    """
    with Stand(directory, shards=shards, seed=seed, removes=removes) as stand:
        stand.start(small_disk_bytes=small_disk_bytes)
        _set_up(stand, workloads, seed)
        job = JobUnderFaults(directory / "texts", seed, files=job_tasks) if job_tasks else None
        started = [
            _start(stand, workload, at, think_s=think_s) for workload in workloads for at in range(clients)
        ]
        stand.await_clients()
        stand.log(f"{len(started)} clients at work")
        shown, skipped = possible(stand, faults)
        order = _order(shown, rounds, seed)
        nemesis = Nemesis(stand, seed)
        stand.await_progress(_FINISH_S)
        if job is not None:
            with connect(stand.url(), replicas="remote", timeout=_FINISH_S) as db:
                job.begin(db)
        nemesis.run(order)
        ended = time.monotonic()
        stand.stop_clients()
        stand.log("all clients have ended")
        report = _check(stand, workloads, seed, nemesis.happened, skipped, ended)
        if job is not None:
            with connect(stand.url(), replicas="remote", timeout=_FINISH_S) as db:
                report.verdicts["job"] = job.check(db, _JOB_S)
            stand.log(f"job: {report.verdicts['job'].validity.value}")
        return report


def _set_up(stand: Stand, workloads: Sequence[str], seed: int) -> None:
    with connect(stand.url(), replicas="remote", timeout=_FINISH_S) as db:
        for workload in workloads:
            workload_on(workload, Recorded([]), seed, stand.shards).setup(db)


def _start(stand: Stand, workload: str, at: int, *, think_s: float) -> Client:
    return stand.start_client(
        workload,
        consistency=LEVELS.get(workload, "strong"),
        replicas="local" if at % 2 == 0 else "remote",
        threads=2 if at == 0 and workload == "register" else 1,
        think_s=think_s,
    )


def _order(shown: Sequence[str], rounds: int | None, seed: int) -> list[str]:
    rng = random.Random(f"order {seed}")
    order: list[str] = []
    while shown and len(order) < (rounds or len(shown)):
        order += rng.sample(list(shown), len(shown))
    return order[: rounds or len(shown)]


def _check(
    stand: Stand,
    workloads: Sequence[str],
    seed: int,
    happened: Sequence[Happened],
    skipped: dict[str, str],
    ended: float,
) -> Report:
    verdicts: dict[str, Verdict] = {}
    counts: dict[str, tuple[int, int, int]] = {}
    written: list[float] = []
    read: list[float] = []
    for workload in workloads:
        history = Recorded(load_events(stand.histories(workload)))
        checker = workload_on(workload, history, seed, stand.shards, index=0)
        level = LEVELS.get(workload, "strong")
        with connect(stand.url(), consistency=level, replicas="local", timeout=_FINISH_S) as db:
            db.map("other").put("end", 1)
            db.map("other").get("end", consistency="strong")  # nothing weaker can miss what was acknowledged
            if isinstance(checker, Prefix):
                checker.order = records_of(db, checker.registers, GROUP)
            else:
                checker.finish(db)
        began = time.monotonic()
        verdicts[workload] = checker.check()
        stand.log(
            f"{workload}: {verdicts[workload].validity.value}, checked in {time.monotonic() - began:.1f} s"
        )
        operations = history.operations
        statuses = [op.status for op in operations]
        counts[workload] = (statuses.count("ok"), statuses.count("fail"), statuses.count("info"))
        written += [op.end for op in operations if op.status == "ok" and op.kind in WRITES]
        if workload == Reader.name:
            read += [op.end for op in operations if op.status == "ok" and op.kind == "read"]
    paused = pauses(happened, written, ended), pauses(happened, read, ended) if read else {}
    return Report(verdicts, tuple(happened), skipped, counts, *paused)


def pauses(happened: Sequence[Happened], ends: Sequence[float], until: float) -> dict[str, float]:
    """For each kind of fault the longest time between two of the moments ``ends``, from its beginning to that of the next fault
    (``until`` after the last)."""
    found: dict[str, float] = {}
    bounds = [*(fault.began for fault in happened), until]
    for fault, stop in zip(happened, bounds[1:], strict=True):
        moments = [fault.began, *(end for end in sorted(ends) if fault.began < end < stop), stop]
        longest = max(after - before for before, after in pairwise(moments))
        found[fault.name] = max(found.get(fault.name, 0.0), longest)
    return found
