"""One plan over history and live: every event once, windows across the seam whole, live readable before the history is done."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg

START = datetime(2026, 1, 1, tzinfo=UTC)
SCHEMA = {"at": pl.Datetime("us", "UTC"), "k": pl.String, "v": pl.Int64}
MINUTE = timedelta(minutes=1)
Groups = dict[tuple[Any, ...], tuple[int, int]]


def events(random: Random, count: int) -> list[dict[str, Any]]:
    return [
        {
            "at": START + timedelta(milliseconds=random.randrange(1_200_000)),
            "k": random.choice("abcd"),
            "v": v,
        }
        for v in range(count)
    ]


def live_rows(db: of.Database, **options: Any) -> Any:
    return db.read_stream("s", follow=True, event_time="at", idle=None, max_ahead=None, **options)


def per_minute(dataset: Any, into: str = "t") -> Any:
    windowed = dataset.window(of.window.tumbling("1m"))
    return windowed.group_by("k").agg(n=agg.count(), total=agg.sum("v")).into(into)


def expected(rows: list[dict[str, Any]], *, windowed: bool = True) -> Groups:
    found: Groups = {}
    for row in rows:
        start = row["at"].replace(second=0, microsecond=0)
        key = (start, start + MINUTE, row["k"]) if windowed else (row["k"],)
        n, total = found.get(key, (0, 0))
        found[key] = n + 1, total + row["v"]
    return found


def shown(table: Any, **options: Any) -> Groups:
    frame = table.to_polars(**options)
    found: Groups = {tuple(key): (n, total) for *key, n, total in frame.iter_rows()}
    assert len(found) == frame.height  # no group is there twice
    return found


def work_on(db: of.Database) -> None:
    """Have this process work on the live job, and not on its history."""
    host = db._live_starter()
    host.workers.work(host.jobs.get("t"), 1)


def write(rows: list[dict[str, Any]], folder: Path, files: int) -> str:
    folder.mkdir()
    for number in range(files):
        pl.DataFrame(rows[number::files], schema=SCHEMA).write_parquet(folder / f"{number}.parquet")
    return str(folder / "*.parquet")


@pytest.mark.parametrize(
    ("kind", "seed"),
    [("windows", 0), ("windows", 1), ("windows", 2), ("groups", 0), ("groups", 1), ("function", 1)],
)
def test_every_event_is_counted_once(tmp_path: Path, kind: str, seed: int) -> None:
    """Shuffled history with rows behind the seam, live with rows before it; workers that come and go."""
    random = Random(seed)
    at = START + timedelta(seconds=(600, 630, 601)[seed])
    past, now = events(random, 800), events(random, 800)
    kept = [row for row in past if row["at"] < at] + [row for row in now if row["at"] >= at]
    files = write(past, tmp_path / "files", random.randrange(1, 5))
    now = sorted(now, key=lambda row: row["at"] + timedelta(seconds=random.random() * 30))

    def job(db: of.Database) -> Any:
        both = db.concat(db.read_parquet(files), live_rows(db, watermark_delay="30s"), at=at)
        if kind == "function":
            both = both.map(lambda row: {name: row[name] for name in ("at", "k", "v")}, schema=SCHEMA)
        if kind == "groups":
            return both.group_by("k").agg(n=agg.count(), total=agg.sum("v")).into("t")
        return per_minute(both)

    with of.connect(tmp_path / "space") as db:
        stream = db.stream("s", partitions=random.choice((1, 2)))
        stream.append_many(now[:300], key="k")
        job(db).start(workers=random.choice((1, 2)), lanes=8)
        if random.random() < 0.5:
            stream.append_many(now[300:500], key="k")
            now_left = now[500:]
        else:
            now_left = now[300:]
    with of.connect(tmp_path / "space") as db:  # another owner, before or after the history is in
        run = job(db).start(workers=random.choice((1, 2)))
        db.stream("s").append_many(now_left, key="k")
        run.catch_up(timeout=60)
        if kind == "groups":
            assert shown(db.table("t")) == expected(kept, windowed=False)
        assert run.status().before_seam == sum(row["at"] < at for row in now)
        assert run.status().late == 0
        run.stop(drain=True, timeout=60)
        assert shown(db.table("t")) == expected(kept, windowed=kind != "groups")


@pytest.mark.parametrize("kind", ["windows", "groups", "function"])
def test_a_seam_at_a_position_takes_the_history_whole(tmp_path: Path, kind: str) -> None:
    random = Random(kind)
    past, now = events(random, 500), sorted(events(random, 500), key=lambda row: row["at"])
    files = write(past, tmp_path / "files", 3)
    with of.connect(tmp_path / "space") as db:
        stream = db.stream("s", partitions=2)
        stream.append_many(now[:200], key="k")
        at = stream.append_many(now[200:300], key="k")

    def job(db: of.Database) -> Any:
        both = db.concat(db.read_parquet(files), live_rows(db), at=at)
        if kind == "function":
            both = both.map(lambda row: {name: row[name] for name in ("at", "k", "v")}, schema=SCHEMA)
        if kind == "groups":
            return both.group_by("k").agg(n=agg.count(), total=agg.sum("v")).into("t")
        return per_minute(both)

    with of.connect(tmp_path / "space") as db:
        job(db).start(workers=2, lanes=8)
    with of.connect(tmp_path / "space") as db:
        run = job(db).start()
        if kind == "windows":
            with pytest.raises(of.Conflict, match="seam"):
                per_minute(db.concat(db.read_parquet(files), live_rows(db), at=START)).start()
        db.stream("s").append_many(now[300:], key="k")
        run.stop(drain=True, timeout=60)
        assert shown(db.table("t")) == expected(past + now[200:], windowed=kind != "groups")
        assert (run.status().before_seam, run.status().late) == (200, 0)
        if kind == "windows":
            assert set(db.table("t").estimate("n")["kind"]) == {"exact"}


def test_live_windows_are_readable_before_the_history_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEFOLD_WORKERS", "1")  # tasks of the history end in their order
    random = Random(5)
    at = START + timedelta(minutes=10, seconds=30)
    past = [row for row in events(random, 600) if row["at"] < at]
    now = sorted((row for row in events(random, 600) if row["at"] >= at), key=lambda row: row["at"])
    files, gate = write(past, tmp_path / "files", 8), tmp_path / "gate"
    begun = tmp_path / "begun"
    begun.mkdir()
    file_of = {row["v"]: number % 8 for number, row in enumerate(past)}

    def slow(row: dict[str, Any]) -> dict[str, Any]:
        """Tasks behind the first five wait for the gate."""
        mine = begun / str(file_of[row["v"]])
        if not mine.exists():
            held = len(list(begun.iterdir())) >= 5
            while held and not gate.exists():
                time.sleep(0.01)
            mine.touch()
        return row

    with of.connect(tmp_path / "space") as db:
        db.stream("s").append_many(now)
        history = db.read_parquet(files).map(slow, schema=SCHEMA)
        run = per_minute(db.concat(history, live_rows(db), at=at)).start(workers=2)
        table = db.table("t")
        while len(table.contents().bundles) < 2:  # so the history enters for the lanes of each
            time.sleep(0.01)
        for status in db.table("t@history").watch(timeout="120s"):
            if status.done == 5:
                break
        while run.status().rows < len(now):
            time.sleep(0.01)
        open_now = {key: value for key, value in shown(table, final=False).items() if key[0] >= at - MINUTE}
        assert open_now == expected(now)
        assert shown(table) == {}  # nothing is final: no window is shown without a part of it
        found = table.estimate("n")
        estimated = found.filter(pl.col("window_end") <= at)
        assert set(estimated["kind"]) == {"estimate"}
        assert (estimated["N"] == 8).all() and (estimated["lo"] <= estimated["hi"]).all()
        assert set(found.filter(pl.col("window_end") > at)["kind"]) == {"bound"}
        assert "its history is not in yet" in run.status().held_by
        gate.touch()
        run.stop(drain=True, timeout=60)
        assert shown(table) == expected(past + now)
        assert set(table.estimate("n")["kind"]) == {"exact"}
        written = [run.row.rows for run in table.contents("result").runs]
        live = {key for key in expected(past + now) if key[1] > at}
        assert sum(written) == len(live)  # each bundle has taken in the groups of its lanes, and no others
        seam = START + timedelta(minutes=10)
        crossing = expected(past + now)[seam, seam + MINUTE, "a"]
        row = table.get((seam, "a"))
        assert row is not None and (row["n"], row["total"]) == crossing


@pytest.mark.parametrize("by", ["time", "position"])
@pytest.mark.parametrize("kind", ["sliding", "session"])
def test_sliding_windows_and_sessions_go_over_the_seam(tmp_path: Path, kind: str, by: str) -> None:
    """As the batch job over the same events has them."""
    random = Random(f"{kind} {by}")
    past, now = events(random, 300), sorted(events(random, 300), key=lambda row: row["at"])
    at = START + timedelta(minutes=10, seconds=7)
    kept = [row for row in past if row["at"] < at] + [row for row in now if row["at"] >= at]
    kept = kept if by == "time" else past + now
    files, both = write(past, tmp_path / "past", 3), write(kept, tmp_path / "kept", 3)

    def windowed(rows: Any, **on: Any) -> Any:
        spec = (
            of.window.sliding("90s", every="1m", **on)
            if kind == "sliding"
            else of.window.session("20s", **on)
        )
        return rows.window(spec).group_by("k").agg(n=agg.count(), total=agg.sum("v"))

    with of.connect(tmp_path / "space") as db:
        stream = db.stream("s", partitions=2)
        position = stream.append_many(now[:150], key="k")
        seam = at if by == "time" else position
        run = (
            windowed(db.concat(db.read_parquet(files), live_rows(db), at=seam))
            .into("t")
            .start(workers=2, lanes=8)
        )
        stream.append_many(now[150:], key="k")
        run.stop(drain=True, timeout=60)
        expected = windowed(db.read_parquet(both), on="at").into("batch").run().table.to_polars()
        found = db.table("t").to_polars()
        names = ["window_start", "window_end", "k", "n", "total"]
        assert found.height > 20
        assert found.filter(pl.col("window_start") < at, pl.col("window_end") > at).height
        assert found.select(names).sort(names).rows() == expected.select(names).sort(names).rows()
        assert run.status().late == 0


def test_maps_and_streams_get_the_history_once(tmp_path: Path) -> None:
    """Groups by their changes; windows once they are final, of a seam at a position."""
    random = Random(11)
    past, now = events(random, 300), sorted(events(random, 300), key=lambda row: row["at"])
    at = START + timedelta(minutes=10, seconds=30)
    files = write(past, tmp_path / "files", 3)
    with of.connect(tmp_path / "space") as db:
        position = db.stream("s", partitions=2).append_many(now, key="k")
        aggregates = {"n": agg.count(), "total": agg.sum("v")}
        by_time = db.concat(db.read_parquet(files), live_rows(db), at=at).group_by("k").agg(**aggregates)
        windows = db.concat(db.read_parquet(files), live_rows(db), at=position).window(
            of.window.tumbling("1m")
        )
        runs = [
            by_time.into_map("m", key="k").start(workers=2),
            by_time.into_stream("groups", key="k").start(),
            windows.group_by("k").agg(**aggregates).into_stream("windows").start(workers=2),
        ]
        for run in runs:
            run.stop(drain=True, timeout=60)
        kept = [row for row in past if row["at"] < at] + [row for row in now if row["at"] >= at]
        groups = {key: values for (key,), values in expected(kept, windowed=False).items()}
        assert {key: (row["n"], row["total"]) for key, row in db.map("m").items()} == groups
        last = {
            row["k"]: (row["n"], row["total"]) for row in db.stream("groups").to_polars().rows(named=True)
        }
        assert last == groups
        sent = db.stream("windows").to_polars().select("window_start", "window_end", "k", "n", "total")
        whole = expected(past + now)
        assert {tuple(key): (n, total) for *key, n, total in sent.rows()} == whole
        assert sent.height == len(whole)
        assert db.drop("map:m") and not [table for table in db.tables() if table.name.startswith("map:m")]


def test_an_abandoned_history_is_named_and_resumed(tmp_path: Path) -> None:
    """The batch job's process is gone; functions stand before the key, so the history is an input of the second part."""
    past, now = ({"at": at, "k": "a", "v": 1} for at in (START, START + MINUTE))
    files = write([past], tmp_path / "files", 1)

    def job(db: of.Database) -> Any:
        both = db.concat(db.read_parquet(files), live_rows(db), at=START + MINUTE)
        return per_minute(both.map(lambda row: {name: row[name] for name in ("at", "k", "v")}, schema=SCHEMA))

    with of.connect(tmp_path / "space") as db:
        db.stream("s").append(now)
        run = job(db).start(workers=0)  # nobody works on the batch job either
        work_on(db)
        while run.status().rows < 1:
            time.sleep(0.01)
        assert "its history is not in yet" in run.status().held_by
        assert run.status().lag == 0
    with of.connect(tmp_path / "space") as db:
        run = db.open_run("t").resume()
        run.stop(drain=True, timeout=60)
        assert [total for _, total in shown(db.table("t")).values()] == [1, 1]


