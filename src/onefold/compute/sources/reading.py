"""Rows of units: lazily for expressions (``scan``), in batches for Python functions (``batches``).

Line formats go through one path: pieces of whole records, small ones put together, parsed by Polars one group at a time.
That bounds memory, costs little per file, and lets a broken record be named by file and line, because errors are raised
here and not by a query over everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from onefold.compute import foreign
from onefold.compute.plan.nodes import Source
from onefold.compute.plan.stages import Unit
from onefold.compute.sources import ranges
from onefold.compute.sources.content import display, open_raw
from onefold.compute.sources.error_places import explain, parse_group
from onefold.compute.sources.formats import delimited, jsonl, parquet, raw, text
from onefold.compute.sources.formats.records import Piece
from onefold.errors import InvalidValue

if TYPE_CHECKING:
    import polars as pl

    Schema = Sequence[tuple[str, pl.DataType]]

SCAN_PIECE_BYTES = 4 * 1024 * 1024
"""Bytes parsed at once for expressions: a frame is a thread's portion of work. Small inputs go down to a quarter of it."""
BATCH_PIECE_BYTES = 1024 * 1024
"""Bytes parsed at once for Python functions, which are slower than any parsing."""
RAW_BYTES = 8 * 1024 * 1024
"""Whole files are read together up to this size."""

_FORMATS: dict[str, ModuleType] = {"text": text, "csv": delimited, "jsonl": jsonl}


