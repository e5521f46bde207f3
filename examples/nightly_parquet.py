"""Publish an aggregate every night, and read only what is new: the second night leaves the first one's alone.

python examples/nightly_parquet.py [FOLDER]
"""

import random
import sys
import tempfile
from pathlib import Path

import polars as pl

import onefold as of
from onefold import agg


def orders_of_a_day(day: int, folder: Path) -> None:
    """What the shops would send: one file for each shop."""
    chance = random.Random(day)
    folder.mkdir(parents=True, exist_ok=True)
    for shop in ("ams", "ber", "lis"):
        lines = [f"2024-05-{day:02},{shop},{chance.randrange(100, 9900)}" for _ in range(1000)]
        (folder / f"{day:02}-{shop}.csv").write_text("\n".join(["day,shop,cents", *lines, ""]))


def nightly(db: of.Database, incoming: Path, published: Path) -> of.Run:
    """The job of every night: the same program, over whatever there is."""
    return (
        db.read_csv(f"{incoming}/*.csv")
        .group_by("day", "shop")
        .agg(orders=agg.count(), cents=agg.sum("cents"))
        .write_parquet(
            published, mode="replace"
        )  # readers see the old folder or the new one, never half of one
        .run()
    )


def main(folder: Path) -> None:
    incoming, published = folder / "incoming", folder / "published"
    folder.mkdir(exist_ok=True)
    with of.connect(folder / "space") as db:
        for day in (1, 2):
            orders_of_a_day(day, incoming)
            progress = nightly(db, incoming, published).progress()
            print(
                f"night {day}: read {progress.rows} rows, reused {progress.reused} of {progress.total} tasks"
            )

    report = pl.read_parquet(f"{published}/**/*.parquet").sort("day", "shop")
    for day, shop, orders, cents in report.iter_rows():
        print(f"{day} {shop} {orders} orders {cents / 100:.2f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else scratch))
