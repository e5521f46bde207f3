"""What runs again: nothing that did not change, whoever asks; and only what did."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

import onefold as of
from onefold import agg

PROGRAM = """
import onefold as of, sys
from onefold import agg

STOP = {"the", "a", "of", "and", "in", "to", "is"}
LEAST = 2

def helper(word):
    return word.lower()

def words(record):
    return [helper(w) for w in record["line"].split() if w not in STOP and len(w) >= LEAST]

with of.connect(sys.argv[1]) as db:
    job = db.read_text(sys.argv[2] + "/*.txt").flat_map(words).group_by("value").agg(n=agg.count()).into("words")
    progress = job.run(progress=False, workers=1).progress()
    print(progress.total, progress.reused, progress.rows)
"""


def texts(folder: Path, count: int = 5) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.txt").write_text(f"the quick Fox number{number} is in a Box\n" * (number + 1))
    return folder


def run_program(path: Path, text: str, space: Path, source: Path, hash_seed: str) -> tuple[int, int, int]:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, str(path), str(space), str(source)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    total, reused, rows = map(int, done.stdout.split())
    return total, reused, rows


def test_another_process_a_comment_and_a_set_do_not_run_anything_again(tmp_path: Path) -> None:
    source, space = texts(tmp_path / "in"), tmp_path / "space"
    total, reused, rows = run_program(tmp_path / "a" / "job.py", PROGRAM, space, source, "1")
    assert (total, reused, rows) == (5, 0, 15)
    assert run_program(tmp_path / "a" / "job.py", PROGRAM, space, source, "2") == (5, 5, 0)
    commented = PROGRAM.replace("def words", "# A comment\n\n\n# and another one.\ndef words")
    assert run_program(tmp_path / "a" / "job.py", commented, space, source, "3") == (5, 5, 0)
    assert run_program(tmp_path / "b" / "moved.py", commented, space, source, "4") == (5, 5, 0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LEAST = 2", "LEAST = 3"),
        ('"the", "a"', '"the", "b"'),
        ("word.lower()", "word.upper()"),
        (">= LEAST", "> LEAST"),
    ],
)
@pytest.mark.moving(2)
def test_a_change_of_meaning_runs_everything_again(tmp_path: Path, old: str, new: str) -> None:
    source, space = texts(tmp_path / "in", 2), tmp_path / "space"
    run_program(tmp_path / "job.py", PROGRAM, space, source, "1")
    assert old in PROGRAM
    assert run_program(tmp_path / "job.py", PROGRAM.replace(old, new), space, source, "1") == (2, 0, 3)


def count_words(db: of.Database, source: Path, table: str) -> of.Run:
    return (
        db.read_text(f"{source}/*.txt")
        .select(pl.col("line").str.split(" ").alias("word"))
        .explode("word")
        .group_by("word")
        .agg(n=agg.count(), longest=agg.max(pl.col("word").str.len_chars()))
        .into(table)
        .run(progress=False)
    )


def as_counts(run: of.Run) -> dict[str, int]:
    return {row["word"]: row["n"] for row in run.result().to_polars().iter_rows(named=True)}


def fresh(source: Path) -> dict[str, int]:
    return dict(Counter(word for path in source.glob("*.txt") for word in path.read_text().split()))


def test_added_changed_and_removed_files(tmp_path: Path) -> None:
    source = texts(tmp_path / "in", 6)
    with of.connect(tmp_path / "space") as db:
        first = count_words(db, source, "words")
        assert first.progress().reused == 0
        assert as_counts(first) == fresh(source)

        (source / "new.txt").write_text("brand new words\n")
        added = count_words(db, source, "words")
        assert (added.progress().reused, added.progress().rows) == (6, 1)
        assert as_counts(added) == fresh(source)

        (source / "0.txt").write_text("changed it is\nand longer\n")
        changed = count_words(db, source, "words")
        assert (changed.progress().reused, changed.progress().rows) == (6, 2)
        assert as_counts(changed) == fresh(source)

        (source / "5.txt").unlink()
        removed = count_words(db, source, "words")
        assert (removed.progress().reused, removed.progress().rows) == (6, 0)
        assert as_counts(removed) == fresh(source)
        assert as_counts(count_words(db, source, "beside")) == as_counts(removed)


def test_one_file_of_many_that_share_splits(tmp_path: Path) -> None:
    """Many files in one split: a changed one retires its split, and its neighbours are packed again but no others."""
    source = tmp_path / "in"
    source.mkdir()
    for number in range(400):
        (source / f"{number:03}.txt").write_text(f"w{number % 11} file{number}\n")
    with of.connect(tmp_path / "space") as db:
        first = count_words(db, source, "words").progress()
        assert first.rows == 400
        assert first.total < 400
        (source / "007.txt").write_text("seven\n")
        run = count_words(db, source, "words")
        assert run.progress().reused == first.total - 1
        assert run.progress().rows <= 400 // first.total + 2
        assert as_counts(run) == fresh(source)


def test_version_names_the_tasks_instead_of_the_code(tmp_path: Path) -> None:
    source = texts(tmp_path / "in", 3)
    with of.connect(tmp_path / "space") as db:

        def start(fn: object, version: str) -> of.Progress:
            job = db.read_text(f"{source}/*.txt").map(fn).group_by("value").agg(n=agg.count())  # type: ignore[arg-type]
            return job.into("t", version=version).run(progress=False, workers=1).progress()

        assert start(lambda r: r["line"][:1], "1").reused == 0
        assert start(lambda r: r["line"][:2], "1").reused == 3
        assert start(lambda r: r["line"][:2], "2").reused == 0


def test_a_lost_blob_is_made_again(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(4):
        words = (hashlib.sha256(f"{number} {i}".encode()).hexdigest() for i in range(40_000))
        (source / f"{number}.txt").write_text("\n".join(words))
    with of.connect(tmp_path / "space") as db:
        run = count_words(db, source, "words")
        before = as_counts(run)
        total = run.progress().total
    blobs = sorted((tmp_path / "space" / "blobs").glob("??/*"), key=lambda path: path.stat().st_size)
    blobs[-1].unlink()
    with of.connect(tmp_path / "space") as db:
        with pytest.raises(of.Unavailable, match="run"):
            db.table("words").to_polars()
        again = count_words(db, source, "words")
        assert again.progress().reused == total - 1
        assert as_counts(again) == before


def test_explain_says_why(tmp_path: Path) -> None:
    source = texts(tmp_path / "in", 3)
    with of.connect(tmp_path / "space") as db:
        count_words(db, source, "words")
        (source / "new.txt").write_text("x\n")
        count_words(db, source, "words")
        text = str(db.explain("words"))
        assert "new.txt" in text
