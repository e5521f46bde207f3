"""Frames of series that keep their names, the empty name too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl


def is_pattern(name: str) -> bool:
    """Whether Polars takes the name for a pattern of names, so that no expression can mean this column alone."""
    return name == "*" or (name.startswith("^") and name.endswith("$"))


def frame_of(columns: Iterable[pl.Series]) -> pl.DataFrame:
    """A frame of these series under their names.

    ``pl.DataFrame([series])`` gives a column whose name is empty another one: ``column_0``. Tables that were saved with their
    index have such a column. Raises Polars' ``DuplicateError`` where two have one name.
    """
    import polars as pl

    series = list(columns)
    if all(column.name for column in series):
        return pl.DataFrame(series)
    frame = pl.DataFrame([column.alias(str(number)) for number, column in enumerate(series)])
    frame.columns = [column.name for column in series]
    return frame
