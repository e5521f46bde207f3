"""The whole program killed with SIGKILL before and after every append and blob write, and workers killed in the middle.

Whatever is killed where: the next run gives exactly the right result, finished tasks are not run again, nothing is counted
twice, and nothing is left behind that stops anybody.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

import onefold as of
from onefold import agg

pytestmark = pytest.mark.faults
HERE = Path(__file__).parent
ASKED = os.environ.get("ONEFOLD_FAULT_SEEDS")
SEEDS = range(6) if ASKED is None else range(int(ASKED))
PARTS = 6 if ASKED is None else 1


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(
            "".join(f"w{i % 7} file{number}\n" for i in range(number * 10 + 5))
        )
    return folder


def expected(source: Path) -> Counter[str]:
    return Counter(word for path in source.glob("*.txt") for word in path.read_text().split())


def program(tmp_path: Path, point: str, sink: str, python: str) -> subprocess.CompletedProcess[str]:
    arguments = [str(tmp_path / "space"), str(tmp_path / "in"), str(tmp_path / "out"), point, sink, python]
    return subprocess.run(
        [sys.executable, str(HERE / "crash_job.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def done_tasks(tmp_path: Path) -> int:
    """How many tasks of the table's last run the log says are finished."""
    if not (tmp_path / "space").exists():
        return 0
    with of.connect(tmp_path / "space") as db:
        runs = db.runs()
        return runs[0].progress().done if runs else 0


def records_seen(tmp_path: Path) -> int:
    """How many records functions have been called with so far."""
    return sum(len(path.read_text().splitlines()) for path in (tmp_path / "out" / "seen").glob("*"))


def result(tmp_path: Path, sink: str) -> Counter[str]:
    if sink == "table":
        with of.connect(tmp_path / "space") as db:
            frame = db.table("words").to_polars()
    else:
        frame = pl.read_parquet(tmp_path / "out" / "parquet")
    assert frame["value"].is_unique().all()
    return Counter(dict(frame.select("value", "n").iter_rows()))


@pytest.mark.parametrize("sink", ["table", "parquet"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["append", "blob"])
@pytest.mark.moving(4)
def test_the_program_killed_at_every_append_and_blob(
    tmp_path: Path, source: Path, what: str, when: str, sink: str
) -> None:
    python = "expressions"
    if (what, when, sink) == ("append", "before", "table"):
        python = "python"  # such tasks append more: they announce the types of their rows
        for path in sorted(source.iterdir())[3:]:
            path.unlink()
    crashes = 0
    for number in range(1, 100):
        before = done_tasks(tmp_path)
        ended = program(tmp_path, f"{what}:{number}:{when}", sink, python)
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        crashes += 1
        # What was finished stays finished: the count never goes back.
        assert done_tasks(tmp_path) >= before
        # A second kill point further on, in the same space: recovery from recovery.
    else:
        raise AssertionError("the program never came to its end")
    assert crashes >= 3
    assert result(tmp_path, sink) == expected(source)
    done, total, reused, rows = map(int, program(tmp_path, "none", sink, python).stdout.split())
    assert done == total == reused
    assert rows == 0


@pytest.mark.moving(PARTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_program_killed_at_a_random_moment_with_python_workers(
    tmp_path: Path, source: Path, seed: int
) -> None:
    chance = random.Random(seed)
    finished_before = 0
    for _ in range(3):
        point = f"append:{chance.randint(2, 8)}:{chance.choice(['before', 'after'])}"
        ended = program(tmp_path, point, "table", "python")
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        finished = done_tasks(tmp_path)
        assert finished >= finished_before
        finished_before = finished
    seen_before = records_seen(tmp_path)
    ended = program(tmp_path, "none", "table", "python")
    assert ended.returncode == 0, ended.stderr
    _, total, reused, rows = map(int, ended.stdout.split())
    assert result(tmp_path, "table") == expected(source)
    # Only what was not finished was read again.
    lines = sum(len(path.read_text().splitlines()) for path in source.glob("*.txt"))
    seen = records_seen(tmp_path) - seen_before
    assert seen <= lines
    assert reused >= finished_before
    if finished_before:
        assert seen < lines
    # The run that was killed goes on, or a new one has taken its tasks over; either counts each row once.
    assert rows == (lines if not reused else seen)
    assert total == 6


@pytest.mark.moving(PARTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_workers_killed_while_they_work(tmp_path: Path, source: Path, seed: int) -> None:
    chance = random.Random(seed)

    def slow(record: dict[str, str]) -> list[str]:
        import time

        time.sleep(0.002)
        return record["line"].split()

    with of.connect(tmp_path / "space") as db:
        job = (
            db.read_text(f"{source}/*.txt").flat_map(slow).group_by("value").agg(n=agg.count()).into("words")
        )
        run = job.start(workers=2)
        kills = 0
        for snapshot in db.table("words").watch(timeout=60):
            pids = run.worker_pids
            if pids and kills < 2 and snapshot.done < snapshot.total:
                os.kill(chance.choice(pids), signal.SIGKILL)
                kills += 1
        run.wait(timeout=60)
        assert run.state == "done"
        frame = run.result().to_polars()
        assert Counter(dict(frame.iter_rows())) == expected(source)
        assert kills


def test_workers_die_with_their_program(tmp_path: Path, source: Path) -> None:
    code = (
        "import onefold as of, sys, time\n"
        "from onefold import agg\n"
        "def slow(record):\n"
        "    time.sleep(30)\n"
        "    return record\n"
        "db = of.connect(sys.argv[1])\n"
        "run = db.read_text(sys.argv[2] + '/*.txt').map(slow).into('t').start(workers=2)\n"
        "while len(run.worker_pids) < 2: time.sleep(0.01)\n"
        "print(*run.worker_pids, flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "space"), str(source)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    process.kill()
    process.wait()
    process.stdout.close()
    for pid in pids:
        wait_until_gone(pid)


def wait_until_gone(pid: int) -> None:
    import time

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            status = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return
        if status == "Z":
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} still lives")
