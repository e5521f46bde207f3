"""How the state fold keeps things: table names, and the row of a map's item."""

from __future__ import annotations

import struct
from typing import NamedTuple

MAPS = "state/m/"
"""Each map is a table below this: encoded key -> row. Keeps history."""
DUE = "state/due"
"""When items end: (due ms, map, key) -> nothing."""

_HEAD = struct.Struct(">QI")
_ENDS = struct.Struct(">q")
_DUE = struct.Struct(">QH")
_MS_MAX = (1 << 62) - 1


class Row(NamedTuple):
    """An item as it is stored."""

    offset: int
    index: int  # type: ignore[assignment]  # the name is right here; nobody searches a Row
    expires_ms: int | None
    """The fold time at which it ends."""
    value: bytes


def map_table(name: str) -> str:
    """The table of a map."""
    return MAPS + name


def row_head(offset: int, index: int, expires_ms: int | None) -> bytes:
    """What stands before the value: its version, and when it ends."""
    if expires_ms is None:
        return _HEAD.pack(offset, index << 1)
    return _HEAD.pack(offset, index << 1 | 1) + _ENDS.pack(expires_ms)


def read_row(data: bytes) -> Row:
    """The row in these bytes."""
    offset, flags = _HEAD.unpack_from(data)
    if flags & 1:
        return Row(offset, flags >> 1, _ENDS.unpack_from(data, 12)[0], data[20:])
    return Row(offset, flags >> 1, None, data[12:])


def ends_at(now_ms: int, ttl_ms: int | None) -> int | None:
    """When something with that lifetime ends."""
    return None if ttl_ms is None else max(0, min(now_ms + ttl_ms, _MS_MAX))


def due_key(expires_ms: int, name: str, key: bytes) -> bytes:
    """Sorts by time."""
    encoded = name.encode()
    return _DUE.pack(expires_ms, len(encoded)) + encoded + key


def read_due_key(data: bytes) -> tuple[int, str, bytes]:
    """When, which map, which key."""
    expires_ms, length = _DUE.unpack_from(data)
    return expires_ms, data[10 : 10 + length].decode(), data[10 + length :]


def due_at(data: bytes) -> int:
    """When the entry of this key is due; keys that begin with a time are alike, whatever comes behind it."""
    return int.from_bytes(data[:8])


def due_before(now_ms: int) -> bytes:
    """The end of the range of what is due at ``now_ms``."""
    return _DUE.pack(max(0, min(now_ms, _MS_MAX)) + 1, 0)
