"""What the benchmarks share: data that is made once, timing in fresh processes, and the line that each of them prints.

Every figure is a ratio of two things measured in one run on one machine, in turn (A B A B …), each in a process of its own
with the same number of threads; the ratio is that of the medians. Absolute seconds are printed for orientation only.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def data_dir() -> Path:
    """Where inputs are kept between benchmarks (ONEFOLD_BENCH_DIR, else the temporary folder)."""
    path = Path(os.environ.get("ONEFOLD_BENCH_DIR", Path(tempfile.gettempdir()) / "onefold-bench"))
    path.mkdir(parents=True, exist_ok=True)
    return path


def once(name: str, make: Callable[[Path], None]) -> Path:
    """A data set made once: ``make`` fills a temporary folder that is then renamed."""
    target = data_dir() / name
    if not target.exists():
        print(f"making {name} …", file=sys.stderr)
        scratch = Path(tempfile.mkdtemp(dir=data_dir()))
        make(scratch)
        scratch.rename(target)
    return target


def source_text(megabytes: int) -> Path:
    """Real source text: the Python files of this machine, over and over, in files of about 8 MB."""

    def make(folder: Path) -> None:
        roots = {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        files = sorted(p for root in roots for p in Path(root).rglob("*.py") if p.is_file())
        texts = []
        for path in files:
            try:
                texts.append(path.read_text("utf8"))
            except (UnicodeDecodeError, OSError):
                continue
        written, part, pieces, size = 0, 0, [], 0
        while written < megabytes * 1_000_000:
            for text in texts:
                pieces.append(text if text.endswith("\n") else text + "\n")
                size += len(text.encode())
                if size >= 8_000_000:
                    (folder / f"part-{part:04}.txt").write_text("".join(pieces), "utf8")
                    written, part, pieces, size = written + size, part + 1, [], 0
                if written >= megabytes * 1_000_000:
                    break

    return once(f"source-{megabytes}mb", make)


def child(
    script: str, mode: str, *args: str, threads: int = THREADS, python: str = sys.executable
) -> dict[str, float]:
    """Run one mode of a benchmark script in a fresh process; it prints one JSON object as its last line."""
    env = {**os.environ, "POLARS_MAX_THREADS": str(threads), "ONEFOLD_PROGRESS": "0", "PYTHONHASHSEED": "0"}
    env.pop("ONEFOLD_URL", None)
    done = subprocess.run(
        [python, script, mode, *args], capture_output=True, text=True, env=env, check=False, timeout=1800
    )
    if done.returncode != 0:
        raise SystemExit(f"{script} {mode} failed:\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(
    script: str, ours: str, theirs: Sequence[str], *args: str, runs: int = 3, threads: int = THREADS
) -> dict[str, float]:
    """Run the modes in turn and return the median seconds of each; their results must be equal."""
    seconds: dict[str, list[float]] = {mode: [] for mode in (ours, *theirs)}
    checks: dict[str, object] = {}
    for _ in range(runs):
        for mode, times in seconds.items():
            found = child(script, mode, *args, threads=threads)
            times.append(found["seconds"])
            checks[mode] = found["check"]
    different = {mode: check for mode, check in checks.items() if check != checks[ours]}
    if different:
        raise SystemExit(f"results differ: {ours} gives {checks[ours]}, {different}")
    return {mode: statistics.median(times) for mode, times in seconds.items()}


def together_s(commands: Sequence[Sequence[str]], environment: dict[str, str] | None = None) -> float:
    """How long these programs take together, each in a process of its own: from when all have said that they are ready, and were
    given a line, until each has said one more."""
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for command in commands
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    began = time.perf_counter()
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit(f"a process failed: {process.args}")
    seconds = time.perf_counter() - began
    for process in started:
        process.communicate()
    return seconds


def report(what: str, ours: float, peer: str, theirs: float, target: str) -> None:
    """One line: the ratio ours / theirs next to its target."""
    print(
        f"{what:46} {ours:8.3f} s   {peer:22} {theirs:8.3f} s   ratio {ours / theirs:5.2f}   target {target}"
    )


def answer(seconds: float, check: object) -> None:
    """What a mode prints at its end."""
    print(json.dumps({"seconds": seconds, "check": check}))


def peers_python() -> str | None:
    """A Python that has PySpark and Dask: ONEFOLD_BENCH_PEERS, else this one if it has them."""
    asked = os.environ.get("ONEFOLD_BENCH_PEERS")
    for python in filter(None, (asked, sys.executable)):
        probe = subprocess.run([python, "-c", "import pyspark, dask.bag"], capture_output=True, check=False)
        if probe.returncode == 0:
            return python
    return None
