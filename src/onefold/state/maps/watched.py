"""What a watch asks of the map that it is of, and how that is for consistent maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

from onefold.errors import InvalidValue, TokenError
from onefold.shard.api import View
from onefold.state.core.client import StateClient
from onefold.state.core.shards_client import ShardsClient
from onefold.state.core.tokens import Token, decode_token, encode_token
from onefold.state.encoding.items import Change, ChangeKind
from onefold.state.encoding.items import Version as Stamp
from onefold.state.encoding.keys import decode_key
from onefold.state.encoding.values import ValueCodec
from onefold.state.fold.rows import read_row
from onefold.state.maps.changes import MapChanges, first_due
from onefold.state.maps.reading import Bounds, Rows, StateRows
from onefold.state.maps.scans import unreadable
from onefold.store.paged_view import Version

T = TypeVar("T")
EXPIRED: Final = -1
"""The place of what time did, before a record's operations."""


class Position(NamedTuple):
    """How far a shard was given."""

    offset: int
    within: tuple[int, bytes] | None = None


class Found(NamedTuple):
    """A change that was read and not yet given."""

    shard: int
    offset: int
    place: int
    key: bytes
    what: Any
    """As ``Watched.select`` has it."""
    after: Position


class Watched(ABC, Generic[T]):
    """A map that is watched."""

    shares_reads = True
    """Whether changes that were read once, for all who watch, are all that has to be read."""

    def __init__(self, client: ShardsClient, of: Rows[Any]) -> None:
        self.client = client
        self.rows = of
        self.name = of.name

    @abstractmethod
    def first_due(self, view: View) -> int | None:
        """When the next lifetime in the shard ends; None: none does."""

    @abstractmethod
    def changes(
        self, shard: int, view: View, after: int, within: tuple[int, bytes] | None, bounds: Bounds, limit: int
    ) -> list[Version]:
        """What changed beyond a position, as ``View.changes``."""

    @abstractmethod
    def interest(self, bounds: Bounds, shard: int) -> MapChanges:
        """What wakes the watch."""

    @abstractmethod
    def token(self, positions: Mapping[int, Position]) -> str:
        """Where the watch stands, as text."""

    @abstractmethod
    def read_token(self, text: str) -> tuple[Mapping[int, int], Mapping[int, tuple[int, bytes]]]:
        """The offsets and places in a token. Raises TokenError."""

    @abstractmethod
    def initial(self, data: bytes) -> Any:
        """What is given of a row of the present state."""

    @abstractmethod
    def select(self, shard: int, position: Position, changes: Sequence[Version]) -> Sequence[Any]:
        """What is given of each of these changes, which follow a position; None: nothing has changed for those who watch."""

    @abstractmethod
    def change(self, found: Found, token: str) -> Change[T]:
        """The change, decoded. Raises what says that a value cannot be read."""

    def saw(self, shard: int, view: View) -> None:
        """Changes are about to be given that this view has shown."""


class WatchedMap(Watched[T]):
    """A consistent map."""

    def __init__(self, client: StateClient, name: str, codec: ValueCodec[T]) -> None:
        rows = StateRows(client, name)
        super().__init__(client, rows)
        self._table = rows.table
        self._codec = codec

    def first_due(self, view: View) -> int | None:
        return first_due(view)

    def changes(
        self,
        shard: int,  # noqa: ARG002
        view: View,
        after: int,
        within: tuple[int, bytes] | None,
        bounds: Bounds,
        limit: int,
    ) -> list[Version]:
        return view.changes(
            self._table, after, within=within, start=bounds.start, stop=bounds.stop, limit=limit
        )

    def interest(self, bounds: Bounds, shard: int) -> MapChanges:
        return MapChanges(self._table, bounds, shard)

    def token(self, positions: Mapping[int, Position]) -> str:
        within = {shard: at.within for shard, at in sorted(positions.items()) if at.within is not None}
        offsets = {shard: at.offset for shard, at in sorted(positions.items())}
        return encode_token(Token(self.client.shards[0].incarnation, offsets, within))

    def read_token(self, text: str) -> tuple[Mapping[int, int], Mapping[int, tuple[int, bytes]]]:
        token = decode_token(text, self.client.shards[0].incarnation, self.client.shard_count)
        if token.region is not None and not token.offsets:
            raise TokenError(
                f"the token is of an available map in region {token.region.region}, and {self.name!r} is a consistent map. Use a "
                "token of a change of this map, or of `db.session.token`"
            )
        return token.offsets, token.within

    def initial(self, data: bytes) -> Any:
        return (data,)

    def select(self, shard: int, position: Position, changes: Sequence[Version]) -> Sequence[Any]:  # noqa: ARG002
        return [(change.value,) for change in changes]

    def change(self, found: Found, token: str) -> Change[T]:
        kind: ChangeKind
        key = decode_key(found.key)
        value: T | None = None
        (data,) = found.what
        if data is None:
            kind = "expire" if found.place == EXPIRED else "delete"
            version = Stamp(((found.shard, found.offset, found.place),))
        else:
            kind = "put"
            row = read_row(data)
            try:
                value = self._codec.decode(row.value)
            except InvalidValue as error:
                raise unreadable(error, self.name, key) from None
            version = Stamp(((found.shard, row.offset, row.index),))
        return Change(key, value, version, kind, token)
