"""Makes a space with a table of every kind, and a file that says how each of them reads.

Run by hand with the release and the Python that are to be kept below ``tests/assets``, which no later program can do again:

    PYTHONPATH=src python tests/support/space_of_tables.py tests/assets/space-0.1-tables-py311

``test_stored_tables.py`` reads what it made with the present program, under each Python that is there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tarfile
import tempfile
import time
from datetime import UTC, date, datetime, timedelta
from datetime import time as day_time
from decimal import Decimal
from pathlib import Path

import polars as pl

import onefold as of
from onefold import agg


class Longest:
    """State of a fold, of a class that only this program has."""

    def __init__(self, word: str = "") -> None:
        self.word = word


def add_longest(state, word):
    return Longest(max(state.word, word, key=lambda w: (len(w), w)))


def merge_longest(a, b):
    return add_longest(a, b.word)


def add_total(state, row):
    return state + row["amount"]


def shout(record):
    return {"word": record["word"].upper(), "size": len(record["word"])}


def broken(record):
    if record["amount"] == 3:
        raise ValueError("three is too many")
    return record


def until_told(record):
    if record["word"] == "end" and record["amount"] == 4:
        while not Path(record["stop"]).exists():
            time.sleep(0.01)
    return {"word": record["word"], "amount": record["amount"]}


def pairs(record):
    yield record["word"], record["amount"]


def total(key, values):
    return sum(values)


def typed() -> pl.DataFrame:
    moment = datetime(2024, 5, 1, 12, 30, 0, 5)
    return pl.DataFrame(
        {
            "bool": pl.Series([True, None, False, True]),
            "i8": pl.Series([1, -2, None, 4], dtype=pl.Int8),
            "u64": pl.Series([1, 2**64 - 1, None, 4], dtype=pl.UInt64),
            "i128": pl.Series([1, 2**100, None, 4], dtype=pl.Int128),
            "f32": pl.Series([0.5, None, -0.0, 1e30], dtype=pl.Float32),
            "text": ["a", None, "", "ü"],
            "bytes": [b"", b"\x00\xff", None, b"x"],
            "date": [date(2024, 5, 1), None, date(1960, 1, 1), date(2024, 5, 1)],
            "time": [day_time(1, 2, 3, 4), None, day_time(0), day_time(23, 59)],
            "naive": pl.Series([moment, None, moment, moment], dtype=pl.Datetime("ns")),
            "zoned": pl.Series([moment, None, moment, moment]).dt.replace_time_zone("Europe/Zurich"),
            "utc": pl.Series([datetime(2024, 5, 1, tzinfo=UTC)] * 4, dtype=pl.Datetime("ms", "UTC")),
            "span": pl.Series([timedelta(1, 2, 3), None, timedelta(0), -timedelta(5)], dtype=pl.Duration("us")),
            "price": pl.Series([Decimal("1.10"), None, Decimal("-3.25"), Decimal(0)], dtype=pl.Decimal(12, 2)),
            "enum": pl.Series(["b", None, "a", "b"], dtype=pl.Enum(["b", "a", "c"])),
            "kind": pl.Series(["x", None, "y", "x"], dtype=pl.Categorical),
            "list": [[1, 2], None, [], [3]],
            "array": pl.Series([[1, 2], None, [3, 4], [5, 6]], dtype=pl.Array(pl.Int16, 2)),
            "struct": [{"p": 1, "q": ["r"]}, None, {"p": None, "q": []}, {"p": 2, "q": None}],
        }
    )  # fmt: skip


def make(folder: Path, inputs: Path) -> dict[str, object]:
    """The space in ``folder``, of files in ``inputs``."""
    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "the", "end"]
    stop = str(inputs / "stop")
    for number in range(4):
        lines = [f"{word},{(number + place) % 7},{stop}" for place, word in enumerate(words)]
        (inputs / f"{number}.csv").write_text("word,amount,stop\n" + "\n".join(lines) + "\n")
    (inputs / "sizes.csv").write_text("word,size\nthe,3\nfox,3\nquick,5\n")
    many = pl.DataFrame({"id": [f"{n * 7919 % 10007:05d}-{n * 104729 % 99991:05d}" for n in range(1500)]})
    many.write_parquet(inputs / "many.parquet")
    typed().write_parquet(inputs / "typed.parquet")
    with of.connect(folder) as db:
        every = {"progress": False, "workers": 1}
        csv = db.read_csv(str(inputs / "[0-3].csv"))
        aggregates = {
            "n": agg.count(), "counted": agg.count("word"), "sum": agg.sum("amount"), "mean": agg.mean("amount"),
            "min": agg.min("word"),
            "max": agg.max("amount"), "std": agg.std("amount", ddof=0), "var": agg.var("amount"), "first": agg.first("amount"),
            "last": agg.last("word"), "first_by": agg.first("word", by="amount"), "last_by": agg.last("amount", by="word"),
            "distinct": agg.approx_n_unique("word"), "quantile": agg.approx_quantile("amount", 0.75, k=64),
            "frequent": agg.most_frequent("word", 2),
        }  # fmt: skip
        csv.select("word", "amount").into("rows").run(**every)
        csv.group_by("word").agg(**aggregates).into("groups").run(**every)
        csv.group_by().agg(**aggregates).into("whole").run(**every)
        csv.group_by(pl.col("word").str.len_chars().alias("size"), "amount").agg(n=agg.count()).into(
            "two_keys", version="v1"
        ).run(**every)
        csv.group_by("word").agg(total=agg.fold(int, add_total, lambda a, b: a + b), n=agg.count()).into(
            "folded"
        ).run(**every)
        csv.group_by("amount").agg(
            word=agg.fold(Longest, lambda state, row: add_longest(state, row["word"]), merge_longest)
        ).into("folded_class").run(**every)
        db.map_reduce(csv, map=pairs, reduce=total, into="reduced").wait()
        csv.map(shout, schema={"word": pl.String, "size": pl.Int64}).into("mapped").run(**every)
        csv.map(shout).group_by("size").agg(n=agg.count()).into("mapped_groups").run(**every)
        sizes = db.read_csv(str(inputs / "sizes.csv"))
        csv.join(sizes, on="word", how="left").group_by("size").agg(n=agg.count()).into("joined").run(**every)
        csv.filter(pl.col("amount") > 99).select("word", "amount").into("empty").run(**every)
        csv.filter(pl.col("amount") > 99).group_by("word").agg(n=agg.count()).into("empty_groups").run(
            **every
        )
        db.read_parquet(str(inputs / "many.parquet")).group_by("id").agg(n=agg.count()).into("blobs").run(
            **every
        )
        types = db.read_parquet(str(inputs / "typed.parquet"))
        types.into("types").run(**every)
        types.filter(pl.col("text") == "none").into("types_empty").run(**every)
        types.group_by("date", "zoned", "price", "enum", "text").agg(
            n=agg.count(), zoned_max=agg.max("zoned"), kind=agg.first("kind"), list=agg.last("list")
        ).into("types_groups").run(**every)
        csv.select("word", "amount").write_parquet(str(inputs / "out"), partition_by="amount").run(**every)
        try:
            csv.map(broken).into("failed").run(**every)
        except of.JobFailed:
            pass
        half = csv.map(until_told, schema={"word": pl.String, "amount": pl.Int64}).group_by("word")
        half = half.agg(n=agg.count(), sum=agg.sum("amount")).into("half").start(workers=2, target_splits=12)
        while half.progress().done < 3:
            time.sleep(0.05)
        half.cancel()
        return {table.name: how_it_reads(table) for table in db.tables()}


def how_it_reads(table) -> dict[str, object]:
    """What a reader gets of a table, in words that do not depend on the Python."""
    status = table.status
    frame = table.to_polars()
    if "word" in frame.columns and frame.schema["word"] == pl.Object:
        frame = frame.with_columns(pl.Series("word", [state.word for state in frame["word"]]))
    rows = sorted(map(repr, frame.rows()))
    return {
        "status": [status.done, status.total, status.exact],
        "keys": list(table.key_columns),
        "values": list(table.value_columns),
        "schema": {name: str(dtype) for name, dtype in frame.schema.items()},
        "rows": rows if len(rows) <= 100 else hashlib.sha256("\n".join(rows).encode()).hexdigest(),
    }


def main(target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        inputs = place / "inputs"
        inputs.mkdir()
        expected = make(place / "space", inputs)
        shutil.rmtree(place / "space" / "wake", ignore_errors=True)
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(target / "space.tar.gz", "w:gz") as archive:
            for file in sorted((place / "space").rglob("*")):
                archive.add(file, file.relative_to(place / "space"), recursive=False)
    versions = {"onefold": of.__version__, "python": sys.version.split()[0], "polars": pl.__version__}
    (target / "expected.json").write_text(
        json.dumps({"made_by": versions, "tables": expected}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
