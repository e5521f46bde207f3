"""JSON lines: one object a line; columns are the keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from onefold.compute.plan.nodes import Source
from onefold.compute.plan.stages import Unit
from onefold.compute.sources.content import RawFile
from onefold.compute.sources.formats.records import BOM, Piece, line_pieces
from onefold.compute.sources.formats.text import join_lines, why_invalid

if TYPE_CHECKING:
    import polars as pl

_SHOWN_BYTES = 200
_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF_PAIR = re.compile(rb"%b(?!%b)|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})%b" % (_HIGH, _LOW, _LOW))


def pieces(source: Source, raw: RawFile, unit: Unit, piece_bytes: int) -> Iterator[Piece]:  # noqa: ARG001
    """The unit's lines (a newline inside a JSON string is always written as an escape)."""
    return line_pieces(raw, unit, piece_bytes)


def body(piece: Piece) -> bytes:
    """The bytes without a byte order mark."""
    return piece.data[len(BOM) :] if piece.offset == 0 and piece.data.startswith(BOM) else piece.data


def parse(source: Source, schema: Sequence[tuple[str, pl.DataType]], group: Sequence[Piece]) -> pl.LazyFrame:  # noqa: ARG001
    """The objects of these pieces; blank lines give nothing; a key that is not in the schema is left out."""
    import polars as pl

    data = join_lines([body(p) for p in group])
    if half := _half_pair(data):
        raise ValueError(f"{half} is half of a pair of escapes, and no character")
    rows = pl.scan_ndjson(data, schema={name: _readable(dtype) for name, dtype in schema})
    return rows.with_columns(pl.col(name).cast(dtype) for name, dtype in schema if _readable(dtype) != dtype)


def _half_pair(data: bytes) -> str:
    """Half of a surrogate pair, of which Polars makes other characters; empty if there is none."""
    if b"\\" not in data or not (b"\\ud" in data or b"\\uD" in data):
        return ""
    for half in _HALF_PAIR.finditer(data):
        before = data[max(0, half.start() - _SHOWN_BYTES) : half.start()]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:  # else the backslash is escaped itself
            return half[0].decode()
    return ""


def _readable(dtype: Any) -> Any:
    """The type that Polars' reader takes for this one; it panics at the smallest whole numbers and refuses categories."""
    import polars as pl

    if dtype in (pl.Int8, pl.Int16):
        return pl.Int32()
    if dtype in (pl.UInt8, pl.UInt16):
        return pl.UInt32()
    return pl.String() if isinstance(dtype, pl.Categorical | pl.Enum) else dtype


def infer(samples: Sequence[bytes]) -> dict[str, Any]:
    """Columns and types over the sampled lines: the union of the keys, the supertype of the values."""
    import polars as pl

    data = join_lines(samples)
    if not data.strip():
        return {}
    schema = pl.scan_ndjson(data, infer_schema_length=None).collect_schema()
    return {name: _without_null(dtype) for name, dtype in schema.items()}


def first_broken(sample: bytes) -> str:
    """The first line that is not a JSON object, as ``line 3: why: 'text'``; empty when all are."""
    for number, line in enumerate(sample.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            why = "" if isinstance(found, dict) else f"a {type(found).__name__} is not a JSON object"
        except UnicodeDecodeError:
            why = why_invalid(line, "utf-8") or "not UTF-8"
        except (ValueError, RecursionError) as error:
            why = f"no JSON ({error})"
        if why:
            shown = line[:_SHOWN_BYTES].decode("utf-8", "backslashreplace").rstrip("\r")
            return f"line {number}: {why}: {shown!r}"
    return ""


def _without_null(dtype: Any) -> Any:
    """A column that was null in the whole sample becomes text: of the types that a later value may have, it takes all."""
    import polars as pl

    if dtype == pl.Null:
        return pl.String()
    if isinstance(dtype, pl.List):
        return pl.List(_without_null(dtype.inner))
    if isinstance(dtype, pl.Struct):
        return pl.Struct({field.name: _without_null(field.dtype) for field in dtype.fields})
    return dtype
