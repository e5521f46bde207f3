"""What reads hand out as data compares by what it says, so that two reads of the same thing are equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg


def _item(db: of.Database) -> Any:
    return db.map("m").get_item("k")


def _change(db: of.Database) -> Any:
    with db.map("m").watch(initial=True, timeout=0) as changes:
        return next(changes)


def _record(db: of.Database) -> Any:
    return next(iter(db.stream("s").read(start="earliest")))


def _position(db: of.Database) -> Any:
    return _record(db).position


def _dead_letter(db: of.Database) -> Any:
    return db.queue("q").dead()[0]


def _run_error(db: of.Database) -> Any:
    return db.runs(table="broken")[0].errors()[0]


READS: dict[str, Callable[[of.Database], Any]] = {
    "item": _item,
    "version": lambda db: _item(db).version,
    "change": _change,
    "stream record": _record,
    "position": _position,
    "queue counts": lambda db: db.queue("q").counts(),
    "dead letter": _dead_letter,
    "table status": lambda db: db.table("t").status,
    "run error": _run_error,
}


@pytest.fixture(scope="module")
def db() -> Any:
    with of.connect("memory://") as db:
        db.map("m")["k"] = {"a": [1]}
        db.stream("s", partitions=1).append({"a": [1]}, key="u")
        queue = db.queue("q", max_attempts=1)
        queue.put(1)
        message = queue.take(timeout=0)
        assert message is not None
        message.nack(error="broken")
        yield db


@pytest.fixture(scope="module", autouse=True)
def jobs(db: of.Database, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("in") / "a.csv"
    pl.DataFrame({"v": [1]}).write_csv(path)
    db.read_csv(path).group_by().agg(n=agg.count()).into("t").run(progress=False)
    job = db.read_csv(path).map(lambda row: row["missing"]).into("broken")
    job.run(progress=False, on_error="skip")


@pytest.mark.parametrize("kind", READS)
def test_two_reads_of_the_same_are_equal(db: of.Database, kind: str) -> None:
    first, second = READS[kind](db), READS[kind](db)
    assert first is not second
    assert first == second
    assert first != object()


def test_stream_records_of_other_places_and_values_differ(db: of.Database) -> None:
    stream = db.stream("different", partitions=1)
    for value in ("x", "x", "y"):
        stream.append(value)
    records = list(stream.read(start="earliest"))
    assert records[0] != records[1] != records[2]
    assert len({*records, *stream.read(start="earliest")}) == 3
