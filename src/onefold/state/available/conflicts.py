"""The conflict feed: what two regions wrote without knowing of each other, and which of it stayed."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from onefold import config
from onefold.available import effects, reading, rows
from onefold.available.kinds.places import FIELDS, KEEP_BOTH, REGISTER, split_place
from onefold.durations import wait_seconds
from onefold.errors import InvalidValue, TokenError, TooOld
from onefold.shard.requirements import ReadRequirement
from onefold.state.core.guard import check_plain
from onefold.state.core.tokens import RegionPart, Token, decode_token, encode_token
from onefold.state.core.waiting import Anything, Awaited, Looking, Pause, wait_any
from onefold.state.encoding.items import utc
from onefold.state.encoding.keys import decode_key
from onefold.state.encoding.names import check_name
from onefold.state.encoding.values import ValueCodec

if TYPE_CHECKING:
    from onefold.fold.api import StoreView
    from onefold.state.available.client import RegionClient

_MARK: Final = -3
"""As the place within a record: the token is of this feed. A watch has other places."""
_NUMBER_BYTES: Final = 8
_VALUES: Final = (REGISTER, KEEP_BOTH)


@dataclass(frozen=True, slots=True)
class ConflictEntry:
    """Two writes of the same thing that did not know of each other. Every region that meets both lists them."""

    collection: str | None
    """The map. None: a request that was done in two regions under one id, which is the key."""
    key: Any
    field: str | None
    """Of a map by fields, whose fields are merged one by one; None: the whole item."""
    kept: Any
    """The value that stayed; None: a delete. Of a map by fields ``{}`` stands for a whole put. In a map that keeps both, the
    later one: the other was kept too."""
    dropped: Any
    """The other value, likewise. If it is ``unseen`` and not a value of a map with whole values: what was to be done, as a dict,
    such as ``{"add": 5}``."""
    regions: tuple[str, str]
    """Where the kept one was written (empty text: nothing was there), and where the other one."""
    time: datetime
    """When this region met it, in UTC."""
    token: str
    """A feed that starts here continues after it, in this region."""
    unseen: bool = False
    """A write of a region that was evicted before another one had heard of it: a person decides what becomes of it."""


class _Found(NamedTuple):
    shard: int
    number: int
    conflict: rows.Conflict


def open_conflicts(
    client: RegionClient,
    name: str | None,
    start: str | None,
    *,
    follow: bool,
    timeout: float | timedelta | str | None,
) -> Conflicts:
    """See ``Database.conflicts``."""
    check_plain(client.space, "conflicts()")
    if name is not None:
        check_name("map", name)
    timeout_s = None if timeout is None else wait_seconds(timeout)
    return Conflicts(client, name, start, follow=follow, timeout=timeout_s)


class Conflicts(Looking, Iterator[ConflictEntry]):
    """An iterator over the feed; see ``Database.conflicts``. One thread iterates, any may close."""

    def __init__(
        self,
        client: RegionClient,
        name: str | None,
        start: str | None,
        *,
        follow: bool,
        timeout: float | None,
    ) -> None:
        """Raises TokenError and TooOld (definite) for a ``start`` that cannot be."""
        self._client = client
        self._name = name
        self._follow = follow
        self._timeout = timeout
        self._given = dict.fromkeys(range(client.shard_count), -1)
        """By shard, the number of the last one that was given."""
        self._offsets = dict.fromkeys(range(client.shard_count), 0)
        """By shard, how far the last look saw it."""
        self._found: deque[_Found] = deque()
        self._names: dict[int, str] = {}
        self._codec = ValueCodec[Any](None)
        self._closed = False
        if start is not None:
            self._continue(start)

    def _continue(self, start: str) -> None:
        client = self._client
        part = decode_token(start, client.space.shards[0].incarnation).region
        places = {} if part is None else part.within
        if part is None or not places or any(place != _MARK for place, _ in places.values()):
            raise TokenError("this is not a token of conflicts. Pass an entry's `token`, unchanged")
        if part.incarnation != client.incarnation:
            raise TokenError(
                f"the token is of region {part.region!r:.60}, as it was then, and each region numbers conflicts by itself: here "
                f"it is {client.region.name!r}, and its log may have begun again since. Start without it"
            )
        if any(shard not in self._given for shard in places):
            raise TokenError("the token names shards that this space does not have. Start without it")
        for shard, (_, data) in places.items():
            self._given[shard] = number = int.from_bytes(data) - 1
            known = client.known(shard)
            if number + 1 < known.conflicts_first:
                raise TooOld(
                    f"{known.conflicts_first - number - 1} conflicts after this token are no longer kept. Start without it: with "
                    "the oldest that is"
                )
            if number >= known.conflicts:
                raise TokenError(
                    "the token is of a conflict that this region does not have. Start without it"
                )

    @property
    def token(self) -> str:
        """Where it stands."""
        client = self._client
        within = {
            shard: (_MARK, (number + 1).to_bytes(_NUMBER_BYTES))
            for shard, number in sorted(self._given.items())
        }
        part = RegionPart(client.region.name, client.incarnation, {}, within)
        return encode_token(Token(client.space.shards[0].incarnation, {}, {}, part))

    def close(self) -> None:
        """End it; a thread that waits in it stops within ``config.WATCH_LOOK_S``."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __repr__(self) -> str:
        return f"<Conflicts of {self._name!r}>"

    def __next__(self) -> ConflictEntry:
        """The next one. Raises InvalidValue for a value that cannot be read; iteration continues behind it."""
        client = self._client
        client.check_process()
        end_s = None if self._timeout is None else client.env.boot_s() + self._timeout
        while not self._closed:
            if self._find():
                return self.give()
            left_s = math.inf if end_s is None else end_s - client.env.boot_s()
            if not self._follow or left_s <= 0:
                break
            wait_any(client, self._offsets, min(config.WATCH_LOOK_S, left_s))
        self._closed = True
        raise StopIteration

    # -- as a feed

    @property
    def client(self) -> RegionClient:
        """The core under it."""
        return self._client

    @property
    def timeout(self) -> float | None:
        """How many seconds a step waits at most."""
        return self._timeout if self._follow else 0.0

    def look(self) -> Pause | None:
        """Find the next one without waiting; None: it is found."""
        self._client.check_process()
        if self._find():
            return None
        awaited = [Awaited(shard, Anything(), offset) for shard, offset in self._offsets.items()]
        return Pause(tuple(awaited))

    def give(self) -> ConflictEntry:
        """What was found."""
        found = self._found.popleft()
        self._given[found.shard] = found.number
        conflict = found.conflict
        kind, name, _ = split_place(conflict.place) if conflict.place else ("", None, None)
        whole = kind == FIELDS and not conflict.field and not conflict.write
        dropped = self._value(name, conflict.dropped, whole=whole)
        if conflict.write and kind not in _VALUES:
            dropped = self._done(name, conflict.write)
        return ConflictEntry(
            name,
            decode_key(conflict.key) if name is not None else conflict.key.decode(errors="replace"),
            conflict.field or None,
            self._value(name, conflict.kept, whole=whole),
            dropped,
            (self._region_name(conflict.kept_dot[0]), self._region_name(conflict.dropped_dot[0])),
            utc(conflict.time_ms) or datetime.max,
            self.token,
            bool(conflict.write),
        )

    def _value(self, name: str | None, data: bytes | None, *, whole: bool) -> Any:
        if not data:  # a map by fields has no value for the item as a whole
            return {} if whole and data is not None else None
        try:
            return self._codec.decode(data)
        except InvalidValue as error:
            raise InvalidValue(f"a conflict of {name!r}: {error}") from None

    def _done(self, name: str | None, data: bytes) -> dict[str, Any]:
        """What a write was to do."""
        match effects.decode_write(data):
            case effects.SetFields(_, _, base, fields) if base < 2:
                found = {
                    field: self._value(name, value, whole=False)
                    for field, value in fields
                    if value is not None
                }
                gone = [field for field, value in fields if value is None]
                return {"put": found} if base else {"set": found, "unset": gone}
            case effects.Mark(_, _, element, present):
                return {"add" if present else "discard": decode_key(element)}
            case effects.Count(by=by) | effects.Spend(by=by):
                return {"add": by}
            case effects.Send(to=to, by=by):
                return {"move": by, "to": self._region_name(to)}
            case effects.Want(need=need):
                return {"ask": need}
        return {"delete": True}

    def _region_name(self, number: int) -> str:
        if not number:
            return ""
        if number not in self._names:
            self._names = self._client.region_names()
        return self._names.get(number, str(number))

    def _find(self) -> bool:
        """Read what comes next, if nothing is left of what was read before."""
        if self._found:
            return True
        for shard, log in enumerate(self._client.shards):
            client = self._client
            need = ReadRequirement(client.session.floor(shard), timeout=client.read_time())
            with log.view(need=need) as view:
                self._offsets[shard] = view.offset
                self._read(view, shard)
            if self._found:
                return True
        return False

    def _read(self, view: StoreView, shard: int) -> None:
        while not self._found:
            page = reading.conflicts(view, self._given[shard], config.WATCH_PAGE_CHANGES)
            if not page:
                return
            for number, conflict in page:
                if self._name is None or (conflict.place and split_place(conflict.place)[1] == self._name):
                    self._found.append(_Found(shard, number, conflict))
            if not self._found:
                self._given[shard] = page[-1][0]
