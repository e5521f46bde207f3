"""Batches of records as bytes, and which partition a key belongs to.

There are two formats. ``RECORDS``: a msgpack array of ``[encoded key or nil, value]``. ``ARROW``: the length (2 bytes) and
name of the key column (none: no keys), then a Polars frame as an Arrow IPC stream, zstd compressed; such rows are never
taken apart to be stored. A record's partition is CRC32C(encoded key) modulo the number of partitions in both; for a frame
that is reckoned once for each distinct key, and joined to its rows.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from onefold import config
from onefold.codec import crc32c
from onefold.errors import InvalidArgument, InvalidValue, TooLarge
from onefold.machine.lazy import LazyModule
from onefold.state.encoding.keys import encode_key

if TYPE_CHECKING:
    import polars as pl
else:
    pl = LazyModule("polars")

RECORDS: Final = 0
ARROW: Final = 1
OWN_COLUMNS: Final = ("_partition", "_offset", "_time", "_key")
"""Columns that reading adds; a frame may not have them."""
_NAME = struct.Struct(">H")

Pair = tuple[bytes | None, msgspec.Raw]
_decoder: msgspec.msgpack.Decoder[list[Pair]] = msgspec.msgpack.Decoder(list[Pair])
_encoder = msgspec.msgpack.Encoder()


def own_types() -> dict[str, pl.DataType]:
    """Of the columns that reading adds to each record."""
    types = pl.UInt32(), pl.Int64(), pl.Datetime("ms", "UTC"), pl.String()
    return dict(zip(OWN_COLUMNS, types, strict=True))


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of an encoded key."""
    return crc32c(key) % partitions


def encode_records(pairs: Sequence[tuple[bytes | None, bytes]]) -> bytes:
    """Pairs of encoded key (or None) and encoded value."""
    return _encoder.encode([(key, msgspec.Raw(value)) for key, value in pairs])


def decode_records(frame: bytes) -> list[Pair]:
    """Likewise. Raises InvalidValue."""
    try:
        return _decoder.decode(frame)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidValue(f"a stored batch of {len(frame)} bytes cannot be read: {error}") from None


