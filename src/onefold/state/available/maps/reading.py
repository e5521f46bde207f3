"""Reading items of available maps: one, several, in key order, and how many there are.

What is over by the reader's clock ends by a record first, as in consistent maps; where nothing can be appended it is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onefold.available.kinds.places import read_row
from onefold.available.kinds.row import Row
from onefold.available.rows import number_key, shown_tables, table_of
from onefold.errors import SpaceError, Unavailable
from onefold.fold.api import StoreView
from onefold.machine.undisturbed import let_pass
from onefold.state.available.settling import settle_due
from onefold.state.maps.reading import Bounds, Rows, tick

if TYPE_CHECKING:
    from onefold.state.available.client import RegionClient
    from onefold.state.available.maps.merges import Kind
    from onefold.state.core.consistency import Level

_TICKS_MAX = 8


class RegionRows(Rows[Row]):
    """The rows of an available map."""

    def __init__(self, client: RegionClient, kind: Kind[Any, Any]) -> None:
        super().__init__(kind.name)
        self._client = client
        self._kind = kind

    def table_in(self, view: StoreView) -> str:
        return table_of(view, self._kind.place)

    def shown(self, data: bytes, wall_ms: int) -> Row | None:
        row = self._kind.read(data)
        ends_ms = row.ends_ms()
        if ends_ms is not None and ends_ms <= wall_ms:
            row = row.expired(wall_ms)
        return row if row.is_live() else None

    def settle(self, shard: int, level: Level) -> None:  # noqa: ARG002
        try:
            settle_due(self._client, shard)
        except (SpaceError, Unavailable) as error:
            let_pass(
                error
            )  # read-only, or the log does not answer; a closed one says so to the read that follows


def read_item(client: RegionClient, place: str, key: bytes, level: Level) -> Row | None:
    """What is there of one item; None: nothing. Raises as ``RegionClient.view``."""
    shard = client.shard_of(key) if client.shard_count > 1 else 0
    data, _ = client.peek_row(shard, place, key, level)
    if data is None:
        return None
    row = read_row(place, data)
    ends_ms = row.ends_ms()
    if ends_ms is not None and ends_ms <= client.env.wall_ms():
        row = _settled(client, shard, place, key, level, row)
    return row if row.is_live() else None


def _settled(client: RegionClient, shard: int, place: str, key: bytes, level: Level, row: Row) -> Row:
    for _ in range(_TICKS_MAX):
        if not tick(client, shard, level):
            break
        data, _ = client.peek_row(shard, place, key, level)
        row = read_row(place, data)
        ends_ms = row.ends_ms()
        if ends_ms is None or ends_ms > client.env.wall_ms():
            return row
    expired: Row = row.expired(client.env.wall_ms())
    return expired


def read_items(client: RegionClient, of: RegionRows, keys: Sequence[bytes], level: Level) -> dict[bytes, Row]:
    """Those of the keys that are there. Those of one shard are read at one offset."""
    by_shard: dict[int, list[bytes]] = {}
    for key in keys:
        by_shard.setdefault(client.shard_of(key), []).append(key)
    found: dict[bytes, Row] = {}
    for shard, wanted in by_shard.items():
        of.settle(shard, level)
        with client.view(shard, level) as view:
            read = view.get_many(of.table_in(view), wanted)
        wall_ms = client.env.wall_ms()
        for key, data in read.items():
            row = of.shown(data, wall_ms)
            if row is not None:
                found[key] = row
    return found


def count(client: RegionClient, of: RegionRows, bounds: Bounds, level: Level) -> int:
    """How many items there are. Several shards are counted one after the other."""
    total = 0
    for shard in bounds.shards:
        of.settle(shard, level)
        wall_ms = client.env.wall_ms()
        with client.view(shard, level) as view:
            tables = shown_tables(view)
            gone = next(view.scan(tables.gone, limit=1), None)
            due = next(view.scan(tables.due, stop=number_key(wall_ms + 1), limit=1), None)
            if gone is None and due is None:
                total += view.count(of.table_in(view), bounds.start, bounds.stop)
            else:  # tombstones are among the rows
                rows = view.scan(of.table_in(view), bounds.start, bounds.stop)
                total += sum(of.shown(data, wall_ms) is not None for _, data in rows)
    return total
