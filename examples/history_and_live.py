"""Files of the past and the stream that continues them in one plan: each event once, windows right across the seam.

python examples/history_and_live.py [SPACE]
"""

import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

import onefold as of
from onefold import agg

MIDNIGHT = datetime(2026, 1, 2)
SEAM = MIDNIGHT + timedelta(seconds=30)
"""What happened before is in files, what happened from then on in the stream: in the middle of a minute."""


def sale(second: int) -> dict[str, object]:
    """What was sold so many seconds after midnight (or before it)."""
    return {"at": MIDNIGHT + timedelta(seconds=second), "shop": "ab"[second % 2], "cents": 100 + second % 7}


def write_history(folder: Path) -> None:
    """The days before as Parquet files, in no order; the last file has a few events that the stream has too."""
    folder.mkdir()
    seconds = [second for second in range(-600, 35) if second % 3]
    for number in range(4):
        pl.DataFrame([sale(second) for second in seconds[number::4]]).write_parquet(
            folder / f"{number}.parquet"
        )


def main(space: str, folder: Path) -> None:
    write_history(folder)
    with of.connect(space) as db:
        live = db.stream("sales")
        live.append_many(
            [sale(second) for second in range(25, 100) if second % 3]
        )  # 25 to 29: in the files already
        both = db.concat(
            db.read_parquet(str(folder / "*.parquet")),
            db.read_stream("sales", follow=True, event_time="at", watermark_delay="5s"),
            at=SEAM,
        )
        per_minute = (
            both.window(of.window.tumbling("1m")).group_by("shop").agg(n=agg.count(), cents=agg.sum("cents"))
        )
        run = per_minute.into("sales_per_minute").start()
        run.catch_up("60s")
        status = run.status()
        print(f"{status.before_seam} events of the stream left out: the files have them")

        live.append_many([sale(second) for second in range(100, 200) if second % 3])
        run.stop(drain=True, timeout="60s")
        rows = db.table("sales_per_minute").to_polars().sort("window_start", "shop")
        for start, _, shop, n, cents in rows.iter_rows():
            if start >= MIDNIGHT - timedelta(minutes=1):
                print(f"{start:%d %H:%M} {shop} {n:3} sales {cents / 100:7.2f}")
        print(f"{rows['n'].sum()} sales in {rows['window_start'].n_unique()} minutes")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else f"{scratch}/space", Path(scratch) / "history")
