"""What becomes of the blobs of large frames, and what is said of the append, when something on the way fails."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import config
from onefold.compute.blobs.store import BlobStore
from onefold.compute.live.inputs.stream_blobs import FrameStore
from onefold.compute.live.output.writers import writer
from onefold.compute.live.plan import StreamSink
from onefold.errors import AppendUnknown, Conflict, Timeout, Unavailable
from onefold.folds import blob_tables
from onefold.state.core.client import StateClient
from onefold.state.fold.ops import Resolve
from onefold.state.fold.streams.ops import Append
from onefold.state.streams.large_frames import LargeFrames
from onefold.state.transactions.coordinator import Coordinator

ROWS = 3000
FRAME = pl.DataFrame({"k": [row % 8 for row in range(ROWS)], "v": [os.urandom(40) for _ in range(ROWS)]})
APPENDS: Any = ((StateClient, "commit"), (Coordinator, "run"))


@pytest.fixture(autouse=True)
def most_frames_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "STREAM_BLOB_BYTES_MIN", 10_000)


@pytest.fixture(params=[1, 3])
def db(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[of.Database]:
    with of.connect(tmp_path / "space", shards=request.param) as db:
        db.stream("s", partitions=8).create()
        yield db


@pytest.fixture
def sharded(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path / "space", shards=3) as db:
        yield db


def files(db: of.Database) -> set[str]:
    return set(db._engine.blobs.names())


def named(db: of.Database, *, garbage: bool = False) -> set[str]:
    found = set()
    for shard in db._shards:
        with shard.view() as view:
            found |= {key.decode() for table in blob_tables(garbage=garbage) for key, _ in view.scan(table)}
    return found


def shards_with_records(stream: Any) -> list[int]:
    used = [partition for partition, (first, end) in stream.positions().items() if first < end]
    return sorted(stream._layout.by_shard(used))


def after_the_commit(monkeypatch: pytest.MonkeyPatch, then: Callable[[], object]) -> None:
    """Have this called when the append has happened, before it returns."""
    for owner, what in APPENDS:
        real = getattr(owner, what)

        def done(*args: Any, real: Any = real, **options: Any) -> Any:
            found = real(*args, **options)
            then()
            return found

        monkeypatch.setattr(owner, what, done)


@pytest.fixture
def unheard(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Shards that do not hear of a commit, as while another program holds their file for long."""
    real = Coordinator._append
    shards: set[int] = set()

    def append(self: Coordinator, shard: int, *ops: Any, **options: Any) -> Any:
        if isinstance(ops[0], Resolve) and ops[0].commit and shard in shards:
            raise Timeout("locked by another program")
        return real(self, shard, *ops, **options)

    monkeypatch.setattr(Coordinator, "_append", append)
    return shards


# -- an append that happened


@pytest.mark.parametrize("rows", [10, ROWS])
@pytest.mark.parametrize("deaf", ["first", "others", "all"])
def test_an_append_of_which_a_shard_has_not_heard_has_happened(
    sharded: of.Database, unheard: set[int], rows: int, deaf: str
) -> None:
    stream = sharded.stream("s", partitions=8)
    stream.append_many(FRAME.head(8), key="k")
    first, *others = shards_with_records(stream)
    assert others
    unheard |= {"first": {first}, "others": {*others}, "all": {first, *others}}[deaf]
    position = stream.append_many(FRAME.head(rows), key="k")
    unheard.clear()
    assert len(stream) == rows + 8 and stream.to_polars().height == rows + 8
    assert files(sharded) == named(sharded)
    given = {record.value["v"] for record in stream.read(position)}
    assert given >= set(FRAME["v"].head(rows)), "reading from its position gives all of it"
    # Clocks of shards differ, so a time of one says nothing of another.
    assert position.since_ms is None and len(position.offsets) < 8


