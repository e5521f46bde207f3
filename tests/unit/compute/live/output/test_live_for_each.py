"""What a job of ``for_each`` is called, and what a start says of a job that it continues with other code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of

T = 120
seen: list[int] = []


def note(frame: pl.DataFrame) -> None:
    seen.extend(frame["v"])


class Sender:
    def __call__(self, frame: pl.DataFrame) -> None: ...

    def send(self, frame: pl.DataFrame) -> None: ...


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path) as opened:
        for name in "ab":
            opened.stream(name, partitions=1).append_many([{"v": number} for number in range(4)])
        yield opened


def inner() -> Callable[[Any], None]:
    def note(frame: pl.DataFrame) -> None: ...

    return note


@pytest.mark.parametrize(
    "fn",
    [
        lambda frame: None,
        inner(),
        Sender(),
        Sender().send,
        [].extend,
        functools.partial(Sender().send),
    ],
)
def test_what_has_no_name_of_its_own_needs_one(db: of.Database, fn: Any) -> None:
    rows = db.read_stream("a", follow=True)
    with pytest.raises(of.InvalidArgument, match="name="):
        rows.for_each(fn)
    assert rows.for_each(fn, name="j").name == "j"


@pytest.mark.parametrize("name", ["", "a/b", 3])
def test_a_name_that_cannot_be(db: of.Database, name: Any) -> None:
    with pytest.raises(of.InvalidArgument):
        db.read_stream("a", follow=True).for_each(note, name=name)


def test_two_jobs_over_the_same_function(db: of.Database) -> None:
    seen.clear()
    first = db.read_stream("a", follow=True).for_each(note).start()
    first.catch_up(timeout=T)
    assert first.id == "each:note/1"
    assert seen == [0, 1, 2, 3]
    with pytest.raises(of.Conflict, match="name="):
        db.read_stream("b", follow=True).for_each(note).start()
    second = db.read_stream("b", follow=True).for_each(note, name="other").start()
    second.catch_up(timeout=T)
    assert seen == [0, 1, 2, 3] * 2


def plus(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"v": row["v"] + 1}


def minus(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"v": row["v"] - 1}


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        (lambda rows: rows.filter(pl.col("v") > 1).map(plus), "filter"),
        (lambda rows: rows.filter(pl.col("v") > 0).map(minus), "map"),
        (lambda rows: rows.filter(pl.col("v") > 0).select("v").map(plus), "filter, select, map"),
        (lambda rows: rows.filter(pl.col("v") > 0).map(plus), ""),
    ],
)
def test_a_start_says_which_steps_have_changed(
    db: of.Database, tmp_path: Path, capfd: pytest.CaptureFixture[str], change: Any, steps: str
) -> None:
    def rows() -> Any:
        return db.read_stream("a", follow=True)

    rows().filter(pl.col("v") > 0).map(plus).into("t").start(workers=0)
    capfd.readouterr()
    change(rows()).into("t").start(workers=0, latency="1s")  # what is no step is not spoken of
    said = capfd.readouterr().err
    assert said.count("\n") == bool(steps)
    assert (f"'t' continues with changed {steps}:" in said) == bool(steps)
    with of.connect(tmp_path) as other:  # which has the former plan from its blob only
        back = other.read_stream("a", follow=True).filter(pl.col("v") > 0).map(plus)
        back.into("t").start(workers=0)
    assert bool(capfd.readouterr().err) == bool(steps)


@pytest.mark.parametrize("name", ["map:m", "stream:s", "each:note"])
def test_the_names_of_jobs_without_a_table_are_theirs(db: of.Database, name: str) -> None:
    rows = db.read_stream("a", follow=True)
    with pytest.raises(of.InvalidArgument, match=name.partition(":")[0]):
        rows.into(name)
    if not name.startswith("each:"):  # the way to continue a job whose function has another name now
        with pytest.raises(of.InvalidArgument, match=name.partition(":")[0]):
            rows.for_each(note, name=name)
    assert rows.for_each(note, name="each:note").name == rows.for_each(note).name


def test_a_job_does_not_continue_with_another_sink(db: of.Database) -> None:
    rows = db.read_stream("a", follow=True)
    rows.into("j").start(workers=0)
    with pytest.raises(of.Conflict, match="sink was table 'j', and is for_each"):
        rows.for_each(note, name="j").start(workers=0)
    rows.map(plus).group_by("v").agg(n=of.agg.count()).into("k").start(workers=0)
    with pytest.raises(of.Conflict, match="another plan"):
        rows.for_each(note, name="k").start(workers=0)
    assert [run.id for run in db.runs()] == ["k/1", "j/1"]
