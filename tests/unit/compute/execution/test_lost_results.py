"""Results that are gone: their tasks are run again, by the job as by ``resume``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

import onefold as of
from onefold import config
from onefold.compute.execution import lost_results
from onefold.compute.jobs import ops, state


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[of.Database]:
    monkeypatch.setattr(config, "PARTIAL_INLINE_BYTES_MAX", 10)  # so that every result is a blob
    (tmp_path / "in").mkdir()
    for number in range(2):
        add_file(tmp_path, number)
    with of.connect(tmp_path / "space") as db:
        yield db


def add_file(folder: Path, number: int) -> None:
    (folder / "in" / f"{number}.csv").write_text(f"a\n{number}\n{number}\n")


def job(db: of.Database, folder: Path) -> of.PreparedJob:
    return db.read_csv(f"{folder}/in/*.csv").into("t")


def lose_one(run: of.Run) -> None:
    engine = run._engine
    with engine.shard.view() as view:
        results = state.results(view, run.id, 0)
    blob = results[0].result.blob
    assert blob is not None
    engine.blobs.path(blob).unlink()


def numbers(run: of.Run) -> list[int]:
    return sorted(run.result().to_polars()["a"])


def test_a_run_that_ended_before_it_reopened_what_was_lost(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_one(job(db, tmp_path).run(progress=False, target_splits=2))
    add_file(tmp_path, 2)

    class KilledError(BaseException):
        pass

    def killed(*_: object) -> bool:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(lost_results, "reopen", killed)
        with pytest.raises(KilledError):
            job(db, tmp_path).start(workers=0, target_splits=3)
    run = db.runs()[0]
    assert (run.state, run.progress().reused) == ("running", 2)
    run.resume(workers=1).wait(timeout=60)
    assert numbers(run) == [0, 0, 1, 1, 2, 2]


def test_a_run_that_is_done_makes_again_what_it_has_lost(db: of.Database, tmp_path: Path) -> None:
    run = job(db, tmp_path).run(progress=False, target_splits=2)
    lose_one(run)
    with pytest.raises(of.OnefoldError, match="resume"):
        db.table("t").to_polars()
    run.resume(workers=0)
    assert run.state == "done"
    assert run.resume(workers=1).wait(timeout=60).state == "done"
    assert numbers(run) == [0, 0, 1, 1]
    run.resume(workers=1)  # nothing is lost now
    assert run.state == "done"


def test_a_published_folder_that_is_gone_is_made_again(db: of.Database, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = db.read_csv(f"{tmp_path}/in/*.csv").write_parquet(out).run(progress=False)
    for file in out.iterdir():
        file.unlink()
    out.rmdir()
    assert run.resume(workers=1).wait(timeout=60).state == "done"
    assert sorted(pl.read_parquet(out)["a"]) == [0, 0, 1, 1]


def test_an_earlier_run_of_a_table_is_left_as_it_is(db: of.Database, tmp_path: Path) -> None:
    first = job(db, tmp_path).run(progress=False, target_splits=2)
    add_file(tmp_path, 2)
    second = job(db, tmp_path).run(progress=False, target_splits=3)
    lose_one(second)
    with pytest.raises(of.InvalidArgument, match="taken over"):
        first.resume(workers=1)
    (outcome,) = second._engine.submit(ops.Resume(second.id, "someone"))
    assert isinstance(outcome, ops.Accepted) and second.state == "done"
    second.resume(workers=1).wait(timeout=60)
    assert numbers(second) == [0, 0, 1, 1, 2, 2]
