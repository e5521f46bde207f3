"""What live jobs and large frames leave behind is removed wherever blobs are, and when nothing works on live jobs any more."""

from __future__ import annotations

import os
import signal
import time
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import agg, config
from onefold.compute.blobs.backends import open_backend
from onefold.compute.blobs.shared import SharedBlobs
from onefold.compute.blobs.store import BlobStore
from onefold.compute.live.garbage import LiveGarbage
from onefold.compute.live.run_bytes import Origin, origin_of, seal
from onefold.compute.upkeep.keeper import Keeper
from onefold.doctor.state_blobs import check_garbage, check_named
from onefold.folds import blob_tables
from onefold.state.fold.streams.ops import STREAM_BLOBS_VERSION, Append, AppendBlob
from onefold.state.streams.large_frames import LargeFrames, is_frame, stored
from support.executor_bench import wait_until

DAYS_2 = 2 * 24 * 3600


def plan(db: of.Database, table: str = "t") -> Any:
    rows = db.read_stream("s", follow=True, event_time="at", max_ahead=None, idle=None)
    return rows.window(of.window.tumbling("10s")).group_by("k").agg(n=agg.count()).into(table)


def garbage(db: of.Database) -> set[str]:
    tables = set(blob_tables(garbage=True)) - set(blob_tables())
    with db._shard.view() as view:
        return {key.decode() for table in tables for key, _ in view.scan(table)}


@pytest.fixture
def dropped(tmp_path: Path) -> Path:
    """A space whose last live job was dropped by a process that is gone."""
    with of.connect(tmp_path / "space") as db:
        db.stream("s").create()
        run = plan(db).start(workers=0)
        run.cancel()
        db.drop("t")
        assert garbage(db)
    return tmp_path / "space"


