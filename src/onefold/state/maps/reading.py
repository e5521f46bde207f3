"""Reading maps: single items, many of them, scans in key order, counts.

An item whose time is over is there until a record reaches that time. Who meets one that is due by its own clock appends a
tick and reads again; where nothing can be appended it counts as absent.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from onefold import config
from onefold.errors import SpaceError, TooOld, Unavailable
from onefold.fold.api import StoreView
from onefold.machine.undisturbed import let_pass
from onefold.shard.api import View
from onefold.state.core.client import StateClient
from onefold.state.core.consistency import STRONG, Level
from onefold.state.core.shards_client import ShardsClient
from onefold.state.encoding.keys import encode_prefix, first_element
from onefold.state.fold import rows
from onefold.state.fold.ops import Read
from onefold.state.fold.rows import MAPS, Row, read_row

_TICKS_MAX = 8
_WEAK = ("prefix", "eventual", "session", "bounded")
_FIRST_PAGE_ROWS = 32

R = TypeVar("R")


class Rows(Generic[R]):
    """What the rows of a map are, as far as scans and watches ask."""

    def __init__(self, name: str) -> None:
        self.name = name

    def table_in(self, view: StoreView) -> str:
        """The table that they are in, as of a view."""
        raise NotImplementedError

    def shown(self, data: bytes, wall_ms: int) -> R | None:
        """The row in these bytes; None if nothing of it is there by that clock."""
        raise NotImplementedError

    def settle(self, shard: int, level: Level) -> None:
        """Let end whatever is due in the shard, as far as that can be done."""
        raise NotImplementedError


class StateRows(Rows[Row]):
    """Those of a consistent map."""

    def __init__(self, client: StateClient, name: str) -> None:
        super().__init__(name)
        self.table = rows.map_table(name)
        self._client = client

    def table_in(self, view: StoreView) -> str:  # noqa: ARG002
        return self.table

    def shown(self, data: bytes, wall_ms: int) -> Row | None:
        row = read_row(data)
        return None if row.expires_ms is not None and row.expires_ms <= wall_ms else row

    def settle(self, shard: int, level: Level) -> None:
        settle(self._client, shard, level)


class Bounds(NamedTuple):
    """Encoded keys ``start <= key < stop``, and the shards that may have some."""

    start: bytes
    stop: bytes
    shards: Sequence[int]


def bounds_of(client: ShardsClient, prefix: object) -> Bounds:
    """The range of a prefix (None: everything). Errors are those of encode_key."""
    return bounds_between(client, *encode_prefix(() if prefix is None else prefix))


def bounds_between(client: ShardsClient, start: bytes, stop: bytes) -> Bounds:
    """This range of encoded keys. Keys with the same first element are in one shard."""
    one = start and client.shard_count > 1 and stop <= first_element(start) + b"\xff"
    return Bounds(start, stop, (client.shard_of(start),) if one else range(client.shard_count))


def tick(client: ShardsClient, shard: int, level: Level) -> bool:
    """Let end what is due. False when the space is read-only, and for weak levels when the log does not answer."""
    try:
        client.tick(shard)
    except SpaceError as error:
        let_pass(error)
        return False
    except Unavailable as error:
        let_pass(error)
        if level.kind not in _WEAK:
            raise
        return False
    return True


def settle(client: StateClient, shard: int, level: Level) -> None:
    """Let end whatever is due in the shard, as far as ``tick`` can."""
    try:
        client.settle_due(shard)
    except SpaceError as error:
        let_pass(error)  # else read-only; a closed space says so to the read that follows
    except Unavailable as error:
        let_pass(error)
        if level.kind not in _WEAK:
            raise


def read_item(client: StateClient, table: str, key: bytes, level: Level) -> Row | None:
    """One item. Raises as ``StateClient.view``."""
    shard = client.shard_of(key) if client.shard_count > 1 else 0
    data = client.peek(shard, table, key, level)
    if data is None:
        return None
    row = read_row(data)
    if row.expires_ms is None or row.expires_ms > client.env.wall_ms():
        return row
    for _ in range(_TICKS_MAX):
        if not tick(client, shard, level):
            return None
        data = client.peek(shard, table, key, level)
        if data is None:
            return None
        row = read_row(data)
        if not is_due(row, client.env.wall_ms()):
            return row
    return None


def is_due(row: Row, wall_ms: int) -> bool:
    """Whether the item's time is over by that clock."""
    return row.expires_ms is not None and row.expires_ms <= wall_ms


