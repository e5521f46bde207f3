"""Shared maps: a ``MutableMapping`` over the space.

Writes are single ``Commit`` operations; reads are views of the folded state at a consistency level. What cannot be said in one
operation (``pop``, ``setdefault``, ``popitem``, ``modify``) is read, then committed on condition that it is unchanged, and tried
again when it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar, overload

from onefold import config
from onefold.arguments import check_flag
from onefold.backoff import jittered
from onefold.errors import Conflict, InvalidArgument
from onefold.machine.undisturbed import let_pass
from onefold.state.core.consistency import STRONG
from onefold.state.core.time_limits import limited, one_call
from onefold.state.encoding.items import Version
from onefold.state.encoding.keys import encode_key, encode_prefix
from onefold.state.encoding.lifetimes import remaining_ms
from onefold.state.encoding.lifetimes import ttl_ms as to_ttl_ms
from onefold.state.encoding.names import check_request_id
from onefold.state.encoding.values import check_increment, encode_value
from onefold.state.fold.maps.ops import Clear, Delete, Increment, MapWrite, Put
from onefold.state.fold.ops import Read
from onefold.state.fold.outcomes import Committed
from onefold.state.fold.rows import Row
from onefold.state.maps import reading as map_reading
from onefold.state.maps import writing as map_writing
from onefold.state.maps.methods import WriteMethods, check_function
from onefold.state.maps.reader import Duration, MapReader
from onefold.state.maps.writing import Pairs, version_of

T = TypeVar("T")
D = TypeVar("D")
_NUMBER_MAX: Final = 1 << 62
_ABSENT: Final = object()


class Map(MapReader[T], WriteMethods[T], Generic[T]):
    """A shared map. Programs get one from ``Database.map``; any number of handles may be open, in any threads and processes.

    Keys are str, int, bytes, bool, None or tuples of those; a bare key is the tuple of one element. Values are what
    ``encode_value`` takes, or of the map's type; one that was read is a private copy. Everything comes in key order:
    None < bytes < str < nested tuple < int < bool.

    Every operation may raise, in addition to what it names: InvalidKey and InvalidValue (cannot be stored), TooLarge,
    InvalidArgument, Unavailable and TooStale (not to be had at this level now), SpaceError (closed, read-only), TransactionError
    (inside a transaction's block), all definite; writes also Timeout and AppendUnknown (indefinite).
    """

    # -- writing

    def __setitem__(self, key: Any, value: T) -> None:
        self._check()
        self._commit(encode_key(key), Put, self._encode(value))

    def put(
        self,
        key: Any,
        value: T,
        *,
        ttl: Duration | None = None,
        if_version: Version | str | None = None,
        if_absent: bool = False,
        request_id: str | None = None,
    ) -> Version:
        """Set a key; the version that it has now.

        ``ttl``: it ends by itself after so long; without it, it stays, also when it had a lifetime before. ``if_version``:
        only when the key has this version (or ETag) now; ``if_absent``: only when it is not there.
        ``request_id``: it happens once under this name, no matter who repeats it (see ``Database.outcome``).

        Raises:
            Conflict: definite; the key has another version, or is there (``if_version``, ``if_absent``).
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        check_request_id(request_id)
        if if_absent is not False:
            check_flag("if_absent", if_absent)
        if if_absent and if_version is not None:
            raise InvalidArgument("a put has if_version or if_absent, not both")
        encoded, ttl_ms = encode_key(key), to_ttl_ms(ttl)
        reads: tuple[Read, ...] = ()
        if if_absent:
            reads = (Read(self.name, encoded, 0, 0),)
        elif if_version is not None:
            reads = self._reads(key, encoded, if_version)
        shard = self.client.shard_of(encoded)
        write = Put(self.name, ((encoded, self._encode(value)),), ttl_ms)
        try:
            committed = self.client.commit(shard, (write,), reads, request_id=request_id)
        except Conflict as error:
            let_pass(error)
            if not if_absent or request_id is not None:
                raise
            raise Conflict(
                f"{key!r} is in {self.name!r} already; nothing was written. Read it, or put without if_absent"
            ) from error
        return version_of(shard, committed)

    def put_many(
        self,
        items: Pairs,
        *,
        ttl: Duration | None = None,
        atomic: bool = True,
        request_id: str | None = None,
    ) -> Version:
        """Set many keys, of a mapping or of (key, value) pairs (the later of two wins). Nothing is written for none.

        ``atomic``: all or nothing, also over several shards; TooLarge (definite) when they do not fit into one record. Else
        in parts of bounded size, so it may fail half done, with the error of the first part that failed; pairs may then be any
        number, as they are read bit by bit. The version returned is then that of the last part (of each shard).

        Raises:
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        check_request_id(request_id)
        check_flag("atomic", atomic)
        put = map_writing.put_all if atomic else map_writing.put_in_parts
        chunks = map_writing.encode_pairs(items, self._encode)
        return put(self.client, self.name, chunks, to_ttl_ms(ttl), request_id)

    def delete(
        self, key: Any, *, if_version: Version | str | None = None, request_id: str | None = None
    ) -> bool:
        """Remove a key; whether it was there. ``if_version``, ``request_id``: as of ``put``.

        Raises:
            Conflict: definite; the key has another version (``if_version``).
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        check_request_id(request_id)
        encoded = encode_key(key)
        reads = self._reads(key, encoded, if_version)
        return bool(self._commit(encoded, Delete, reads=reads, request_id=request_id).results[0])

    def __delitem__(self, key: Any) -> None:
        self._check()
        if not self._commit(encode_key(key), Delete).results[0]:
            raise KeyError(key)

    @one_call
    def clear(self) -> None:
        """Remove everything. One operation in each shard, one shard after the other: with several it is not atomic.

        Raises:
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        start, stop = encode_prefix(())
        for shard in range(self.client.shard_count):
            self.client.commit(shard, (Clear(self.name, start, stop),))

    @overload
    def pop(self, key: Any) -> T: ...

    @overload
    def pop(self, key: Any, default: D) -> T | D: ...

    def pop(self, key: Any, default: Any = _ABSENT) -> Any:
        """Remove a key and return its value: one atomic operation.

        Raises:
            KeyError: it is not there and there is no ``default``.
            Conflict: definite; others were faster ``config.MAP_ATTEMPTS`` times.
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        with limited(self.client):
            return self._pop(key, encode_key(key), default)

    def _pop(self, key: Any, encoded: bytes, default: Any) -> Any:
        for attempt in range(config.MAP_ATTEMPTS):
            row = self._strong(encoded)
            if row is None:
                if default is _ABSENT:
                    raise KeyError(key)
                return default
            value = self._value_of(key, row.value)
            if self._try(attempt, encoded, Delete, row=row):
                return value
        raise self._beaten(key)

    @one_call
    def popitem(self) -> tuple[Any, T]:
        """Remove the first key, in key order, and return it with its value.

        Raises:
            KeyError: the map is empty.
            Conflict: definite; others were faster ``config.MAP_ATTEMPTS`` times.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        for attempt in range(config.MAP_ATTEMPTS):
            bounds = map_reading.bounds_of(self.client, None)
            first = next(map_reading.scan(self.client, self._rows, bounds, STRONG, limit=1), None)
            if first is None:
                raise KeyError("popitem(): the map is empty")
            encoded, row = first
            pair = self._pair(encoded, row)
            if self._try(attempt, encoded, Delete, row=row):
                return pair
        raise self._beaten("the first key")

    @overload
    def setdefault(self: Map[T | None], key: Any, default: None = None) -> T | None: ...

    @overload
    def setdefault(self, key: Any, default: T) -> T: ...

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """The value of a key, which is set to ``default`` first if it is not there: one atomic operation.

        Raises:
            Conflict: definite; others were faster ``config.MAP_ATTEMPTS`` times.
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        with limited(self.client):
            return self._setdefault(key, encode_key(key), self._encode(default))

    def _setdefault(self, key: Any, encoded: bytes, data: bytes) -> Any:
        for attempt in range(config.MAP_ATTEMPTS):
            row = self._strong(encoded)
            if row is not None:
                return self._value_of(key, row.value)
            if self._try(attempt, encoded, Put, data):
                return self._decode(data)
        raise self._beaten(key)

    @one_call
    def modify(
        self, key: Any, fn: Callable[[Any], T], default: Any = None, *, ttl: Duration | None = None
    ) -> T:
        """Replace the value by ``fn(value)``, atomically; the new value. ``fn`` gets a copy of its own, of ``default`` when the
        key is not there. It runs again whenever somebody else was faster, so it should do nothing but compute; when it raises,
        nothing is written. ``ttl``: as of ``put``; without it an item keeps the end that it has, to within the milliseconds that
        the write takes.

        Raises:
            Conflict: definite; others were faster ``config.MAP_ATTEMPTS`` times.
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        check_function(fn)
        encoded, ttl_ms = encode_key(key), to_ttl_ms(ttl)
        for attempt in range(config.MAP_ATTEMPTS):
            row = self._strong(encoded)
            data = self._encode(self._modified(key, fn, default, None if row is None else row.value))
            lasts_ms = ttl_ms
            if ttl is None and row is not None:
                lasts_ms = remaining_ms(row.expires_ms, self.client.env.wall_ms())
            if self._try(attempt, encoded, Put, data, row=row, ttl_ms=lasts_ms):
                return self._decode(data)
        raise self._beaten(key)

    def increment(
        self, key: Any, by: float = 1, *, ttl: Duration | None = None, request_id: str | None = None
    ) -> T:
        """Add to a number, in one operation that never conflicts; the new value. A key that is not there counts as 0, and lives
        for ``ttl`` from then on. ``by``: an int or a finite float.

        Raises:
            InvalidValue: definite; the value is not a number.
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check()
        check_request_id(request_id)
        check_increment(by)
        encoded, ttl_ms = encode_key(key), to_ttl_ms(ttl)
        shard = self.client.shard_of(encoded)
        write = Increment(self.name, encoded, encode_value(by), ttl_ms)
        (result,) = self.client.commit(shard, (write,), request_id=request_id).results or (None,)
        if not isinstance(result, bytes):
            raise InvalidArgument(
                f"request_id {request_id!r} was used by another operation before. Use a new one"
            )
        return self._decode(result)

    # -- shared

    def _strong(self, encoded: bytes) -> Row | None:
        return map_reading.read_item(self.client, self._table, encoded, STRONG)

    def _commit(
        self,
        encoded: bytes,
        kind: type[Put] | type[Delete],
        data: bytes = b"",
        *,
        reads: tuple[Read, ...] = (),
        ttl_ms: int | None = None,
        request_id: str | None = None,
    ) -> Committed:
        write: MapWrite = (
            Put(self.name, ((encoded, data),), ttl_ms) if kind is Put else Delete(self.name, (encoded,))
        )
        shard = self.client.shard_of(encoded)
        return self.client.commit(shard, (write,), reads, request_id=request_id)

    def _try(
        self,
        attempt: int,
        encoded: bytes,
        kind: type[Put] | type[Delete],
        data: bytes = b"",
        *,
        row: Row | None = None,
        ttl_ms: int | None = None,
    ) -> bool:
        """Write if the key is as it was read (None: not there); False, after a pause, when it is not."""
        offset, index = (0, 0) if row is None else (row.offset, row.index)
        try:
            self._commit(encoded, kind, data, reads=(Read(self.name, encoded, offset, index),), ttl_ms=ttl_ms)
        except Conflict as error:
            let_pass(error)
            pause_s = min(config.MAP_RETRY_PAUSE_S, 0.0005 * 2 ** min(attempt, 20))
            self.client.shards[self.client.shard_of(encoded)].pause(jittered(pause_s, self.client.env))
            return False
        return True

    def _beaten(self, key: object) -> Conflict:
        return Conflict(
            f"{key!r:.100} of {self._what} was changed by others {config.MAP_ATTEMPTS} times in a row, each time before this "
            "operation; nothing was written. Try again, or spread the writes over more keys"
        )

    def _reads(self, key: object, encoded: bytes, version: Version | str | None) -> tuple[Read, ...]:
        """What must be as it was for a write on condition of a version."""
        if version is None:
            return ()
        given = Version.of(version)
        part = given.in_shard(self.client.shard_of(encoded))
        if part is None:
            raise Conflict(f"{key!r:.100} of {self._what} never had the version {given}; nothing was written")
        offset, index = part
        if not (0 < offset < _NUMBER_MAX and -1 <= index < _NUMBER_MAX):
            raise InvalidArgument(f"{str(given)!r:.100} is not a version that this space has given")
        return (Read(self.name, encoded, offset, index),)
