"""Batch jobs over the records that a stream has: each once, its tasks found again, and the rules of live jobs for its columns."""

from __future__ import annotations

import errno
import inspect
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg, config
from onefold.compute.live.inputs.reading import Inputs
from onefold.compute.live_starting import NOT_FOLLOWED
from onefold.compute.plan.nodes import Source
from onefold.compute.sources import ranges
from onefold.compute.sources.listing import FileInfo
from onefold.compute.sources.resolving import Resolved
from onefold.errors import JobFailed
from onefold.state.core.consistency import STRONG
from onefold.state.streams.frames import OWN_COLUMNS
from onefold.state.streams.layout import Layout

START = datetime(2026, 1, 1, tzinfo=UTC)


def test_jobs_name_the_columns_that_reading_adds() -> None:
    assert ranges.PLACE == OWN_COLUMNS
    assert ranges.TIME in OWN_COLUMNS


def events(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"at": START + timedelta(seconds=number), "page": "abc"[number % 3], "v": number}
        for number in range(first, first + count)
    ]


def counted(db: of.Database, into: str = "t", **source: Any) -> Any:
    return db.read_stream("s", **source).group_by("page").agg(n=agg.count(), total=agg.sum("v")).into(into)


def answers(table: of.Table) -> dict[str, tuple[int, int]]:
    return {page: (n, total) for page, n, total in table.to_polars().iter_rows()}


