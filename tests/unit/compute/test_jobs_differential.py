"""Random inputs: one split, many splits, a second run after files were added, and plain Polars give the same, or an error.

By default a tenth of the first thousand seeds is run, another one each day. This looks further::

    ONEFOLD_DIFFERENTIAL_SEEDS=20000 pytest tests/unit/compute/test_jobs_differential.py -n auto

``ONEFOLD_DIFFERENTIAL_FIRST`` says where to begin. A failure names its seed: ``case_of(seed)`` is its input.
"""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest

import onefold as of
from onefold import config
from support import parts
from support.in_process import functions_in_process  # noqa: F401
from support.random_inputs import Case, case_of, shown

SEEDS = int(os.environ.get("ONEFOLD_DIFFERENTIAL_SEEDS", "1000" if parts.takes_all() else "100"))
FIRST = int(os.environ.get("ONEFOLD_DIFFERENTIAL_FIRST", str(100 * parts.part_of_day(10))))
TOGETHER = 25
REFUSED = "an Onefold error"

pytestmark = pytest.mark.usefixtures("functions_in_process")


@pytest.fixture(autouse=True)
def small_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files are cut as large ones are."""
    monkeypatch.setattr(config, "SPLIT_BYTES_MIN", 20)


def outcome(case: Case, db: of.Database, folder: Path, table: str, splits: int) -> tuple[str, list[str], str]:
    """What a run gives: ("done", rows, types), or (REFUSED, [], the error's first lines)."""
    try:
        run = case.onefold(db, folder).into(table).run(progress=False, workers=1, target_splits=splits)
        frame = run.result().to_polars()
    except of.OnefoldError as error:
        return REFUSED, [], f"{type(error).__name__}: {error}"[:300]
    except BaseException as error:  # foreign ones are wrong, and so are Polars' panics
        return f"{type(error).__name__} from elsewhere", [], str(error)[:300]
    return "done", shown(frame), str(sorted(frame.schema.items()))


def check(case: Case, folder: Path) -> str:
    """What is wrong with a case; empty when nothing is."""
    with of.connect("memory://") as db:
        if len(case.files) > 1:
            case.write(folder, 1)
            outcome(case, db, folder, "t", 2)
        case.write(folder, len(case.files))
        again = outcome(case, db, folder, "t", 4)
        one = outcome(case, db, folder, "one", 1)
    told = f"seed {case.seed}: {case.job} of {case.kind}"
    if again[:2] != one[:2]:
        return f"{told}: a second run gives {again}, one split {one}"
    try:
        frame = case.expected()
    except pl.exceptions.PolarsError as error:
        return (
            "" if one[0] == REFUSED else f"{told}: Polars refuses ({str(error)[:80]}), one split gives {one}"
        )
    if frame is None:
        return ""
    plain = "done", shown(frame), str(sorted(frame.schema.items()))
    if one[0] == "done" and again[2] != one[2]:
        return f"{told}: types of a second run {again[2]}, of one split {one[2]}"
    return "" if one == plain else f"{told}: one split gives {one}, plain Polars {plain}"


@pytest.mark.parametrize("start", range(FIRST, FIRST + SEEDS, TOGETHER))
@pytest.mark.moving(2)
def test_splits_and_runs_and_polars_agree(tmp_path: Path, start: int) -> None:
    wrong = []
    for seed in range(start, min(start + TOGETHER, FIRST + SEEDS)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        found = check(case_of(seed), folder)
        if found:
            wrong.append(found)
    assert not wrong, "\n".join(wrong)
