"""Page views a minute, from a stream that never ends: windows of event time, late events, and a program that comes back.

python examples/page_views.py [SPACE]
"""

import random
import sys
import tempfile
from datetime import datetime, timedelta

import onefold as of
from onefold import agg

NOON = datetime(2026, 1, 1, 12)
PAGES = ("/", "/", "/", "/docs", "/docs", "/pricing")


def clicks(first_s: int, last_s: int) -> list[dict[str, object]]:
    """One click a second, each up to 5 s later in the stream than it happened."""
    drawn = random.Random(first_s)
    order = sorted(range(first_s, last_s), key=lambda second: second + drawn.uniform(0, 5))
    return [{"at": NOON + timedelta(seconds=second), "page": PAGES[second % 6]} for second in order]


def start(db: of.Database) -> of.LiveRun:
    """The job: the same lines begin it, join it, and continue it."""
    views = (
        db.read_stream("clicks", follow=True, event_time="at", watermark_delay="5s")
        .window(of.window.tumbling("1m"))
        .group_by("page")
        .agg(views=agg.count())
        .into("views_per_minute")
    )
    return views.start()


def main(space: str) -> None:
    with of.connect(space) as db:
        db.stream("clicks").append_many(clicks(0, 150))
        start(db).catch_up("60s")
        closed, so_far = (db.table("views_per_minute").to_polars(final=final) for final in (True, False))
        print(f"{closed['views'].sum()} views in closed minutes, {so_far['views'].sum()} so far")

    # The program ended in the middle of a minute. What comes meanwhile waits in the stream.
    with of.connect(space) as db:
        db.stream("clicks").append_many(clicks(150, 300))
        db.stream("clicks").append({"at": NOON, "page": "/docs"})  # its minute is closed: it is late
        run = start(db)
        run.catch_up("60s")
        status = run.status()
        print(f"watermark {status.watermark:%H:%M:%S}, {status.late} late, {status.lag} behind")
        run.stop(drain=True, timeout="60s")

        table = db.table("views_per_minute")
        for start_, _, page, views in table.to_polars().sort("window_start", "page").iter_rows():
            print(f"{start_:%H:%M} {page:8} {views:3}")
        for late in table.late().iter_rows(named=True):
            print(f"late: {late['at']:%H:%M:%S} {late['page']} at offset {late['_offset']}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else f"{scratch}/space")
