"""Visits of a site: what each user did without a pause of ten minutes, wherever in the stream their clicks are.

python examples/sessions.py [SPACE]
"""

import random
import sys
import tempfile
from datetime import datetime, timedelta

import onefold as of
from onefold import agg

MORNING = datetime(2026, 1, 1, 8)
VISITS = (("ann", 0, 5), ("ann", 55, 3), ("bob", 2, 8), ("cid", 30, 1), ("bob", 90, 2))
"""Who, at which minute the visit begins, and how many pages it has, one every three minutes."""


def clicks() -> list[dict[str, object]]:
    """The clicks of all visits, up to four minutes out of order."""
    drawn = random.Random(1)
    found = [(minute + 3 * page, user, page) for user, minute, pages in VISITS for page in range(pages)]
    order = sorted(found, key=lambda click: click[0] + drawn.uniform(0, 4))
    return [
        {"at": MORNING + timedelta(minutes=minute), "user": user, "seconds": 10 * page}
        for minute, user, page in order
    ]


def main(space: str) -> None:
    with of.connect(space) as db:
        visits = (
            db.read_stream("clicks", follow=True, event_time="at", watermark_delay="5m", idle=None)
            .window(of.window.session("10m"))
            .group_by("user")
            .agg(pages=agg.count(), seconds=agg.sum("seconds"))
            .into("visits", emit="update")  # open visits too; they grow, and two may become one
        )
        run = visits.start()
        stream = db.stream("clicks", partitions=2)
        for click in clicks():
            stream.append(click, key=click["user"])
        run.catch_up("60s")
        table = db.table("visits")
        print(f"{len(table.to_polars(final=True))} visits have ended, {len(table)} are known")

        run.stop(drain=True, timeout="60s")
        for start, end, user, pages, seconds in table.to_polars().sort("window_start", "user").iter_rows():
            last = end - timedelta(minutes=10)
            print(f"{user} {start:%H:%M} to {last:%H:%M}: {pages} pages, {seconds} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else f"{scratch}/space")