def expected(rows: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    n: Counter[str] = Counter(row["page"] for row in rows)
    return {page: (n[page], sum(row["v"] for row in rows if row["page"] == page)) for page in n}


@pytest.mark.parametrize("seed", range(3))
def test_every_record_is_read_once_run_after_run(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    with of.connect(tmp_path, shards=random.choice((1, 3))) as db:
        stream, appended = db.stream("s", partitions=random.choice((1, 3))), []
        for _ in range(4):
            rows = events(len(appended), random.randrange(1, 3000))
            appended += rows
            if random.random() < 0.5:
                stream.append_many(rows, key=random.choice((None, "page")))
            else:
                stream.append_many(pl.DataFrame(rows), key=random.choice((None, "page")))
            run = counted(db).run(progress=False, workers=1)
            assert answers(run.result()) == expected(appended)
            assert run.progress().rows == len(rows)  # what was read before keeps its tasks
    assert not list((tmp_path / "blobs" / "tmp").iterdir())


def test_functions_in_worker_processes_get_the_records(onefold_db: of.Database) -> None:
    rows = events(0, 3000)
    onefold_db.stream("s", partitions=2).append_many(rows, key="page")

    def place(row: dict[str, Any]) -> dict[str, Any]:
        if row["v"] == 77:
            raise ValueError("broken")
        return {"where": f"{row['_partition']}:{row['_offset']}", "key": row["_key"], "page": row["page"]}

    job = onefold_db.read_stream("s").map(place).into("places")
    with pytest.raises(of.JobFailed, match=r"stream 's', partition \d, offset \d+"):
        job.run(progress=False, workers=1)
    run = job.start(workers=1, on_error="skip").wait()
    found = run.result().to_polars()
    assert found.height == found["where"].n_unique() == 2999
    assert (found["key"] == found["page"]).all()
    (error,) = run.errors()
    assert error.location is not None and error.location.startswith("stream 's', partition ")


def test_records_that_do_not_fit_fail_the_job_or_are_set_aside(onefold_db: of.Database) -> None:
    stream = onefold_db.stream("s")
    stream.append_many(events(0, 10))
    stream.append({"at": START, "page": "a", "v": "many"})
    stream.append({"page": "a", "v": 5})
    stream.append({"at": START, "v": 5, "more": 1})
    job = counted(onefold_db, event_time="at")
    with pytest.raises(of.JobFailed, match=r"partition 0, offset 10: column 'v' holds 'many'"):
        job.run(progress=False, workers=1)
    run = job.start(workers=1, on_error="skip").wait()
    assert [error.location for error in run.errors()] == [
        "stream 's', partition 0, offset 10",
        "stream 's', partition 0, offset 11",
    ]
    assert "no time in column 'at'" in run.errors()[1].message
    assert run.result().to_polars()["n"].sum() == 11  # a missing column is null
    assert run.progress().rows == 13


def test_a_column_without_a_type_is_not_lost_without_a_word(onefold_db: of.Database) -> None:
    stream = onefold_db.stream("s")
    stream.append_many([{"page": "a", "v": None}] * 3)
    many = 210_000  # beyond what is looked at when the job is submitted
    nulls = pl.DataFrame({"page": pl.Series(["a"]).new_from_index(0, many), "v": pl.Series([None] * many)})
    stream.append_many(nulls)
    stream.append({"page": "a", "v": 7})
    rows = onefold_db.read_stream("s").select("v").into("t")
    with pytest.raises(of.JobFailed, match="say it in schema= of read_stream"):
        rows.run(progress=False, workers=1)
    typed = onefold_db.read_stream("s", schema={"page": pl.String, "v": pl.Int64}).select("v").into("u")
    assert typed.run(progress=False, workers=1).result().to_polars()["v"].sum() == 7


def test_retention_that_removes_input_is_a_clear_error(onefold_db: of.Database) -> None:
    stream = onefold_db.stream("s")
    stream.append_many(events(0, 100))
    run = counted(onefold_db).start(workers=0)
    stream.set_retention("1ms")
    stream.append_many(events(100, 1))
    assert stream.positions()[0][0] > 0
    run.resume(workers=1)
    with pytest.raises(of.JobFailed, match="removed by retention since the job was submitted: run it again"):
        run.wait().raise_if_failed()
    stream.set_retention(None)
    stream.append_many(events(200, 50))
    kept = [record.value for record in stream.read()]
    assert 50 <= len(kept) < 151
    again = counted(onefold_db).run(progress=False, workers=1)
    assert answers(again.result()) == expected(kept)


@pytest.mark.parametrize("lost", ["not here yet", "removed"])
def test_a_range_that_cannot_be_read_leaves_no_files(
    onefold_db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The rows that were there are written before that is known. All that the submitter saw is waited for first."""
    monkeypatch.setattr(config, "STREAM_SOURCE_FILE_BYTES", 1)
    stream = onefold_db.stream("s")
    stream.append_many(events(0, 100))
    streams = onefold_db._stream_ranges()
    source = onefold_db.read_stream("s").node
    assert isinstance(source, Source)
    path = ranges.partition_path("s", 0)
    first, later = ranges.unit_of(path, 0, 100, 1), ranges.unit_of(path, 100, 120, 1)
    schema = streams.resolve(source).schema
    levels: list[object] = []
    written: list[int] = []
    heads, read = Layout.heads, Inputs.read

    def seen(self: Layout, partitions: Any, level: Any = None, *rest: Any) -> Any:
        levels.append(level)
        return heads(self, partitions, level, *rest)

    def reading(self: Inputs, place: Any, start: int, stop: int) -> Any:
        assert STRONG in levels
        written.append(len(list(tmp_path.iterdir())))
        if start >= 100 and lost == "removed":
            raise of.TooOld("gone")
        return read(self, place, start, stop)

    monkeypatch.setattr(Layout, "heads", seen)
    monkeypatch.setattr(Inputs, "read", reading)
    with pytest.raises(ranges.StreamsUnavailable if lost == "not here yet" else of.TooOld):
        streams.take(source, schema, [first, later], tmp_path)
    assert written[-1] > 0 and not list(tmp_path.iterdir())
    taken = streams.take(source, schema, [first], tmp_path)
    assert list(tmp_path.iterdir())
    taken.remove()
    assert not list(tmp_path.iterdir())


def test_windows_take_the_event_time_of_the_stream(onefold_db: of.Database) -> None:
    onefold_db.stream("s").append_many(events(0, 120))
    rows = onefold_db.read_stream("s", event_time="at").window(of.window.tumbling("1m"))
    run = rows.group_by("page").agg(n=agg.count()).into("t").run(progress=False, workers=1)
    assert run.result().to_polars().sort("window_start", "page")["n"].to_list() == [20] * 6
    appended = onefold_db.read_stream("s").window(of.window.tumbling("1d")).group_by().agg(n=agg.count())
    assert appended.into("u").run(progress=False, workers=1).result().to_polars()["n"].sum() == 120


def test_first_and_last_are_by_partition_and_offset(onefold_db: of.Database) -> None:
    onefold_db.stream("s").append_many(events(0, 5000))
    job = onefold_db.read_stream("s").group_by("page").agg(first=agg.first("v"), last=agg.last("v")).into("t")
    found = job.run(progress=False, workers=1).result().to_polars().sort("page").rows()
    assert found == [("a", 0, 4998), ("b", 1, 4999), ("c", 2, 4997)]


def test_sinks_and_joins_leave_out_the_places_of_records(onefold_db: of.Database, tmp_path: Path) -> None:
    onefold_db.stream("s").append_many(events(0, 10))
    pl.DataFrame({"page": ["a", "b"], "name": ["A", "B"]}).write_parquet(tmp_path / "names.parquet")
    rows = onefold_db.read_stream("s")
    named = rows.join(onefold_db.read_parquet(tmp_path / "names.parquet"), on="page")
    for dataset, columns in (
        (rows, ["at", "page", "v"]),
        (rows.select("page", offset="_offset"), ["page", "offset"]),
        (rows.select("_offset"), ["_offset"]),
        (named, ["at", "page", "v", "name"]),
    ):
        made = dataset.into("t", mode="replace").run(progress=False, workers=1)
        assert made.result().to_polars().columns == columns
        onefold_db.drop("t")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"start": "sometime"}, "start|position"),
        ({"partitions": 5}, "numbered from 0; partitions= names 5"),
        ({"partitions": []}, "partitions must name each"),
        ({"event_time": "when"}, "no column 'when'"),
        ({"event_time": "page"}, "cannot be an event time"),
        ({"event_time": 3}, "must be the name of a column"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused(onefold_db: of.Database, source: Any, problem: str) -> None:
    onefold_db.stream("s").append_many(events(0, 3))
    with pytest.raises(of.OnefoldError, match=problem):
        counted(onefold_db, **source).start(workers=0)
    assert not onefold_db.runs()


def test_a_stream_that_is_not_there_or_empty_is_refused(onefold_db: of.Database, tmp_path: Path) -> None:
    with pytest.raises(of.InvalidArgument, match="there is no stream 's': append to it first"):
        counted(onefold_db).start()
    onefold_db.stream("s").create()
    with pytest.raises(of.InvalidArgument, match="say in schema= which there will be"):
        counted(onefold_db).start()
    empty = counted(onefold_db, schema={"page": pl.String, "v": pl.Int64}).run(progress=False, workers=1)
    assert empty.result().to_polars().height == 0
    onefold_db.stream("s").append_many(events(0, 3))
    with pytest.raises(of.InvalidPlan, match='mode="append" cannot be used over a stream'):
        onefold_db.read_stream("s").write_parquet(str(tmp_path / "out"), mode="append").start()


def test_a_start_and_partitions_bound_what_is_read(onefold_db: of.Database) -> None:
    stream = onefold_db.stream("s", partitions=3)
    rows = events(0, 300)
    stream.append_many(rows[:200], key="v")
    later = stream.positions()
    stream.append_many(rows[200:], key="v")
    found = counted(onefold_db, partitions=[0, 2]).run(progress=False, workers=1)
    chosen = [record.value for record in stream.read() if record.partition != 1]
    assert answers(found.result()) == expected(chosen)
    ends = {partition: stop for partition, (_, stop) in later.items()}
    since = [record.value for record in stream.read() if record.offset >= ends[record.partition]]
    assert sorted(row["v"] for row in since) == list(range(200, 300))
    assert counted(onefold_db, "u", start="latest").run(progress=False, workers=1).progress().rows == 0


@pytest.mark.parametrize("seed", range(20))
def test_units_cover_what_is_there_once(seed: int) -> None:
    random = Random(seed)
    path = ranges.partition_path("a/b#c", 3)
    first, stop, previous = 0, 0, []
    for _ in range(40):
        stop += random.choice((0, 1, 900, 5000, 200_000))
        first = random.choice((first, first, random.randint(first, stop)))
        files = (FileInfo(path, 10 * (stop - first), ranges.etag_of(first, stop)),)
        kept, fresh = ranges.cut(
            Resolved(files, ()), previous, split_bytes=1 << 20, min_units=random.choice((1, 20))
        )
        units = sorted([*kept, *fresh], key=lambda unit: unit.start)
        assert [unit.start for unit in units] == [first, *(unit.stop for unit in units)][: len(units)]
        assert (units[-1].stop if units else first) == stop
        assert sorted(units) == units  # by path as by offset
        assert all(ranges.place_of(unit.path) == ("a/b#c", 3) for unit in units)
        assert set(kept) <= {unit for split in previous for unit in split}
        assert sum(unit.size < 1024 for unit in units) < 20
        previous = [tuple(units)]


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("start", ["bogus", "", "s1.zz", 5, None])
def test_a_start_that_cannot_be_is_refused_at_the_call(
    onefold_db: of.Database, follow: bool, start: Any
) -> None:
    with pytest.raises(of.InvalidArgument, match=r"is not a position|start must be"):
        onefold_db.read_stream("s", follow=follow, start=start)


@pytest.mark.parametrize("follow", [False, True])
def test_a_position_in_another_stream_is_refused_at_the_call(onefold_db: of.Database, follow: bool) -> None:
    here, there = (onefold_db.stream(name).append({"v": 1}) for name in ("s", "other"))
    for start in (there, str(there)):
        with pytest.raises(of.InvalidArgument, match="is a position in another stream"):
            onefold_db.read_stream("s", follow=follow, start=start)
    for start in (here, str(here), "earliest", "latest", START):
        onefold_db.read_stream("s", follow=follow, start=start)


FOLLOWED: dict[str, list[Any]] = {
    "watermark_delay": ["5s", 1, timedelta(seconds=1)],
    "idle": [None, "11s", 9],
    "max_ahead": [None, "2m"],
    "hold": ["0s", "2d"],
}


def test_what_only_following_has_is_refused_without_it(onefold_db: of.Database) -> None:
    parameters = inspect.signature(onefold_db.read_stream).parameters
    assert {name: parameters[name].default for name in FOLLOWED} == NOT_FOLLOWED
    for name, values in FOLLOWED.items():
        for value in values:
            onefold_db.read_stream("s", follow=True, **{name: value})
            with pytest.raises(of.InvalidArgument, match=rf"{name}=.* add follow=True, or leave {name} out"):
                onefold_db.read_stream("s", **{name: value})
    onefold_db.read_stream("s", watermark_delay="0s", idle=timedelta(seconds=10), max_ahead="60s", hold="24h")
    with pytest.raises(of.InvalidArgument, match="idle must be a duration"):
        onefold_db.read_stream("s", idle="soon")


def test_a_full_disk_leaves_no_half_of_a_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = pl.DataFrame.write_ipc

    def full(self: pl.DataFrame, file: Path, **options: Any) -> Any:
        write(self, file, **options)
        if full_after.pop(0) if full_after else True:
            raise OSError(errno.ENOSPC, "No space left on device")

    full_after = [False]  # the second file of its task
    with of.connect(tmp_path) as db:
        db.stream("s").append_many(events(0, 3000))
        monkeypatch.setattr(config, "STREAM_SOURCE_FILE_BYTES", 1)
        monkeypatch.setattr(config, "STREAM_SOURCE_BATCH_ROWS", 500)
        monkeypatch.setattr(pl.DataFrame, "write_ipc", full)
        with pytest.raises(JobFailed, match="no space is left"):
            counted(db).run(progress=False, workers=1)
        assert not full_after and not list((tmp_path / "blobs" / "tmp").iterdir())
        monkeypatch.setattr(pl.DataFrame, "write_ipc", write)
        assert answers(counted(db).run(progress=False, workers=1).result()) == expected(events(0, 3000))


def test_a_range_whose_frame_is_lost_fails_the_run_and_says_which_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "STREAM_BLOB_BYTES_MIN", 500)
    monkeypatch.setattr(config, "STREAM_INLINE_BYTES_MAX", 500)
    with of.connect(tmp_path) as db:
        stream = db.stream("s")
        for first in range(0, 1000, 100):
            stream.append_many(
                pl.DataFrame(
                    {"page": ["a"] * 100, "v": [Random(first + i).getrandbits(60) for i in range(100)]}
                )
            )
        names = sorted(db._engine.blobs.names())
        assert len(names) == 10
        run = counted(db, schema={"page": pl.String, "v": pl.Int64}).start(target_splits=5, workers=0)
        lost = names[4]
        data = db._engine.blobs.get(lost)
        db._engine.blobs.path(lost).unlink()
        run.resume(workers=1)
        assert run.wait(timeout=60).state == "failed"
        with pytest.raises(
            JobFailed, match=r"partition 0: the records from \d+ to \d+ are in blob .* missing"
        ):
            run.raise_if_failed()
        assert db._engine.blobs.put(data) == lost  # from a backup
        run.resume().wait(timeout=60)
        assert run.state == "done" and int(db.table("t").to_polars()["n"].sum()) == 1000
