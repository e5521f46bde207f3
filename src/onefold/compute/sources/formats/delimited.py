"""CSV: the header is read per file and checked, the types are fixed at submission, quoted newlines are respected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from onefold.compute.plan.nodes import Source
from onefold.compute.plan.stages import Unit
from onefold.compute.sources.content import RawFile, display
from onefold.compute.sources.formats.quoting import lawful, lines
from onefold.compute.sources.formats.records import BOM, Piece, QuoteScanner, csv_pieces
from onefold.compute.sources.formats.surplus import has_surplus
from onefold.compute.sources.formats.text import why_invalid
from onefold.errors import InvalidValue

if TYPE_CHECKING:
    import polars as pl

_PASSED = (
    "separator",
    "quote_char",
    "null_values",
    "comment_prefix",
    "try_parse_dates",
    "decimal_comma",
    "truncate_ragged_lines",
    "encoding",
)


def scanner(source: Source) -> QuoteScanner:
    """A fresh record scanner for one file."""
    return QuoteScanner(
        source.option("separator", ","),
        source.option("quote_char", '"'),
        comments=source.option("comment_prefix") is not None,
    )


def reader_options(source: Source) -> dict[str, Any]:
    """The options that go to Polars as they are."""
    given = dict(source.options)
    options = {name: given[name] for name in _PASSED if name in given}
    values = options.get("null_values")
    if isinstance(values, tuple):
        options["null_values"] = dict(values) if values and isinstance(values[0], tuple) else list(values)
    return options


def pieces(source: Source, raw: RawFile, unit: Unit, piece_bytes: int) -> Iterator[Piece]:
    """The unit's records without header: whole records only.

    Of a piece whose quotes are not certain, what follows the rule is a piece of its own. So a piece that does not begins with
    the first record of the file that breaks the rule, wherever the file was cut.
    """
    head: Piece | None = None
    heading = unit.start == 0
    for piece in csv_pieces(raw, unit, piece_bytes, scanner(source)):
        if heading:
            if head is not None:
                piece = piece._replace(offset=0, data=head.data + piece.data)
            end = head_bytes(source, piece.data)
            if end == len(piece.data):
                head = piece
                continue
            piece = piece._replace(offset=end, data=piece.data[end:])
            heading = False
        if piece.sound:
            yield piece
            continue
        stop = lawful(piece.data, *_marks(source)).stop
        if stop:
            yield piece._replace(data=piece.data[:stop], sound=source.option("comment_prefix") is None)
        if stop < len(piece.data):
            yield piece._replace(offset=piece.offset + stop, data=piece.data[stop:])


def _marks(source: Source) -> tuple[bytes, bytes, bytes]:
    """Separator, quote and prefix of comments as bytes."""
    names = (("separator", ","), ("quote_char", '"'), ("comment_prefix", ""))
    separator, quote, comment = ((source.option(name, default) or "").encode() for name, default in names)
    return separator, quote, comment


def check_rows(source: Source, piece: Piece, rows: int) -> None:
    """Raise ``QuotesUncertain`` if a piece with such quotes gave other rows than its records (see ``quoting``)."""
    followed = lawful(piece.data, *_marks(source), inner_quotes=True)
    expected = followed.records + lines(piece.data[followed.stop :], _marks(source)[2])
    if rows != expected:
        raise QuotesUncertain(f"Polars finds {rows} rows and not {expected}")


def breaks_rule(source: Source, piece: Piece) -> int | None:
    """Where in the piece the first record begins whose quotes break the rule."""
    if not source.option("quote_char", '"'):
        return None
    stop = lawful(piece.data, *_marks(source)).stop
    return stop if stop < len(piece.data) else None


class QuotesUncertain(Exception):
    """Quotes that follow no rule let lines run into each other."""


def head_bytes(source: Source, data: bytes) -> int:
    """How many bytes stand before the first record: byte order mark, skipped lines, blank lines, comments, header."""
    at = _header_start(source, data)
    if not source.option("has_header", True):
        return at
    quote = (source.option("quote_char", '"') or "").encode()
    end = _line_end(data, at)
    while quote and data.count(quote, at, end) % 2 and end < len(data):
        end = _line_end(data, end)
    return end


def check_head(source: Source, path: str, head: bytes) -> None:
    """Raise ``InvalidValue`` for a header that is not UTF-8 (unless the rest may be something else, too), and for one whose
    quotes follow no rule and make it run into the lines after it.
    """
    quote = (source.option("quote_char", '"') or "").encode()
    if not source.option("has_header", True):
        return
    names = head[_header_start(source, head) :]
    if source.option("encoding") != "utf8-lossy" and (why := why_invalid(names, "utf-8")):
        shown = names[:200].decode("utf-8", "backslashreplace").rstrip("\r\n")
        raise InvalidValue(
            f"{display(path)}: the header: {why}: {shown!r}; convert the file to UTF-8, or give encoding='utf8-lossy'"
        )
    if not quote:
        return
    if names.count(quote, 0, _line_end(names, 0)) % 2 and not lawful(names, *_marks(source)).records:
        shown = names[: _line_end(names, 0)][:200].decode("utf-8", "backslashreplace").rstrip("\r\n")
        raise InvalidValue(
            f"{display(path)}: the header: a quote neither opens a name nor closes one: {shown!r}; "
            f"give quote_char=None to read quotes as text, or repair the file"
        )


def _header_start(source: Source, data: bytes) -> int:
    """Where the header begins, or the first record where there is no header."""
    at = len(BOM) if data.startswith(BOM) else 0
    for _ in range(source.option("skip_lines", 0)):
        at = _line_end(data, at)
    comment = (source.option("comment_prefix") or "").encode()
    while source.option("has_header", True) and at < len(data):
        end = _line_end(data, at)
        line = data[at:end]
        if line.strip(b"\r\n") and not (comment and line.startswith(comment)):
            break
        at = end
    return at


def _line_end(data: bytes, at: int) -> int:
    found = data.find(b"\n", at)
    return len(data) if found < 0 else found + 1


def columns_of(source: Source, head: bytes, first_record: bytes) -> list[str]:
    """The column names of a file: from its header, or Polars' numbered ones by its first record."""
    import polars as pl

    options = reader_options(source)
    options.pop("null_values", None)
    if not source.option("has_header", True):
        if not first_record.strip(b"\r\n"):
            return []
        frame = pl.scan_csv(first_record, has_header=False, infer_schema=False, **options)
    else:
        skip = source.option("skip_lines", 0)
        if not head.strip():
            return []
        frame = pl.scan_csv(head, has_header=True, infer_schema=False, skip_lines=skip, **options)
    return frame.collect_schema().names()


