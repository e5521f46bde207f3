"""The rows of one key in the runs of a table: after each commit one group is read without the others being merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

if TYPE_CHECKING:
    from onefold.compute.live.runs.run_store import Inline, RunReader
    from onefold.compute.live.tables.contents import LiveContents
    from onefold.state.fold.live.ops import RunId
    from onefold.state.fold.live.rows import Run


class Frames(Protocol):
    """Where the rows of runs are read."""

    def frame(self, part: bytes, run: Run, inline: Inline) -> pl.DataFrame:
        """All rows of a run that it still covers."""
        ...


class KeyedRuns:
    """The runs of these contents with no more than the rows of a key. Values of groups depend on no other group."""

    def __init__(
        self,
        reader: RunReader,
        contents: LiveContents,
        key: Mapping[str, Any],
        literal: Callable[[Any, Any], pl.Expr],
    ) -> None:
        """``key``: by column. ``literal``: a value as it is compared with a column of a type. Raises as ``RunReader.frame``."""
        frames = {
            run.id: reader.frame(contents.key, run, contents.inline)
            for run in contents.runs
            if run.row.kind in ("state", "result")
        }
        for name, value in key.items():
            types = {frame.schema.get(name) for frame in frames.values()}
            # Only where merging does not change the column: what is equal then is equal before.
            if len(types) == 1 and (dtype := types.pop()) is not None:
                frames = _of_value(frames, pl.col(name), literal, value, dtype)
        self._frames = frames

    def frame(self, part: bytes, run: Run, inline: Inline) -> pl.DataFrame:  # noqa: ARG002
        """The rows of the key."""
        return self._frames[run.id]


def _of_value(
    frames: dict[RunId, pl.DataFrame],
    column: pl.Expr,
    literal: Callable[[Any, Any], pl.Expr],
    value: Any,
    dtype: pl.DataType,
) -> dict[RunId, pl.DataFrame]:
    try:
        return {run: frame.filter(column.eq_missing(literal(value, dtype))) for run, frame in frames.items()}
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        return frames  # it cannot be a key of the column, which the table says once it is merged
