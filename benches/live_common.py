"""What the benchmarks of live jobs share: streams of events that are made once, modes in fresh processes of this or of an earlier
checkout, and lines that say what was found, what the target is, and whether it is met."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import THREADS

HERE = Path(__file__).parents[1]
START_US = 1_767_225_600_000_000
"""The time of the first event: 2026-01-01, in microseconds since 1970."""
STEP_US = 20
"""From one event to the next."""
WINDOW = "10s"
FRAME_ROWS = 20_000


def parser(what: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks of live jobs have."""
    made = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--before", type=Path, help="another checkout, to be measured in turn with this one")
    made.add_argument("--runs", type=int, default=3)
    return made


def checkouts(before: Path | None) -> dict[str, Path]:
    """By name; this one comes last."""
    return {"now": HERE} if before is None else {"before": before.resolve(), "now": HERE}


def environment_of(checkout: Path) -> dict[str, str]:
    """That of a process which uses the package of a checkout."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("ONEFOLD_")}
    return environment | {
        "PYTHONPATH": os.pathsep.join((str(checkout / "src"), str(Path(__file__).parent))),
        "POLARS_MAX_THREADS": str(THREADS),
        "ONEFOLD_PROGRESS": "0",
    }


def mode(script: str, checkout: Path, *args: object, timeout_s: float = 1800.0) -> dict[str, Any]:
    """Run a mode of a script of this folder in a fresh process with a checkout's package; it prints JSON as its last line."""
    environment = environment_of(checkout)
    command = [sys.executable, script, "--mode", *map(str, args)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=timeout_s
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def dispatch(modes: dict[str, Callable[..., object]], main: Callable[[], object]) -> None:
    """Run the mode that the command line names and print what it found; otherwise the benchmark."""
    if sys.argv[1:2] == ["--mode"]:
        print(json.dumps(modes[sys.argv[2]](*sys.argv[3:])))
    else:
        main()


def events(first: int, count: int, keys: int) -> Any:
    """A frame of events: ``at``, ``k`` and ``v``. The same numbers give the same events."""
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(first + 1)
    at = START_US + STEP_US * np.arange(first, first + count)
    return pl.DataFrame(
        {
            "at": pl.Series(at).cast(pl.Datetime("us", "UTC")),
            "k": rng.integers(0, keys, count),
            "v": rng.integers(0, 10, count),
        }
    )


def fill(db: Any, name: str, count: int, keys: int, partitions: int = 1) -> float:
    """Append so many events to a new stream, in frames. Returns the seconds that appending took."""
    stream = db.stream(name, partitions=partitions) if partitions > 1 else db.stream(name)
    stream.create()
    spent = 0.0
    for first in range(0, count, FRAME_ROWS):
        frame = events(first, min(FRAME_ROWS, count - first), keys)
        began = time.perf_counter()
        stream.append_many(frame, key=None if partitions == 1 else "k")
        spent += time.perf_counter() - began
    return spent


class Clock:
    """Seconds and processor seconds of this process and its children since it was made."""

    def __init__(self) -> None:
        self._began, self._used = time.perf_counter(), self._processor()

    @staticmethod
    def _processor() -> float:
        spent = os.times()
        return spent.user + spent.system + spent.children_user + spent.children_system

    def found(self, check: object = None) -> dict[str, Any]:
        """What a mode prints."""
        return {
            "seconds": time.perf_counter() - self._began,
            "processor": self._processor() - self._used,
            "check": check,
        }


def same(found: Sequence[dict[str, Any]]) -> None:
    """All results are equal, or nothing was measured."""
    if any(one["check"] != found[0]["check"] for one in found):
        raise SystemExit(f"the results differ: {[one['check'] for one in found]}")


def verdict(
    what: str, ratio: float, target: float, *, at_most: bool = False, unit: str = "x", more: str = ""
) -> bool:
    """Print a line; whether the target is met."""
    met = ratio <= target if at_most else ratio >= target
    sign = "<=" if at_most else ">="
    said = "met" if met else "missed"
    print(f"{what:58} {ratio:8.2f} {unit}   target {sign} {target:g} {unit}: {said}{more}", flush=True)
    return met


def loads() -> str:
    """The load of the machine, to be printed with the figures."""
    return "load " + " ".join(f"{load:.1f}" for load in os.getloadavg()) + f", {THREADS} processors"