def _safe_names(source: Source, names: Sequence[str]) -> list[str]:
    """Names that a header can hold: the columns' own, or numbered ones where Polars would not read those back."""
    quote = source.option("quote_char", '"')
    separator = source.option("separator", ",")
    unsafe = (quote,) if quote else (separator, "\n", "\r")
    if any(part in name for name in names for part in unsafe) or (not quote and "" in names):
        return [f"column_{i}" for i in range(len(names))]
    return list(names)


def header_line(source: Source, names: Sequence[str]) -> bytes:
    """A header of ``_safe_names``."""
    quote: str = source.option("quote_char", '"') or ""
    separator: str = source.option("separator", ",")
    return separator.join(quote + name + quote for name in names).encode() + b"\n"


def parse(source: Source, schema: Sequence[tuple[str, pl.DataType]], group: Sequence[Piece]) -> pl.LazyFrame:
    """The records of these pieces with exactly this schema (the file's columns, in the file's order)."""
    import polars as pl

    # With a header in front, every piece is read by the same rules, whatever its first record looks like.
    names = [name for name, _ in schema]
    safe = _safe_names(source, names)
    frame = pl.scan_csv(
        b"".join([header_line(source, safe), *_records(group)]),
        has_header=True,
        schema=dict(zip(safe, (dtype for _, dtype in schema), strict=True)),
        **_options_for(source, names, safe),
    )
    return frame if safe == names else frame.rename(dict(zip(safe, names, strict=True)))


def parse_some(
    source: Source, schema: Sequence[tuple[str, pl.DataType]], group: Sequence[Piece], names: Sequence[str]
) -> pl.DataFrame:
    """Some of the columns of these sound pieces; fails for records with too many fields as reading all columns does.

    Polars looks for such fields only when it reads all columns. So it does that for pieces that seem to have some: where a
    comment has as many separators, there are none.
    """
    import polars as pl

    if not source.option("truncate_ragged_lines", False):
        separator, quote, _ = _marks(source)
        records = _records(group)
        if has_surplus(records[0] if len(records) == 1 else b"".join(records), separator, quote, len(schema)):
            schema = [(name, dtype if name in names else pl.String()) for name, dtype in schema]
            return parse(source, schema, group).collect().select(names)
    return parse(source, schema, group).select(names).collect()


def _records(group: Sequence[Piece]) -> list[bytes]:
    """The bytes of the pieces; a sound one ends with a newline."""
    parts = []
    for piece in group:
        parts.append(piece.data)
        if piece.sound and not piece.data.endswith(b"\n"):
            parts.append(b"\n")
    return parts


def _options_for(source: Source, names: Sequence[str], safe: Sequence[str]) -> dict[str, Any]:
    """The reader's options for data under a header of ours, which has no lines to skip before it."""
    options = reader_options(source)
    if isinstance(values := options.get("null_values"), dict):
        options["null_values"] = {safe[names.index(k)]: v for k, v in values.items() if k in names}
    return options


def infer(source: Source, names: Sequence[str], samples: Sequence[bytes]) -> dict[str, Any]:
    """Types over the sampled records, with ``schema_overrides`` in force."""
    import polars as pl

    safe = _safe_names(source, names)
    data = header_line(source, safe) + b"".join(s if s.endswith(b"\n") else s + b"\n" for s in samples if s)
    given = dict(source.option("schema_overrides") or ())
    overrides = {safe[names.index(name)]: dtype for name, dtype in given.items()}
    frame = pl.scan_csv(
        data,
        has_header=True,
        infer_schema_length=None,
        schema_overrides=overrides or None,
        **_options_for(source, names, safe),
    )
    return dict(zip(names, frame.collect_schema().values(), strict=True))
