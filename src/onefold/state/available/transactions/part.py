"""One try of a transaction over collections of a region: its shard, what it has read and written, and its commit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from onefold.available import ops
from onefold.available.kinds import places
from onefold.errors import InvalidArgument, TransactionError
from onefold.state.available.collection import Collection
from onefold.state.available.places import check_place
from onefold.state.available.transactions import entries as entry_rules
from onefold.state.available.transactions.entries import Entry, Member
from onefold.state.available.transactions.reads import Reads
from onefold.state.encoding.items import RegionVersion
from onefold.state.encoding.keys import Key, decode_key
from onefold.state.transactions.buffer import OPERATION_BYTES

if TYPE_CHECKING:
    from onefold.available.kinds.row import Row
    from onefold.available.ops import Committed
    from onefold.available.regions import Known
    from onefold.state.available.client import RegionClient
    from onefold.state.core.client import StateClient
    from onefold.state.transactions.attempt import TransactionCore


class AvailablePart:
    """Under the handles of one transaction. Used by the thread and task of the block only."""

    def __init__(self, core: TransactionCore, client: RegionClient) -> None:
        self.core = core
        self.client = client
        self.reads = Reads(client, core.meter, read_only=core.read_only)
        self._meter = core.meter
        self._shard: int | None = None
        self._checked: set[str] = set()
        self._entries: dict[str, dict[bytes, Entry]] = {}
        self._sorted: dict[str, list[bytes]] = {}
        self._emptied: dict[tuple[str, bytes], None] = {}
        """Sets that were deleted: (place, key). Their elements below do not count."""

    # -- its shard

    def shard_of(self, place: str, key: bytes) -> int:
        """The shard of an encoded key, which the transaction uses from here on.

        Raises TransactionError (definite) when it has used another one, InvalidArgument (definite) when the name stands for
        something else."""
        return self.use(place, self.client.shard_of(key))

    def use(self, place: str, shard: int) -> int:
        """Use a shard; raises as ``shard_of``."""
        if place not in self._checked:
            check_place(self.client, place)
            self._checked.add(place)
        if self.core.read_only or shard == self._shard:
            return shard
        if self._shard is not None:
            raise TransactionError(
                "a transaction over collections for every region stays in one shard, so that it is whole everywhere, and this "
                f"key or range is not in that of what it has used ({shard}, not {self._shard}); nothing was written. Keys with "
                "the same first element are in one shard, of all collections: choose keys such as ('alice', 'cart'), "
                "and scan with a prefix"
            )
        self._shard = shard
        return shard

    # -- reading, with what was written laid over it

    def entry(self, place: str, at: bytes) -> Entry | None:
        """What was written to a row; None: nothing, so the snapshot counts. Of sets see ``member``."""
        return self._entries.get(place, {}).get(at)

    def row(self, place: str, key: bytes, at: bytes | None = None) -> Row:
        """The row as the transaction sees it; what is read below is recorded. ``at``: the row's key, if it is not the item's."""
        self.core.check_readable()
        shard = self.shard_of(place, key)
        row_key = key if at is None else at
        entry = self._member(place, key, row_key) if place[0] == places.SET else self.entry(place, row_key)
        if entry is None:
            return self.reads.get(shard, place, row_key)
        whole = entry_rules.is_whole(entry)
        below = places.empty(place) if whole else self.reads.get(shard, place, row_key)
        return entry_rules.over(place, entry, below, self.client.env.wall_ms())

    def rows_of(self, place: str, keys: Sequence[bytes]) -> dict[bytes, Row]:
        """Those of the rows that are live, as the transaction sees them; what is read below is recorded. Not of sets."""
        self.core.check_readable()
        asked: dict[int, list[bytes]] = {}
        for key in keys:
            shard, entry = self.shard_of(place, key), self.entry(place, key)
            if entry is None or not entry_rules.is_whole(entry):
                asked.setdefault(shard, []).append(key)
        below: dict[bytes, Row] = {}
        for shard, some in asked.items():
            below |= self.reads.get_many(shard, place, some)
        wall_ms, empty = self.client.env.wall_ms(), places.empty(place)
        found: dict[bytes, Row] = {}
        for key in keys:
            row, entry = below.get(key, empty), self.entry(place, key)
            if entry is not None:
                row = entry_rules.over(place, entry, row, wall_ms)
            if row.is_live():
                found[key] = row
        return found

    def rows(
        self,
        place: str,
        shard: int,
        start: bytes,
        stop: bytes,
        limit: int | None = None,
        *,
        reverse: bool = False,
    ) -> Iterator[tuple[bytes, Row]]:
        """Row keys and live rows of a range of one shard, in order (``reverse``: from the end). Lazy: the transaction depends on
        what was taken. It shows the writes made before its first step."""
        if limit == 0 or start >= stop:
            return
        check = self.core.check_readable
        check()
        self.use(place, shard)
        own = self._own(place, start, stop, reverse=reverse)
        span = self.reads.span(shard, place, start, stop, reverse=reverse)
        below = self.reads.scan(span, check, None if limit is None else limit + len(own))
        for given, (at, row) in enumerate(self._overlaid(place, below, own, reverse=reverse), 1):
            check()
            span.reach(at)
            yield at, row
            if given == limit:
                return
        check()
        span.reach_end()

    def _overlaid(
        self, place: str, below: Iterator[tuple[bytes, Row]], own: list[tuple[bytes, Entry]], *, reverse: bool
    ) -> Iterator[tuple[bytes, Row]]:
        """Live rows only. Takes from ``below`` one more than it has given, at most."""
        wall_ms = self.client.env.wall_ms()
        empty = places.empty(place)
        hidden = {key for of, key in self._emptied if of == place}
        waiting = iter(own)
        mine = next(waiting, None)
        for at, row in below:
            while mine is not None and mine[0] != at and (mine[0] < at) is not reverse:
                yield from _live(mine[0], entry_rules.over(place, mine[1], empty, wall_ms))
                mine = next(waiting, None)
            if mine is not None and mine[0] == at:
                yield from _live(at, entry_rules.over(place, mine[1], row, wall_ms))
                mine = next(waiting, None)
            elif not hidden or places.split_key(at)[0] not in hidden:
                yield at, row
        while mine is not None:
            yield from _live(mine[0], entry_rules.over(place, mine[1], empty, wall_ms))
            mine = next(waiting, None)

    def _own(self, place: str, start: bytes, stop: bytes, *, reverse: bool) -> list[tuple[bytes, Entry]]:
        """A copy of what was written in a range, in order."""
        found = self._entries.get(place, {})
        if place not in self._sorted:
            self._sorted[place] = sorted(found)
        keys = self._sorted[place]
        chosen = keys[bisect_left(keys, start) : bisect_left(keys, stop)]
        return [(key, found[key]) for key in (reversed(chosen) if reverse else chosen)]

    def _member(self, place: str, key: bytes, at: bytes) -> Entry | None:
        found = self.entry(place, at)
        return Member(False) if found is None and (place, key) in self._emptied else found

    # -- writing

    def write(self, place: str, key: bytes, entry: Entry) -> None:
        """Buffer what becomes of the row of a key."""
        self.write_many(place, key, {key: entry})

    def write_many(self, place: str, key: bytes, new: Mapping[bytes, Entry]) -> None:
        """Buffer rows of one shard, that of ``key``: all of them, or none when it raises.

        Raises TransactionError, InvalidArgument, TooLarge (all definite)."""
        self.core.check_writable()
        self.shard_of(place, key)
        found = self._entries.get(place, {})
        more = [at for at in new if at not in found]
        bytes_ = len(more) * (OPERATION_BYTES + len(place)) + sum(map(len, more))
        bytes_ += sum(map(entry_rules.size, new.values()))
        bytes_ -= sum(entry_rules.size(found[at]) for at in new if at in found)
        self._meter.add(len(more), bytes_)
        if more:
            self._sorted.pop(place, None)
        self._entries.setdefault(place, found).update(new)

    def empty(self, place: str, key: bytes) -> None:
        """Buffer that a set has no elements, whichever there are in this region when it commits."""
        self.core.check_writable()
        self.shard_of(place, key)
        if (place, key) not in self._emptied:
            self._meter.add(1, OPERATION_BYTES + len(place) + len(key))
        start, stop = places.key_range(key)
        for at, _ in self._own(place, start, stop, reverse=False):
            del self._entries[place][at]
        self._sorted.pop(place, None)
        self._emptied[place, key] = None

    # -- committing

    def requests(self) -> tuple[ops.AnyRequest, ...]:
        """What it has written."""
        return entry_rules.requests(self._entries, self._emptied, self.client.env.wall_ms())

    def commit(
        self, requests: tuple[ops.AnyRequest, ...], request_id: str | None, *, last_try: bool
    ) -> Committed:
        """Do them, if nothing that was read has changed. Raises as ``RegionClient.do``."""
        shard = 0 if self._shard is None else self._shard
        return self.client.do(
            shard, requests, self.reads.reads(), self.reads.spans(), request_id, last_try=last_try
        )

    def version(self, committed: Committed) -> RegionVersion:
        """Of what it wrote."""
        shard = 0 if self._shard is None else self._shard
        return RegionVersion(((shard, committed.region, committed.seq),))

    def new_values(
        self, requests: tuple[ops.AnyRequest, ...], committed: Committed, before: int
    ) -> dict[tuple[str, Key], int]:
        """Of every counter that was added to, by (name, key), its new value. ``before``: ``last_own`` before the commit. Nothing
        for the answer to an earlier transaction under the request id, which may have been another one."""
        fresh = committed.region == self._me().number and committed.seq > before
        if not fresh or len(requests) != len(committed.results):
            return {}
        return {
            (request.name, decode_key(request.key)): result
            for request, result in zip(requests, committed.results, strict=True)
            if isinstance(request, ops.Add | ops.Change) and isinstance(result, int)
        }

    def last_own(self) -> int:
        """The number of this region's last effect in the shard, as far as it is known here."""
        me = self._me()
        return me.origin(me.number).seq

    def _me(self) -> Known:
        return self.client.known(0 if self._shard is None else self._shard)


def region_of(space: StateClient, what: str, handle: object) -> RegionClient:
    """The region of a handle, or of the connection if it is a name. ``what``: as the handle is called on a transaction.

    Raises InvalidArgument and TransactionError (definite)."""
    if isinstance(handle, str):
        if space.session.open_region is None:
            raise InvalidArgument(
                "this space has no collections for every region: it is read as it was, or its engine has none"
            )
        return cast("RegionClient", space.session.open_region())
    if not isinstance(handle, Collection):
        raise InvalidArgument(f"tx.{what} takes a name or a handle; got {handle!r:.100}")
    if handle.client.space is not space:
        raise TransactionError(
            f"{handle!r} belongs to another connection than the transaction; use tx.{what}({handle.name!r})"
        )
    return handle.client


def _live(at: bytes, row: Row) -> Iterator[tuple[bytes, Row]]:
    if row.is_live():
        yield at, row
