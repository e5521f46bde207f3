"""The process is killed right before, between and after the commits in which a history enters: every event counts once."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path
from random import Random

import polars as pl
import pytest

import onefold as of
from faults.live_seam_worker import AT, job

pytestmark = pytest.mark.faults
WORKER = Path(__file__).with_name("live_seam_worker.py")
SCHEMA = {"at": pl.Datetime("us", "UTC"), "page": pl.String, "v": pl.Int64}


@pytest.mark.parametrize(
    ("moment", "number", "entered"), [("before", 1, 0), ("after", 1, 1), ("after", 2, 2)]
)
def test_a_history_enters_once(tmp_path: Path, moment: str, number: int, entered: int) -> None:
    random = Random(number)
    past, now = (
        [
            {
                "at": AT + timedelta(milliseconds=random.randrange(start, start + 40_000)),
                "page": random.choice("abcdefgh"),
                "v": v,
            }
            for v in range(400)
        ]
        for start in (-35_000, -4_000)
    )
    pl.DataFrame(past, schema=SCHEMA).write_parquet(tmp_path / "past.parquet")
    files, folder = str(tmp_path / "*.parquet"), tmp_path / "space"
    with of.connect(folder) as db:
        db.stream("clicks").append_many(pl.DataFrame(now, schema=SCHEMA).sort("at"))
    command = [sys.executable, WORKER, folder, files, moment, str(number)]
    worked = subprocess.run(command, timeout=120, check=False)
    assert worked.returncode == -signal.SIGKILL
    kept = [row for row in past if row["at"] < AT] + [row for row in now if row["at"] >= AT]
    expected = Counter[tuple[object, ...]]()
    total = Counter[tuple[object, ...]]()
    for row in kept:
        group = (
            row["at"] - timedelta(seconds=row["at"].second % 10, microseconds=row["at"].microsecond),
            row["page"],
        )
        expected[group] += 1
        total[group] += row["v"]
    with of.connect(folder) as db:
        contents = db.table("windows").contents()
        positions = [at for one in contents.bundles for at in one.positions if at.input == 1]
        assert (len(positions), sum(at.next for at in positions)) == (2, entered)
        run = job(db, files).start(workers=1)
        run.stop(drain=True, timeout=60)
        shown = db.table("windows").to_polars()
        assert Counter(shown.select("window_start", "page", "n", "total").rows()) == Counter(
            (*group, n, total[group]) for group, n in expected.items()
        )
        assert run.status().before_seam == sum(row["at"] < AT for row in now)
