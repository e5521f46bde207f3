"""The keeper does what is due, one duty apart from the other, and lists the place no more often than needed."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import agg, config
from onefold.compute.blobs.store import BlobStore, BlobsUnavailable
from onefold.compute.live.run_bytes import Origin, seal
from onefold.compute.upkeep.duties import DUTIES, Space
from onefold.compute.upkeep.keeper import Keeper
from onefold.database import sweeping
from onefold.doctor.state_blobs import check_garbage
from onefold.env import SeededEnv
from onefold.errors import SpaceError
from onefold.state.fold.live.ops import Cancel

DAYS_2 = 2 * 24 * 3600


class Place(BlobStore):
    """A folder that counts how often it is listed, and may be out of reach."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.lists: Counter[str] = Counter()
        self.reached = True

    def _listed(self, what: str) -> None:
        self.lists[what] += 1
        if not self.reached:
            raise BlobsUnavailable("the place does not answer")

    def everywhere(self) -> Iterator[str]:
        self._listed("blobs")
        return super().everywhere()

    def hidden(self) -> set[tuple[str, str]]:
        self._listed("copies")
        return super().hidden()


class Kept:
    """A keeper with a clock of its own, and what it said."""

    def __init__(self, db: of.Database, *, named: bool = True) -> None:
        self.env = SeededEnv(3)
        self.place = Place(db._engine.blobs.directory)
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.keeper = Keeper(
            lambda: db._state,
            lambda: self.place,
            lambda event, fields: self.said.append((event, fields)),
            env=self.env,
            names_blobs=lambda: named,
        )

    def looks(self, hours: float) -> None:
        """As its thread would in that time."""
        for _ in range(round(hours * 3600 / config.GARBAGE_SWEEP_S)):
            self.keeper.look()
            self.env.advance(config.GARBAGE_SWEEP_S)


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[of.Database]:
    monkeypatch.setattr(Keeper, "start", lambda *_, **__: None)
    with of.connect(tmp_path / "space") as found:
        yield found


@pytest.mark.parametrize("named", [True, False], ids=["blobs are named", "none is"])
def test_the_place_is_listed_once_in_an_hour(db: of.Database, named: bool) -> None:
    kept = Kept(db, named=named)
    db._engine.blobs.put(b"of a batch job")
    kept.looks(hours=24)
    hours = 24 * 3600 / config.LIVE_UNNAMED_LOOK_S
    assert hours <= kept.place.lists["blobs"] <= hours + 1
    assert hours <= kept.place.lists["copies"] <= 2 * (hours + 1), "those of batch and those of live jobs"
    assert not kept.said


@pytest.mark.parametrize("named", [True, False], ids=["blobs are named", "none is"])
def test_a_place_out_of_reach_is_asked_ever_less_often(db: of.Database, named: bool) -> None:
    kept = Kept(db, named=named)
    kept.place.reached = False
    kept.looks(hours=24)
    assert kept.place.lists["blobs"] <= 24 + 8, "1, 2, 4, … minutes, then once in an hour"
    assert kept.place.lists["copies"] <= 24 + 8
    events = [(event, fields["duty"], fields["passes"]) for event, fields in kept.said]
    assert events == [("live_blobs_not_swept", "unnamed", True), ("live_blobs_not_swept", "copies", True)]
    kept.said.clear()
    kept.place.reached = True
    kept.looks(hours=2)
    assert {(event, fields["duty"]) for event, fields in kept.said} == {
        ("live_blobs_not_swept_over", "unnamed"),
        ("live_blobs_not_swept_over", "copies"),
    }


def test_copies_of_what_was_removed_are_settled_soon(db: of.Database) -> None:
    kept = Kept(db)
    kept.looks(hours=0.1)
    before = kept.place.lists["copies"]
    stream_of(db, "gone").cancel()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(config, "LIVE_GARBAGE_S", -60)
        db.drop("gone")
        assert kept.keeper.look() == 1
    assert kept.place.lists["copies"] == before
    kept.looks(hours=0.1)
    assert before < kept.place.lists["copies"] <= before + 4


