"""Maps that every region can write: a ``MutableMapping`` over what this region knows.

A write is one effect of this region, and other regions hear of it. What cannot be said in one operation (``pop``,
``setdefault``, ``popitem``, ``modify``) is read, then done on condition that it is unchanged in this region, and tried again when
it is not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Generic, NoReturn, TypeVar, overload

from onefold import config
from onefold.arguments import check_flag
from onefold.available.kinds.row import Row
from onefold.available.ops import AnyRequest, Committed, Patch, Read
from onefold.available.reading import signature
from onefold.backoff import jittered
from onefold.errors import Conflict, InvalidArgument, TransactionError
from onefold.machine.undisturbed import let_pass
from onefold.state.available.maps import patching
from onefold.state.available.maps import reading as map_reading
from onefold.state.available.maps.reader import AvailableReader, Duration
from onefold.state.core.consistency import SESSION
from onefold.state.core.time_limits import limited, one_call
from onefold.state.encoding.items import RegionVersion, Version
from onefold.state.encoding.keys import decode_key, encode_key
from onefold.state.encoding.lifetimes import remaining_ms
from onefold.state.encoding.lifetimes import ttl_ms as to_ttl_ms
from onefold.state.encoding.names import check_request_id
from onefold.state.encoding.values import check_increment
from onefold.state.maps import reading as rows_reading
from onefold.state.maps import writing as map_writing
from onefold.state.maps.methods import WriteMethods, check_function
from onefold.state.maps.writing import Encoded, Pairs

R = TypeVar("R")
T = TypeVar("T")
D = TypeVar("D")
_ABSENT: Final = object()
_NEVER_READ: Final = b"?"


class AvailableMap(AvailableReader[R, T], WriteMethods[R], Generic[R, T]):
    """A map that every region can write at any time. Programs get one from ``Database.map(name, mode="available")``; any number
    of handles may be open, in any threads and processes. ``R`` is what is read, ``T`` what is put; with ``merge="keep_both"`` a
    key is read as the list of what was put.

    Keys and values are as in a ``Map``. A write counts in this region at once, and in others when they hear of it; conditions
    (``if_version``, ``if_absent``) are checked in this region alone. Reads show what this region knows.

    Every operation may raise, in addition to what it names: InvalidKey and InvalidValue (cannot be stored), TooLarge,
    InvalidArgument (the name stands for another collection), Unavailable and TooStale (not to be had at this level now),
    SpaceError (closed, read-only), TransactionError (inside a transaction's block), all definite; writes also Timeout and
    AppendUnknown (indefinite).
    """

    # -- writing

    def __setitem__(self, key: Any, value: T) -> None:  # type: ignore[override]  # what is put may differ from what is read
        self._check()
        self._put(encode_key(key), self.kind.encode(value))

    def put(
        self,
        key: Any,
        value: T,
        *,
        ttl: Duration | None = None,
        if_version: Version | str | None = None,
        if_absent: bool = False,
        request_id: str | None = None,
    ) -> RegionVersion:
        """Set a key; the version that it has now in this region. It replaces what this region holds, siblings and all fields too.

        ``ttl``: it ends by itself after so long; without it, it stays, also when it had a lifetime before. ``if_version``:
        only when the key has this version (or ETag) in this region now; ``if_absent``: only when it is not there.
        ``request_id``: it happens once under this name in this region, and in others once they have heard of it.

        Raises:
            Conflict: definite; the key has another version, or is there (``if_version``, ``if_absent``).
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        check_request_id(request_id)
        if if_absent is not False:
            check_flag("if_absent", if_absent)
        if if_absent and if_version is not None:
            raise InvalidArgument("a put has if_version or if_absent, not both")
        encoded, ttl_ms = encode_key(key), to_ttl_ms(ttl)
        data = self.kind.encode(value)
        reads: tuple[Read, ...] = ()
        if if_absent:
            reads = (self._read_of(encoded, None),)
        elif if_version is not None:
            reads = self._reads(encoded, if_version, request_id)
        try:
            done = self._put(encoded, data, reads, ttl_ms, request_id)
        except Conflict as error:
            let_pass(error)
            if not if_absent or request_id is not None:
                raise
            raise Conflict(
                f"{key!r} is in {self.name!r} already; nothing was written. Read it, or put without if_absent"
            ) from error
        return self.kind.written(self.client.shard_of(encoded), done, data)

    def put_many(
        self,
        items: Pairs,
        *,
        ttl: Duration | None = None,
        atomic: bool = True,
        request_id: str | None = None,
    ) -> RegionVersion:
        """Set many keys, of a mapping or of (key, value) pairs (the later of two wins). Nothing is written for none.

        ``atomic``: all or nothing, here and in every other region; then all keys have to be of one shard. Else in parts of
        bounded size, so it may fail half done, with the error of the first part that failed; pairs may then be any number, as
        they are read bit by bit. The version returned is then that of the last part (of each shard).

        Raises:
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, or ``atomic`` and the keys are of several shards.
            Unavailable, TooStale, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        check_request_id(request_id)
        check_flag("atomic", atomic)
        chunks = map_writing.encode_pairs(items, self.kind.encode)
        ttl_ms = to_ttl_ms(ttl)
        if not atomic:
            newest = map_writing.in_parts(
                self.client,
                chunks,
                lambda shard, part, its_id: self._put_items(shard, part, ttl_ms, its_id),
                request_id,
            )
        else:
            shards = map_writing.gathered(self.client, chunks)
            if len(shards) > 1:
                raise TransactionError(
                    f"the keys are of {len(shards)} shards, and a write of an available map is whole in one shard only; nothing "
                    "was written. Use put_many(..., atomic=False), or keys with the same first element"
                )
            newest = {
                shard: self._put_items(shard, part, ttl_ms, request_id) for shard, part in shards.items()
            }
        return RegionVersion(tuple((shard, done.region, done.seq) for shard, done in sorted(newest.items())))

    @one_call
    def update(self, other: Any = (), /, **more: T) -> None:  # type: ignore[override]  # as __setitem__
        """As of a dict: one effect in each shard, which is whole everywhere. TooLarge when those of a shard do not fit into one
        record.

        Raises:
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        if not isinstance(other, Mapping) and hasattr(other, "keys"):
            other = {key: other[key] for key in other.keys()}  # noqa: SIM118 - not every such object is a Mapping
        if more:
            other = [*(other.items() if isinstance(other, Mapping) else other), *more.items()]
        shards = map_writing.gathered(self.client, map_writing.encode_pairs(other, self.kind.encode))
        for shard, part in sorted(shards.items()):
            self._put_items(shard, part, None, None)

    def patch(
        self,
        key: Any,
        set: Mapping[str, Any] | None = None,
        *,
        unset: Iterable[str] | str | None = None,
        inc: object = None,
        push: object = None,
        if_version: object = None,
        request_id: str | None = None,
    ) -> R:
        """Set and remove some top-level fields of an item of a map with ``merge="fields"``; the new value, as it is known here.

        Other fields stay as they are, so two regions that patch different fields lose nothing. A key that is not there begins
        without fields. What an item with a lifetime gets ends with it. ``inc``, ``push``, ``if_version`` and paths with dots are
        of consistent maps.

        Raises:
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        check_request_id(request_id)
        kind = patching.by_fields(self.kind)
        patching.check_absent(inc=inc, push=push, if_version=if_version)
        fields = patching.encode_patch(set, unset)
        encoded = encode_key(key)
        with limited(self.client):
            patching.check_patched(kind, self._present(encoded), fields)
            self._do(encoded, (Patch(self.name, encoded, fields),), request_id=request_id)
            row = self._present(encoded)
        return self._shown(key, kind.read_or_empty(None) if row is None else row)

    def delete(
        self, key: Any, *, if_version: Version | str | None = None, request_id: str | None = None
    ) -> bool:
        """Remove a key; whether it was there in this region. It is removed in others too, where they have heard no later write.
        ``if_version``, ``request_id``: as of ``put``.

        Raises:
            Conflict: definite; the key has another version (``if_version``).
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        check_request_id(request_id)
        encoded = encode_key(key)
        reads = () if if_version is None else self._reads(encoded, if_version, request_id)
        return self._delete(encoded, reads, request_id)

    def __delitem__(self, key: Any) -> None:
        self._check()
        if not self._delete(encode_key(key)):
            raise KeyError(key)

    @one_call
    def clear(self) -> None:
        """Remove every key that this region knows, some at a time: it is not atomic.

        Raises:
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        bounds = rows_reading.bounds_of(self.client, None)
        for shard in bounds.shards:
            of_shard = bounds._replace(shards=(shard,))
            rows = rows_reading.scan(self.client, self._rows, of_shard, SESSION)
            keys = [key for key, _ in rows]
            for at in range(0, len(keys), config.PUT_MANY_PART_KEYS):
                part = keys[at : at + config.PUT_MANY_PART_KEYS]
                self.client.do(shard, (self.kind.deletes(part),))

    @overload
    def pop(self, key: Any) -> R: ...

    @overload
    def pop(self, key: Any, default: D) -> R | D: ...

    def pop(self, key: Any, default: Any = _ABSENT) -> Any:
        """Remove a key and return its value: one atomic operation in this region.

        Raises:
            KeyError: it is not there and there is no ``default``.
            Conflict: definite; others were faster ``config.MAP_ATTEMPTS`` times.
            MergeFailed: definite; the merge function raised. It has the siblings.
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        with limited(self.client):
            encoded = encode_key(key)
            for attempt in range(config.MAP_ATTEMPTS):
                row = self._present(encoded)
                if row is None:
                    if default is _ABSENT:
                        raise KeyError(key)
                    return default
                value = self._shown(key, row)
                if self._try(attempt, encoded, row, (self.kind.deletes((encoded,)),)):
                    return value
            raise self._beaten(key)

    @one_call
    def popitem(self) -> tuple[Any, R]:
        """Remove the first key, in key order, and return it with its value.

        Raises:
            KeyError: the map is empty.
            Conflict: definite; others were faster ``config.MAP_ATTEMPTS`` times.
            MergeFailed: definite; the merge function raised. It has the siblings.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        for attempt in range(config.MAP_ATTEMPTS):
            bounds = rows_reading.bounds_of(self.client, None)
            first = next(rows_reading.scan(self.client, self._rows, bounds, SESSION, limit=1), None)
            if first is None:
                raise KeyError("popitem(): the map is empty")
            encoded, row = first
            pair = self._pair(encoded, row)
            if self._try(attempt, encoded, row, (self.kind.deletes((encoded,)),)):
                return pair
        raise self._beaten("the first key")

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """The value of a key, which is set to ``default`` first if it is not there: one atomic operation in this region.

        Raises:
            Conflict: definite; others were faster ``config.MAP_ATTEMPTS`` times.
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            MergeFailed: definite; the merge function raised. It has the siblings.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        with limited(self.client):
            encoded, data = encode_key(key), self.kind.encode(default)
            for attempt in range(config.MAP_ATTEMPTS):
                row = self._present(encoded)
                if row is not None:
                    return self._shown(key, row)
                if self._try(attempt, encoded, None, self.kind.puts(((encoded, data),), None)):
                    return self._put_value(key, data)
            raise self._beaten(key)

    @one_call
    def modify(
        self, key: Any, fn: Callable[[Any], T], default: Any = None, *, ttl: Duration | None = None
    ) -> R:
        """Replace the value by ``fn(value)``, atomically in this region; the new value. ``fn`` gets a copy of its own, of
        ``default`` when the key is not there. Where both are kept, and with a merge function, it gets the list of siblings, which
        is empty when the key is not there and there is no ``default``; what it returns replaces them all. It runs again whenever
        somebody else was faster, so it should do nothing but compute; when it raises, nothing is written. ``ttl``: as of ``put``;
        without it an item keeps the end that it has, to within the milliseconds that the write takes.

        Raises:
            Conflict: definite; others were faster ``config.MAP_ATTEMPTS`` times.
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            MergeFailed: definite; the merge function raised. It has the siblings.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        check_function(fn)
        encoded, ttl_ms, kind = encode_key(key), to_ttl_ms(ttl), self.kind
        for attempt in range(config.MAP_ATTEMPTS):
            row = self._present(encoded)
            data = kind.encode(fn(self._to_modify(key, row, default)))
            lasts_ms = ttl_ms
            if ttl is None and row is not None:
                lasts_ms = remaining_ms(kind.ends_ms(row), self.client.env.wall_ms())
            if self._try(attempt, encoded, row, kind.puts(((encoded, data),), lasts_ms)):
                return self._put_value(key, data)
        raise self._beaten(key)

    def increment(
        self, key: Any, by: float = 1, *, ttl: Duration | None = None, request_id: str | None = None
    ) -> NoReturn:
        """Refused: two regions that add to one number at a time would lose one of the additions. A counter adds up
        what all regions add.

        Raises:
            InvalidArgument: definite; always.
        """
        encode_key(key)
        check_increment(by)
        to_ttl_ms(ttl)
        check_request_id(request_id)
        raise InvalidArgument(
            "available maps have no increment: one of two regions' additions would be lost. Use counters, which add up what all "
            f"regions add: db.counters({self.name + '_counts'!r}).add(key, by). Or use a consistent map"
        )

    # -- shared

    def _put_value(self, key: object, data: bytes) -> R:
        """What is read after these encoded bytes were put."""
        return self._shown(key, self.kind.row_of(data))

    def _to_modify(self, key: object, row: Row | None, default: Any) -> Any:
        if row is not None:
            return self._current(key, row)
        if not self.kind.keeps_siblings:
            return copy.deepcopy(default)
        return [] if default is None else [copy.deepcopy(default)]

    def _present(self, encoded: bytes) -> Row | None:
        """As the session sees it: with its own writes, whatever the level of this map's reads."""
        return map_reading.read_item(self.client, self.place, encoded, SESSION)

    def _put(
        self,
        encoded: bytes,
        data: bytes,
        reads: Sequence[Read] = (),
        ttl_ms: int | None = None,
        request_id: str | None = None,
    ) -> Committed:
        return self._do(encoded, self.kind.puts(((encoded, data),), ttl_ms), reads, request_id)

    def _put_items(
        self, shard: int, items: Sequence[Encoded], ttl_ms: int | None, request_id: str | None
    ) -> Committed:
        return self.client.do(shard, self.kind.puts(items, ttl_ms), request_id=request_id)

    def _delete(self, encoded: bytes, reads: Sequence[Read] = (), request_id: str | None = None) -> bool:
        (held,) = self._do(encoded, (self.kind.deletes((encoded,)),), reads, request_id).results or (None,)
        if not isinstance(held, int):
            raise InvalidArgument(
                f"request_id {request_id!r} was used by another operation before. Use a new one"
            )
        return bool(held)

    def _try(self, attempt: int, encoded: bytes, row: Row | None, requests: tuple[AnyRequest, ...]) -> bool:
        """Write if the key is as it was read (None: not there); False, after a pause, when it is not."""
        try:
            self._do(encoded, requests, (self._read_of(encoded, row),))
        except Conflict as error:
            let_pass(error)
            pause_s = min(config.MAP_RETRY_PAUSE_S, 0.0005 * 2 ** min(attempt, 20))
            self.client.shards[self.client.shard_of(encoded)].pause(jittered(pause_s, self.client.env))
            return False
        return True

    def _read_of(self, encoded: bytes, row: Row | None) -> Read:
        return Read(self.kind.place, encoded, b"" if row is None else signature(row))

    def _reads(self, encoded: bytes, version: Version | str, request_id: str | None) -> tuple[Read, ...]:
        """What must be as it was for a write on condition of a version."""
        given = RegionVersion.of(version)
        shard = self.client.shard_of(encoded)
        row = self._present(encoded)
        if row is None or self.kind.version(shard, row) != given:
            # Perhaps the replica here is behind what the version is of.
            self.client.refresh(shard)
            row = self._present(encoded)
        if row is not None and self.kind.version(shard, row) == given:
            return (self._read_of(encoded, row),)
        if request_id is not None:
            # Perhaps it was done under this name already: the log answers that first, and refuses what nobody can have read.
            return (Read(self.kind.place, encoded, _NEVER_READ),)
        raise Conflict(
            f"{decode_key(encoded)!r:.100} of {self._what} does not have the version {given} in this region; nothing was "
            "written. Read it again and retry"
        )

    def _beaten(self, key: object) -> Conflict:
        return Conflict(
            f"{key!r:.100} of {self._what} was changed by others {config.MAP_ATTEMPTS} times in a row, each time before this "
            "operation; nothing was written. Try again, or spread the writes over more keys"
        )
