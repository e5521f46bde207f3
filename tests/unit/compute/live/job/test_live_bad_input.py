"""What cannot be: plans, records and streams that a live job meets, each with an error that says what to do, or set aside."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg, config

START = datetime(2026, 1, 1, tzinfo=UTC)
T = 60


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path) as opened:
        yield opened


def source(db: of.Database, **options: Any) -> Any:
    given = {"event_time": "at", "watermark_delay": "0s", "max_ahead": None, "idle": None}
    return db.read_stream("clicks", follow=True, **(given | options))


def at(number: float) -> datetime:
    return START + timedelta(seconds=number)


def counted(rows: Any) -> Any:
    return rows.group_by("page").agg(n=agg.count())


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (lambda db: source(db).window(of.window.tumbling("0s")), "a tumbling window needs a length"),
        (lambda db: source(db).window(of.window.session(0)), "a session window needs a gap"),
        (lambda db: source(db).window(of.window.sliding("1h", every="1ms")), "slices"),
        (lambda db: source(db).window(of.window.sliding("10s", every="0s")), "every"),
        (lambda db: counted(source(db)).into("t", emit="final"), 'emit="final" needs a window'),
        (
            lambda db: counted(source(db)).into_map("m", key="page", emit="final"),
            'emit="final" needs a window',
        ),
        (
            lambda db: (
                source(db)
                .window(of.window.tumbling("1m", on="at"))
                .group_by("page")
                .agg(n=agg.count())
                .into("t")
            ),
            "event_time=",
        ),
        (lambda db: counted(source(db)).filter(pl.col("n") > 1), "cannot follow"),
        (
            lambda db: source(db).group_by(op="page").agg(n=agg.count()).into_stream("s", emit="update"),
            "rename",
        ),
        (lambda db: source(db).group_by("page").agg(n=agg.count(), ttl="0s"), "ttl must be longer"),
        (lambda db: source(db).for_each(3), "for_each"),
        (lambda db: source(db).for_each(print, batch_rows=0), "batch_rows"),
        (lambda db: source(db).window(of.window.sliding(1001, every=1)), "1,001 slices"),
        (lambda db: source(db).window(of.window.tumbling(1e20)), "longer than times"),
        (lambda db: source(db, idle=1e20), "idle must be at most"),
        (lambda db: counted(source(db)).into("t").start(latency="2h"), "latency must be at most"),
        (lambda db: source(db, partitions=(0, 0)), "each partition once"),
        (lambda db: source(db, partitions="all"), "partitions must be a whole number"),
        (lambda db: source(db, partitions=-1), "partitions must be a whole number"),
        (lambda db: source(db).into_stream("clicks"), "would read for ever what it writes"),
        (lambda db: counted(source(db)).into_map("m", key="pgae"), "no column 'pgae' for key="),
        (lambda db: counted(source(db)).into_stream("m", key="pgae"), "no column 'pgae' for key="),
        (lambda db: counted(source(db)).into_map("m", key=["page", "n"]), "name of one column"),
        (lambda db: counted(source(db)).into_map("m", key=("page",)), "name of one column"),
        (lambda db: counted(source(db)).into_stream("m", key=["page", "n"]), "name of one column"),
        (lambda db: counted(source(db)).into("t", keep="7d"), "there is no window"),
        (
            lambda db: counted(windows(db)).into_map("m", key="window_start"),
            "is of type Datetime.* and a key is",
        ),
        (
            lambda db: source(db, schema={"at": pl.Datetime, "page": pl.String}).into_map("m", key="at"),
            "is of type Datetime.*Make text of it",
        ),
        (
            lambda db: counted(source(db, schema={"page": pl.String})).into("t"),
            "no column 'at' for event_time",
        ),
        (
            lambda db: counted(source(db, schema={"at": pl.String, "page": pl.String})).into("t"),
            "schema= says String",
        ),
        (lambda db: counted(source(db, schema={"at": pl.Datetime})).into("t"), "names column 'page'"),
        (
            lambda db: counted(source(db, schema={"at": pl.Datetime, "page": pl.List(pl.Int64)})).into("t"),
            "cannot be a key",
        ),
        (lambda db: source(db).group_by("__onefold_time"), "are Onefold's own"),
        (lambda db: source(db).group_by(__onefold_lane="page"), "are Onefold's own"),
        (lambda db: source(db).group_by("page").agg(__onefold_op=agg.count()), "are Onefold's own"),
        (lambda db: source(db).group_by("page").agg(n=agg.sum("__onefold_time")), "are Onefold's own"),
        (lambda db: source(db).with_columns(__onefold_record="page"), "are Onefold's own"),
        (lambda db: source(db).filter(pl.col("__onefold_record") > 0), "are Onefold's own"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_at_its_line(db: of.Database, plan: Any, message: str) -> None:
    with pytest.raises((of.InvalidPlan, of.InvalidArgument), match=message):
        plan(db)
    assert list(db.collections()) == []


@pytest.mark.parametrize("length", [-1, "-1s", float("nan"), float("inf"), True, "x", [1], "", 1e30])
def test_a_duration_that_cannot_be_is_refused_at_its_line(db: of.Database, length: Any) -> None:
    for made in (
        lambda: of.window.tumbling(length),
        lambda: of.window.tumbling("1m", allowed_lateness=length),
        lambda: of.window.session(length),
        lambda: of.window.sliding(length, every="1s"),
        lambda: of.window.sliding("10s", every=length),
        lambda: counted(source(db)).into("t", keep=length),
        lambda: counted(source(db)).into("t").start(latency=length),
        lambda: source(db, watermark_delay=length),
        lambda: source(db, idle=length),
        lambda: source(db, max_ahead=length),
        lambda: source(db, hold=length),
        lambda: source(db).group_by("page").agg(n=agg.count(), ttl=length),
    ):
        with pytest.raises((of.InvalidPlan, of.InvalidArgument)):
            made()
    assert list(db.collections()) == []


def test_partitions_that_a_stream_does_not_have_are_refused(db: of.Database) -> None:
    db.stream("clicks", partitions=2).create()
    with pytest.raises(of.InvalidArgument, match="has 2 partitions, from 0 on, and none with number 2"):
        counted(source(db, partitions=(1, 2))).into("t").start()
    assert db.runs() == []


def raises(record: dict[str, Any]) -> dict[str, Any]:
    if record["v"] == 99:
        raise ValueError("boom")
    return record


def dies(record: dict[str, Any]) -> dict[str, Any]:
    if record["v"] == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    return record


def windows(db: of.Database, step: Any = None) -> Any:
    rows = source(db).with_columns(number=pl.col("text").replace("bad", "x").cast(pl.Int64))
    return (rows if step is None else rows.map(step)).window(of.window.tumbling("10s"))


def grouped(rows: Any) -> Any:
    return rows.group_by("page").agg(n=agg.count()).into("t")


GOOD = {"page": "a", "text": "1", "v": 1}
BAD: dict[str, tuple[Any, str]] = {
    "no time": (GOOD, "no time in column 'at'"),
    "null time": (GOOD | {"at": None}, "no time in column 'at'"),
    "broken time": (GOOD | {"at": "yesterday"}, "column 'at' holds 'yesterday' of type String"),
    "number as time": (GOOD | {"at": 5}, "column 'at' holds 5 of type Int64"),
    "other type": (GOOD | {"v": "x"}, "column 'v' holds 'x' of type String"),
    "number too large": (GOOD | {"v": 2**70}, "of type Int128, which does not fit into Int64"),
    "no row": (GOOD | {"v": [1, "x"]}, "no column can hold their values"),
    "no number": (GOOD | {"v": Decimal("NaN")}, "which no column of decimals can hold"),
    "endless": (GOOD | {"more": [Decimal("Infinity")]}, "which no column of decimals can hold"),
    "many digits": (GOOD | {"more": {"a": Decimal("1E+50")}}, "at most 38 digits"),
    "larger number": (GOOD | {"more": 2**200}, "too large"),
    "no column": (GOOD | {5: "a"}, "cannot be a column"),
    "no dict": ("text", "no time in column 'at'"),
    "none": (None, "no time in column 'at'"),
    "failing step": (GOOD | {"text": "bad"}, "conversion"),
    "raising function": (GOOD | {"v": 99}, "ValueError: boom"),
    "killing function": (GOOD | {"v": 99}, "SIGKILL"),
    "long key": (GOOD | {"page": "a" * 20_000}, "the key has 20000 characters"),
}
"""A record, and the reason it is set aside for."""
NO_ROWS = {"no row", "no number", "endless", "many digits", "larger number", "no column", "none"}
"""Those whose values no columns have."""
HARMLESS: dict[str, tuple[Any, int]] = {
    "missing column": ({"page": "a"}, 0),
    "missing key": ({"text": "1", "v": 1}, 0),
    "new column": (GOOD | {"new": 1}, 1),
    "type that fits": (GOOD | {"v": 1.0}, 0),
}
"""A record, and how many have a column that is left out."""


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_fails_the_job_or_is_set_aside(db: of.Database, case: str, skip: bool) -> None:
    record, reason = BAD[case]
    if isinstance(record, dict) and "time" not in case:
        record = {"at": at(1), **record}
    clicks = db.stream("clicks")
    clicks.append(GOOD | {"at": at(0)})
    step = {"raising function": raises, "killing function": dies}.get(case)
    job = windows(db, step)
    job = source(db).into_map("m", key="page") if case == "long key" else grouped(job)
    run = job.start(on_error="skip" if skip else "fail")
    run.catch_up(timeout=T)
    clicks.append(record)
    clicks.append(GOOD | {"at": at(2)})
    if not skip:
        with pytest.raises(of.JobFailed, match=reason) as found:
            run.catch_up(timeout=T)
        assert "record 1 of partition 0 of 'clicks': " in str(found.value) or case == "long key"
        assert 'start it with on_error="skip"' in str(found.value)
        assert run.state == "failed"
        run = job.start(on_error="skip")  # it continues behind the record
    run.stop(drain=True, timeout=T)
    assert run.status().dead == 1
    (letter,) = run.dead_letters().rows(named=True)
    assert reason in letter["error"]
    if case == "long key":
        assert letter["location"] == "a row that its sink cannot take"
        assert len(db.map("m")) == 1
    else:
        assert letter["location"] == "record 1 of partition 0 of clicks"
        assert case in NO_ROWS or repr(record)[-12:-1] in letter["record"]
        assert run.result().to_polars().select("page", "n").rows() == [("a", 2)]


@pytest.mark.parametrize("case", HARMLESS)
def test_a_record_that_is_no_error_is_counted(db: of.Database, case: str) -> None:
    record, left_out = HARMLESS[case]
    clicks = db.stream("clicks")
    clicks.append(GOOD | {"at": at(0)})
    run = windows(db).group_by("page").agg(n=agg.count(), v=agg.sum("v")).into("t").start()
    run.catch_up(timeout=T)
    clicks.append(record | {"at": at(1)})
    run.stop(drain=True, timeout=T)
    assert (run.status().dead, run.status().left_out) == (0, left_out)
    assert run.result().to_polars()["n"].sum() == 2


def test_a_record_of_four_megabytes_is_refused_by_the_stream_or_read(db: of.Database) -> None:
    clicks = db.stream("clicks")
    text = "".join(chr(97 + number * number % 23) for number in range(1000)) * 4000
    clicks.append(GOOD | {"at": at(0), "text": "x"})
    with pytest.raises(of.TooLarge, match="at most 1048576 fit"):
        clicks.append(GOOD | {"at": at(1), "text": text})
    run = grouped(source(db).filter(pl.col("text").str.len_chars() > 0)).start()
    clicks.append(GOOD | {"at": at(2), "text": "y"})
    run.catch_up(timeout=T)
    assert run.result().to_polars().rows() == [("a", 2)]


def test_empty_frames_and_records_are_nothing(db: of.Database) -> None:
    clicks = db.stream("clicks")
    run = counted(source(db)).into("t").start()
    clicks.append_many(pl.DataFrame(schema={"at": pl.Datetime("us", "UTC"), "page": pl.String}))
    clicks.append_many([])
    clicks.append({"at": at(0), "page": "a"})
    run.catch_up(timeout=T)
    assert run.result().to_polars().rows() == [("a", 1)]


@pytest.mark.parametrize("skip", [False, True])
def test_a_group_by_a_column_that_has_no_stable_hash(db: of.Database, skip: bool) -> None:
    db.stream("clicks").append({"at": at(0), "page": [1, 2]})
    run = counted(source(db)).into("t").start(on_error="skip" if skip else "fail")
    with pytest.raises(of.JobFailed, match="page"):
        run.catch_up(timeout=T)


@pytest.mark.parametrize("sink", ["map", "stream", "hop"])
def test_rows_of_a_megabyte_go_through(db: of.Database, sink: str) -> None:
    clicks = db.stream("clicks")
    text = "".join(chr(97 + number * number % 23) for number in range(900_000))
    for number in range(5):
        clicks.append({"at": at(number), "page": f"{number}", "text": text})
    rows = source(db)
    if sink == "map":
        run = rows.into_map("m", key="page").start()
    elif sink == "stream":
        run = rows.into_stream("out", key="page").start()
    else:
        run = counted(rows.map(lambda record: record)).into("t").start()
    run.catch_up(timeout=T)
    assert run.status().dead == 0
    match sink:
        case "map":
            assert {len(value["text"]) for _, value in db.map("m").items()} == {900_000}
        case "stream":
            assert db.stream("out").to_polars().height == 5
        case _:
            assert run.result().to_polars().height == 5


def test_a_commit_that_does_not_fit_into_a_record_is_cut(
    db: of.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "LIVE_OUTBOX_COMMIT_BYTES_MAX", 2_000)
    frame = pl.DataFrame(
        {"at": [at(number) for number in range(100)], "page": [str(number) for number in range(100)]}
    )
    db.stream("clicks").append_many(frame)
    run = source(db).into_map("m", key="page").start(latency=0)
    run.catch_up(timeout=T)
    assert len(db.map("m")) == 100
    assert run.status().commits > 1
    monkeypatch.setattr(config, "LIVE_OUTBOX_COMMIT_BYTES_MAX", 20)
    db.stream("clicks").append_many(frame)
    with pytest.raises(of.JobFailed, match="more than a record holds"):
        run.catch_up(timeout=T)


@pytest.mark.parametrize("sink", ["map", "stream", "update"])
@pytest.mark.parametrize("shards", [1, 3])
def test_windows_that_close_with_more_than_a_record_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: str, shards: int
) -> None:
    """Their lanes commit one after the other: here, and what goes to other shards."""
    monkeypatch.setattr(config, "LIVE_OUTBOX_COMMIT_BYTES_MAX", 400 if sink == "update" else 3_000)
    with of.connect(tmp_path, shards=shards) as db:
        clicks = db.stream("clicks")
        pages = [f"{number}" for number in range(200)]
        rows = source(db).window(of.window.tumbling("10s")).group_by("page").agg(n=agg.count())
        if sink == "map":
            run = rows.into_map("out", key="page").start(latency=0)
        elif sink == "stream":
            run = rows.into_stream("out", key="page", partitions=3).start(latency=0)
        else:
            ends = source(db).group_by("page").agg(n=agg.count(), ttl="10s")
            run = ends.into_map("out", key="page").start(latency=0)
        for number in range(2):
            frame = pl.DataFrame({"at": [at(100 * number)] * 200, "page": pages})
            clicks.append_many(frame)
            clicks.append({"at": at(100 * number + 50), "page": "end"})  # closes all at once
            run.catch_up(timeout=T)
        if sink == "update":  # those past their time are taken back
            assert set(db.map("out").keys()) == {"end"}
            return
        run.stop(drain=True, timeout=T)
        if sink == "map":
            assert {key: value["n"] for key, value in db.map("out").items()} == dict.fromkeys(
                (*pages, "end"), 1
            )
        else:
            out = db.stream("out").to_polars()
            assert out.height == out.unique(["window_start", "page"]).height == 402
        assert run.status().rows == 402
        assert run.status().late == 0


def test_reading_waits_while_too_much_waits_for_another_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onefold.compute.live.output.forwarder import Forwarder

    forward, waiting_bytes = Forwarder.forward, Forwarder.waiting_bytes
    held = [True]
    full = threading.Semaphore(0)

    def noted(self: Forwarder) -> int:
        if (size := waiting_bytes(self)) >= config.LIVE_OUTBOX_BYTES_MAX:
            full.release()
        return size

    monkeypatch.setattr(Forwarder, "forward", lambda self: not held[0] and forward(self))
    monkeypatch.setattr(Forwarder, "waiting_bytes", noted)
    monkeypatch.setattr(config, "LIVE_OUTBOX_BYTES_MAX", 500)
    monkeypatch.setattr(config, "LIVE_BATCH_ROWS_MAX", 10)  # the bound is looked at between commits
    with of.connect(tmp_path, shards=3) as sharded:
        clicks = sharded.stream("clicks", partitions=3)
        run = source(sharded).into_stream("out", key="page", partitions=6).start(latency=0)
        for number in range(100):
            clicks.append({"at": at(number), "page": f"{number}"}, key=number)
        assert full.acquire(timeout=T)
        rows = run.status().rows
        assert 0 < rows < 100
        for _ in range(3):  # rounds of the worker, each with unread records
            assert full.acquire(timeout=T)
        with pytest.raises(of.Timeout):
            run.catch_up(timeout=0.1)
        assert run.status().rows == rows
        held[0] = False
        run.catch_up(timeout=T)
        assert sharded.stream("out").to_polars().height == 100


def test_input_that_retention_removed_fails_the_job(db: of.Database) -> None:
    clicks = db.stream("clicks")
    clicks.append({"at": at(0), "page": "a"})
    job = counted(source(db, hold=0)).into("t")
    job.start().catch_up(timeout=T).stop()
    for number in range(5):
        clicks.append({"at": at(number), "page": "x" * 20_000})
    clicks.set_retention("1ms")
    time.sleep(0.01)
    assert [*clicks.read()] == []
    run = job.start()
    with pytest.raises(of.JobFailed, match=r"not read are past their retention.*run\.swap\(\)"):
        run.catch_up(timeout=T)
    clicks.set_retention(None)
    clicks.append({"at": at(9), "page": "b"})
    replayed = job.replay()  # as the message says
    replayed.catch_up(timeout=T).swap()
    assert db.table("t").to_polars().to_dicts() == [{"page": "b", "n": 1}]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (lambda live, batch: live.join(live, on="page", within="1m"), "join: a stream that is followed cannot"),
        (lambda live, batch: live.join(batch, on="page"), "join: a stream that is followed cannot"),
        (lambda live, batch: batch.join(live, on="page"), "join: a stream that is followed cannot"),
        (lambda live, batch: live.union(batch), r"not both.*db\.concat"),
        (lambda live, batch: batch.union(batch, live), r"not both.*db\.concat"),
        (
            lambda live, batch: live.window(of.window.tumbling("1m")).group_by("page").agg(ttl="1h"),
            "ttl= is for groups of a stream that have no window",
        ),
        (lambda live, batch: batch.group_by("page").agg(n=agg.count(), ttl="1h"), "ttl= is for groups of a stream"),
    ],
)  # fmt: skip
def test_what_streams_and_bounded_data_do_not_do_together_is_refused(
    db: of.Database, plan: Any, message: str
) -> None:
    db.stream("clicks", partitions=1)
    with pytest.raises((of.InvalidPlan, of.InvalidArgument), match=message):
        plan(source(db), db.read_stream("clicks"))


def test_an_aggregate_that_the_schema_cannot_have_is_refused_at_once(db: of.Database) -> None:
    db.stream("clicks", partitions=1)
    rows = source(db, schema={"at": pl.Datetime("us", "UTC"), "page": pl.String}).group_by("page")
    with pytest.raises(of.InvalidPlan, match=r"column 'total'.*sum"):
        rows.agg(total=agg.sum("page")).into("t")
    rows.agg(hi=agg.max("page"), first=agg.first("page"), place=agg.max("_offset")).into("t")


def test_a_value_that_is_too_large_says_what_to_do_in_words_of_a_stream_too(db: of.Database) -> None:
    with pytest.raises(of.TooLarge, match="Split it into several") as raised:
        db.stream("clicks", partitions=1).append({"page": "a" * (config.VALUE_BYTES_MAX + 1)})
    assert "keys" not in str(raised.value)


def test_a_job_that_runs_is_not_dropped_and_the_command_that_stops_it_is_named(db: of.Database) -> None:
    db.stream("clicks", partitions=1)
    counted(source(db)).into("t").start(workers=1)
    with pytest.raises(of.Conflict, match="`onefold stop t`"):
        db.drop("t")
