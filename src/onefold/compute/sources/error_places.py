"""From an error or a row number to the place in a file that a person can look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onefold.compute import foreign
from onefold.compute.plan.nodes import Source
from onefold.compute.plan.stages import Unit
from onefold.compute.sources.content import content_blocks, display, open_raw
from onefold.compute.sources.formats import delimited, jsonl, text
from onefold.compute.sources.formats.records import Piece
from onefold.errors import InvalidValue, OnefoldError

if TYPE_CHECKING:
    import polars as pl

    Schema = Sequence[tuple[str, pl.DataType]]

_SHOWN_BYTES = 200
_FILES_NAMED_MAX = 3
_FORMATS: dict[str, Any] = {"text": text, "csv": delimited, "jsonl": jsonl}


def explain(
    source: Source, schema: Schema, wanted: Sequence[str], group: Sequence[Piece], error: BaseException
) -> Exception:
    """The error as ``InvalidValue`` with file and line; with the files alone if no piece by itself gives it."""
    for piece in group:
        if source.kind == "csv" and not piece.sound and (odd := _odd_quotes(source, schema, piece)):
            return odd
        if not _parses(source, schema, wanted, [piece]):
            return _explain_piece(source, schema, wanted, piece, error)
    files = ", ".join(dict.fromkeys(display(piece.unit.path) for piece in group[:_FILES_NAMED_MAX]))
    return InvalidValue(f"cannot read {files}: {foreign.why(error)}")


def parse_group(
    source: Source, schema: Schema, wanted: Sequence[str], group: Sequence[Piece]
) -> pl.DataFrame:
    """The wanted columns of these pieces; the first column if none is wanted, so that the rows are counted."""
    names = list(wanted) or [schema[0][0]]
    sound = all(piece.sound for piece in group)
    if source.kind == "csv" and sound and len(names) < len(schema):
        return delimited.parse_some(source, schema, group, names)
    rows: pl.LazyFrame = _FORMATS[source.kind].parse(source, schema, group)
    if source.kind != "csv" or sound:
        return rows.select(names).collect()
    # Polars tells records apart in two ways, by the columns that it reads: rows are certain only when all are read.
    frame = rows.collect()
    delimited.check_rows(source, group[0], frame.height)
    return frame.select(names)


def _parses(source: Source, schema: Schema, wanted: Sequence[str], group: Sequence[Piece]) -> bool:
    return _failure(source, schema, wanted, group) is None


def _failure(
    source: Source, schema: Schema, wanted: Sequence[str], group: Sequence[Piece]
) -> BaseException | None:
    try:
        parse_group(source, schema, wanted, group)
    except BaseException as error:
        if not isinstance(error, OnefoldError) and not foreign.is_foreign(error):
            raise
        return error
    return None


def _odd_quotes(source: Source, schema: Schema, piece: Piece) -> InvalidValue | None:
    """The error for quotes that follow no rule, if it is they that break the piece and not its values."""
    import polars as pl

    at = delimited.breaks_rule(source, piece)
    texts = [(name, pl.String()) for name, _ in schema]
    if at is None or _parses(source, texts, [], [piece]):
        return None
    end = piece.data.find(b"\n", at) + 1 or len(piece.data)
    shown = piece.data[at:end][:_SHOWN_BYTES].decode("utf-8", "backslashreplace").rstrip("\r\n")
    return InvalidValue(
        f"{display(piece.unit.path)}: line {line_number(source, piece.unit, piece.offset + at)}: a quote neither opens a "
        f"field nor closes one, and no second one makes up for it, so records cannot be distinguished from here on: {shown!r}; "
        f"give quote_char=None to read quotes as text, or repair the file"
    )


def _explain_piece(
    source: Source, schema: Schema, wanted: Sequence[str], piece: Piece, error: BaseException
) -> InvalidValue:
    """Halve the records until one is left that does not parse."""
    borders = record_borders(source, piece)
    low, high = 0, len(borders) - 1
    while high - low > 1:
        middle = (low + high) // 2
        half = piece._replace(
            offset=piece.offset + borders[low], data=piece.data[borders[low] : borders[middle]]
        )
        if _parses(source, schema, wanted, [half]):
            low = middle
        else:
            high = middle
    record = piece.data[borders[low] : borders[high]]
    alone = _failure(
        source, schema, wanted, [piece._replace(offset=piece.offset + borders[low], data=record)]
    )
    line = line_number(source, piece.unit, piece.offset + borders[low])
    shown = record[:_SHOWN_BYTES].decode("utf-8", "backslashreplace").rstrip("\r\n")
    where = f"{display(piece.unit.path)}: line {line}"
    if source.kind == "text":
        why = text.why_invalid(record, "utf-8") or foreign.why(error)
        return InvalidValue(f"{where}: {why}: {shown!r}; give encoding=, or errors='replace' to keep going")
    hint = {
        "csv": "give schema_overrides= for the column, or repair the file",
        "jsonl": "give schema= for the columns, or repair the file",
    }[source.kind]
    why = foreign.why(alone or error)
    if source.kind == "csv" and "found more fields" in why:
        hint = "give truncate_ragged_lines=True to drop what is too much, or repair the file"
    return InvalidValue(f"{where}: {why}: {shown!r}; {hint}")


def record_borders(source: Source, piece: Piece) -> list[int]:
    """Where the records of a piece begin, and its end: ``[0, …, len(data)]``."""
    data, borders, at = piece.data, [0], 0
    scanner = delimited.scanner(source) if source.kind == "csv" and piece.sound else None
    while at < len(data):
        end = data.find(b"\n", at) + 1 or len(data)
        line = data[at:end]
        at = end
        if scanner is None or scanner.last_border(line) == len(line) or end == len(data):
            borders.append(end)
    return borders


def line_number(source: Source, unit: Unit, offset: int) -> int:
    """The number (from 1) of the line in which the (decompressed) byte ``offset`` stands."""
    whole = (
        unit
        if unit.start == 0 and unit.stop == unit.size
        else Unit(unit.path, 0, unit.size, unit.size, unit.etag, 0)
    )
    line, at = 1, 0
    with open_raw(source, whole) as raw:
        for block in content_blocks(raw, whole, 0, 1024 * 1024):
            line += block.count(b"\n", 0, max(0, offset - at))
            at += len(block)
            if at >= offset:
                break
    return line
