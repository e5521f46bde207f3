"""Random input files and jobs over them, each with what plain Polars makes of the same rows.

A seed gives a case: one to three files of one format that come one after the other, and a job. Names, quotes, line ends and
types vary, and a later file may change the type of a column. ``expected`` is plain Polars' answer over all files, or None
where the job calls a function whose rows Polars does not have.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl

import onefold as of
from onefold import agg

NAMES = ("k", "v", "a b", "ä", "a,b", "a=b", "a%20b", "x:y", "K", "日本", "k_right", "'", "1", "len")
TEXTS = (
    "x",
    "café",
    "a,b",
    'say "x"',
    "two\nlines",
    " pad ",
    "日本",
    "",
    "NaN",
    "null",
    "1e3",
    "\\",
    "a\tb",
    "-",
)
ZONES = (None, "UTC", "Europe/Berlin", "America/New_York")
START = dt.datetime(2024, 10, 26, 22, 30)

Profile = Callable[[random.Random], Any]


def _text(chance: random.Random) -> str:
    return chance.choice(TEXTS)


def _moment(chance: random.Random) -> dt.datetime:
    """Around the hour that a zone has twice."""
    return START + dt.timedelta(minutes=15 * chance.randint(0, 20), microseconds=chance.choice((0, 1, 500)))


LINE_PROFILES: dict[str, Profile] = {
    "int": lambda c: c.randint(-3, 12),
    "padded": lambda c: f"0{c.randint(0, 99)}",
    "large": lambda c: c.choice((2**53 + 1, 2**53, 2**62, -(2**40), 7)),
    "float": lambda c: c.randint(-20, 20) / 4,
    "mixed": lambda c: c.choice((9, 9.5, 10)),
    "bool": lambda c: c.random() < 0.5,
    "text": _text,
    "date": lambda c: (START + dt.timedelta(days=c.randint(0, 3))).date().isoformat(),
    "time": lambda c: _moment(c).isoformat(),
    "zoned": lambda c: _moment(c).isoformat() + c.choice(("Z", "+02:00", "-05:00")),
    "null": lambda _: None,
}
JSON_PROFILES: dict[str, Profile] = {
    "list": lambda c: [c.randint(0, 3) for _ in range(c.randint(0, 3))],
    "struct": lambda c: {"p": c.randint(0, 3), "q": c.choice(("x", None))},
}


@dataclass(frozen=True)
class Case:
    """Files by name, in the order in which they come; and which job is run over them."""

    seed: int
    kind: str
    files: dict[str, bytes]
    names: tuple[str, str]
    job: str

    def write(self, folder: Path, count: int) -> None:
        """The first ``count`` files."""
        for name, data in list(self.files.items())[:count]:
            (folder / name).write_bytes(data)

    def read(self, db: of.Database, folder: Path) -> of.Dataset:
        """The dataset of whatever files are there."""
        readers: Any = {"csv": db.read_csv, "jsonl": db.read_jsonl, "parquet": db.read_parquet}
        dataset: of.Dataset = readers[self.kind](f"{folder}/*.{self.kind}")
        return dataset

    def onefold(self, db: of.Database, folder: Path) -> of.Dataset:
        """The job."""
        return JOBS[self.job][0](self.read(db, folder), *self.names)

    def expected(self) -> pl.DataFrame | None:
        """What plain Polars gives. Raises what it raises."""
        plain = JOBS[self.job][1]
        return None if plain is None else plain(self.polars(USED.get(self.job)), *self.names)

    def polars(self, used: int | None = None) -> pl.DataFrame:
        """All rows, in the order of the files' names; of the column with this number only, since types fit or do not
        where a column is read."""
        columns = pl.all() if used is None else pl.col(self.names[used])
        parts = [self.files[name] for name in sorted(self.files)]
        match self.kind:
            case "csv":
                heads = [part.index(b"\n") + 1 for part in parts]
                bodies = [part[head:] for part, head in zip(parts, heads, strict=True)]
                data = parts[0][: heads[0]] + b"".join(bodies)
                # Documented: too many fields are an error whatever columns are used.
                pl.scan_csv(data, infer_schema=False).collect()
                return pl.scan_csv(data, infer_schema_length=None).select(columns).collect()
            case "jsonl":
                data = b"".join(parts)
                inferred = pl.scan_ndjson(data, infer_schema_length=None).collect_schema()
                schema = {name: _known(dtype) for name, dtype in inferred.items()}
                return pl.scan_ndjson(data, schema=schema).select(columns).collect()
        return pl.concat([pl.read_parquet(part) for part in parts]).select(columns)


def _known(dtype: Any) -> Any:
    """Documented: a column that is null everywhere is text."""
    if dtype == pl.Null:
        return pl.String()
    if isinstance(dtype, pl.List):
        return pl.List(_known(dtype.inner))
    if isinstance(dtype, pl.Struct):
        return pl.Struct({field.name: _known(field.dtype) for field in dtype.fields})
    return dtype


def case_of(seed: int) -> Case:
    """The case of a seed."""
    chance = random.Random(seed)
    kind = ("csv", "jsonl", "parquet")[seed % 3]
    names = tuple(chance.sample(NAMES, 2))
    count = chance.choice((1, 2, 2, 3, 3))
    order = [f"{place}.{kind}" for place in range(count)]
    if chance.random() < 0.3:
        chance.shuffle(order)
    jobs = [job for job in JOBS if kind == "parquet" or not job.startswith("typed")]
    job = chance.choice(jobs)
    make = {"csv": _csv_files, "jsonl": _json_files, "parquet": _parquet_files}[kind]
    made = make(chance, count, names)
    if kind == "csv":
        made = _ragged(random.Random(f"ragged {seed}"), made)
    return Case(seed, kind, dict(zip(order, made, strict=True)), names, job)


def _ragged(chance: random.Random, files: list[bytes]) -> list[bytes]:
    """Now and then a file whose last record has a field too many."""
    place = chance.randrange(len(files))
    data = files[place]
    if chance.random() > 0.1 or data.count(b"\n") < 2:
        return files
    line = data.rstrip(b"\r\n")
    longer = line + chance.choice((b",", b",7", b',"x"')) + data[len(line) :]
    return [*files[:place], longer, *files[place + 1 :]]


def _profiles(chance: random.Random, all_of: dict[str, Profile], count: int) -> list[Profile]:
    """One for each file: mostly the same."""
    first = chance.choice(list(all_of.values()))
    return [first] + [
        chance.choice(list(all_of.values())) if chance.random() < 0.5 else first for _ in range(count - 1)
    ]


def _columns(chance: random.Random, all_of: dict[str, Profile], count: int) -> list[list[tuple[Any, Any]]]:
    """Rows of two columns for each file."""
    keys, values = _profiles(chance, all_of, count), _profiles(chance, all_of, count)
    nulls = chance.choice((0.0, 0.1))
    files = []
    for key, value in zip(keys, values, strict=True):
        rows = chance.choice((0, 1, 5, 30))
        files.append(
            [
                tuple(None if chance.random() < nulls else one(chance) for one in (key, value))
                for _ in range(rows)
            ]
        )
    return files  # type: ignore[return-value]


def _csv_files(chance: random.Random, count: int, names: tuple[str, str]) -> list[bytes]:
    end = chance.choice(("\n", "\n", "\r\n"))
    quoting = chance.choice((csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC))
    made = []
    for rows in _columns(chance, LINE_PROFILES, count):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator=end, quoting=quoting)
        writer.writerow(names)
        for row in rows:
            writer.writerow(
                [
                    "" if value is None else str(value).lower() if isinstance(value, bool) else value
                    for value in row
                ]
            )
        made.append(text.getvalue().encode())
    return made


def _json_files(chance: random.Random, count: int, names: tuple[str, str]) -> list[bytes]:
    made = []
    for rows in _columns(chance, LINE_PROFILES | JSON_PROFILES, count):
        lines = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n" for row in rows]
        made.append("".join(lines).encode())
    if not any(made):
        made[0] = (json.dumps(dict.fromkeys(names, 1)) + "\n").encode()
    return made


def _typed(chance: random.Random) -> tuple[Any, Profile]:
    """A Parquet column's type and its values."""
    zone = chance.choice(ZONES)
    unit: Any = chance.choice(("ms", "us", "ns"))
    aware = ZoneInfo(zone) if zone else None
    kinds: list[tuple[Any, Profile]] = [
        (pl.Int64(), lambda c: c.randint(-3, 3)),
        (pl.Int16(), lambda c: c.randint(-3, 3)),
        (pl.UInt64(), lambda c: c.choice((0, 1, 2**63))),
        (pl.Float64(), lambda c: c.choice((0.0, -0.0, 1.5, math.nan, math.inf))),
        (pl.Float32(), lambda c: c.randint(0, 9) / 4),
        (pl.Boolean(), lambda c: c.random() < 0.5),
        (pl.String(), _text),
        (pl.Binary(), lambda c: _text(c).encode()),
        (pl.Decimal(12, 2), lambda c: Decimal(c.randint(-400, 400)) / 100),
        (pl.Date(), lambda c: _moment(c).date()),
        (pl.Time(), lambda c: _moment(c).time()),
        (pl.Duration(unit), lambda c: dt.timedelta(milliseconds=c.randint(0, 3))),
        (
            pl.Datetime(unit, zone),
            lambda c: (
                _moment(c).replace(microsecond=0).replace(tzinfo=dt.UTC).astimezone(aware)
                if aware
                else _moment(c).replace(microsecond=0)
            ),
        ),
        (pl.Enum(["b", "a"]), lambda c: c.choice("ab")),
        (pl.Categorical(), lambda c: c.choice("ba")),
        (pl.List(pl.Int64()), lambda c: [c.randint(0, 2) for _ in range(c.randint(0, 2))]),
        (
            pl.Struct({"p": pl.Int64(), "q": pl.String()}),
            lambda c: {"p": c.randint(0, 1), "q": c.choice("ab")},
        ),
    ]
    return chance.choice(kinds)