def read_items(client: StateClient, table: str, keys: Sequence[bytes], level: Level) -> dict[bytes, Row]:
    """Those of the keys that are there. Those of one shard are read at one offset; at ``strong`` all are of one moment."""
    by_shard: dict[int, list[bytes]] = {}
    if client.shard_count > 1:
        for key in keys:
            by_shard.setdefault(client.shard_of(key), []).append(key)
    elif keys:
        by_shard[0] = list(keys)
    if len(by_shard) > 1 and level.kind == "strong":
        return _read_at_one_moment(client, table, by_shard)
    found: dict[bytes, Row] = {}
    for shard, wanted in by_shard.items():
        read, due = _read_of_shard(client, shard, table, wanted, level)
        found |= {key: row for key, row in read.items() if key not in due}
    return found


def _read_of_shard(
    client: StateClient, shard: int, table: str, keys: Sequence[bytes], level: Level
) -> tuple[dict[bytes, Row], set[bytes]]:
    """The rows that are there, and those of their keys that are due and that no tick has ended."""
    for attempt in range(_TICKS_MAX + 1):
        with client.view(shard, level) as view:
            read = {key: read_row(data) for key, data in view.get_many(table, keys).items()}
        wall_ms = client.env.wall_ms()
        due = {key for key, row in read.items() if is_due(row, wall_ms)}
        if not due or attempt == _TICKS_MAX or not tick(client, shard, level):
            break
    return read, due


def _read_at_one_moment(
    client: StateClient, table: str, by_shard: Mapping[int, Sequence[bytes]]
) -> dict[bytes, Row]:
    from onefold.state.transactions.over_shards import ShardPart, snapshot_read

    name = table.removeprefix(MAPS)

    def read() -> tuple[dict[bytes, Row], dict[int, ShardPart]]:
        found: dict[bytes, Row] = {}
        parts: dict[int, ShardPart] = {}
        for shard, wanted in by_shard.items():
            rows, due = _read_of_shard(client, shard, table, wanted, STRONG)
            found |= {key: row for key, row in rows.items() if key not in due}
            parts[shard] = ShardPart(
                tuple(
                    Read(name, key, rows[key].offset, rows[key].index)
                    if key in rows
                    else Read(name, key, 0, 0)
                    for key in wanted
                )
            )
        return found, parts

    def read_at(offsets: Mapping[int, int]) -> dict[bytes, Row]:
        found: dict[bytes, Row] = {}
        wall_ms = client.env.wall_ms()
        for shard, wanted in by_shard.items():
            with client.shards[shard].view(at=offsets[shard]) as view:
                rows = {key: read_row(data) for key, data in view.get_many(table, wanted).items()}
            there = {key: row for key, row in rows.items() if not is_due(row, wall_ms)}
            if len(there) < len(rows):
                due.add(shard)
            found |= there
        return found

    for _ in range(_TICKS_MAX):
        due: set[int] = set()
        found = snapshot_read(client, read, read_at)
        # What is due is over for everybody from a record on, not for this clock alone: then a later moment shows it.
        ticked = [tick(client, shard, STRONG) for shard in sorted(due)]
        if not any(ticked):
            break
    return found