@pytest.mark.parametrize("fails", [duty.name for duty in DUTIES])
@pytest.mark.parametrize(
    "error", [SpaceError("refused"), OSError(5, "a disk"), ValueError("a damaged row")], ids=repr
)
def test_what_fails_keeps_nothing_else_from_being_done(
    db: of.Database, monkeypatch: pytest.MonkeyPatch, fails: str, error: Exception
) -> None:
    done: list[str] = []

    def do(name: str) -> Any:
        def one(_: Space) -> int:
            done.append(name)
            if name == fails:
                raise error
            return 0

        return one

    made = tuple(duty._replace(do=do(duty.name)) for duty in DUTIES)
    monkeypatch.setattr("onefold.compute.upkeep.keeper.DUTIES", made)
    kept = Kept(db)
    kept.keeper.look()
    assert done == [duty.name for duty in DUTIES], "all, in order"
    kept.looks(hours=2)
    (once,) = kept.said
    assert once[1]["duty"] == fails and str(error) in once[1]["error"] and not once[1]["passes"]
    assert 1 < Counter(done)[fails] <= 18, "it is tried again"


def test_a_program_says_what_will_not_pass(capsys: pytest.CaptureFixture[str]) -> None:
    sweeping._say("live_blobs_not_swept", {"duty": "garbage", "error": "Unavailable: away", "passes": True})
    sweeping._say("live_blobs_swept", {"count": 3})
    assert not capsys.readouterr().err
    sweeping._say("live_blobs_not_swept", {"duty": "garbage", "error": "SpaceError: no", "passes": False})
    sweeping._say("live_rows_given_up", {"why": "shard 1 refuses its rows"})
    first, second = capsys.readouterr().err.splitlines()
    assert "SpaceError: no" in first and "onefold doctor" in first
    assert "shard 1 refuses its rows" in second and "given up" in second


# -- one list for all that look at it


def stream_of(db: of.Database, table: str) -> Any:
    stream = db.stream("s")
    stream.create()
    return db.read_stream("s", follow=True).group_by("k").agg(n=agg.count()).into(table).start(workers=0)


def holds(db: of.Database) -> None:
    db.stream("s", retention=0.001).append({"k": 1})
    run = (
        db.read_stream("s", follow=True, hold="1h")
        .group_by("k")
        .agg(n=agg.count())
        .into("t")
        .start(workers=0)
    )
    run._job.submit(Cancel("t", 1, ("main",)))  # its program is killed on the line behind this


def garbage(db: of.Database) -> None:
    stream_of(db, "t").cancel()
    db.drop("t")


def results(db: of.Database) -> None:
    lines = Path(db.url).with_name("a.txt")
    lines.write_text("x\n" * 5)
    rows = db.read_text(str(lines)).map(lambda row: os.urandom(30_000).hex())
    assert rows.into("big").run(progress=False, workers=1).state == "done"
    db._engine.garbage.sweep = lambda *_, **__: 0  # type: ignore[method-assign]  # the program is killed before it
    db.drop("big")


def unnamed(db: of.Database) -> None:
    blobs = db._engine.blobs
    left = blobs.put(seal(Origin("t", 1, "part", 0, 1, 99, 7, 0), b"rows"))
    os.utime(blobs.path(left), (time.time() - DAYS_2,) * 2)


def copies(db: of.Database) -> None:
    blobs = db._engine.blobs
    for kind in ("l", "t"):
        blobs.hide(blobs.put(b"of a sweeper that died"), kind)


@pytest.mark.parametrize("by", ["keeper", "doctor", "program"])
@pytest.mark.parametrize("made", [holds, garbage, results, unnamed, copies])
def test_keeper_doctor_and_programs_see_the_same(
    db: of.Database, monkeypatch: pytest.MonkeyPatch, made: Any, by: str
) -> None:
    made(db)
    monkeypatch.setattr(config, "LIVE_GARBAGE_S", -60)
    monkeypatch.setattr(config, "SWEPT_KEPT_S", -60)
    blobs = db._engine.blobs
    (duty,) = (one for one in DUTIES if one.name == made.__name__)
    space = Space(db._state, lambda: blobs)

    def waiting() -> set[str]:
        return {one.name for one in DUTIES if one.waits(space)}

    assert waiting() == {duty.name}
    before = db._shard.applied, set(blobs.names()), blobs.hidden()
    found = check_garbage(db._state, blobs, fix=False).found
    assert duty.what in found or (made is garbage and "1 blobs that nothing names wait" in found)
    assert (db._shard.applied, set(blobs.names()), blobs.hidden()) == before, "looking changes nothing"
    if by == "keeper":
        Keeper(lambda: db._state, lambda: blobs).look()
    elif by == "doctor":
        check_garbage(db._state, blobs, fix=True)
    else:
        begun: list[bool] = []
        monkeypatch.setattr(Keeper, "start", lambda *_, soon: begun.append(soon))
        with of.connect(db.url) as other:
            assert len(other.map("m")) == 0
        assert begun == ([] if duty.lists_place else [True])
        return
    assert not waiting()
    if made is not unnamed:
        assert not blobs.hidden() or made in (garbage, results)
