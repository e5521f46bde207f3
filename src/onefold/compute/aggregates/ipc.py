"""Partial frames as bytes: Arrow IPC as Polars writes it."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl

from onefold.errors import InvalidValue

UNCOMPRESSED_ROWS_MIN = 20_000
"""Frames from this height on are not compressed: 100,000 groups (i64, u64, f64) take 2 ms plain, 7 ms with
LZ4, 10 ms with Zstandard. Smaller ones are, so that they fit into a record.
"""


def encode(frame: pl.DataFrame) -> bytes:
    """The frame as an Arrow IPC stream. Equal frames give equal bytes."""
    out = io.BytesIO()
    compression = "uncompressed" if frame.height >= UNCOMPRESSED_ROWS_MIN else "zstd"
    frame.rechunk().write_ipc_stream(out, compression=compression)  # type: ignore[call-overload]
    return out.getvalue()


def decode(data: bytes | Path) -> pl.DataFrame:
    """The frame of ``encode``'s bytes, or of a file that holds them. Raises InvalidValue on anything else."""
    try:
        return pl.read_ipc_stream(io.BytesIO(data) if isinstance(data, bytes) else data)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InvalidValue(f"a partial result cannot be read: {error}") from error
