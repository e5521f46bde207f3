"""``db.at`` names data that nothing needs any more and that was removed: it says so, and not that something is damaged."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import agg, config
from onefold.compute.blobs.past import BlobFreed, PastBlobs
from onefold.compute.blobs.store import BlobMissing
from onefold.compute.engine import Engine
from onefold.compute.upkeep.keeper import Keeper
from onefold.space import kept_log


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[of.Database]:
    monkeypatch.setattr(Keeper, "start", lambda *_, **__: None)
    monkeypatch.setattr(config, "LIVE_GARBAGE_S", -60)
    monkeypatch.setattr(config, "SWEPT_KEPT_S", -60)
    monkeypatch.setattr(config, "LIVE_INLINE_BYTES_MAX", 64)
    monkeypatch.setattr(config, "STREAM_BLOB_BYTES_MIN", 20_000)
    with of.connect(tmp_path / "space") as found:
        yield found


def in_stream(db: of.Database) -> str:
    db.stream("s", retention=0.001).append(os.urandom(30_000))
    token = db.session.token
    while db.stream("s").positions()[0][0] == 0:
        time.sleep(0.001)
        db.stream("s").append(b"x")
    return token


def of_stream(then: of.Database) -> Any:
    return [len(record.value) for record in then.stream("s").read()]


def in_table(db: of.Database) -> str:
    lines = Path(db.url).with_name("a.txt")
    lines.write_text("".join(f"{number}\n" for number in range(20_000)))

    def run(version: str) -> None:
        job = db.read_text(str(lines)).group_by("line").agg(n=agg.count()).into("t", version=version)
        job.run(progress=False, workers=1, target_splits=2)

    run("1")
    db.map("m").put("k", 1)
    token = db.session.token
    run("2")
    return token


def in_live_table(db: of.Database) -> str:
    stream = db.stream("clicks")
    stream.create()
    run: Any = (
        db.read_stream("clicks", follow=True)
        .group_by("k")
        .agg(n=agg.count())
        .into("t")
        .start(latency=0, lanes=4)
    )
    token = ""
    for number in range(40):
        stream.append({"k": number})
        run.catch_up(timeout=60)
        if number == 4:
            token = db.session.token
    run.stop()
    return token


def of_table(then: of.Database) -> Any:
    return then.table("t").to_polars().height


@pytest.mark.parametrize(
    ("made", "read", "said"),
    [
        (in_stream, of_stream, "retention has removed all before offset"),
        (in_table, of_table, "a later run, compaction or retention has replaced it"),
        (in_live_table, of_table, "a later run, compaction or retention has replaced it"),
    ],
    ids=["large record", "table", "live table"],
)
def test_what_was_freed_since_is_too_old(
    db: of.Database, made: Callable[[of.Database], str], read: Callable[[of.Database], Any], said: str
) -> None:
    token = made(db)
    blobs = db._engine.blobs
    Keeper(lambda: db._state, lambda: blobs).look()
    db._engine.garbage.sweep()
    before = set(blobs.names()), blobs.hidden()
    with db.at(token) as then, pytest.raises(of.TooOld, match=said) as raised:
        read(then)
    assert "missing" not in str(raised.value) and "backup" in str(raised.value)
    assert raised.value.definite
    assert (set(blobs.names()), blobs.hidden()) == before


@pytest.mark.parametrize(
    ("made", "read"), [(in_stream, of_stream), (in_live_table, of_table)], ids=["large record", "live table"]
)
def test_what_is_still_aside_is_read_and_stays_there(
    db: of.Database,
    made: Callable[[of.Database], str],
    read: Callable[[of.Database], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(config, "SWEPT_KEPT_S", 3600)
    token = made(db)
    blobs = db._engine.blobs
    Keeper(lambda: db._state, lambda: blobs).look()
    before = set(blobs.names()), blobs.hidden()
    assert before[1]
    with db.at(token) as then:
        assert read(then)
    assert (set(blobs.names()), blobs.hidden()) == before


def test_what_the_present_needs_and_lacks_is_missing(db: of.Database) -> None:
    in_table(db)
    token = db.session.token
    for name in db._engine.blobs.names():
        db._engine.blobs.delete(name)
    with db.at(token) as then, pytest.raises(BlobMissing) as raised:
        of_table(then)
    assert not isinstance(raised.value, of.TooOld)


def test_how_far_the_log_reaches_is_said_where_it_was_cut(
    db: of.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kept_log.reach_of(db._shards) == ""
    for number in range(30):
        db.map("m").put("k", number)
    db._shard.trim(20)  # type: ignore[attr-defined]
    reach = kept_log.reach_of(db._shards)
    assert reach.startswith("The log was cut (`log_keep`), and db.at reaches back to 20")
    blobs = PastBlobs(db._engine.blobs, lambda _: False, lambda: reach)
    with pytest.raises(BlobFreed, match="reaches back to 20"):
        blobs.get("0" * 64)
    for put in (lambda: blobs.put(b"x"), lambda: blobs.put_file(Path("x"))):
        with pytest.raises(of.SpaceError, match="as it was"):
            put()


def test_the_past_of_a_cluster_has_the_blobs_of_the_present(db: of.Database) -> None:
    """They are not next to the replica."""
    in_table(db)
    token = db.session.token
    elsewhere = Path(db.url).with_name("elsewhere")
    (Path(db.url) / "blobs").rename(elsewhere)
    other = type(db._engine.blobs)(elsewhere)
    db._jobs = Engine(db._shard, blobs=other, owns_space=False)
    with db.at(token) as then:
        assert of_table(then) == 20_000