@pytest.fixture
def due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage is due at once."""
    monkeypatch.setattr(config, "LIVE_GARBAGE_S", -60)
    monkeypatch.setattr(config, "SWEPT_KEPT_S", -60)


# -- after the last live job


@pytest.mark.usefixtures("due")
def test_the_next_program_removes_what_the_last_job_left(dropped: Path) -> None:
    with of.connect(dropped, read_only=True) as db:
        assert len(db.map("m")) == 0 and db._sweeping._keeper is None
    with of.connect(dropped) as db:
        assert len(db.map("m")) == 0, "no job is ever asked for"
        wait_until(lambda: not garbage(db))
        wait_until(lambda: not list(BlobStore(dropped / "blobs").names()))


def test_a_program_with_nothing_to_remove_starts_nothing(dropped: Path) -> None:
    with of.connect(dropped) as db:
        assert len(db.map("m")) == 0 and garbage(db), "readers may have it on their list"
        assert db._sweeping._keeper is None and db._live is None and db._jobs is None


@pytest.mark.usefixtures("due")
def test_the_program_that_drops_it_removes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "GARBAGE_SWEEP_S", 0.01)
    with of.connect(tmp_path) as db:
        db.stream("s").create()
        run = plan(db).start(workers=0)
        run.stop()
        db.drop("t")
        wait_until(lambda: not garbage(db))


@pytest.mark.usefixtures("due")
def test_the_program_that_appends_large_frames_removes_what_retention_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "GARBAGE_SWEEP_S", 0.01)
    monkeypatch.setattr(config, "STREAM_BLOB_BYTES_MIN", 20_000)
    with of.connect(tmp_path) as db:
        stream = db.stream("s", retention=0.001)
        for number in range(4):
            stream.append(os.urandom(30_000))
            time.sleep(0.003)
            assert number or list(BlobStore(tmp_path / "blobs").names())
        stream.positions()
        wait_until(lambda: not garbage(db) and len(list(BlobStore(tmp_path / "blobs").names())) <= 1)


def test_the_doctor_says_what_waits_and_removes_it(dropped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with of.connect(dropped) as db:
        blobs = db._engine.blobs
        found = check_garbage(db._state, blobs, fix=False)
        assert found.status == "ok" and found.found.startswith("1 blobs that nothing names wait")
        left = blobs.put(seal(Origin("t", 1, "part", 0, 1, 99, 7, 0), b"rows"))
        os.utime(blobs.path(left), (time.time() - DAYS_2,) * 2)
        assert check_garbage(db._state, blobs, fix=True).found == "1 blobs that nothing names were removed"
        assert garbage(db) and not blobs.exists(left)
        with monkeypatch.context() as later:
            later.setattr(config, "ORPHAN_BLOB_AGE_S", -60.0)
            assert check_garbage(db._state, blobs, fix=False).status == "warn"
        monkeypatch.setattr(config, "LIVE_GARBAGE_S", -60)
        assert check_garbage(db._state, blobs, fix=True).found == "1 blobs that nothing names were removed"
        assert not garbage(db)


@pytest.mark.parametrize("error", [TimeoutError, of.Unavailable])
def test_what_a_handler_of_signals_raises_passes_the_doctor(
    dropped: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def limit(*_: object) -> None:
        raise error("a time limit of the program's own")

    monkeypatch.setattr(BlobStore, "everywhere", lambda _: signal.raise_signal(signal.SIGUSR1))
    before = signal.signal(signal.SIGUSR1, limit)
    try:
        with of.connect(dropped) as db:
            with pytest.raises(error, match="the program's own"):
                check_garbage(db._state, db._engine.blobs, fix=True)
            with pytest.raises(error, match="the program's own"):
                check_named(db._state, db._engine.blobs)
    finally:
        signal.signal(signal.SIGUSR1, before)


# -- where machines share the blobs


class Shared:
    """Two spaces whose blobs are in one directory."""

    def __init__(self, folder: Path) -> None:
        self.files = BlobStore(folder / "shared")
        (folder / "shared").mkdir()
        self.dbs = [of.connect(folder / name) for name in ("a", "b")]
        self.blobs = [
            SharedBlobs(folder / f"cache-{number}", open_backend(f"dir:{folder / 'shared'}"))
            for number in (0, 1)
        ]

    def frame(self, number: int, *, named: bool) -> str:
        """Store a frame of one of the spaces."""
        client = self.dbs[number]._state
        client.shared["large frames"] = LargeFrames(
            lambda: Kept(self.blobs[number]),
            lambda: 0,
            lambda: 1 << 30,  # type: ignore[arg-type,return-value]
        )
        if named:
            self.dbs[number].stream("s").append(b"x" * 600_000)
            with self.dbs[number]._shard.view() as view:
                (name,) = (key.decode() for table in blob_tables() for key, _ in view.scan(table))
            return name
        with stored(client, {0: [Append("s", 0, 1, b"x" * 600_000)]}) as found:
            (write,) = found.parts[0]
            assert isinstance(write, AppendBlob)
            return write.blob

    def run(self, number: int, space: str | None = None) -> str:
        """Store a run that no commit names."""
        incarnation = self.dbs[number]._shard.incarnation if space is None else space
        return self.blobs[number].put(seal(Origin("t", 1, "part", 0, 1, 99, 7, number, incarnation), b"rows"))


class Kept:
    """What of a store large frames need."""

    def __init__(self, blobs: BlobStore) -> None:
        self.put, self.keeps = blobs.put, blobs.keeps

    def discard(self, name: str) -> None:
        """Nothing was refused."""


def test_only_what_a_space_has_stored_itself_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Shared(tmp_path)
    try:
        named = shared.frame(0, named=True)
        mine, other = shared.frame(0, named=False), shared.frame(1, named=False)
        my_run, other_run, of_040 = shared.run(0), shared.run(1), shared.run(0, space="")
        result = shared.blobs[0].put(b"a result of a batch job")
        asked: list[str] = []
        begins = SharedBlobs.begins

        def looked_at(self: SharedBlobs, name: str, size: int) -> bytes:
            asked.append(name)
            if name == late:  # its writer comes now, after a day
                shared.dbs[0]._state.commit(0, (AppendBlob("s", 0, 1, late, 600_000),))
            return begins(self, name, size)

        monkeypatch.setattr(SharedBlobs, "begins", looked_at)
        late = shared.frame(0, named=False)
        sweeper = LiveGarbage(shared.dbs[0]._state, shared.blobs[0])
        assert sweeper.remove_unnamed() == 0, "it may be named yet"
        for name in shared.files.names():
            os.utime(shared.files.path(name), (time.time() - DAYS_2,) * 2)
        assert sweeper.remove_unnamed() == 2
        assert set(shared.files.names()) == {named, late, other, other_run, of_040, result}
        assert named not in asked, "the place may charge for each question"
        assert not {mine, my_run} & set(shared.files.names())
    finally:
        for db in shared.dbs:
            db.close()


@pytest.mark.parametrize("shards", [1, 3])
def test_a_look_asks_for_many_blobs_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    """A shard that is elsewhere answers each question over the network, and the place may charge for each."""
    with of.connect(tmp_path / "space", shards=shards) as db:
        blobs = db._engine.blobs
        db.stream("s").append({"k": 1})
        run = db.read_stream("s").group_by("k").agg(n=agg.count()).into("b").run(progress=False)
        of_jobs = set(blobs.names())
        assert run.result() and of_jobs
        left = [blobs.put(seal(Origin("t", 1, "part", 0, 1, 99, 7, number), b"rows")) for number in range(40)]
        for name in blobs.names():
            os.utime(blobs.path(name), (time.time() - DAYS_2,) * 2)
        asked: list[str] = []
        questions: list[str] = []
        begins = BlobStore.begins

        def view(self: Any, *args: Any, real: Any, **options: Any) -> Any:
            return Asked(real(self, *args, **options), questions)

        for shard in {type(shard) for shard in db._shards}:
            monkeypatch.setattr(shard, "view", partialmethod(view, real=shard.view))
        monkeypatch.setattr(BlobStore, "begins", lambda *args: asked.append(args[1]) or begins(*args))
        assert LiveGarbage(db._state, blobs).remove_unnamed() == 40
        assert set(asked) == set(left) and set(blobs.names()) == of_jobs
        assert questions.count("get_many") <= 2 + 2 * 2 * shards and questions.count("get") <= 2 * shards


class Asked:
    """A view that notes what is asked of it."""

    def __init__(self, block: Any, questions: list[str]) -> None:
        self._block, self._questions = block, questions

    def __enter__(self) -> Any:
        self._view = self._block.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._block.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        self._questions.append(name)
        return getattr(self._view, name)


def test_a_blob_is_looked_for_again_shortly_before_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer may have stood still for a day."""
    with of.connect(tmp_path / "space") as db:
        db.stream("s").create()
        blobs = db._engine.blobs
        assert db._state.reach_version(0, STREAM_BLOBS_VERSION)
        frames = sorted(blobs.put(b"1FF" + bytes([number]) * 13 + b"frame") for number in range(250))
        for name in frames:
            os.utime(blobs.path(name), (time.time() - DAYS_2,) * 2)
        delete = BlobStore.delete

        def late(self: BlobStore, name: str) -> None:
            if name == frames[0]:
                db._state.commit(0, (AppendBlob("s", 0, 1, frames[-1], 600_000),))
            delete(self, name)

        monkeypatch.setattr(BlobStore, "delete", late)
        assert LiveGarbage(db._state, blobs).remove_unnamed() == 249
        assert list(blobs.names()) == frames[-1:]