def _parquet_files(chance: random.Random, count: int, names: tuple[str, str]) -> list[bytes]:
    columns = [_typed(chance), _typed(chance)]
    nulls = chance.choice((0.0, 0.2))
    made = []
    for number in range(count):
        if number and chance.random() < 0.1:
            columns[1] = _typed(chance)
        rows = chance.choice((0, 1, 5, 30))
        frame = pl.DataFrame(
            [
                pl.Series(
                    name, [None if chance.random() < nulls else one(chance) for _ in range(rows)], dtype=dtype
                )
                for name, (dtype, one) in zip(names, columns, strict=True)
            ]
        )
        data = io.BytesIO()
        frame.write_parquet(data, row_group_size=chance.choice((3, 100)))
        made.append(data.getvalue())
    return made


# -- jobs ----------------------------------------------------------------------------------------------------


def _same(record: dict[str, Any]) -> dict[str, Any]:
    return record


def _as_text(k: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: {"t": repr(record[k])}


def _numbers(k: str, v: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Values whose Python type depends on the row."""

    def parsed(record: dict[str, Any]) -> dict[str, Any]:
        text = str(record[v])
        value: Any = text
        for kind in (int, float):
            try:
                value = kind(text)
                break
            except ValueError:
                continue
        if isinstance(value, float) and value.is_integer() and len(str(record[k])) % 2:
            value = int(value)  # 9 in one split, and 9.0 in another
        return {"k": str(record[k])[:1], "v": None if record[v] is None else value}

    return parsed


def _nines(k: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: {"v": 9 if str(record[k]) < "3" else 9.0}


def _group(data: Any, k: str, v: str) -> Any:
    return data.group_by(k).agg(rows=agg.count(), some=agg.count(v), low=agg.min(v), high=agg.max(v))


def _plain_group(data: pl.DataFrame, k: str, v: str) -> pl.DataFrame:
    if isinstance(data.schema[v], pl.Struct):
        # In groups, Polars' engine in memory says null where its streaming one, and both without groups, refuse.
        raise pl.exceptions.InvalidOperationError("struct")
    low, high = pl.col(v).min().alias("low"), pl.col(v).max().alias("high")
    return data.group_by(_one_zero(data, k)).agg(
        pl.len().alias("rows"), pl.col(v).count().alias("some"), low, high
    )


def _one_zero(data: pl.DataFrame, k: str) -> pl.Expr:
    """-0.0 is 0.0."""
    return pl.col(k) + 0.0 if data.schema[k].is_float() else pl.col(k)


def _hashable(data: pl.DataFrame, v: str) -> pl.Expr:
    """Documented: no sketch takes lists and structs."""
    if data.schema[v].is_nested():
        raise pl.exceptions.InvalidOperationError("nested")
    return pl.col(v)


Job = tuple[Callable[[Any, str, str], Any], Callable[[pl.DataFrame, str, str], pl.DataFrame] | None]
JOBS: dict[str, Job] = {
    "rows": (lambda d, k, v: d, lambda d, k, v: d),
    "one column": (lambda d, k, v: d.select(v), lambda d, k, v: d.select(v)),
    "filtered": (
        lambda d, k, v: d.filter(pl.col(k).is_not_null()).with_columns(n=pl.lit(1)),
        lambda d, k, v: d.filter(pl.col(k).is_not_null()).with_columns(n=pl.lit(1)),
    ),
    "extremes": (_group, _plain_group),
    "keys": (
        lambda d, k, v: d.group_by(k, v).agg(rows=agg.count()),
        lambda d, k, v: d.group_by(_one_zero(d, k), _one_zero(d, v)).agg(rows=pl.len()),
    ),
    "total": (
        lambda d, k, v: d.group_by(k).agg(s=agg.sum(v), m=agg.mean(v)),
        lambda d, k, v: d.group_by(_one_zero(d, k)).agg(s=pl.col(v).sum(), m=pl.col(v).mean()),
    ),
    "ends": (
        lambda d, k, v: d.group_by(k).agg(a=agg.first(v), z=agg.last(v)),
        lambda d, k, v: d.group_by(_one_zero(d, k)).agg(a=pl.col(v).first(), z=pl.col(v).last()),
    ),
    "distinct": (
        lambda d, k, v: d.group_by(k).agg(n=agg.approx_n_unique(v)),
        lambda d, k, v: d.group_by(_one_zero(d, k)).agg(n=_hashable(d, v).n_unique()),
    ),
    "texts": (
        lambda d, k, v: d.select(t=pl.col(k).cast(pl.String)).group_by("t").agg(n=agg.count()),
        lambda d, k, v: d.select(t=pl.col(k).cast(pl.String)).group_by("t").agg(n=pl.len()),
    ),
    "union": (
        lambda d, k, v: d.union(d).group_by(k).agg(n=agg.count()),
        lambda d, k, v: pl.concat([d, d]).group_by(_one_zero(d, k)).agg(n=pl.len()),
    ),
    "join": (
        lambda d, k, v: d.select(k, w=v).join(d.select(k, x=v), on=k).group_by("w", "x").agg(n=agg.count()),
        lambda d, k, v: (
            d.select(k, w=v)
            .join(d.select(k, x=v), on=k)
            .group_by(_zero("w", d, v), _zero("x", d, v))
            .agg(n=pl.len())
        ),
    ),
    "records": (lambda d, k, v: d.map(_same).group_by(k).agg(n=agg.count()), None),
    "texts of records": (lambda d, k, v: d.map(_as_text(k)).group_by("t").agg(n=agg.count()), None),
    "numbers": (lambda d, k, v: d.map(_numbers(k, v)), None),
    "least number": (
        lambda d, k, v: d.map(_numbers(k, v)).group_by("k").agg(n=agg.count(), m=agg.min("v")),
        None,
    ),
    "keys by value": (lambda d, k, v: d.map(_numbers(k, v)).group_by("v").agg(n=agg.count()), None),
    "values of numbers": (
        lambda d, k, v: (
            d.map(_numbers(k, v)).group_by("k").agg(n=agg.approx_n_unique("v"), f=agg.most_frequent("v", 3))
        ),
        None,
    ),
    "nines": (lambda d, k, v: d.map(_nines(k)).group_by().agg(n=agg.approx_n_unique("v")), None),
    "first by": (lambda d, k, v: d.group_by(k).agg(a=agg.first(k, by=v), z=agg.last(k, by=v)), None),
}


USED = {"one column": 1, "texts": 0, "union": 0}
"""Jobs that use one of the two columns: its number."""


def _zero(name: str, data: pl.DataFrame, column: str) -> pl.Expr:
    return pl.col(name) + 0.0 if data.schema[column].is_float() else pl.col(name)


# -- comparing -----------------------------------------------------------------------------------------------


def shown(frame: pl.DataFrame) -> list[str]:
    """The rows as a sorted list of texts: floats to nine digits, -0.0 as 0.0, columns by name."""
    frame = frame.select(sorted(frame.columns))
    return sorted(repr(tuple(map(_value, row))) for row in frame.rows())


def _value(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value + 0.0:.9g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{float(value):.9g}" if abs(value) < 10**9 else str(value)
    if isinstance(value, dict):
        return {key: _value(item) for key, item in sorted(value.items()) if item is not None}
    if isinstance(value, list):
        return [_value(item) for item in value]
    return value
