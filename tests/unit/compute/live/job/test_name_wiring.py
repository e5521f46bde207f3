"""Names as programs meet them: ``start``, ``run`` and ``drop`` reserve a table's name and give it back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute.jobs import ops, rows, state
from onefold.compute.live.client import LiveJob
from onefold.errors import InvalidArgument
from onefold.shard.fold_version import reach_version


class Killed(BaseException):
    """The program is gone."""


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path / "space") as db:
        assert reach_version(db._shard, ops.NAMES_VERSION)
        db.stream("s").create()
        yield db


def live(db: of.Database) -> Any:
    return db.read_stream("s", follow=True).group_by("k").agg(n=agg.count()).into("t")


def batch(db: of.Database) -> Any:
    path = Path(db.url).parent / "rows.parquet"
    pl.DataFrame({"k": [1, 2]}).write_parquet(path)
    return db.read_parquet(str(path)).into("t")


def reservations(db: of.Database) -> int:
    with db._engine.shard.view() as view:
        return len(list(view.scan(rows.RESERVED)))


def has_batch(db: of.Database) -> bool:
    with db._engine.shard.view() as view:
        return state.read_table(view, "t") is not None


def test_a_batch_job_that_begins_while_a_live_one_starts_has_the_name(
    db: of.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = LiveJob.start
    tried: list[bool] = []

    def overtaken(self: LiveJob, *args: Any) -> Any:
        if not tried:
            tried.append(True)
            with of.connect(db.url) as other:
                assert batch(other).run().state == "done"
        return start(self, *args)

    monkeypatch.setattr(LiveJob, "start", overtaken)
    with pytest.raises(InvalidArgument, match="made by a batch job"):
        live(db).start()
    assert tried and has_batch(db) and LiveJob(db._state, "t").row() is None
    assert reservations(db) == 0


def test_a_start_that_was_killed_keeps_no_name(db: of.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(LiveJob, "start", killed)
        with pytest.raises(Killed):
            live(db).start()
    assert reservations(db) == 1
    assert batch(db).run().state == "done"
    assert has_batch(db) and reservations(db) == 0


def test_a_job_has_its_name_until_it_is_dropped(db: of.Database) -> None:
    run = live(db).start(workers=0)
    assert reservations(db) == 1
    with pytest.raises(InvalidArgument, match="made by a live job"):
        batch(db).run()
    run.cancel()
    assert reservations(db) == 1
    db.drop("t")
    assert reservations(db) == 0, "and no batch job has to ask whose it is"
    assert batch(db).run().state == "done"
