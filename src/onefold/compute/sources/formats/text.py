"""Text files: one column ``line``, without its line ending (``\\n`` or ``\\r\\n``)."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from onefold.compute.plan.nodes import Source
from onefold.compute.plan.stages import Unit
from onefold.compute.sources.content import RawFile, content_blocks, display
from onefold.compute.sources.formats.records import BOM, Piece, line_pieces
from onefold.errors import InvalidValue

if TYPE_CHECKING:
    import polars as pl

_UTF8 = ("utf-8", "utf-8-sig")


def is_single_byte(encoding: str) -> bool:
    """Whether each byte is a character by itself and 0x0A the newline, so that files can be cut anywhere."""
    every = bytes(range(256))
    return len(every.decode(encoding, "replace")) == 256 and b"\n".decode(encoding, "replace") == "\n"


def is_splittable(source: Source) -> bool:
    """Whether byte ranges of these files make sense."""
    encoding = codecs.lookup(source.option("encoding", "utf8")).name
    return encoding in _UTF8 or is_single_byte(encoding)


def pieces(source: Source, raw: RawFile, unit: Unit, piece_bytes: int) -> Iterator[Piece]:
    """The unit's lines as bytes: in the file's encoding where that can be cut, else turned to UTF-8 from the start."""
    if is_splittable(source):
        return line_pieces(raw, unit, piece_bytes)
    return _transcoded(source, raw, unit, piece_bytes)


def _transcoded(source: Source, raw: RawFile, unit: Unit, piece_bytes: int) -> Iterator[Piece]:
    """Encodings such as UTF-16, where a newline is not one byte: decoded in order, cut afterwards."""
    encoding, errors = source.option("encoding"), source.option("errors", "strict")
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    position, held, lines = 0, b"", 0
    try:
        for block in content_blocks(raw, unit, 0, piece_bytes):
            held += decoder.decode(block).encode("utf-8", "replace")
            cut = held.rfind(b"\n") + 1
            if cut:
                yield Piece(unit, position, held[:cut])
                position, lines, held = position + cut, lines + held.count(b"\n", 0, cut), held[cut:]
        held += decoder.decode(b"", final=True).encode("utf-8", "replace")
    except UnicodeError as error:
        raise InvalidValue(
            f"{display(unit.path)}: after line {lines}: not valid {encoding}: {error}; "
            f"give the right encoding= or errors='replace'"
        ) from error
    if held:
        yield Piece(unit, position, held)


def parse(source: Source, schema: Sequence[tuple[str, pl.DataType]], group: Sequence[Piece]) -> pl.LazyFrame:  # noqa: ARG001
    """The lines of these pieces. Raises ``InvalidValue`` for bytes that are not text in the encoding."""
    import polars as pl

    encoding = codecs.lookup(source.option("encoding", "utf8")).name
    errors = source.option("errors", "strict")
    parts = []
    for piece in group:
        data = piece.data
        if encoding == "utf-8-sig" and piece.offset == 0 and data.startswith(BOM):
            data = data[len(BOM) :]
        if encoding not in _UTF8 and is_splittable(source):
            data = _decoded(piece, data, encoding, errors).encode()
        elif errors != "strict" and encoding in _UTF8:
            data = _repaired(data, errors)
        parts.append(data)
    return pl.scan_lines(join_lines(parts))


def join_lines(parts: Sequence[bytes]) -> bytes:
    """Pieces one after the other; a last line without an ending does not run into the next piece."""
    if len(parts) == 1:
        return parts[0]
    joined = []
    for part in parts:
        joined.append(part)
        if part and not part.endswith(b"\n"):
            joined.append(b"\n")
    return b"".join(joined)


def _repaired(data: bytes, errors: str) -> bytes:
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.decode("utf-8", errors).encode("utf-8", "replace")
    return data


def _decoded(piece: Piece, data: bytes, encoding: str, errors: str) -> str:
    try:
        return data.decode(encoding, errors)
    except UnicodeDecodeError as error:
        raise InvalidValue(
            f"{display(piece.unit.path)}: byte {piece.offset + error.start}: not valid {encoding} "
            f"(0x{data[error.start]:02x}); give the right encoding= or errors='replace'"
        ) from error


def why_invalid(record: bytes, encoding: str) -> str | None:
    """What is wrong with a line, or None."""
    try:
        record.decode(encoding)
    except UnicodeDecodeError as error:
        return f"byte {error.start + 1} of the line (0x{record[error.start]:02x}) is not valid UTF-8"
    return None