def test_a_history_that_is_not_in_does_not_count_as_a_record(tmp_path: Path) -> None:
    past, now = ({"at": at, "k": "a", "v": 1} for at in (START, START + MINUTE))
    files = write([past], tmp_path / "files", 1)
    with of.connect(tmp_path / "space") as db:
        db.stream("s").append(now)
        both = db.concat(db.read_parquet(files), live_rows(db), at=START + MINUTE)
        run = per_minute(both).start(workers=0)  # nobody works on the batch job either
        work_on(db)
        while run.status().rows < 1:
            time.sleep(0.01)
        assert "its history is not in yet" in run.status().held_by
        status, progress, table = run.status(), run.progress(), db.table("t").status
        assert (status.lag, progress.total - progress.done, table.lag) == (0, 0, 0)
        run.cancel()


def test_a_history_that_fails_fails_the_job_and_continues(tmp_path: Path) -> None:
    past = [{"at": START, "k": "a", "v": 1}]
    files, mended = write(past, tmp_path / "files", 1), tmp_path / "mended"

    def fails(row: dict[str, Any]) -> dict[str, Any]:
        if not mended.exists():
            raise ValueError("not yet")
        return row

    with of.connect(tmp_path / "space") as db:
        db.stream("s").append({"at": START + MINUTE, "k": "a", "v": 2})
        history = db.read_parquet(files).map(fails, schema=SCHEMA)
        job = per_minute(db.concat(history, live_rows(db), at=START + MINUTE))
        with pytest.raises(of.JobFailed, match=r"its history is failed: ValueError: not yet at .*parquet"):
            job.start().catch_up(timeout=60)
        mended.touch()
        job.start().stop(drain=True, timeout=60)
        assert [total for _, total in shown(db.table("t")).values()] == [1, 2]