def scan(
    client: ShardsClient,
    of: Rows[R],
    bounds: Bounds,
    level: Level,
    *,
    limit: int | None = None,
    reverse: bool = False,
    pins: dict[int, int] | None = None,
) -> Iterator[tuple[bytes, R]]:
    """The items in key order. Each shard is read at one offset: that in ``pins``, or that of its first page, which is noted
    there. Raises TooOld, and as ``StateClient.view``."""
    pins = {} if pins is None else pins
    parts = [
        _scan_shard(client, shard, of, bounds, level, pins, limit=limit, reverse=reverse)
        for shard in bounds.shards
    ]
    if len(parts) == 1:
        return parts[0]
    merged = heapq.merge(*parts, key=lambda pair: pair[0], reverse=reverse)
    return merged if limit is None else islice(merged, limit)


def _scan_shard(
    client: ShardsClient,
    shard: int,
    of: Rows[R],
    bounds: Bounds,
    level: Level,
    pins: dict[int, int],
    *,
    limit: int | None,
    reverse: bool,
) -> Iterator[tuple[bytes, R]]:
    start, stop, _ = bounds
    left = limit
    if left == 0 or start >= stop:
        return
    of.settle(shard, level)
    wall_ms = client.env.wall_ms()
    offset = pins.get(shard)
    size = _FIRST_PAGE_ROWS
    shown = of.shown
    while left is None or left > 0:
        want = size if left is None else min(left, size)
        if offset is None:
            with client.view(shard, level) as view:
                offset = view.offset
                page = list(view.scan(of.table_in(view), start, stop, limit=want, reverse=reverse))
            pins[shard] = offset
        else:
            page = read_page(client, shard, of, start, stop, at=offset, limit=want, reverse=reverse)
        page_bytes = 1
        for key, data in page:
            page_bytes += len(data)
            row = shown(data, wall_ms)
            if row is not None:
                yield key, row
                if left is not None:
                    left -= 1
        if len(page) < want:
            return
        size = max(1, min(config.MAP_PAGE_ROWS, 8 * size, len(page) * config.MAP_PAGE_BYTES // page_bytes))
        if reverse:
            stop = page[-1][0]
        else:
            start = page[-1][0] + b"\x00"


def read_page(
    client: ShardsClient,
    shard_id: int,
    of: Rows[R],
    start: bytes,
    stop: bytes,
    *,
    at: int,
    limit: int,
    reverse: bool = False,
) -> list[tuple[bytes, bytes]]:
    """Rows of the range as they were at an offset. Raises TooOld, which says what to do."""
    try:
        with client.shards[shard_id].view(at) as past:
            return list(past.scan(of.table_in(past), start, stop, limit=limit, reverse=reverse))
    except TooOld as error:
        raise TooOld(
            f"this iterator reads {of.name!r} as it was at offset {at}, and the space has moved on by more "
            f"than the history that is kept ({config.HISTORY_WINDOW_OFFSETS} offsets). Start a new scan behind the last key "
            "(start=), or read faster"
        ) from error


def count(client: StateClient, name: str, bounds: Bounds, level: Level) -> int:
    """How many items there are. Several shards are counted one after the other."""
    table = rows.map_table(name)
    total = 0
    for shard in bounds.shards:
        settle(client, shard, level)
        wall_ms = client.env.wall_ms()
        with client.view(shard, level) as view:
            total += view.count(table, bounds.start, bounds.stop) - _due(view, name, bounds, wall_ms)
    return total


def _due(view: View, name: str, bounds: Bounds, wall_ms: int) -> int:
    """How many items in the range are due and still there: only where nothing can be appended there are any."""
    table = rows.map_table(name)
    keys = set()
    for entry, _ in view.scan(rows.DUE, stop=rows.due_before(wall_ms)):
        expires_ms, owner, key = rows.read_due_key(entry)
        if owner == name and bounds.start <= key < bounds.stop:
            data = view.get(table, key)
            if data is not None and read_row(data).expires_ms == expires_ms:
                keys.add(key)
    return len(keys)
