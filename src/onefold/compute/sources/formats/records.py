"""Cutting bytes into pieces that hold whole records: lines, and CSV records whose quoted fields may hold newlines.

The rule for a range ``[start, stop)`` of lines: a line belongs to the range in which its first byte is. With
``first_line(x)`` = x at the start of the file or after a newline, else the position after the next newline, a range's lines are
the bytes ``[first_line(start), first_line(stop))``. So the ranges of a file, whatever their borders, give every line once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from onefold.compute.plan.stages import Unit
from onefold.compute.sources.content import RawFile, content_blocks, is_packed, is_whole

BOM = b"\xef\xbb\xbf"
_WINDOW_BYTES = 4096
_WINDOW_BYTES_MAX = 1024 * 1024


class Piece(NamedTuple):
    """Whole records and where they begin in the (decompressed) file."""

    unit: Unit
    offset: int
    data: bytes
    sound: bool = True
    """False: its quotes may not follow RFC 4180, so it must not be put together with others, and has to be parsed with all
    columns."""


def first_line(raw: RawFile, position: int, limit: int) -> int:
    """The first line start at or after ``position``; ``limit`` if there is none before it."""
    if position <= 0:
        return 0
    at, window = position - 1, _WINDOW_BYTES
    while at < limit:
        block = raw.read_at(at, min(window, limit - at))
        found = block.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(block)
        window = min(window * 4, _WINDOW_BYTES_MAX)
    return limit


def line_pieces(raw: RawFile, unit: Unit, piece_bytes: int) -> Iterator[Piece]:
    """The lines of a range, in pieces of about ``piece_bytes`` (more for a longer line)."""
    if raw.is_local and not (is_whole(unit) and is_packed(raw, unit)):
        return _line_pieces_at(raw, unit, piece_bytes)
    return _line_pieces_streamed(raw, unit, piece_bytes)


def _line_pieces_at(raw: RawFile, unit: Unit, piece_bytes: int) -> Iterator[Piece]:
    """Finds the border first and then reads exactly the piece, so no byte is copied twice."""
    begin = first_line(raw, unit.start, unit.stop)
    while begin < unit.stop:
        end = first_line(raw, min(begin + piece_bytes, unit.stop), unit.size)
        yield Piece(unit, begin, raw.read_at(begin, end - begin))
        begin = end


def _line_pieces_streamed(raw: RawFile, unit: Unit, piece_bytes: int) -> Iterator[Piece]:
    """The same from a stream that is read once, in order."""
    stop = None if is_whole(unit) else unit.stop
    position = max(0, unit.start - 1)  # where the held bytes begin
    dropping = unit.start > 0  # the rest of a line that belongs to the range before
    held: list[bytes] = []
    held_bytes = 0
    for block in content_blocks(raw, unit, position, piece_bytes):
        if dropping:
            found = block.find(b"\n")
            position += len(block) if found < 0 else found + 1
            if stop is not None and position >= stop:
                return
            if found < 0:
                continue
            block, dropping = block[found + 1 :], False
        at = position + held_bytes
        if stop is not None and at + len(block) >= stop:
            # The line of byte stop-1 is the last one: it ends with the first newline from there on.
            cut = block.find(b"\n", max(0, stop - 1 - at)) + 1
            if cut:
                yield Piece(unit, position, b"".join([*held, memoryview(block)[:cut]]))
                return
        else:
            cut = block.rfind(b"\n") + 1
        if cut:
            yield Piece(unit, position, b"".join([*held, memoryview(block)[:cut]]))
            position, held, held_bytes = at + cut, [], 0
            block = block[cut:]
        if block:
            held.append(block)
            held_bytes += len(block)
    if held:
        yield Piece(unit, position, b"".join(held))


class QuoteScanner:
    """Finds record borders in CSV whose quoted fields may hold newlines (RFC 4180), in blocks fed in order.

    It checks that every quote opens a field, closes one or is doubled inside one. Only then does the parity of quotes tell
    whether a newline ends a record; ``sound`` turns False at the first quote that does none of these, and from then on no
    border is given: telling records apart is then the parser's work, on the whole file.
    """

    def __init__(self, separator: str, quote_char: str | None, *, comments: bool = False) -> None:
        self.sound = True
        self._quote = quote_char.encode() if quote_char else None
        self._separator = separator.encode()[0]
        self._comments = comments
        self._inside = False
        self._quotes: Any = None
        self._last = 10  # the byte before the block; a file begins as if after a newline
        self._begins = True

    @property
    def is_certain(self) -> bool:
        """Whether all that was fed so far is whole records: no quote was odd, and none is open."""
        return self.sound and not self._inside

    @property
    def is_trivial(self) -> bool:
        """Whether every newline ends a record."""
        return self._quote is None

    def last_border(self, block: bytes) -> int:
        """The position after the last newline of the block that ends a record; 0 if there is none."""
        if not block or not self.sound:
            return 0
        begins, self._begins = self._begins, False
        quiet = not self._inside and (self._quote is None or self._last != self._quote[0])
        if quiet and (self._quote is None or self._quote not in block):
            self._last = block[-1]
            return block.rfind(b"\n") + 1
        self.sound = not self._comments and self._scan_is_sound(block, begins)
        if not self.sound:
            return 0
        cut = self._border_before(block, len(block))
        self._inside = (len(self._quotes) + self._inside) % 2 == 1
        self._last = block[-1]
        return cut

    def _scan_is_sound(self, block: bytes, begins: bool) -> bool:
        import numpy as np

        quote = (self._quote or b'"')[0]
        data = np.frombuffer(block, dtype=np.uint8)
        self._quotes = quotes = np.flatnonzero(data == quote)
        # Quotes alternate: opening ones where an even number stands before. A doubled quote inside a field is a closing one and
        # an opening one side by side.
        first_opening = 1 if self._inside else 0
        opens, closes = quotes[first_opening::2], quotes[1 - first_opening :: 2]
        before = np.where(opens > 0, data[opens - 1], self._last)
        if begins and block.startswith(BOM):
            before = np.where(opens == len(BOM), 10, before)
        after = data[closes[closes + 1 < len(data)] + 1]
        starts_field = (before == self._separator) | (before == 10) | (before == quote)
        ends_field = (after == self._separator) | (after == 10) | (after == 13) | (after == quote)
        if not self._inside and self._last == quote and block[0] not in (self._separator, 10, 13, quote):
            return False  # the closing quote at the end of the block before is followed by text
        return bool(starts_field.all() and ends_field.all())

    def _border_before(self, block: bytes, stop: int) -> int:
        quotes = self._quotes
        while (cut := block.rfind(b"\n", 0, stop)) >= 0:
            before = int(quotes.searchsorted(cut))
            if (before + self._inside) % 2 == 0:
                return cut + 1
            if before == 0:
                return 0
            stop = int(quotes[before - 1])  # inside a quoted field: continue before the quote that opened it
        return 0


def csv_pieces(raw: RawFile, unit: Unit, piece_bytes: int, scanner: QuoteScanner) -> Iterator[Piece]:
    """The CSV records of a unit whose borders are record borders (see ``csv_borders``), in pieces.

    Where quotes do not tell records apart, the rest of the unit is one piece.
    """
    whole = is_whole(unit)
    position, held = unit.start, list[bytes]()
    at = unit.start
    for block in content_blocks(raw, unit, unit.start, piece_bytes):
        if not whole:
            block = block[: unit.stop - at]
        cut = scanner.last_border(block)
        at += len(block)
        if cut:
            data = b"".join([*held, memoryview(block)[:cut]])
            yield Piece(unit, position, data)
            position, held, block = position + len(data), [], block[cut:]
        if block:
            held.append(block)
        if not whole and at >= unit.stop:
            break
    if held:
        yield Piece(unit, position, b"".join(held), scanner.is_certain)


def csv_borders(raw: RawFile, unit: Unit, targets: list[int], scanner: QuoteScanner) -> list[int]:
    """For each target offset the first record border found after it, strictly increasing; [] where none is certain.

    Reads the file once up to the last target (``unit`` is the whole file).
    """
    if scanner.is_trivial and raw.is_local:
        found = sorted({first_line(raw, target, unit.size) for target in targets})
        return [border for border in found if 0 < border < unit.size]
    # A border is the last one of the block in which its target stands, so blocks are small against the distance of targets.
    step = max(1, min(b - a for a, b in pairwise([0, *targets])))
    borders: list[int] = []
    at = 0
    pending = list(targets)
    for block in content_blocks(raw, unit, 0, min(max(step // 4, 1), 1024 * 1024)):
        cut = scanner.last_border(block)
        if not scanner.sound:
            return []
        if cut and at + cut >= pending[0]:
            borders.append(at + cut)
            pending = [target for target in pending if target > at + cut]
            if not pending:
                break
        at += len(block)
    return [border for border in borders if border < unit.size]