def test_times_of_another_type_meet_and_other_columns_must_not_differ(tmp_path: Path) -> None:
    past = [{"at": START.replace(tzinfo=None), "k": "a", "v": 1}]
    folder = tmp_path / "files"
    folder.mkdir()
    pl.DataFrame(past, schema={**SCHEMA, "at": pl.Datetime("ms")}).write_parquet(folder / "x.parquet")
    with of.connect(tmp_path / "space") as db:
        db.stream("s").append({"at": START + timedelta(seconds=30), "k": "a", "v": 2})
        files = db.read_parquet(str(folder / "*.parquet"))
        both = db.concat(files, live_rows(db), at=START + timedelta(seconds=20))
        per_minute(both).start().stop(drain=True, timeout=60)
        assert shown(db.table("t")) == {(START, START + MINUTE, "a"): (2, 3)}
        other = db.concat(files.with_columns(v=pl.col("v").cast(pl.Float64)), live_rows(db), at=START)
        with pytest.raises(
            of.InvalidPlan, match="column 'v' is Float64 in the history and Int64 in the stream"
        ):
            per_minute(other, "u").start()
        lacking = db.concat(files.select("k", "v"), live_rows(db), at=START)
        with pytest.raises(of.InvalidPlan, match="the history has no column 'at'"):
            per_minute(lacking, "u").start()
        assert [table.name for table in db.tables()] == ["t", "t/1@history"]