def cut_records(pairs: Sequence[tuple[bytes | None, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Pieces (count, frame) of at most ``config.STREAM_FRAME_BYTES_MAX``; a larger record is a piece of its own."""
    start = size = 0
    for at, (key, value) in enumerate(pairs):
        add = len(value) + len(key or b"") + 8
        if at > start and size + add > config.STREAM_FRAME_BYTES_MAX:
            yield at - start, encode_records(pairs[start:at])
            start, size = at, 0
        size += add
    if start < len(pairs):
        yield len(pairs) - start, encode_records(pairs[start:])


def as_frame(records: object) -> pl.DataFrame | None:
    """The records as a frame if they are one (Polars or pyarrow), else None. Raises InvalidArgument for a LazyFrame."""
    module, name = type(records).__module__, type(records).__name__
    if module.startswith("polars."):
        if isinstance(records, pl.LazyFrame):
            raise InvalidArgument("a LazyFrame has no rows yet; append `frame.collect()`")
        if isinstance(records, pl.Series):
            return records.to_frame(records.name or "value")
        return records if isinstance(records, pl.DataFrame) else None
    if module.startswith("pyarrow.") and name in ("Table", "RecordBatch"):
        found = pl.from_arrow(records)
        return found if isinstance(found, pl.DataFrame) else None
    return None


def check_frame(frame: pl.DataFrame, key: str | None) -> None:
    """Raises InvalidArgument for a frame without columns or the key column, or with columns that reading adds."""
    if not frame.width:
        raise InvalidArgument("the frame has no columns, so its rows hold nothing")
    for column in OWN_COLUMNS:
        if column in frame.columns:
            raise InvalidArgument(
                f"the frame has a column {column!r}, which reading adds by itself; rename or drop it"
            )
    for column, dtype in frame.schema.items():
        if dtype == pl.Object:
            raise InvalidValue(
                f"the column {column!r} holds Python objects, which have no Arrow form; convert it"
            )
    if key == "":
        raise InvalidArgument("the key column of a frame must have a name; rename it")
    if key is not None and key not in frame.columns:
        raise InvalidArgument(f"the frame has no column {key!r} for the key; it has {frame.columns}")


def split_frame(
    frame: pl.DataFrame, key: str | None, partitions: int, start: int
) -> list[tuple[int, pl.DataFrame]]:
    """The rows of each partition, in their order; rows whose key is null, like all without key, go to partition ``start``.

    Raises InvalidKey for a key column of a type that keys cannot be of.
    """
    if key is None:
        return [(start, frame)]
    column = frame.get_column(key).alias("_key")  # methods of a series read its name as a pattern
    if isinstance(column.dtype, pl.Categorical | pl.Enum):
        column = column.cast(pl.String)
    unique = column.drop_nulls().unique()
    places = [partition_of(encode_key(one), partitions) for one in unique.to_list()]
    if partitions == 1:
        return [(0, frame)]
    if not places:
        return [(start, frame)]
    numbers = column.replace_strict(
        unique, pl.Series(places, dtype=pl.UInt32), default=start, return_dtype=pl.UInt32
    ).rename("_partition")
    parts = frame.with_columns(numbers).partition_by("_partition", maintain_order=True)
    return [(part.get_column("_partition")[0], part.drop("_partition")) for part in parts]


def cut_frame(frame: pl.DataFrame, key: str | None) -> Iterator[tuple[int, bytes]]:
    """Pieces (rows, frame) of ``config.VALUE_BYTES_MAX`` at most. Raises TooLarge for a row over that limit."""
    whole = max(int(frame.estimated_size()), 1)
    rows = max(1, frame.height * config.STREAM_FRAME_BYTES_MAX // whole)
    for at in range(0, frame.height, rows):
        yield from _encoded(frame.slice(at, rows), key)


def _encoded(frame: pl.DataFrame, key: str | None) -> Iterator[tuple[int, bytes]]:
    data = encode_frame(frame, key)
    # Halved down to one row, if need be: only a row by itself tells that it is over the limit.
    if len(data) > config.VALUE_BYTES_MAX and frame.height > 1:
        half = frame.height // 2
        yield from _encoded(frame.slice(0, half), key)
        yield from _encoded(frame.slice(half), key)
        return
    if len(data) > config.VALUE_BYTES_MAX:
        raise TooLarge(
            f"a row takes {len(data)} bytes; at most {config.VALUE_BYTES_MAX} fit. Keep large parts elsewhere"
        )
    yield frame.height, data


def encode_frame(frame: pl.DataFrame, key: str | None) -> bytes:
    """The frame's bytes."""
    name = (key or "").encode()
    if len(name) >= 1 << 16:
        raise InvalidArgument("the key column's name is too long")
    out = io.BytesIO(_NAME.pack(len(name)) + name)
    out.seek(0, io.SEEK_END)
    try:
        frame.write_ipc_stream(out, compression="zstd")
    except pl.exceptions.PolarsError as error:
        raise InvalidValue(f"the frame has no Arrow form: {error}") from None
    return out.getvalue()


def decode_frame(data: bytes) -> tuple[str | None, pl.DataFrame]:
    """The key column's name and the frame. Raises InvalidValue."""
    try:
        (length,) = _NAME.unpack_from(data)
        name = data[2 : 2 + length].decode()
        return name or None, pl.read_ipc_stream(io.BytesIO(data[2 + length :]))
    except (struct.error, UnicodeError, pl.exceptions.PolarsError, OSError) as error:
        raise InvalidValue(f"a stored frame of {len(data)} bytes cannot be read: {error}") from None


def key_text(key: Any) -> str | None:
    """A key for the column ``_key``: text as it is, other kinds as JSON or Python would write them, bytes in hex."""
    if key is None or isinstance(key, str):
        return key
    if isinstance(key, bool):
        return "true" if key else "false"
    return key.hex() if isinstance(key, bytes) else str(key)


def key_column(frame: pl.DataFrame, key: str | None) -> pl.Series:
    """The same of a whole frame."""
    if key is None:
        return pl.Series("_key", [None], dtype=pl.String).new_from_index(0, frame.height)
    column = frame.get_column(key).alias("_key")
    return column.bin.encode("hex") if column.dtype == pl.Binary else column.cast(pl.String)
