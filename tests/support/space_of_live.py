"""Makes a space with stopped live jobs, and a file that says how their tables read.

Run by hand with the release that is to be kept below ``tests/assets``, which no later program can do again:

    PYTHONPATH=src python tests/support/space_of_live.py tests/assets/space-0.5-live

``test_stored_live.py`` reads what it made with the present program, and continues the jobs.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

import onefold as of
from onefold import agg

BEGIN = datetime(2026, 1, 1, 12)
FIRST, ALL = 2400, 3600
"""Events before the space was kept, and after the test has appended the others."""


def events() -> pl.DataFrame:
    """All events, of which the first ``FIRST`` are in the space. Those of each partition are in order."""
    number = pl.int_range(ALL, eager=True)
    return pl.DataFrame(
        {
            "at": [BEGIN + timedelta(milliseconds=100 * n) for n in range(ALL)],
            "page": [f"/{n * 7919 % 7}" for n in range(ALL)],
            # So many and so long that their state is in a blob, not in a row.
            "user": [hashlib.sha256(b"%d" % (n * 7919 % 1201)).hexdigest() for n in range(ALL)],
            "ms": (number * 31) % 1000,
            "price": ((number * 17) % 400) / 4,
        }
    )


def wide() -> pl.DataFrame:
    """A frame that is too large for a record, and stays so when it is compressed."""
    drawn = random.Random(5)
    return pl.DataFrame({"n": [drawn.getrandbits(63) for _ in range(70_000)]})


def jobs(db: of.Database) -> dict[str, Any]:
    """The prepared jobs, by name."""
    clicks = db.read_stream("clicks", follow=True, event_time="at", watermark_delay="2s")
    minute = clicks.window(of.window.tumbling("1m", allowed_lateness="5s")).group_by("page")
    sliding = clicks.window(of.window.sliding("1m", every="20s")).group_by("page")
    return {
        "minutes": minute.agg(
            n=agg.count(), ms=agg.sum("ms"), mean=agg.mean("price"), most=agg.max("price"), users=agg.approx_n_unique("user")
        ).into("minutes"),
        "sliding": sliding.agg(n=agg.count(), price=agg.sum("price")).into("sliding", emit="update"),
        "sessions": clicks.filter(pl.col("ms") < 300)
        .window(of.window.session("2s"))
        .group_by("page")
        .agg(n=agg.count())
        .into("sessions"),
        "users": clicks.group_by("user").agg(n=agg.count(), ms=agg.sum("ms")).into("users"),
        "slow": clicks.filter(pl.col("ms") > 990).select("user", "ms", "at").into_stream("slow", key="user"),
        "pages": clicks.group_by("page").agg(n=agg.count()).into_map("pages", key="page"),
    }  # fmt: skip


def _words(rows: Iterable[object]) -> list[str] | str:
    lines = sorted(map(repr, rows))
    return lines if len(lines) <= 100 else hashlib.sha256("\n".join(lines).encode()).hexdigest()


TABLES = ("minutes", "sliding", "sessions", "users")


def how_it_reads(db: of.Database) -> dict[str, object]:
    """What readers get, in words."""
    found: dict[str, object] = {}
    for name in TABLES:
        frame = db.table(name).to_polars(final=False if name != "users" else None)
        found[name] = {
            "schema": {column: str(dtype) for column, dtype in frame.schema.items()},
            "rows": _words(frame.with_columns(pl.selectors.float().round(6)).rows()),
        }
    found["pages"] = _words(db.map("pages").items())
    found["slow"] = _words(record.value for record in db.stream("slow").read())
    found["late"] = db.table("minutes").late().height
    if any((one.kind, one.name) == ("stream", "wide") for one in db.collections()):  # from 0.5 on
        found["wide"] = _words(record.value for record in db.stream("wide").read())
    return found


def main(target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "space"
        with of.connect(place) as db:
            clicks = db.stream("clicks", partitions=2)
            clicks.append_many(events().head(FIRST // 2), key="page")
            runs = [job.start() for job in jobs(db).values()]
            for run in runs:
                run.catch_up(timeout=60)
            clicks.append_many(events().slice(FIRST // 2, FIRST // 2), key="page")
            clicks.append({"at": BEGIN, "page": "/late", "user": "late", "ms": 1, "price": 0.5})
            for run in runs:
                run.catch_up(timeout=60)
                run.stop()
            db.stream("wide").append_many(wide())  # in a blob
            expected = how_it_reads(db)
        shutil.rmtree(place / "wake", ignore_errors=True)
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(target / "space.tar.gz", "w:gz") as archive:
            for file in sorted(place.rglob("*")):
                archive.add(file, file.relative_to(place), recursive=False)
    versions = {"onefold": of.__version__, "python": sys.version.split()[0], "polars": pl.__version__}
    said = {"made_by": versions, "reads": expected}
    (target / "expected.json").write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
