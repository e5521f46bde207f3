"""Which kinds there are, and where a collection stands.

A *place* is the kind and the name: ``r/carts``. Two regions that make one name with different kinds, or a bounded counter with
different floors, have two places, which do not touch each other.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import msgspec

from onefold import config
from onefold.available.kinds.cells import Cells, Register
from onefold.available.kinds.counts import Counter
from onefold.available.kinds.dots import Dots
from onefold.available.kinds.row import Row
from onefold.available.kinds.shares import Shares

REGISTER: Final = "r"
FIELDS: Final = "f"
KEEP_BOTH: Final = "k"
SET: Final = "s"
COUNTER: Final = "n"
BOUNDED: Final = "b"
ROWS: Final[dict[str, type]] = {
    REGISTER: Register,
    FIELDS: Cells,
    KEEP_BOTH: Dots,
    SET: Dots,
    COUNTER: Counter,
    BOUNDED: Shares,
}
"""The class of a kind's rows, by its letter."""
EMPTY: Final[dict[str, Row]] = {letter: row() for letter, row in ROWS.items()}
_DECODERS: Final[dict[str, msgspec.msgpack.Decoder[Row]]] = {
    letter: msgspec.msgpack.Decoder(row) for letter, row in ROWS.items()
}


def place_of(kind: str, name: str, floor: int | None = None) -> str:
    """The place of a collection; ``floor``: of a bounded counter."""
    return f"{kind}/{name}" if floor is None else f"{kind}{floor}/{name}"


def split_place(place: str) -> tuple[str, str, int | None]:
    """The kind's letter, the name, and the floor of a bounded counter."""
    kind, _, name = place.partition("/")
    return kind[:1], name, int(kind[1:]) if kind[1:] else None


@lru_cache(maxsize=1024)
def is_place(place: str) -> bool:
    """Whether there can be a collection there."""
    kind, slash, name = place.partition("/")
    if not slash or not name or kind[:1] not in ROWS or len(place.encode()) > config.NAME_BYTES_MAX:
        return False
    if kind[:1] != BOUNDED:
        return len(kind) == 1
    digits = kind[1:].removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 19:
        return False
    return kind[1:] == str(int(kind[1:])) and int(kind[1:]) <= 0


def empty(place: str) -> Row:
    """What stands for a row that is not there."""
    return EMPTY[place[0]]


def read_row(place: str, data: bytes | None) -> Row:
    """The row in these bytes; an empty one for none. Raises msgspec.MsgspecError for others."""
    return EMPTY[place[0]] if data is None else _DECODERS[place[0]].decode(data)


def joined_key(key: bytes, part: bytes) -> bytes:
    """The row of one element of a set: sorted by key, then by element."""
    return key.replace(b"\x00", b"\x00\xff") + b"\x00\x01" + part


def key_range(key: bytes) -> tuple[bytes, bytes]:
    """The rows of all elements of a key."""
    start = joined_key(key, b"")
    return start, start[:-1] + b"\x02"


def split_key(row: bytes) -> tuple[bytes, bytes]:
    """The key and the element."""
    end = row.index(b"\x00\x01")
    return row[:end].replace(b"\x00\xff", b"\x00"), row[end + 2 :]
