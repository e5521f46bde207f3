"""The types of what functions of a plan give: each column has that of its first value, in all batches."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from onefold.compute.arguments import OWN_PREFIX
from onefold.compute.frames.named import frame_of
from onefold.compute.live.inputs.fitting import cast_same, misfit


@dataclass
class MadeTypes:
    """Of the rows of one input behind its functions. A column that comes later gets its type then."""

    columns: dict[str, pl.DataType] = field(default_factory=dict)

    def fitted(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[int, str]]:
        """The frame in these types, and rows of it with a value that does not fit, with the reason."""
        broken: dict[int, str] = {}
        made: list[pl.Series] = []
        for column in frame:
            dtype = self.columns.get(column.name, pl.Null())
            if column.name.startswith(OWN_PREFIX) or column.dtype == pl.Null:
                made.append(column if dtype == pl.Null else column.cast(dtype))
                continue
            if dtype == pl.Null:
                dtype = self.columns[column.name] = column.dtype
            fits, wrong = cast_same(column, dtype)
            made.append(fits)
            for row in wrong:
                broken.setdefault(
                    int(row), f"what a function gave: {misfit(column.name, column, row, dtype)}"
                )
        return frame_of(made) if made else frame, broken
