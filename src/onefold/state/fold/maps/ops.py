"""The operations of maps. All of them are parts of a ``Commit``; what a transaction has read is named in ``state.fold.ops``."""

from __future__ import annotations

from onefold.state.fold.kind import Write


class Put(Write, frozen=True, array_like=True, tag="put"):
    """Set keys of a map. Blind: never conflicts. Result: None."""

    map: str
    items: tuple[tuple[bytes, bytes], ...]
    ttl_ms: int | None = None
    """They end at the first record whose fold time is this much later than that of this record."""


class Delete(Write, frozen=True, array_like=True, tag="del"):
    """Remove keys of a map. Blind. Result: how many of them were there."""

    map: str
    keys: tuple[bytes, ...]


class Clear(Write, frozen=True, array_like=True, tag="clr"):
    """Remove all keys with ``start <= key < stop``. Blind. Result: None."""

    map: str
    start: bytes
    stop: bytes


class Increment(Write, frozen=True, array_like=True, tag="inc"):
    """Add to a number; a key that is not there counts as 0. Blind. Result: the new value's bytes.

    Rejected when what is there is no number.
    """

    map: str
    key: bytes
    by: bytes
    """An encoded int or float."""
    ttl_ms: int | None = None
    """The lifetime of the key when this makes it."""


MapWrite = Put | Delete | Clear | Increment
