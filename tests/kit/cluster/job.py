"""A job that nodes work on while everything fails, and whose result must be that of a plain loop over the same files."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Final

import polars as pl

from onefold import agg
from onefold.db import Database
from onefold.testing.history import VALID, Verdict, invalid, unknown

TABLE: Final = "faults_words"
_LINES_PER_FILE: Final = 20
_WORDS: Final = ("ash", "beech", "cedar", "dogwood", "elm", "fir", "gorse", "hazel")


class JobUnderFaults:
    """Files of words, counted by a Python function that takes its time. ``begin`` it, then ``check``."""

    def __init__(self, folder: Path, seed: int, *, files: int, seconds_per_task: float = 0.5) -> None:
        """``files``: as many tasks there will be."""
        self._folder = folder
        self._seconds = seconds_per_task
        self._run = ""
        self._files = files
        rng = random.Random(f"job {seed}")
        folder.mkdir()
        for at in range(files):
            lines = [" ".join(rng.choices(_WORDS, k=8)) for _ in range(_LINES_PER_FILE)]
            (folder / f"{at:04}.txt").write_text("\n".join(lines) + "\n")

    def begin(self, db: Database) -> None:
        """Submit it and leave it to the nodes."""
        pause_s = self._seconds / _LINES_PER_FILE

        def words(row: dict[str, str]) -> list[dict[str, str]]:
            time.sleep(pause_s)
            return [{"word": word} for word in row["line"].split()]

        job = (
            db.read_text(str(self._folder / "*.txt"))
            .flat_map(words, schema={"word": pl.String})
            .group_by("word")
            .agg(n=agg.count())
            .into(TABLE)
        )
        self._run = job.start(workers=0, target_splits=self._files, max_attempts=20).id

    def check(self, db: Database, timeout: float) -> Verdict:
        """Wait for its end (UNKNOWN when it does not come in time) and compare."""
        run = db.open_run(self._run)
        end = time.monotonic() + timeout
        while run.state == "running" and time.monotonic() < end:
            time.sleep(0.2)
        if run.state == "running":
            return unknown(
                f"the job was not done {timeout:g} s after all had healed: {run.progress()}, {run.errors()}"
            )
        if run.state != "done":
            return invalid([("job-ended", f"the run is {run.state}: {run.errors()}")])
        found = dict(db.table(TABLE).to_polars().select("word", "n").iter_rows())
        expected = Counter(word for path in self._folder.iterdir() for word in path.read_text().split())
        if found != dict(expected):
            return invalid([("wrong-result", f"{found} instead of {dict(expected)}")])
        return VALID