def test_a_seam_that_moves_is_another_job_and_drop_removes_both(tmp_path: Path) -> None:
    files = write([{"at": START, "k": "a", "v": 1}], tmp_path / "files", 1)
    with of.connect(tmp_path / "space") as db:
        db.stream("s").append({"at": START + MINUTE, "k": "a", "v": 2})

        def job(at: datetime) -> Any:
            return per_minute(db.concat(db.read_parquet(files), live_rows(db), at=at))

        run = job(START + MINUTE).start()
        run.catch_up(timeout=60)
        with pytest.raises(of.Conflict, match="seam"):
            job(START + 2 * MINUTE).start()
        with pytest.raises(of.Conflict, match="is the history of live job 't'"):
            db.drop("t@history")
        with pytest.raises(of.InvalidPlan, match="not replayed"):
            job(START + MINUTE).replay()
        run.stop()
        assert db.drop("t")
        assert not db.tables()


def test_what_is_not_put_together_over_a_seam_is_refused(onefold_db: of.Database, tmp_path: Path) -> None:
    db = onefold_db
    past = db.read_parquet(write([{"at": START, "k": "a", "v": 1}], tmp_path / "files", 1))
    both = db.concat(past, live_rows(db), at=START)
    count = {"n": agg.count()}
    refused: list[tuple[str, Any]] = [
        ("needs a group_by", lambda: both.into("t")),
        (
            "windows go into a table",
            lambda: both.window(of.window.tumbling("1m")).group_by("k").agg(**count).into_map("m", key="k"),
        ),
        ("goes into a table, a map", lambda: both.group_by("k").agg(**count).for_each(print)),
        ("ttl=", lambda: both.group_by("k").agg(ttl="1h", **count).into("t")),
        ("the order of rows", lambda: both.group_by("k").agg(n=agg.first("v")).into("t")),
        ("append to it first", lambda: per_minute(both).start()),
        ("bounded rows first", lambda: db.concat(live_rows(db), past, at=START)),  # type: ignore[arg-type]
        (
            "live side reads several",
            lambda: db.concat(
                past, live_rows(db).union(live_rows(db)), at=db.stream("other").append({"k": 1})
            ),
        ),
        ("those of the histories", lambda: past.into("t@history")),
        ("those of the histories", lambda: live_rows(db).into("t@history")),
        ("at= is a datetime", lambda: db.concat(past, live_rows(db), at="2026")),  # type: ignore[arg-type]
        ("name the event time", lambda: db.concat(past, db.read_stream("s", follow=True), at=START)),
    ]
    for problem, make in refused:
        with pytest.raises((of.InvalidPlan, of.InvalidArgument), match=problem):
            make()
    assert not db.runs()