def test_the_repetition_of_a_request_of_which_a_shard_has_not_heard(
    sharded: of.Database, unheard: set[int]
) -> None:
    stream = sharded.stream("s", partitions=8)
    stream.append_many(FRAME.head(8), key="k")
    unheard |= set(shards_with_records(stream)[1:])
    stream.append_many(FRAME, key="k", request_id="once")
    again = stream.append_many(FRAME, key="k", request_id="once")
    unheard.clear()
    assert len(stream) == stream.to_polars().height == ROWS + 8 and files(sharded) == named(sharded)
    assert {record.value["v"] for record in stream.read(again)} == set(FRAME["v"])


def test_a_request_id_of_another_write_is_still_refused(sharded: of.Database) -> None:
    with sharded.transaction(request_id="once") as tx:
        for number in range(30):
            tx.map("m").put(number, 1)
    with pytest.raises(Conflict, match="was no append to 's'"):
        sharded.stream("s", partitions=8).append_many(FRAME, key="k", request_id="once")
    assert not files(sharded)


@pytest.mark.parametrize("late", [False, True])
def test_the_error_of_a_handler_of_signals_is_no_refusal(
    db: of.Database, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """``late``: what the handler has interrupted comes to its end by itself, afterwards."""

    def limit(*_: object) -> None:
        raise Unavailable("a time limit of the program's own")

    left: list[Callable[[], object]] = []

    def interrupted(real: Any, *args: Any, **options: Any) -> None:
        left.append(partial(real, *args, **options))
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, limit)
    try:
        with monkeypatch.context() as context:
            if late:
                for owner, what in APPENDS:
                    real = getattr(owner, what)
                    context.setattr(
                        owner, what, lambda *args, real=real, **options: interrupted(real, *args, **options)
                    )
            else:
                after_the_commit(context, lambda: signal.raise_signal(signal.SIGUSR1))
            with pytest.raises(Unavailable, match="the program's own"):
                db.stream("s").append_many(FRAME, key="k")
    finally:
        signal.signal(signal.SIGUSR1, before)
    for work in left:
        work()
    assert db.stream("s").to_polars().height == ROWS and files(db) == named(db)


