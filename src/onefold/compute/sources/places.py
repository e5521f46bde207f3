"""Where rows stand in their files, counted once for all rows that are asked for in order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from onefold.compute.plan.nodes import Source
from onefold.compute.plan.stages import Unit
from onefold.compute.sources import ranges
from onefold.compute.sources.content import display


class Places:
    """Names the places of rows of one source. Asking for rows in ascending order reads each unit once, however many are
    asked for; going back reads it again.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._unit: Unit | None = None
        self._lines: Iterator[int] = iter(())
        self._row = -1
        self._line: int | None = None
        self.records = 0
        """How many records have been counted, for tests."""

    def locate(self, unit: Unit, row: int) -> str:
        """Where row ``row`` (from 0) of the unit stands; see ``onefold.compute.sources.locate``."""
        if self._source.kind == "stream":
            return ranges.locate(unit, row)
        where = display(unit.path)
        if self._source.kind == "files":
            return where
        if self._source.kind == "parquet":
            return f"{where}: row {unit.start + row + 1}"
        if unit != self._unit or row < self._row:
            self._unit, self._row, self._line = unit, -1, None
            self._lines = _lines(self._source, unit)
        while self._row < row:
            self._row += 1
            self.records += 1
            self._line = next(self._lines, None)
            if self._line is None:
                self._unit = None
                return f"{where}: row {row + 1} from byte {unit.start}"
        return f"{where}: line {self._line}"


def _lines(source: Source, unit: Unit) -> Iterator[int]:
    """The line (from 1) in which each record of the unit begins."""
    from onefold.compute.sources.error_places import line_number, record_borders
    from onefold.compute.sources.reading import BATCH_PIECE_BYTES, all_pieces

    comment = (source.option("comment_prefix") or "").encode()
    line, at = 0, -1
    for piece in all_pieces(source, [unit], BATCH_PIECE_BYTES):
        if piece.offset != at:  # the first one, or what follows something that was left out
            line = line_number(source, unit, piece.offset)
        for begin, end in pairwise(record_borders(source, piece)):
            record = piece.data[begin:end]
            if (source.kind != "jsonl" or record.strip()) and not (comment and record.startswith(comment)):
                yield line
            line += record.count(b"\n")
        at = piece.offset + len(piece.data)
