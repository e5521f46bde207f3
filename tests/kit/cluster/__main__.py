"""The long form of the fault suite: ``PYTHONPATH=tests python -m kit.cluster [--seeds 20] [--first 1] [--faults a,b] …``.

Prints a JSON line for each seed and ends with 1 when a history was not valid or the cluster did not come back. Run it as root
to see partitions, a slow and a full disk; without it these are skipped, and it says so.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from kit.cluster import leftovers
from kit.cluster.nemesis import FAULTS
from kit.cluster.run import DEFAULT_WORKLOADS, Report, run


def main() -> int:
    """Run the seeds asked for. A signal leaves nothing behind; after a kill the next run removes what is left."""
    asked = _arguments()
    try:
        with leftovers.interruptible():
            leftovers.sweep()
            return _run(asked)
    except leftovers.Stopped as stopped:
        print(f"ended by {stopped}", file=sys.stderr)
        return 128 + stopped.number


def _run(asked: argparse.Namespace) -> int:
    bad = 0
    for seed in range(asked.first, asked.first + asked.seeds):
        directory = Path(tempfile.mkdtemp(prefix=f"onefold-faults-{seed}-"))
        keep = asked.keep
        line: dict[str, Any]
        try:
            report = run(
                directory,
                seed,
                workloads=asked.workloads.split(","),
                faults=asked.faults.split(",") if asked.faults else None,
                rounds=asked.rounds,
                shards=asked.shards,
                clients=asked.clients,
                think_s=asked.think_s,
                job_tasks=asked.job_tasks,
                removes=not asked.keep,
                small_disk_bytes=asked.small_disk_mb * 1_000_000 if asked.small_disk_mb else None,
            )
            line = _line(seed, report)
        except leftovers.Stopped:
            if not keep:
                shutil.rmtree(directory, ignore_errors=True)
            raise
        except Exception:
            line = {"seed": seed, "good": False, "error": traceback.format_exc()}
        if not line["good"]:
            bad += 1
            keep = True
            line["directory"] = str(directory)
        print(json.dumps(line), flush=True)
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
    return 1 if bad else 0


def _line(seed: int, report: Report) -> dict[str, Any]:
    return {
        "seed": seed,
        "good": report.good,
        "verdicts": {name: verdict.validity.value for name, verdict in report.verdicts.items()},
        "explanations": {
            name: verdict.explanation for name, verdict in report.verdicts.items() if not verdict
        },
        "operations": {
            name: dict(zip(("ok", "failed", "unknown"), counts, strict=True))
            for name, counts in report.operations.items()
        },
        "faults": [[fault.name, round(fault.healed - fault.began, 1)] for fault in report.faults],
        "skipped": report.skipped,
        "writes_paused_s": {name: round(seconds, 2) for name, seconds in report.writes_paused_s.items()},
        "reads_paused_s": {name: round(seconds, 2) for name, seconds in report.reads_paused_s.items()},
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="PYTHONPATH=tests python -m kit.cluster", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many runs (default 20)")
    parser.add_argument("--first", type=int, default=1, help="the first seed (default 1)")
    parser.add_argument("--faults", help=f"of: {', '.join(FAULTS)} (default: all that can be shown here)")
    parser.add_argument("--rounds", type=int, help="how many faults happen in a run (default: each once)")
    parser.add_argument("--workloads", default=",".join(DEFAULT_WORKLOADS))
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--clients", type=int, default=2, help="of each workload (default 2)")
    parser.add_argument("--think-s", type=float, default=0.05, help="a client's mean pause (default 0.05)")
    parser.add_argument("--small-disk-mb", type=int, help="one server's disk is a tmpfs of this size")
    parser.add_argument("--job-tasks", type=int, default=100, help="tasks of the job; 0: none (default 100)")
    parser.add_argument("--keep", action="store_true", help="keep the folders of good runs too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
