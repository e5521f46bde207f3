"""Session reads of available maps from memory: see ``onefold.state.maps.cache``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from onefold.available import reading
from onefold.available.kinds.places import read_row
from onefold.available.kinds.row import Row
from onefold.shard.api import View
from onefold.state.available.maps.reading import read_item
from onefold.state.core.consistency import SESSION
from onefold.store.paged_view import Version

if TYPE_CHECKING:
    from onefold.state.available.client import RegionClient


class Kept(NamedTuple):
    """What is there of an item."""

    row: Any
    expires_ms: int | None
    """When the first part of it ends."""


class RegionSource:
    """Available maps, by their places."""

    def __init__(self, client: RegionClient) -> None:
        self.client = client

    def peek(self, name: str, key: bytes) -> tuple[bytes | None, int]:
        return self.client.peek_row(0, name, key, SESSION)

    def read(self, name: str, data: bytes) -> Kept | None:
        return _kept(read_row(name, data))

    def ended(self, name: str, key: bytes) -> Kept | None:
        row = read_item(self.client, name, key, SESSION)
        return None if row is None else _kept(row)

    def changes(self, view: View, name: str, after: int, limit: int) -> Sequence[Version]:
        return reading.changes(view, name, after, limit=limit)


def _kept(row: Row) -> Kept | None:
    return Kept(row, row.ends_ms()) if row.is_live() else None
