"""Rows on their way from one part of a job to the next, with the event and the record that each came from.

The reading part sees rows as if it had read the stream itself: the same event times, and ``_partition``, ``_offset``, ``_time``
and ``_key`` of the record that was read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from onefold.compute.live.inputs.preparing import as_read
from onefold.errors import InvalidValue, TooLarge
from onefold.machine.undisturbed import let_pass
from onefold.state.fold.streams.ops import Append
from onefold.state.streams import frames as stream_frames
from onefold.state.streams.frames import ARROW

if TYPE_CHECKING:
    from onefold.compute.live.output.writers import Written


class HopWriter:
    """Appends rows to the stream that the next part reads."""

    def __init__(self, stream: str) -> None:
        self._stream = stream

    def write(self, rows: pl.DataFrame | None, gone: pl.DataFrame | None) -> Written:  # noqa: ARG002
        """The appends of these rows, in order."""
        from onefold.compute.live.output.writers import Written

        written = Written()
        if rows is not None and rows.height:
            self._append(rows, written)
        return written

    def _append(self, rows: pl.DataFrame, written: Written) -> None:
        try:
            pieces = list(stream_frames.cut_frame(rows, None))
        except (InvalidValue, TooLarge) as error:
            let_pass(error)
            if rows.height == 1:
                shown, _ = as_read(rows)
                written.refused.append((shown, str(error)))
                return
            half = rows.height // 2
            self._append(rows.head(half), written)
            self._append(rows.slice(half), written)
            return
        written.writes += [Append(self._stream, 0, count, data, ARROW) for count, data in pieces]
