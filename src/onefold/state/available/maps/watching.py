"""What a watch gives of an available map.

A record of a region's log changes rows without changing what is read of them: gone rows are collected, writes lose against later
ones. So each change is compared with the row as it was before. Versions of what was put and deleted are those of the writes, the
same in all regions. What ends, and deletes of which nothing is left, have a place in this region's log instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from onefold.available import reading, regions
from onefold.available.kinds.row import Cell, Row
from onefold.available.reading import signature
from onefold.available.rows import shown_tables, table_of
from onefold.errors import TokenError, TooOld
from onefold.shard.api import View
from onefold.shard.waiters import Notice
from onefold.state.core.tokens import RegionPart, Token, decode_token, encode_token
from onefold.state.encoding.items import Change, ChangeKind, RegionVersion
from onefold.state.encoding.keys import decode_key
from onefold.state.maps.changes import MapChanges
from onefold.state.maps.reading import Bounds
from onefold.state.maps.watch import too_old
from onefold.state.maps.watched import EXPIRED, Found, Position, Watched
from onefold.store.paged_view import Version

if TYPE_CHECKING:
    from onefold.state.available.client import RegionClient
    from onefold.state.available.maps.merges import Kind
    from onefold.state.available.maps.reading import RegionRows

R = TypeVar("R")
_UNKNOWN: Final = 0
"""Stands for the number of a region that is not known."""


class _What(NamedTuple):
    kind: ChangeKind
    row: Row
    """As it is now."""
    region: int
    dot: tuple[int, int] | None
    """Of the write; None: it is not known, or there was none."""


class _RegionChanges(MapChanges):
    """What wakes those who watch the same part of an available map."""

    def changes(self, view: View, after: int, bounds: Bounds, limit: int) -> Sequence[Version]:
        return reading.changes(
            view, self._table, after, start=bounds.start, stop=bounds.stop, limit=limit
        )  # what a full sync has changed wakes all

    def check(self, view: View, after: int) -> Notice:
        notice = super().check(view, after)
        self.read = None  # each change is compared with what was before, which is not in it
        return notice


class WatchedAvailableMap(Watched[R]):
    """An available map."""

    client: RegionClient
    shares_reads = False

    def __init__(
        self, client: RegionClient, kind: Kind[R, Any], of: RegionRows, show: Callable[[object, Row], R]
    ) -> None:
        """``show``: what is read of a row, for a key."""
        super().__init__(client, of)
        self._kind = kind
        self._show = show
        self._vectors: dict[int, dict[int, int]] = {}
        self._hlc = 0

    def first_due(self, view: View) -> int | None:
        first = next(view.scan(shown_tables(view).due, limit=1), None)
        return None if first is None else int.from_bytes(first[0][:8])

    def interest(self, bounds: Bounds, shard: int) -> MapChanges:
        return _RegionChanges(self._kind.place, bounds, shard)

    def changes(
        self, shard: int, view: View, after: int, within: tuple[int, bytes] | None, bounds: Bounds, limit: int
    ) -> list[Version]:
        return reading.changes(
            view,
            self._kind.place,
            after,
            within=within,
            start=bounds.start,
            stop=bounds.stop,
            limit=limit,
            at=self.client.shards[shard].view,
        )

    def saw(self, shard: int, view: View) -> None:
        me = regions.read_self(view)
        self._vectors[shard] = me.have()
        self._hlc = max(self._hlc, me.hlc)

    # -- tokens

    def token(self, positions: Mapping[int, Position]) -> str:
        within = {shard: at.within for shard, at in sorted(positions.items()) if at.within is not None}
        offsets = {shard: at.offset for shard, at in sorted(positions.items())}
        part = RegionPart(
            self.client.region.name, self.client.incarnation, offsets, within, self._vectors, self._hlc
        )
        return encode_token(Token(self.client.space.shards[0].incarnation, {}, {}, part))

    def read_token(self, text: str) -> tuple[Mapping[int, int], Mapping[int, tuple[int, bytes]]]:
        client = self.client
        part = decode_token(text, client.space.shards[0].incarnation, client.shard_count).region
        if part is None:
            raise TokenError(
                f"the token has seen nothing of available collections, and {self.name!r} is one. Use a token of a change of this "
                "map, or watch with initial=True"
            )
        if part.region != client.region.name:
            raise TokenError(
                f"the token is of a watch in region {part.region}, and this is region {client.region.name}, where changes "
                "come in another order. Continue there, or watch with initial=True"
            )
        if part.incarnation != client.incarnation:
            raise TokenError(
                f"the token is of region {part.region} before it was restored or began again. Watch with initial=True"
            )
        if any(not 0 <= shard < client.shard_count for shard in part.offsets):
            raise TokenError("the token names shards that this space does not have. Start without it")
        return part.offsets, part.within

    # -- changes

    def initial(self, data: bytes) -> Any:
        row = self._kind.read(data)
        return _What("put", row, self._kind.latest(row), None)

    def select(self, shard: int, position: Position, changes: Sequence[Version]) -> Sequence[Any]:
        before = self._before(shard, position, changes)
        found = []
        for change in changes:
            was, now = (
                self._kind.read_or_empty(before.get(change.key)),
                self._kind.read_or_empty(change.value),
            )
            found.append(self._what(was, now, change.place))
            before[change.key] = change.value
        return found

    def _before(
        self, shard: int, position: Position, changes: Sequence[Version]
    ) -> dict[bytes, bytes | None]:
        """The rows of the changed keys as they were at a position."""
        keys = sorted({change.key for change in changes})
        try:
            with self.client.shards[shard].view(at=position.offset) as past:
                before: dict[bytes, bytes | None] = dict(
                    past.get_many(table_of(past, self._kind.place), keys)
                )
        except TooOld as error:
            raise too_old(self.name, position.offset) from error
        if position.within is not None and keys:
            # Of the record that follows, changes up to there were given already.
            with self.client.shards[shard].view() as view:
                after, within = position.offset, None
                around = Bounds(keys[0], keys[-1] + b"\x00", (shard,))
                while page := self.changes(shard, view, after, within, around, 1000):
                    for change in page:
                        place = change.place, change.key
                        if change.offset > position.offset + 1 or place > position.within:
                            return before
                        before[change.key] = change.value
                        within = place
        return before

    def _what(self, was: Row, now: Row, place: int) -> _What | None:
        if now.is_live():
            if signature(was) == signature(now):
                return None
            new = self._new_cells(was, now)
            if not new:
                return _What("put", now, _UNKNOWN, None)
            latest = max(new, key=lambda cell: cell.stamp)
            return _What("put", now, latest.region, None)
        if not was.is_live():
            return None
        if place == EXPIRED:
            return _What("expire", now, self._kind.latest(was), None)
        new = [cell for cell in self._new_cells(was, now) if cell.value is None]
        if new:
            latest = max(new, key=lambda cell: cell.stamp)
            return _What("delete", now, latest.region, (latest.region, latest.seq))
        return _What("delete", now, self.client.only_region(), None)

    def _new_cells(self, was: Row, now: Row) -> list[Cell]:
        before = {(cell.stamp, cell.value is None) for cell in self._kind.cells(was)}
        return [cell for cell in self._kind.cells(now) if (cell.stamp, cell.value is None) not in before]

    def change(self, found: Found, token: str) -> Change[R]:
        what: _What = found.what
        key = decode_key(found.key)
        value: R | None = None
        if what.kind == "put":
            value = self._show(key, what.row)
            version = self._kind.version(found.shard, what.row)
        elif what.dot is not None:
            version = RegionVersion(((found.shard, *what.dot),))
        else:
            version = RegionVersion(((found.shard, _UNKNOWN, found.offset),))
        return Change(key, value, version, what.kind, token, self.client.name_of(what.region))
