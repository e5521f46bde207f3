"""Jobs and tables in an event loop."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg

START = datetime(2026, 1, 1, tzinfo=UTC)


def per_window(db: of.aio.AsyncDatabase) -> Any:
    rows = db.read_stream("clicks", follow=True, event_time="at", idle=None, max_ahead=None)
    return rows.window(of.window.tumbling("10s")).group_by("page").agg(n=agg.count())


def event(second: int) -> dict[str, Any]:
    return {"at": START + timedelta(seconds=second), "page": "a"}


def test_a_live_job_from_start_to_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with of.aio.connect(tmp_path) as db:
            stream = db.stream("clicks")
            await stream.append_many([event(1), event(2), event(11)])
            run = await db.start(per_window(db).into("t"))
            assert await (await run.catch_up(timeout=120)).state() == "running"
            assert (await run.status()).rows == 3
            assert await run.watermark() == START + timedelta(seconds=11)
            point = await run.point()
            assert await run.caught_up(point, timeout=30) is run
            table = db.table("t")
            assert (await table.scan()).collect().equals(await table.to_polars())
            assert (await table.to_arrow()).num_rows == 1
            assert await table.get((START, "a")) == {
                "window_start": START,
                "window_end": START + timedelta(seconds=10),
                "page": "a",
                "n": 2,
            }
            assert (await table.to_polars(final=False)).height == 2
            assert (await table.estimate("n"))["kind"].to_list() == ["exact", "bound"]
            with pytest.raises(of.Timeout, match="has not ended after"):
                await run.wait(timeout=0.05)
            again = await db.replay(per_window(db).into("t"))
            await again.catch_up(timeout=120)
            await again.swap()
            assert [one.id for one in await db.runs(state="running")] == ["t/2"]
            await again.stop(drain=True, timeout=120)
            assert await (await again.wait()).state() == "done"
            assert [one.name for one in await db.tables()] == ["t"]
            assert await db.drop("t/1")

    asyncio.run(main())


def test_watching_a_table_beside_other_tasks(tmp_path: Path) -> None:
    async def main() -> None:
        async with of.aio.connect(tmp_path) as db:
            await db.stream("clicks").append(event(1))
            run = await db.start(per_window(db).into("t", emit="update"))
            seen: list[int] = []

            async def follow() -> None:
                async for moment in db.table("t").watch():
                    seen.append(moment.to_polars()["n"].sum() or 0)

            async with asyncio.timeout(120):
                task = asyncio.create_task(follow())
                for second in (2, 3):
                    await db.stream("clicks").append(event(second))
                    await run.catch_up()
                while not seen or seen[-1] != 3:
                    await asyncio.sleep(0.01)
                await run.stop(drain=True)
                await task
                assert seen == sorted(seen)
                assert all([moment.exact async for moment in db.table("t").watch(timeout=0)])

    asyncio.run(main())


def test_a_batch_job_is_awaited(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x\ny\nx\n")

    async def main() -> None:
        async with of.aio.connect(tmp_path / "db") as db:
            words = db.sync.read_text(tmp_path / "a.txt").group_by("line").agg(n=agg.count())
            run = await db.start(words.into("words"))
            assert (await run.result()).get("x") == {"line": "x", "n": 2}
            with pytest.raises(of.InvalidArgument, match="not of a live job"):
                await run.status()
            assert await db.table("words").count() == 2
            assert [one.done async for one in db.table("words").watch()] == [1]

    asyncio.run(main())


def test_watching_the_table_of_a_run_that_failed_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x\n")

    def broken(row: dict[str, str]) -> dict[str, str]:
        raise ValueError(row["line"])

    async def main() -> None:
        async with of.aio.connect(tmp_path / "db") as db:
            words = db.sync.read_text(tmp_path / "a.txt").map(broken, schema={"word": pl.String})
            run = await db.start(words.into("words"))
            assert await (await run.wait(timeout=120)).state() == "failed"
            async with asyncio.timeout(120):
                assert [one.exact async for one in db.table("words").watch()] == [False]

    asyncio.run(main())