def test_what_a_handler_raises_while_a_frame_is_stored_is_passed_on(
    db: of.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limit(*_: object) -> None:
        raise TimeoutError("a time limit of the program's own")

    before = signal.signal(signal.SIGUSR1, limit)
    try:
        monkeypatch.setattr(BlobStore, "put", lambda *_: signal.raise_signal(signal.SIGUSR1))
        with pytest.raises(TimeoutError, match="the program's own"):
            db.stream("s").append(os.urandom(30_000), key=1)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_an_append_that_happened_is_not_refused_for_what_comes_after_it(
    db: of.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = db.stream("s")
    stream.append_many(FRAME, key="k", request_id="once")

    def busy(*_: Any, **__: Any) -> Any:
        raise Unavailable("the disk is busy")

    def gone(*_: Any) -> Any:
        raise OSError(5, "Input/output error", "/blobs")

    with monkeypatch.context() as context:
        context.setattr(BlobStore, "delete", gone)
        stream.append_many(FRAME, key="k", request_id="once")
        assert files(db) > named(db), "the sweeper finds them"
        after_the_commit(context, lambda: context.setattr(StateClient, "view", busy))
        stream.append_many(FRAME, key="k", request_id="twice")
    assert len(stream) == stream.to_polars().height == 2 * ROWS


@pytest.mark.parametrize(
    "error", [Unavailable("no answer"), OSError(28, "No space left on device", "/blobs")]
)
def test_nobody_is_told_that_nothing_was_appended_when_it_was(
    db: of.Database, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(config, "ORPHAN_BLOB_AGE_S", 0.0)  # it stood still for half of that
    monkeypatch.setattr(BlobStore, "keeps", fails)
    with pytest.raises(AppendUnknown, match="the records were appended, but") as found:
        db.stream("s").append_many(FRAME, key="k")
    assert not found.value.definite and len(db.stream("s")) == ROWS


# -- one that did not


def test_what_names_a_blob_counts_more_than_what_is_said_of_the_append(
    db: of.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise Conflict("nothing was appended")

    with monkeypatch.context() as context:
        after_the_commit(context, refuse)
        with pytest.raises(Conflict):
            db.stream("s").append_many(FRAME, key="k")
    assert db.stream("s").to_polars().height == ROWS and files(db) == named(db)


@pytest.mark.parametrize("fitting", [0, 1, 3])
def test_an_append_for_which_there_is_no_room_leaves_no_blob(
    db: of.Database, monkeypatch: pytest.MonkeyPatch, fitting: int
) -> None:
    put, stored = BlobStore.put, []

    def full(self: BlobStore, data: bytes) -> str:
        stored.append(data)
        if len(stored) > fitting:
            raise OSError(28, "No space left on device", "/blobs")
        return put(self, data)

    monkeypatch.setattr(BlobStore, "put", full)
    with pytest.raises(Unavailable, match="No space left") as found:
        db.stream("s").append_many(FRAME, key="k")
    assert found.value.definite and len(stored) > fitting
    assert not files(db) and len(db.stream("s")) == 0


# -- transactions


def test_a_transaction_stores_its_frames_when_it_commits(db: of.Database) -> None:
    def write(tx: of.Transaction) -> None:
        tx.stream("s").append_many(FRAME, key="k")
        tx.stream("s").append(os.urandom(30_000), key=1)

    with suppress(ZeroDivisionError), db.transaction() as tx:
        write(tx)
        _ = 1 / 0
    assert not files(db)
    db.map("m").put("k", 0)
    tries: list[int] = []

    def increment(tx: of.Transaction) -> None:
        seen = tx.map("m").get("k")
        write(tx)
        tries.append(seen)
        if len(tries) < 3:
            thread = Thread(target=db.map("m").put, args=("k", seen + 1))  # another program
            thread.start()
            thread.join()
        tx.map("m").put("k", seen + 10)

    db.run_transaction(increment)
    assert tries == [0, 1, 2] and db.map("m").get("k") == 12
    assert len(db.stream("s")) == ROWS + 1 == len(list(db.stream("s").read()))
    # What was prepared in a shard was named there.
    assert files(db) == named(db, garbage=len(db._shards) > 1) >= named(db) != set()


def test_a_repeated_transaction_leaves_no_blob(db: of.Database) -> None:
    for _ in range(2):
        with db.transaction(request_id="once") as tx:
            tx.stream("s").append_many(FRAME, key="k")
    assert db.stream("s").to_polars().height == ROWS and files(db) == named(db) != set()


@pytest.mark.parametrize("together", [True, False], ids=["in one call", "in several"])
def test_frames_of_a_transaction_fit_into_a_record_together(
    db: of.Database, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """As on a cluster whose blobs are in JetStream: only what does not fit into a record is a blob."""
    monkeypatch.setattr(config, "STREAM_INLINE_BYTES_MAX", 1000)
    record = 100_000
    blobs = FrameStore(db._engine.blobs)
    db._state.shared["large frames"] = LargeFrames(lambda: blobs, lambda: 1 << 20, lambda: record)
    values = [os.urandom(45_000) for _ in range(5)]
    shards: Any = db._shards
    before = [shard.applied for shard in shards]
    with db.transaction() as tx:
        if together:
            tx.stream("s").append_many([{"k": 1, "v": value} for value in values], key="k")
        else:
            for value in values:
                tx.stream("s").append({"k": 1, "v": value}, key=1)
    entries = [
        entry for shard, since in zip(shards, before, strict=True) for entry in shard.log.read(since + 1, 99)
    ]
    assert max(len(entry.data) for entry in entries) < record + 1000
    assert files(db) == named(db) != set()
    assert [record.value["v"] for record in db.stream("s").read()] == values


def test_the_frames_of_a_live_jobs_commit_fit_into_a_record_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "STREAM_INLINE_BYTES_MAX", 1000)
    with of.connect(tmp_path) as db:
        blobs = FrameStore(db._engine.blobs)
        db._state.shared["large frames"] = LargeFrames(lambda: blobs, lambda: 1 << 20, lambda: 200_000)
        made = writer(db._state, 0, StreamSink("out", None, "update"))
        assert made is not None
        written = made.write(FRAME, FRAME)  # some 130 kB each
        inline = [write for write in written.writes if isinstance(write, Append)]
        assert len(written.writes) == 2 and len(inline) == 1 == len(files(db))