def test_blobs_that_machines_share_are_listed_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    monkeypatch.setattr(LiveGarbage, "remove_unnamed", lambda *_, **__: looks.append("look") or 0)
    with of.connect(tmp_path / "space") as db:
        (tmp_path / "shared").mkdir()
        there = SharedBlobs(tmp_path / "cache", open_backend(f"dir:{tmp_path / 'shared'}"))
        for blobs, most in ((db._engine.blobs, 2), (there, 1)):
            keeper = Keeper(lambda: db._state, lambda blobs=blobs: blobs, lambda *_: None)
            looks.clear()
            for later_s in (0.0, 60.0, config.LIVE_UNNAMED_LOOK_S + 1):
                now = _boot_s(db) + later_s
                monkeypatch.setattr(type(db._state.env), "boot_s", lambda _, now=now: now)
                keeper.look()
                monkeypatch.undo()
                monkeypatch.setattr(LiveGarbage, "remove_unnamed", lambda *_, **__: looks.append("look") or 0)
            assert len(looks) == most


def _boot_s(db: of.Database) -> float:
    return db._state.env.boot_s()


@pytest.mark.parametrize("cut", [0, 2, 5, 6, 20])
def test_the_origin_of_a_run_is_read_from_its_beginning(cut: int) -> None:
    origin = Origin("job", 1, "part", 0, 1, 99, 7, 3, "incarnation")
    data = seal(origin, b"rows" * 1000)
    assert origin_of(data[:1024]) == origin
    assert origin_of(data[:cut]) is None and origin_of(b"no run" * 9) is None
    assert is_frame(b"1FF" + bytes(13)) and not is_frame(b"1FF" + bytes(13), "incarnation")
