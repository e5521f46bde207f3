"""Large frames of streams are blobs that the records name: read as all others, and freed with their records."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import onefold as of
from onefold import agg, config
from onefold.backoff import wait_until
from onefold.compute.live.garbage import LiveGarbage
from onefold.errors import InvalidValue, TooOld, Unavailable
from onefold.folds import blob_tables
from onefold.state.core.client import StateClient
from onefold.state.export.exporting import export
from onefold.state.export.importing import import_file
from onefold.state.fold.streams import rows as stream_rows

ROWS = 4000
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def most_frames_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "STREAM_BLOB_BYTES_MIN", 20_000)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path / "space") as db:
        yield db


def noise(seed: int = 1, rows: int = ROWS) -> pl.DataFrame:
    drawn = np.random.default_rng(seed)
    at = pl.Series([START] * rows) + pl.Series(np.arange(rows)).cast(pl.Duration("ms"))
    return pl.DataFrame({"at": at, "k": np.arange(rows) % 5, "v": drawn.random(rows)})


def files(db: of.Database) -> set[str]:
    return set(db._engine.blobs.names())  # type: ignore[attr-defined]


def named(db: of.Database, *, garbage: bool = False) -> set[str]:
    found = set()
    for shard in db._shards:
        with shard.view() as view:
            found |= {key.decode() for table in blob_tables(garbage=garbage) for key, _ in view.scan(table)}
    return found


def sweep(db: of.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SWEPT_KEPT_S", -60)
    garbage = LiveGarbage(db._state, db._engine.blobs)
    garbage.sweep(kept_s=-60)
    garbage.sweep(kept_s=-60)


def read(db: of.Database, name: str = "s") -> pl.DataFrame:
    return db.stream(name).to_polars().sort("_partition", "_offset").select("at", "k", "v")


# -- reading


@pytest.mark.parametrize("shards", [1, 3])
def test_all_readers_find_the_records(tmp_path: Path, shards: int) -> None:
    large, small = noise(), noise(2, rows=10)
    with of.connect(tmp_path / "space", shards=shards) as db:
        stream = db.stream("s", partitions=2)
        stream.append_many(large, key="k")
        stream.append_many(small, key="k")
        stream.append(b"x" * 30_000, key=1)
        with db.transaction() as tx:
            tx.stream("s").append_many(large, key="k")
        assert len(files(db)) >= 3 and files(db) == named(db)
        db.map("m").put("k", 1)
    both = pl.concat([large, small, large]).sort(pl.all())
    with of.connect(tmp_path / "space") as db:
        stream = db.stream("s")
        assert len(stream) == both.height + 1
        frames = [frame for frame in stream.read_frames() if "v" in frame.columns]
        assert pl.concat(frames).select("at", "k", "v").sort(pl.all()).equals(both)
        values = [record.value for record in stream.read()]
        assert sum(value == b"x" * 30_000 for value in values) == 1
        assert sorted(v["v"] for v in values if isinstance(v, dict)) == both["v"].sort().to_list()
        with stream.consumer("g", timeout=0.1) as consumer:
            assert sum(1 for _ in consumer) == both.height + 1


def test_jobs_read_them(db: of.Database) -> None:
    frame = noise()
    db.stream("s").append_many(frame)
    live = db.read_stream("s", follow=True, event_time="at", idle=None, max_ahead=None)
    run = live.group_by("k").agg(n=agg.count()).into("live").start()
    db.stream("s").append_many(frame)
    run.catch_up(timeout=120)
    batch = db.read_stream("s").group_by("k").agg(n=agg.count()).into("batch").run()
    counts = batch.result().to_polars().sort("k")
    assert counts["n"].to_list() == [2 * ROWS // 5] * 5
    assert db.table("live").to_polars(final=False).sort("k")["n"].to_list() == counts["n"].to_list()
    run.stop()


def test_a_live_jobs_stream_has_them(db: of.Database) -> None:
    db.stream("s").append_many(noise())
    live = db.read_stream("s", follow=True, event_time="at", idle=None, max_ahead=None)
    run = live.filter(pl.col("v") >= 0).into_stream("out").start()
    run.catch_up(timeout=120)
    assert read(db, "out").sort(pl.all()).equals(noise().sort(pl.all()))
    assert len(named(db)) == 3, "the plan, and a frame in each of both streams"
    run.stop()


def test_exports_and_the_past_have_them(db: of.Database, tmp_path: Path) -> None:
    db.stream("s").append_many(noise())
    token = db.session.token
    db.stream("s").append_many(noise(2))
    assert read(db.at(token)).equals(noise())
    out = io.StringIO()
    assert export(db._state, out.write).records == 2 * ROWS
    with of.connect(tmp_path / "other") as other:
        out.seek(0)
        import_file(other._state, out)
        assert len(other.stream("s")) == 2 * ROWS
        assert other.stream("s").to_polars()["v"].sum() == pytest.approx(
            noise()["v"].sum() + noise(2)["v"].sum()
        )


def test_the_record_is_small_and_says_how_much_it_stands_for(db: of.Database) -> None:
    stream = db.stream("s")
    stream.append_many(noise(3))
    before = sum(len(entry.data) for entry in db._shard.log.read(1, 100))
    stream.append_many(noise())
    after = sum(len(entry.data) for entry in db._shard.log.read(1, 100))
    assert after - before < 400
    with db._shard.view() as view:
        head = stream_rows.head_of(view, "s", 0)
    size = sum(path.stat().st_size for path in Path(db.url).glob("blobs/??/*"))
    assert head.bytes == size - 2 * 16 and head.next == 2 * ROWS


# -- what stays in the record


def test_small_frames_and_spaces_in_memory_have_no_blobs(db: of.Database) -> None:
    db.stream("s").append_many(noise(rows=100))
    assert not files(db)
    with of.connect("memory://") as memory:
        memory.stream("s").append_many(noise())
        assert read(memory).equals(noise()) and not named(memory)


def test_next_to_an_older_program_frames_stay_in_the_record(
    db: of.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(StateClient, "reach_version", lambda *_: False)
        db.stream("s").append_many(noise())
    assert read(db).equals(noise()) and not files(db)
    db.stream("s").append_many(noise(2))
    assert len(files(db)) == 1 and read(db).equals(pl.concat([noise(), noise(2)]))


# -- freeing


def test_retention_frees_a_blob_and_no_other(db: of.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    old, kept = db.stream("old"), db.stream("kept")
    old.append_many(noise())
    kept.append_many(noise())
    assert len(files(db)) == 2, "equal frames have two blobs"
    old.set_retention(0.001)
    time.sleep(0.01)  # fold time moves
    assert old.positions() == {0: (ROWS, ROWS)}
    assert len(named(db)) == 1 and len(named(db, garbage=True)) == 2
    garbage = LiveGarbage(db._state, db._engine.blobs)
    assert garbage.sweep() == 0 and len(files(db)) == 2, "readers may still be at it"
    sweep(db, monkeypatch)
    assert files(db) == named(db) == named(db, garbage=True) and not db._engine.blobs.hidden()
    assert read(db, "kept").equals(noise())


def test_an_append_that_is_refused_leaves_no_blob(db: of.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = db.stream("s")
    stream.append_many(noise())
    before = files(db)

    def refuses(*_: Any, **__: Any) -> Any:
        assert len(files(db)) == 2, "stored before the record"
        raise of.Conflict("refused")

    def unknown(*_: Any, **__: Any) -> Any:
        raise of.AppendUnknown("nobody knows")

    with monkeypatch.context() as context:
        context.setattr(StateClient, "commit", refuses)
        with pytest.raises(of.Conflict):
            stream.append_many(noise(2))
        assert files(db) == before
        context.setattr(StateClient, "commit", unknown)
        with pytest.raises(of.AppendUnknown):
            stream.append_many(noise(2))
        assert files(db) > before, "the record may name it"


@pytest.mark.parametrize("shards", [1, 3])
def test_an_append_that_happened_before_leaves_no_blob(tmp_path: Path, shards: int) -> None:
    with of.connect(tmp_path / "space", shards=shards) as db:
        stream = db.stream("s", partitions=3)
        first = stream.append_many(noise(), key="k", request_id="once")
        kept = files(db)
        assert kept == named(db) and len(kept) >= 1
        assert stream.append_many(noise(), key="k", request_id="once").offsets == first.offsets
        assert files(db) == kept and len(stream) == ROWS
        stream.append_many(noise(), key="k", request_id="twice")
        assert files(db) == named(db) > kept and len(stream.to_polars()) == 2 * ROWS


def test_what_no_record_names_goes_after_a_day(db: of.Database) -> None:
    stream = db.stream("s")
    stream.append_many(noise())
    kept = named(db)
    left = db._engine.blobs.put(b"1FF" + bytes(13) + b"a frame whose writer died")
    garbage = LiveGarbage(db._state, db._engine.blobs)
    assert garbage.remove_unnamed() == 0
    for name in files(db):
        os.utime(db._engine.blobs.path(name), (time.time() - config.ORPHAN_BLOB_AGE_S - 60,) * 2)
    assert garbage.remove_unnamed() == 1
    assert files(db) == kept and left not in kept


def test_a_writer_that_stood_still_stores_again(db: of.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = StateClient.commit

    def slow(self: StateClient, *args: Any, **options: Any) -> Any:
        for name in files(db):
            db._engine.blobs.delete(name)  # a sweeper, a day later
        now_ms = self.env.wall_ms() + round(config.ORPHAN_BLOB_AGE_S * 1000)
        monkeypatch.setattr(type(self.env), "wall_ms", lambda _: now_ms)
        return commit(self, *args, **options)

    monkeypatch.setattr(StateClient, "commit", slow)
    db.stream("s").append_many(noise())
    assert files(db) == named(db) and read(db).equals(noise())


# -- what is missing


def lose(db: of.Database, name: str, how: str) -> None:
    path = db._engine.blobs.path(name)
    data = bytearray(path.read_bytes())
    path.unlink()
    if how == "damaged":
        data[-20] ^= 1
        path.write_bytes(data)


def test_a_missing_blob_is_named(db: of.Database) -> None:
    stream = db.stream("s")
    stream.append_many(noise(rows=10))
    stream.append_many(noise())
    (name,) = files(db)
    db._engine.blobs.delete(name)
    text = rf"stream 's', partition 0: the records from 10 to {ROWS + 9} are in blob {name[:16]}…, which is missing"
    for reader in (stream.read, stream.read_frames):
        with pytest.raises(Unavailable, match=text):
            list(reader())
    assert len(list(stream.read(of.Position(stream._layout.tag, {0: ROWS + 10})))) == 0


def test_a_live_job_says_what_is_missing_and_continues(db: of.Database) -> None:
    stream = db.stream("s")
    stream.append_many(noise())
    (name,) = files(db)
    path = db._engine.blobs.path(name)
    data = path.read_bytes()
    path.unlink()
    live = db.read_stream("s", follow=True, event_time="at", idle=None, max_ahead=None)
    run = live.group_by("k").agg(n=agg.count()).into("t").start()
    assert wait_until(lambda: "cannot work now" in run.status().held_by, 120, 0.02)
    with pytest.raises(
        of.Timeout, match=f"cannot work now, and tries again: .*{name[:16]}…, which is missing"
    ):
        run.catch_up(timeout=0.1)
    path.write_bytes(data)
    run.catch_up(timeout=120)
    assert db.table("t").to_polars(final=False)["n"].sum() == ROWS and not run.status().dead
    assert "cannot work" not in run.status().held_by
    run.stop()


def test_a_live_job_that_fails_on_a_damaged_blob_says_what_to_do(db: of.Database) -> None:
    stream = db.stream("s")
    stream.append_many(noise())
    (name,) = files(db)
    lose(db, name, "damaged")
    live = db.read_stream("s", follow=True, event_time="at", idle=None, max_ahead=None)
    run = live.group_by("k").agg(n=agg.count()).into("t").start()
    with pytest.raises(
        of.JobFailed, match=rf"from 0 to {ROWS - 1} .* is damaged.*restore a backup.*offset {ROWS} .*start="
    ):
        run.catch_up(timeout=120)


def test_a_blob_that_retention_took_meanwhile_is_too_old(db: of.Database) -> None:
    stream = db.stream("s")
    stream.append_many(noise())
    stream.append_many(noise(2))
    reader = stream.read()
    next(reader)
    stream.set_retention(0.001)
    time.sleep(0.01)
    stream.positions()
    for name in files(db):
        db._engine.blobs.delete(name)
    with pytest.raises(TooOld, match=f"offset {ROWS} has been removed by retention"):
        list(reader)


def test_a_damaged_blob_is_not_read(db: of.Database) -> None:
    stream = db.stream("s")
    stream.append_many(noise())
    (name,) = files(db)
    path = db._engine.blobs.path(name)
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    with pytest.raises(InvalidValue, match="is damaged"):
        list(stream.read_frames())


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_consumer_passes_a_lost_frame(db: of.Database, how: str) -> None:
    stream = db.stream("s")
    stream.append_many(noise(rows=10))
    stream.append_many(noise())
    stream.append_many(noise(2, rows=5))
    (name,) = files(db)
    with stream.consumer("g", timeout=0.05) as consumer:  # it dies in the middle of the frame
        for _ in range(12):
            next(consumer)
        consumer.commit()
    lose(db, name, how)
    kind = Unavailable if how == "missing" else InvalidValue
    for group, before in (("g", []), ("new", list(range(10)))):
        with stream.consumer(group, timeout=0.05) as consumer:
            assert [next(consumer).offset for _ in before] == before
            for _ in range(2):
                with pytest.raises(kind, match=rf"is {how}.*restore a backup.*skip\(\)") as found:
                    next(consumer)
            error = found.value
            assert isinstance(error, Unavailable | InvalidValue)
            assert (error.stream, error.partition) == ("s", 0)
            assert (error.offset, error.next_offset) == (10, ROWS + 10)
            assert consumer.skip() and not consumer.skip()
            assert [record.offset for record in consumer] == list(range(ROWS + 10, ROWS + 15))
            consumer.commit()
            assert consumer.committed == {0: ROWS + 15}


def test_a_reader_continues_behind_a_damaged_frame_and_not_behind_a_missing_one(db: of.Database) -> None:
    stream = db.stream("s")
    stream.append_many(noise())
    stream.append_many(noise(2, rows=5))
    (name,) = files(db)
    lose(db, name, "damaged")
    reader = stream.read()
    with pytest.raises(InvalidValue, match="is damaged"):
        next(reader)
    assert [record.offset for record in reader] == list(range(ROWS, ROWS + 5))
    lose(db, name, "missing")
    reader = stream.read()
    for _ in range(2):
        with pytest.raises(Unavailable, match="is missing"):
            next(reader)


def test_a_blob_that_cannot_be_had_now_is_not_passed(
    db: of.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = db.stream("s")
    stream.append_many(noise())

    def silent(*_: Any) -> Any:
        raise Unavailable("the store does not answer")

    with stream.consumer("g", timeout=0.05) as consumer:
        with monkeypatch.context() as context:
            context.setattr(type(db._engine.blobs), "get", silent)
            with pytest.raises(Unavailable, match="cannot be had now") as found:
                next(consumer)
            assert (found.value.offset, found.value.next_offset) == (0, None)
        assert not consumer.skip() and next(consumer).offset == 0


def test_a_batch_that_cannot_be_decoded_is_passed(db: of.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = db.stream("s")
    stream.append_many([1, 2, 3])
    stream.append_many(noise(rows=10))

    def broken(_: bytes) -> Any:
        raise InvalidValue("a stored batch cannot be read")

    monkeypatch.setattr("onefold.state.streams.frames.decode_records", broken)
    with stream.consumer("g", timeout=0.05) as consumer:
        with pytest.raises(InvalidValue, match=r"stream 's', partition 0, offset 0: .* cannot be read"):
            next(consumer)
        assert consumer.skip() and next(consumer).offset == 3


def test_a_blob_place_that_does_not_answer_refuses_the_append(
    db: of.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = db.stream("s")
    stream.append_many(noise(rows=10))

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device", "/blobs")

    monkeypatch.setattr(type(db._engine.blobs), "put", full)
    with pytest.raises(Unavailable, match="cannot be stored: No space left") as found:
        stream.append_many(noise())
    assert found.value.definite and len(stream) == 10
