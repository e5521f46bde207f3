"""Records that were set aside, as the dead letters of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from onefold.compute.frames.shown_values import shown_value
from onefold.compute.live.inputs.preparing import AS_READ, RECORD_CHARS_MAX
from onefold.state.streams.frames import OWN_COLUMNS

if TYPE_CHECKING:
    from onefold.compute.live.plan import LivePart

_OWN: Final = (*OWN_COLUMNS, "reason", "traceback", AS_READ)


def dead_letters(part: LivePart, dead: pl.DataFrame) -> pl.DataFrame:
    """``location, record, error, traceback``, all text, of the rows of a table of dead records."""
    stream = part.inputs[0].stream if len(part.inputs) == 1 else "its inputs"
    rows = []
    for number in range(dead.height):
        row = {column.name: shown_value(column, number) for column in dead}
        rows.append(
            (
                "a row that its sink cannot take"
                if row.get("_offset") is None
                else f"record {row['_offset']} of partition {row['_partition']} of {stream}",
                row.get(AS_READ) or _text(row),
                str(row.get("reason") or ""),
                str(row.get("traceback") or ""),
            )
        )
    return pl.DataFrame(
        rows, schema=dict.fromkeys(("location", "record", "error", "traceback"), pl.String), orient="row"
    )


def _text(row: dict[str, Any]) -> str:
    """Of a row that a sink could not take, by its columns."""
    return repr({name: value for name, value in row.items() if name not in _OWN})[:RECORD_CHARS_MAX]
