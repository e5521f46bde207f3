"""``db.explain`` names what made a run compute something again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import agg

Sentences = Callable[..., list[str]]


@pytest.fixture
def sentences(tmp_path: Path) -> Any:
    """Runs the job and gives the sentences below its steps, the count of reused tasks first."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text("a\nb\n" * 10)
    with of.connect(tmp_path / "space") as db:

        def run(times: int = 1, **into: Any) -> list[str]:
            rows = db.read_text(f"{folder}/*.txt").map(lambda row: {"x": row["line"] * times})
            rows.group_by("x").agg(n=agg.count()).into("t", **into).run(
                progress=False, workers=1, target_splits=3
            )
            told = db.explain("t")
            assert told[0].startswith("The last run of 't' is run_")
            assert any("map <lambda>" in line for line in told)
            return [line for line in told[1:] if not line.startswith("  ")]

        yield run, folder


def test_files(sentences: tuple[Sentences, Path]) -> None:
    run, folder = sentences
    assert run() == [
        "0 of its 3 tasks are reused, 3 were computed.",
        "It is the table's first run, so every task is computed.",
    ]
    assert run()[1:] == ["Nothing that counts has changed since the run before."]
    (folder / "9.txt").write_text("c\n")
    (folder / "1.txt").write_text("d\n")
    assert run()[1:] == [f"1 file is new: {folder}/9.txt.", f"1 file is changed: {folder}/1.txt."]


def test_plan_version_and_mode(sentences: tuple[Sentences, Path]) -> None:
    run, _ = sentences
    run()
    reused, changed = run(times=2)
    assert reused == "0 of its 3 tasks are reused, 3 were computed."
    assert "times" in changed
    assert "has changed" in changed
    assert run(times=2, version="v1")[1:] == [
        "The version was not given and is 'v1', so all tasks have new names and are computed."
    ]
    assert run(times=3, version="v1")[1:] == ["Nothing that counts has changed since the run before."]
    assert run(times=3, version="v1", mode="replace")[1:] == [
        "The job says mode='replace', which computes every task again."
    ]


def test_lost_reasons_are_said_to_be_lost(
    sentences: tuple[Sentences, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = sentences
    run()
    monkeypatch.setattr("onefold.compute.submission.explanation._fingerprint", lambda blobs, row: None)
    assert run(times=2)[1:] == ["The plan has changed; what it was made of before is not kept any more."]


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with of.connect(tmp_path / "space") as db, pytest.raises(of.InvalidArgument, match="no table 'nope'"):
        db.explain("nope")
