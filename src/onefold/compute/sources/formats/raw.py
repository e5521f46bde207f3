"""Whole files as rows: ``path``, ``size``, ``data``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onefold.compute.plan.nodes import Source
from onefold.compute.plan.stages import Unit
from onefold.compute.sources.content import open_raw

if TYPE_CHECKING:
    import polars as pl


def read(source: Source, units: Sequence[Unit], *, with_data: bool) -> pl.DataFrame:
    """One row a unit. Without ``with_data`` the files are not read (``data`` is then missing)."""
    import polars as pl

    columns: dict[str, pl.Series] = {
        "path": pl.Series([u.path for u in units], dtype=pl.String),
        "size": pl.Series([u.size for u in units], dtype=pl.Int64),
    }
    if with_data:
        columns["data"] = pl.Series([_data(source, unit) for unit in units], dtype=pl.Binary)
    return pl.DataFrame(columns)


def _data(source: Source, unit: Unit) -> bytes:
    with open_raw(source, unit) as raw:
        return raw.read_at(0, unit.size)
