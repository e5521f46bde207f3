"""Where the rows of live jobs go: other shards, maps and streams that follow what changes, functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg

START = datetime(2026, 1, 1, tzinfo=UTC)
T = 120


def second(number: float) -> datetime:
    return START + timedelta(seconds=number)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path) as opened:
        yield opened


@pytest.fixture
def sharded(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path, shards=3) as opened:
        yield opened


def source(db: of.Database, name: str = "clicks", **options: Any) -> Any:
    given = {"event_time": "at", "watermark_delay": "0s", "max_ahead": None, "idle": None}
    return db.read_stream(name, follow=True, **(given | options))


def fill(db: of.Database, count: int, random: Random, partitions: int = 4) -> list[dict[str, Any]]:
    rows = [
        {"at": second(number), "page": random.choice("abcdefgh"), "v": random.randrange(100)}
        for number in range(count)
    ]
    stream = db.stream("clicks", partitions=partitions)
    stream.append_many(pl.DataFrame(rows), key="page")
    return rows


# -- other shards


@pytest.mark.parametrize("seed", range(2))
def test_rows_reach_a_map_in_other_shards_once(sharded: of.Database, seed: int) -> None:
    rows = fill(sharded, 300, Random(seed))
    counted = source(sharded).group_by("page").agg(n=agg.count(), v=agg.sum("v"))
    run = counted.into_map("pages", key="page").start(workers=2, latency=0)
    run.stop(drain=True, timeout=T)
    assert run.state == "done"
    expected = {
        page: {
            "n": sum(row["page"] == page for row in rows),
            "v": sum(row["v"] for row in rows if row["page"] == page),
        }
        for page in {row["page"] for row in rows}
    }
    assert dict(sharded.map("pages").items()) == expected


def test_rows_reach_a_stream_in_other_shards_once(sharded: of.Database) -> None:
    rows = fill(sharded, 300, Random(3))
    job = source(sharded).select("page", "v").into_stream("out", key="page", partitions=7)
    run = job.start(workers=2, latency=0)
    run.catch_up(timeout=T)
    run.stop()
    run = job.start()
    run.stop(drain=True, timeout=T)
    found = sharded.stream("out").to_polars()
    assert Counter(found.select("page", "v").rows()) == Counter((row["page"], row["v"]) for row in rows)


@pytest.mark.parametrize("breaks", ["before", "after"])
def test_a_forwarder_that_dies_does_nothing_twice(
    sharded: of.Database, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    """Between the record of the other shard and the removal at home, and before either."""
    from onefold.compute.live.output.forwarder import Forwarder

    whole = Forwarder._do
    broken = []

    def dying(self: Any, waiting: Any, since: int) -> None:
        if len(broken) < 6:
            broken.append(waiting.shard)
            if breaks == "after":
                submit = self._job.submit
                self._job.submit = lambda op: None
                try:
                    whole(self, waiting, since)
                finally:
                    self._job.submit = submit
            raise of.Unavailable("it died", definite=True)
        whole(self, waiting, since)

    monkeypatch.setattr(Forwarder, "_do", dying)
    rows = fill(sharded, 100, Random(4))
    job = source(sharded).select("page", "v").into_stream("out", key="page", partitions=7)
    job.start(latency=0).stop(drain=True, timeout=T)
    assert len(broken) == 6
    found = sharded.stream("out").to_polars()
    assert Counter(found.select("page", "v").rows()) == Counter((row["page"], row["v"]) for row in rows)


# -- what changes


def followed(records: Any, *keys: str) -> Counter[tuple[Any, ...]]:
    """What a reader of a stream of updates has in the end."""
    held: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for record in records:
        row = dict(record.value)
        op = row.pop("op")
        key = tuple(row[name] for name in keys)
        if op == "delete":
            del held[key]
        else:
            held[key] = tuple(row[name] for name in sorted(row))
    return Counter(held.values())


WINDOWS = {
    "tumbling": of.window.tumbling("10s", allowed_lateness="5s"),
    "sliding": of.window.sliding("30s", every="10s"),
    "session": of.window.session("2s"),
}


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("seed", range(3))
def test_a_stream_of_updates_ends_with_the_table(db: of.Database, kind: str, seed: int) -> None:
    random = Random(f"{kind} {seed}")
    clicks = db.stream("clicks")
    clicks.create()
    windows = source(db, watermark_delay="6s").window(WINDOWS[kind]).group_by("page")
    totals = windows.agg(n=agg.count(), v=agg.sum("v"))
    updates = totals.into_stream("out", key="page", emit="update").start(latency=0)
    table = totals.into("t").start(latency=0)
    times = [random.random() * 120 for _ in range(60)]
    times.sort(key=lambda at: at + random.random() * 6)
    while times:
        batch, times = times[: (size := random.randint(1, 12))], times[size:]
        clicks.append_many(
            pl.DataFrame(
                [{"at": second(at), "page": random.choice("ab"), "v": random.randrange(9)} for at in batch]
            )
        )
        updates.catch_up(timeout=T)
    for run in (updates, table):
        run.stop(drain=True, timeout=T)
    found = table.result().to_polars()
    assert found.height
    columns = sorted(found.columns)
    records = db.stream("out").read()
    assert followed(records, "window_start", "page") == Counter(found.select(columns).rows())


def test_a_map_of_updates_loses_what_is_taken_back(db: of.Database) -> None:
    clicks = db.stream("clicks")
    clicks.create()
    groups = source(db).group_by("page").agg(n=agg.count(), ttl="10s")
    run = groups.into_map("m", key="page").start(latency=0)
    sessions = source(db, watermark_delay="60s").window(of.window.session("5s")).group_by("page")
    moved = sessions.agg(n=agg.count()).into_map("s", key="page", emit="update").start(latency=0)
    for at, page in ((10, "a"), (20, "a"), (15, "a"), (8, "a"), (40, "b")):
        clicks.append({"at": second(at), "page": page})
        for one in (run, moved):
            one.catch_up(timeout=T)
    assert {key: value["n"] for key, value in db.map("m").items()} == {"b": 1}
    found = {key: (value["window_start"], value["n"]) for key, value in db.map("s").items()}
    assert found == {"a": (second(8), 4), "b": (second(40), 1)}


def test_groups_past_their_ttl_begin_again(db: of.Database) -> None:
    clicks = db.stream("clicks")
    clicks.create()
    groups = source(db).group_by("page").agg(n=agg.count(), ttl="10s")
    table = groups.into("t").start(latency=0)
    out = groups.into_stream("out", key="page").start(latency=0)
    for at, page in ((0, "a"), (1, "b"), (9, "a"), (12, "b"), (40, "c"), (41, "a")):
        clicks.append({"at": second(at), "page": page})
        for run in (table, out):
            run.catch_up(timeout=T)
    assert table.result().to_polars().rows() == [("a", 1), ("c", 1)]
    given = [(row.value["op"], row.value["page"], row.value["n"]) for row in db.stream("out").read()]
    assert given[:4] == [("put", "a", 1), ("put", "b", 1), ("put", "a", 2), ("put", "b", 2)]
    assert sorted(given[4:-2]) + given[-1:] == [("delete", "a", 2), ("delete", "b", 2), ("put", "a", 1)]
    table.stop(drain=True, timeout=T)
    assert table.result().to_polars().rows() == [("a", 1), ("c", 1)]


def test_a_group_begins_again_before_it_is_looked_for(db: of.Database) -> None:
    """Groups past their time are removed now and then; what comes for one in between must not add to it."""
    clicks = db.stream("clicks")
    clicks.create()
    run = source(db).group_by("page").agg(n=agg.count(), ttl="10s").into("t").start(latency=0)
    for at, page in ((0, "a"), (9.5, "b"), (10.4, "b"), (10.5, "a")):
        clicks.append({"at": second(at), "page": page})
        run.catch_up(timeout=T)
    assert run.result().to_polars().rows() == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("seed", range(3))
def test_a_commit_may_change_and_forget_a_group(db: of.Database, seed: int) -> None:
    """What a group past its time went out with is taken back; a group that begins and ends in one commit is never seen."""
    random = Random(seed)
    clicks = db.stream("clicks", partitions=1)
    clicks.create()
    groups = source(db).group_by("page").agg(n=agg.count(), ttl="10s")
    runs = [groups.into_map("m", key="page").start(latency=0)]
    runs += [groups.into_stream("out", key="page", partitions=1).start(latency=0)]
    now, newest = 0.0, dict.fromkeys("abcde", -100.0)
    for _ in range(12):
        rows = []
        for _ in range(random.randint(1, 6)):
            now += random.choice((0.5, 3, 20))
            page = random.choice("abcde")
            newest[page] = now
            rows.append({"at": second(now), "page": page})
        clicks.append_many(pl.DataFrame(rows), key=None)
        for run in runs:
            run.catch_up(timeout=T)
    there: dict[str, int] = {}
    for record in db.stream("out").read():
        page, n = record.value["page"], record.value["n"]
        if record.value["op"] == "put":
            there[page] = n
        else:
            assert there.pop(page) == n
    certain = {page for page, at in newest.items() if at > now - 10}
    possible = {page for page, at in newest.items() if at > now - 10 - 10 / 8}
    for found in (set(there), set(db.map("m").keys())):
        assert certain <= found <= possible


# -- functions


def test_a_function_gets_every_row_at_least_once(db: of.Database) -> None:
    fill(db, 50, Random(1))
    frames: list[pl.DataFrame] = []
    run = source(db).select("page", "v").for_each(frames.append, batch_rows=7, name="kept").start()
    run.stop(drain=True, timeout=T)
    assert max(frame.height for frame in frames) == 7
    assert sum(frame.height for frame in frames) == 50
    assert frames[0].columns == ["page", "v"]


@pytest.mark.parametrize("skip", [False, True])
def test_a_function_that_raises(db: of.Database, skip: bool) -> None:
    fill(db, 50, Random(1), partitions=1)

    def picky(frame: pl.DataFrame) -> None:
        if frame["at"][0] == second(10):
            raise ValueError("ten")

    run = source(db).for_each(picky, batch_rows=10, name="picky").start(on_error="skip" if skip else "fail")
    if not skip:
        with pytest.raises(of.JobFailed, match="for_each raised ValueError: ten"):
            run.catch_up(timeout=T)
        return
    run.stop(drain=True, timeout=T)
    assert run.status().dead == 10
    assert run.dead_letters()["error"].str.contains("ten").all()


@pytest.mark.parametrize("skip", [False, True])
def test_a_row_that_cannot_be_a_key(db: of.Database, skip: bool) -> None:
    clicks = db.stream("clicks")
    for page in ("a", "x" * 20_000, "b"):
        clicks.append({"at": second(0), "page": page, "v": 1})
    run = source(db).into_map("m", key="page").start(on_error="skip" if skip else "fail")
    if not skip:
        with pytest.raises(of.JobFailed, match="cannot be given to its sink"):
            run.catch_up(timeout=T)
        return
    run.catch_up(timeout=T)
    assert [*db.map("m")] == ["a", "b"]
    assert run.status().dead == 1
