"""What a source is at submission: its files, the schema that all of them have, and the units that they are cut into."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from onefold import config
from onefold.compute import foreign
from onefold.compute.plan.nodes import Source
from onefold.compute.plan.stages import Unit
from onefold.compute.sources import partition_values
from onefold.compute.sources.content import content_blocks, display, is_packed, open_raw
from onefold.compute.sources.formats import delimited, jsonl, parquet, text
from onefold.compute.sources.formats.records import BOM, csv_borders
from onefold.compute.sources.listing import FileInfo, list_files
from onefold.compute.sources.remote import is_remote
from onefold.errors import InvalidArgument, InvalidValue

if TYPE_CHECKING:
    import polars as pl

INFER_ROWS_DEFAULT = 10_000
"""Types of CSV and JSON lines are inferred from this many records, in file order, unless told otherwise."""
_SAMPLE_BLOCK_BYTES = 64 * 1024


class Resolved(NamedTuple):
    """The files of a source, sorted by path, and the schema of its rows in column order."""

    files: tuple[FileInfo, ...]
    schema: tuple[tuple[str, pl.DataType], ...]


def resolve(source: Source) -> Resolved:
    """List the files and fix the schema. Reads file metadata; for CSV, JSON lines and Parquet also headers, samples or footers.

    Raises ``InvalidArgument`` for paths that name no file and for files whose columns differ (naming both files and the
    columns), ``InvalidValue`` for a file that cannot be read as what it should be.
    """
    files = tuple(list_files(source))
    schema = dict(_SCHEMAS[source.kind](source, files))
    path_column = source.option("include_file_paths")
    if path_column is not None:
        import polars as pl

        if path_column in schema:
            raise InvalidArgument(
                f"include_file_paths={path_column!r}: the files have a column of that name; choose another"
            )
        schema[path_column] = pl.String()
    if not schema:
        raise InvalidArgument(
            f"{display(files[0].path)} has no columns: it is empty; give schema= or other files"
        )
    return Resolved(files, tuple(schema.items()))


def _text_schema(source: Source, files: Sequence[FileInfo]) -> dict[str, Any]:  # noqa: ARG001
    import polars as pl

    return {"line": pl.String()}


def _raw_schema(source: Source, files: Sequence[FileInfo]) -> dict[str, Any]:  # noqa: ARG001
    import polars as pl

    return {"path": pl.String(), "size": pl.Int64(), "data": pl.Binary()}


def _parquet_schema(source: Source, files: Sequence[FileInfo]) -> dict[str, Any]:
    known: dict[bytes, dict[str, Any]] = {}
    schema: dict[str, Any] | None = None
    notes: set[bytes | None] = set()
    for info in files:
        footer = parquet.read_footer(source, info)
        digest = footer.schema
        notes.add(footer.notes.get(partition_values.METADATA_KEY.encode()))
        if digest not in known:
            known[digest] = parquet.file_schema(source, info)
            schema = schema or known[digest]
            difference = _difference(schema, known[digest])
            if difference:
                raise InvalidArgument(
                    f"{display(files[0].path)} and {display(info.path)} have different schemas: {difference}; "
                    f"read them separately and use union"
                )
    hive = _hive_columns(source, files, schema or {}, notes)
    if given := dict(source.option("schema") or ()):
        return _as_given(given, schema or {}, hive, files[0])
    return {**(schema or {}), **hive}


def _as_given(
    given: dict[str, Any], stored: dict[str, Any], hive: dict[str, Any], first: FileInfo
) -> dict[str, Any]:
    """``schema=`` of Parquet files, which have a schema of their own: the same columns and types, in any order. Columns that
    are folders take the type that is given.
    """
    folders = {name for name in hive if name not in stored}
    asked = {name: dtype for name, dtype in given.items() if name not in folders}
    if missing := [name for name in asked if name not in stored]:
        raise InvalidArgument(
            f"schema= names {', '.join(map(repr, missing))}, which {display(first.path)} does not have"
        )
    if extra := [name for name in stored if name not in asked]:
        raise InvalidArgument(
            f"schema= lacks {', '.join(map(repr, extra))}, which {display(first.path)} has; leave columns out with select"
        )
    if other := [name for name, dtype in asked.items() if stored[name] != dtype]:
        raise InvalidArgument(
            "; ".join(
                f"column {name!r} is {asked[name]} in schema= but {stored[name]} in {display(first.path)}"
                for name in other
            )
            + "; convert it with with_columns(pl.col(...).cast(...))"
        )
    return {**given, **{name: dtype for name, dtype in hive.items() if name not in given}}


def _hive_columns(
    source: Source, files: Sequence[FileInfo], schema: dict[str, Any], notes: Iterable[bytes | None]
) -> dict[str, Any]:
    hive = parquet.hive_schema(source, files, notes)
    given = dict(source.option("schema") or ())
    for name in hive.keys() & given.keys() - schema.keys():
        for info in files:
            value = parquet.hive_parts(source, info.path)[name]
            if not partition_values.fits(value, given[name]):
                raise InvalidArgument(
                    f"{display(info.path)}: the folder {name}={value} is not {given[name]}, as schema= says"
                )
        hive[name] = given[name]
    return {name: schema.get(name, dtype) for name, dtype in hive.items()}


def _difference(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """How two schemas differ, in words; empty if they do not."""
    parts = []
    if missing := [name for name in expected if name not in found]:
        parts.append(f"the second has no column {', '.join(map(repr, missing))}")
    if extra := [name for name in found if name not in expected]:
        parts.append(f"only the second has {', '.join(map(repr, extra))}")
    parts.extend(
        f"column {name!r} is {expected[name]} and {found[name]}"
        for name in expected
        if name in found and expected[name] != found[name]
    )
    return "; ".join(parts)


def _csv_schema(source: Source, files: Sequence[FileInfo]) -> dict[str, Any]:
    limit = source.option("infer_schema_length", INFER_ROWS_DEFAULT)
    given = dict(source.option("schema") or ())
    first: tuple[FileInfo, list[str]] | None = None
    names_by_head: dict[bytes, list[str]] = {}
    samples: list[bytes] = []
    rows = 0
    for info in files:
        left = 0 if given else (None if limit is None else max(0, limit - rows))
        head, body = _csv_head(source, info, left)
        key = head if source.option("has_header", True) else body.split(b"\n", 1)[0]
        if key not in names_by_head:
            with foreign.translated(f"cannot read the header of {display(info.path)}"):
                names_by_head[key] = delimited.columns_of(source, head, body)
        names = names_by_head[key]
        if not names:
            continue  # an empty file
        if first is None:
            first = (info, names)
        elif names != first[1]:
            raise InvalidArgument(_header_difference(first[0], first[1], info, names))
        if left is None or left > 0:
            samples.append(body)
            rows += body.count(b"\n")
    if given:
        if first is not None and source.option("has_header", True) and list(given) != first[1]:
            raise InvalidArgument(
                f"schema= does not have the columns of {display(first[0].path)}: "
                f"{_names_difference(list(given), first[1], 'schema=', 'the file')}"
            )
        return given
    if first is None:
        return {}
    if unknown := [name for name, _ in source.option("schema_overrides") or () if name not in first[1]]:
        raise InvalidArgument(
            f"schema_overrides= names {', '.join(map(repr, unknown))}, which {display(first[0].path)} does not have"
        )
    return _inferred(source, first[0], lambda: delimited.infer(source, first[1], samples))


def _inferred(source: Source, info: FileInfo, infer: Any) -> dict[str, Any]:
    with foreign.translated(
        f"cannot infer the types of {source.kind} files from {display(info.path)} on", hint="give schema="
    ):
        return dict(infer())


def _header_difference(first: FileInfo, expected: list[str], info: FileInfo, found: list[str]) -> str:
    a, b = display(first.path), display(info.path)
    return f"{a} and {b} have different headers: {_names_difference(expected, found, a, b)}"


def _names_difference(expected: list[str], found: list[str], a: str, b: str) -> str:
    only_a = [name for name in expected if name not in found]
    only_b = [name for name in found if name not in expected]
    parts = [
        f"only {where} has {', '.join(map(repr, only))}" for where, only in ((a, only_a), (b, only_b)) if only
    ]
    return (
        "; ".join(parts)
        or f"the columns stand in another order ({', '.join(expected)} and {', '.join(found)})"
    )


def _csv_head(source: Source, info: FileInfo, rows: int | None) -> tuple[bytes, bytes]:
    """The header bytes of a file and up to ``rows`` of its records (None: all)."""
    unit = parquet.whole_unit(info)
    scanner = delimited.scanner(source)
    data = b""
    head = border = 0
    if not info.size:
        return b"", b""
    with open_raw(source, unit) as raw:
        for block in content_blocks(raw, unit, 0, _SAMPLE_BLOCK_BYTES):
            cut = scanner.last_border(block)
            if not scanner.sound and rows is not None:  # quotes tell no records apart: lines have to do
                cut = block.rfind(b"\n") + 1
            border = len(data) + cut if cut else border
            data += block
            head = delimited.head_bytes(source, data)
            enough = rows is not None and data.count(b"\n", head, border) >= rows
            if border >= head and border and enough:
                break
        else:
            border = len(data)
    body = data[head:border]
    delimited.check_head(source, info.path, data[:head])
    if rows == 0 and source.option("has_header", True):
        return data[:head], b""
    return data[:head], body if not rows else _first_records(source, body, rows)


def _first_records(source: Source, body: bytes, rows: int) -> bytes:
    """At most about ``rows`` records: cut only where no quote could be open."""
    quote = (source.option("quote_char", '"') or "").encode()
    if (quote and quote in body) or body.count(b"\n") <= rows:
        return body
    at = 0
    for _ in range(rows):
        at = body.find(b"\n", at) + 1 or len(body)
    return body[:at]


def _jsonl_schema(source: Source, files: Sequence[FileInfo]) -> dict[str, Any]:
    if given := source.option("schema"):
        return dict(given)
    limit = source.option("infer_schema_length", INFER_ROWS_DEFAULT)
    samples: list[bytes] = []
    rows = 0
    for info in files:
        if limit is not None and rows >= limit:
            break
        body = b"".join(_sample_lines(source, info, None if limit is None else limit - rows))
        samples.append(body.removeprefix(BOM))
        rows += body.count(b"\n")
    try:
        schema = _inferred(source, files[0], lambda: jsonl.infer(samples))
    except InvalidValue as error:
        for info, sample in zip(files, samples, strict=False):
            if broken := jsonl.first_broken(sample):
                raise InvalidValue(f"{display(info.path)}: {broken}; repair the file") from error
        raise
    return {**schema, **dict(source.option("schema_overrides") or ())}


def _sample_lines(source: Source, info: FileInfo, rows: int | None) -> Iterator[bytes]:
    unit = parquet.whole_unit(info)
    if not info.size:
        return
    with open_raw(source, unit) as raw:
        for block in content_blocks(raw, unit, 0, _SAMPLE_BLOCK_BYTES):
            if rows is None:
                yield block
                continue
            lines = block.split(b"\n")
            taken = b"\n".join(lines[:rows]) + (b"\n" if len(lines) > rows else b"")
            yield taken
            rows -= len(lines) - 1
            if rows <= 0:
                return


_SCHEMAS: dict[str, Any] = {
    "text": _text_schema,
    "files": _raw_schema,
    "csv": _csv_schema,
    "jsonl": _jsonl_schema,
    "parquet": _parquet_schema,
}


def units_of(source: Source, resolved: Resolved, *, split_bytes: int, min_units: int) -> list[Unit]:
    """Cut the files into units of about ``split_bytes``, smaller where needed to reach ``min_units``; file order.

    No range of a line file is smaller than ``config.SPLIT_BYTES_MIN``. Compressed files, whole-file encodings and CSV
    whose quotes do not tell records apart are one unit each. Cutting CSV reads large files once, to find the quoted
    newlines.
    """
    total = sum(info.size for info in resolved.files)
    target = max(min(split_bytes, -(-total // max(1, min_units))), config.SPLIT_BYTES_MIN)
    units: list[Unit] = []
    for info in resolved.files:
        if source.kind == "parquet":
            units.extend(parquet.cut(source, info, split_bytes=target))
        else:
            units.extend(_cut_bytes(source, info, target))
    return units


def _cut_bytes(source: Source, info: FileInfo, target: int) -> list[Unit]:
    whole = parquet.whole_unit(info)
    count = min(-(-info.size // target), info.size // config.SPLIT_BYTES_MIN)
    if count < 2 or source.kind == "files" or (source.kind == "text" and not text.is_splittable(source)):
        return [whole]
    if source.kind == "csv" and is_remote(info.path) and source.option("quote_char", '"') is not None:
        return [whole]  # looking for quotes would read the file over the network twice
    targets = [info.size * i // count for i in range(1, count)]
    with open_raw(source, whole) as raw:
        if is_packed(raw, whole):
            return [whole]
        borders = (
            csv_borders(raw, whole, targets, delimited.scanner(source)) if source.kind == "csv" else targets
        )
    if source.kind == "csv" and borders:
        head, _ = _csv_head(source, info, 0)  # a long head with comments, say, must not be cut
        borders = [border for border in borders if border > len(head)]
    edges = [0, *borders, info.size]
    return [
        Unit(info.path, start, stop, info.size, info.etag, stop - start) for start, stop in pairwise(edges)
    ]
