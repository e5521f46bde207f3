"""A re-run with nothing new imports nothing that only the work itself takes: that would be most of its time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onefold as of
from onefold import folds
from onefold.state.fold.live import rows

PROGRAM = """
import json, sys
import polars as pl
import onefold as of
from onefold import agg

def run():
    with of.connect(sys.argv[1]) as db:
        words = db.read_text(sys.argv[2] + "/*.txt").group_by("line").agg(n=agg.count()).into("words")
        run = words.run(progress=False)
        return run.progress(), run.result().to_polars()

progress, frame = run()
heavy = [name for name in ("numpy", "asyncio", "ssl", "apsw.sqlite_extra") if name in sys.modules]
packages = ("onefold.compute.live", "onefold.state.fold", "onefold.state.core.client")
heavy += [name for name in sys.modules if name.startswith(packages)]
print(json.dumps([progress.reused, progress.total, frame.rows(), heavy]))
"""


def test_a_rerun_imports_what_it_needs(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(8):
        (texts / f"{number}.txt").write_text("a\nb\n" if number else "c\n")
    arguments = [str(tmp_path / "space"), str(texts)]
    made = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, check=True
            ).stdout
        )
        for _ in range(2)
    ]
    rows = [["a", 7], ["b", 7], ["c", 1]]
    assert made[0][:3] == [0, made[0][1], rows]
    assert made[1] == [made[0][1], made[0][1], rows, []]
    with of.connect(arguments[0]) as db:
        assert db.table("words").get("c") == {"line": "c", "n": 1}


def test_where_live_jobs_are_is_known_by_the_table_of_their_rows() -> None:
    assert folds._LIVE_JOBS == rows.JOBS