def scan(source: Source, schema: Schema, units: Sequence[Unit]) -> pl.LazyFrame:
    """The rows of these units, in this order, with exactly this schema.

    Files are read when the frame is collected, in pieces; projections and predicates are applied per piece (Parquet: by
    Polars' own scan). Collecting raises ``InvalidValue`` for broken records (naming file and line) and for files that changed.
    """
    if source.kind == "parquet":
        return parquet.scan(source, schema, units)
    if source.kind == "stream":
        return ranges.scan(schema, units)
    from polars.io.plugins import register_io_source

    def read(
        columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        del batch_size
        portion = sum(unit.cost for unit in units) // 16
        piece_bytes = min(SCAN_PIECE_BYTES, max(SCAN_PIECE_BYTES // 4, portion, 1))
        yield from _frames(source, schema, units, piece_bytes, columns, predicate, n_rows)

    return register_io_source(read, schema=dict(schema))


def batches(source: Source, schema: Schema, unit: Unit, batch_rows: int) -> Iterator[pl.DataFrame]:
    """The rows of one unit in frames of exactly ``batch_rows`` rows (the last may be shorter), in bounded memory."""
    import polars as pl

    if source.kind == "parquet":
        frames = parquet.batches(source, schema, unit, batch_rows)
    elif source.kind == "stream":
        frames = ranges.frames(schema, unit)
    else:
        frames = _frames(source, schema, [unit], BATCH_PIECE_BYTES)
    held: list[pl.DataFrame] = []
    rows = 0
    for frame in frames:
        at = 0
        while at < frame.height:
            part = frame.slice(at, batch_rows - rows)
            held.append(part)
            rows += part.height
            at += part.height
            if rows == batch_rows:
                yield pl.concat(held) if len(held) > 1 else part
                held, rows = [], 0
    if held:
        yield pl.concat(held)


def _frames(
    source: Source,
    schema: Schema,
    units: Sequence[Unit],
    piece_bytes: int,
    columns: Sequence[str] | None = None,
    predicate: pl.Expr | None = None,
    n_rows: int | None = None,
) -> Iterator[pl.DataFrame]:
    """Frames of the units' rows; ``n_rows`` counts before the predicate."""
    names = [name for name, _ in schema] if columns is None else list(columns)
    if source.kind == "files":
        frames = _raw_frames(source, units, with_data="data" in names)
    else:
        frames = _parsed_frames(source, schema, units, piece_bytes, names)
    left = n_rows
    for frame in frames:
        if left is not None:
            frame = frame.head(left)
            left -= frame.height
        if predicate is not None:
            frame = frame.filter(predicate)
        yield frame.select(names)
        if left is not None and left <= 0:
            return


def _raw_frames(source: Source, units: Sequence[Unit], *, with_data: bool) -> Iterator[pl.DataFrame]:
    held: list[Unit] = []
    size = 0
    for unit in units:
        held.append(unit)
        size += unit.size if with_data else 0
        if size >= RAW_BYTES:
            yield raw.read(source, held, with_data=with_data)
            held, size = [], 0
    if held:
        yield raw.read(source, held, with_data=with_data)


def _parsed_frames(
    source: Source, schema: Schema, units: Sequence[Unit], piece_bytes: int, names: Sequence[str]
) -> Iterator[pl.DataFrame]:
    import polars as pl

    path_column = source.option("include_file_paths")
    inner = [(name, dtype) for name, dtype in schema if name != path_column]
    wanted = [name for name in names if name != path_column]

    def parsed(group: Sequence[Piece]) -> pl.DataFrame:
        try:
            return parse_group(source, inner, wanted, group)
        except BaseException as error:
            if not foreign.is_foreign(error) or isinstance(error, MemoryError):
                raise
            raise explain(source, inner, wanted, group, error) from error

    for group in _groups(source, units, piece_bytes):
        frame = parsed(group)
        if path_column not in names:
            yield frame
        elif (lines := _line_counts(group)) and sum(lines) == frame.height:
            # A row takes at least one line, so if all rows are as many as all lines, that holds for each piece.
            paths = pl.Series([piece.unit.path for piece in group]).gather(_repeated(lines))
            yield frame.with_columns(paths.alias(str(path_column)))
        else:
            for piece in group:
                yield parsed([piece]).with_columns(pl.lit(piece.unit.path).alias(str(path_column)))


def _line_counts(group: Sequence[Piece]) -> list[int]:
    return [piece.data.count(b"\n") + (not piece.data.endswith(b"\n")) for piece in group]


def _repeated(counts: Sequence[int]) -> pl.Series:
    """0 as often as the first count says, then 1, and so on."""
    import polars as pl

    indexes = pl.Series(range(len(counts)), dtype=pl.UInt32)
    frame = pl.DataFrame({"index": indexes, "count": counts})
    return frame.select(pl.col("index").repeat_by("count").explode(empty_as_null=False))["index"]


def _groups(source: Source, units: Sequence[Unit], piece_bytes: int) -> Iterator[list[Piece]]:
    """Pieces put together until they have ``piece_bytes``, so that many small files are parsed at once."""
    group: list[Piece] = []
    size = 0
    for piece in all_pieces(source, units, piece_bytes):
        if group and not piece.sound:
            yield group
            group, size = [], 0
        group.append(piece)
        size += len(piece.data)
        if size >= piece_bytes or not piece.sound:
            yield group
            group, size = [], 0
    if group:
        yield group


def all_pieces(source: Source, units: Sequence[Unit], piece_bytes: int) -> Iterator[Piece]:
    """The whole records of the units, in order."""
    pieces = _FORMATS[source.kind].pieces
    for unit in units:
        with open_raw(source, unit) as opened:
            if unit.size:
                yield from pieces(source, opened, unit, piece_bytes)


def with_file(source: Source, schema: Schema, units: Sequence[Unit], error: BaseException) -> BaseException:
    """An error of a query over these units as ``InvalidValue`` that names the file; the error itself if no file gives it.

    Only Parquet has such errors: files of lines are parsed piece by piece, and their errors have a place already.
    """
    if source.kind != "parquet" or not foreign.is_foreign(error) or isinstance(error, MemoryError):
        return error
    for unit in units:
        try:
            scan(source, schema, [unit]).collect(engine="streaming")
        except BaseException as found:
            if not foreign.is_foreign(found):
                raise
            return InvalidValue(
                f"cannot read {display(unit.path)}: {foreign.why(found)}; replace the file and run again"
            )
    return error


def locate(source: Source, unit: Unit, row: int) -> str:
    """Where row ``row`` (from 0) of the unit stands, for messages: ``logs/a.txt: line 17``; Parquet: ``a.parquet: row 17``.

    Lines and rows are counted from 1. Reads the file up to there, so it is for errors only.
    """
    from onefold.compute.sources.places import Places

    return Places(source).locate(unit, row)
