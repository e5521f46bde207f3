"""What becomes of concurrent writes of one key, as far as handles know it: which requests write a value, and what a row shows.

A map has one of three kinds: a register, where the last writer wins; a register for each top-level field; or all values side by
side, which are given as a list, or as what a function makes of them.
"""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Generic, TypeVar, cast

import msgspec

from onefold.available import ops
from onefold.available.kinds import places
from onefold.available.kinds.cells import Cells, Register
from onefold.available.kinds.dots import Dots
from onefold.available.kinds.places import place_of
from onefold.available.kinds.row import Cell, Row, encode
from onefold.available.ops import AnyRequest, Committed
from onefold.errors import InvalidArgument, InvalidValue, MergeFailed
from onefold.machine.undisturbed import let_pass
from onefold.state.encoding.items import RegionVersion
from onefold.state.encoding.values import ValueCodec

R = TypeVar("R")
T = TypeVar("T")

LAST_WRITER_WINS, BY_FIELDS, KEEP_BOTH = "last_writer_wins", "fields", "keep_both"
Merge = str | Callable[[list[Any]], Any]
_DIGEST_BYTES = 6
_fields_decoder = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])


class Kind(ABC, Generic[R, T]):
    """One of the three, for one map."""

    letter: ClassVar[str]
    keeps_siblings: ClassVar[bool] = False

    def __init__(self, name: str, codec: ValueCodec[T]) -> None:
        self.name = name
        self.codec = codec
        self.place = place_of(self.letter, name)

    def read(self, data: bytes) -> Row:
        """The row in these bytes."""
        return places.read_row(self.place, data)

    def read_or_empty(self, data: bytes | None) -> Row:
        """As ``read``; an empty row for None."""
        return places.read_row(self.place, data)

    def encode(self, value: T) -> bytes:
        """The bytes of a value. Raises InvalidValue, TooLarge."""
        return self.codec.encode(value)

    @abstractmethod
    def puts(self, items: Sequence[tuple[bytes, bytes]], ttl_ms: int | None) -> tuple[AnyRequest, ...]:
        """What sets these keys to these encoded values."""

    def deletes(self, keys: Iterable[bytes]) -> ops.Delete:
        """What removes these keys."""
        return ops.Delete(cast("ops.CellKind", self.letter), self.name, tuple(keys))

    @abstractmethod
    def row_of(self, data: bytes) -> Row:
        """A row that holds this encoded value alone."""

    @abstractmethod
    def value(self, row: Any) -> R:
        """What is read. Raises InvalidValue, MergeFailed."""

    def siblings(self, row: Any) -> list[T] | None:  # noqa: ARG002
        """The values as they are kept, where several are."""
        return None

    def current(self, row: Any) -> Any:
        """What ``modify`` gives its function."""
        return self.value(row)

    def cells(self, row: Any) -> list[Cell]:
        """All parts, tombstones too."""
        return list(row.cells if isinstance(row, Dots) else row.all())

    def version(self, shard: int, row: Any) -> RegionVersion:
        """Which writes the row consists of."""
        found = sorted((cell.region, cell.seq) for cell in self.cells(row) if cell.value is not None)
        return RegionVersion(tuple((shard, region, seq) for region, seq in dict.fromkeys(found)))

    def written(self, shard: int, done: Committed, data: bytes) -> RegionVersion:  # noqa: ARG002
        """The version of an item that was just put."""
        return RegionVersion(((shard, done.region, done.seq),))

    def ends_ms(self, row: Any) -> int | None:
        """When nothing is left of the row; None: never."""
        ends = [cell.ends_ms for cell in self.cells(row) if cell.value is not None]
        return None if None in ends or not ends else max(cast("list[int]", ends))

    def latest(self, row: Any) -> int:
        """The region number of the latest write of what is there."""
        live = [cell.stamp for cell in self.cells(row) if cell.value is not None]
        return max(live)[1] if live else 0


class LastWriterWins(Kind[T, T]):
    letter = places.REGISTER

    def __init__(self, name: str, codec: ValueCodec[T]) -> None:
        super().__init__(name, codec)
        self._decode = codec.decoder()

    def puts(self, items: Sequence[tuple[bytes, bytes]], ttl_ms: int | None) -> tuple[AnyRequest, ...]:
        return (ops.Put("r", self.name, tuple(items), ttl_ms),)

    def row_of(self, data: bytes) -> Row:
        return Register(_cell(data))

    def value(self, row: Register) -> T:
        base = row.base
        return self._decode(b"" if base is None else base.value or b"")

    def cells(self, row: Register) -> list[Cell]:
        return [] if row.base is None else [row.base]

    def version(self, shard: int, row: Register) -> RegionVersion:
        base = row.base
        dots = () if base is None or base.value is None else ((shard, base.region, base.seq),)
        return RegionVersion(dots)

    def ends_ms(self, row: Register) -> int | None:
        return None if row.base is None or row.base.value is None else row.base.ends_ms

    def latest(self, row: Register) -> int:
        return 0 if row.base is None or row.base.value is None else row.base.region


class ByFields(Kind[T, T]):
    letter = places.FIELDS

    def encode(self, value: T) -> bytes:
        data = self.codec.encode(value)
        split_fields(data, value)
        return data

    def puts(self, items: Sequence[tuple[bytes, bytes]], ttl_ms: int | None) -> tuple[AnyRequest, ...]:
        return tuple(ops.Replace(self.name, key, split_fields(data), ttl_ms) for key, data in items)

    def row_of(self, data: bytes) -> Row:
        return Cells(_cell(b""), {name: _cell(field) for name, field in split_fields(data)})

    def value(self, row: Cells) -> T:
        return self.codec.decode(joined_fields(row))

    def version(self, shard: int, row: Cells) -> RegionVersion:
        base = row.base if row.base is not None and row.base.value is not None else None
        live = {name: (cell.region, cell.seq) for name, cell in row.fields.items() if cell.value is not None}
        return _version_of_fields(shard, None if base is None else (base.region, base.seq), live)

    def written(self, shard: int, done: Committed, data: bytes) -> RegionVersion:
        dot = done.region, done.seq
        return _version_of_fields(shard, dot, {name: dot for name, _ in split_fields(data)})


class KeepBoth(Kind[R, T]):
    letter = places.KEEP_BOTH
    keeps_siblings = True
    calls_twice: ClassVar[bool] = False
    """Whether merge functions are called twice, to find those that are not pure. In tests only: see ``onefold.testing``."""

    def __init__(self, name: str, codec: ValueCodec[T], merge: Callable[[list[T]], R] | None = None) -> None:
        """``merge``: what makes one value of the siblings; None: they are given as they are."""
        super().__init__(name, codec)
        self._merge = merge

    def puts(self, items: Sequence[tuple[bytes, bytes]], ttl_ms: int | None) -> tuple[AnyRequest, ...]:
        return (ops.Put("k", self.name, tuple(items), ttl_ms),)

    def row_of(self, data: bytes) -> Row:
        return Dots((_cell(data),))

    def value(self, row: Dots) -> R:
        siblings = self.siblings(row)  # copies: the function may do with them what it likes
        if self._merge is None:
            return cast(R, siblings)
        value = self._merged(self._merge, siblings)
        if self.calls_twice and self._merged(self._merge, self.siblings(row)) != value:
            raise MergeFailed(
                f"the merge function {_named(self._merge)} of map {self.name!r} made two different values of the same siblings. "
                "It is called whenever the key is read, so it must not depend on anything else"
            )
        return value

    def _merged(self, merge: Callable[[list[T]], R], siblings: list[T]) -> R:
        try:
            return merge(siblings)
        except Exception as error:
            let_pass(error)
            raise MergeFailed(
                f"the merge function {_named(merge)} of map {self.name!r} raised {type(error).__name__}: {error}. What is stored "
                "is as it was: see .siblings, read it with merge='keep_both', or put a value that replaces them"
            ) from error

    def siblings(self, row: Dots) -> list[T]:
        return [self.codec.decode(cell.value or b"") for cell in row.cells]

    def current(self, row: Dots) -> list[T]:
        return self.siblings(row)


def kind_of(name: str, merge: object, codec: ValueCodec[T]) -> Kind[Any, T]:
    """The kind of map that a program has asked for. Raises InvalidArgument."""
    if merge == LAST_WRITER_WINS:
        return LastWriterWins(name, codec)
    if merge == BY_FIELDS:
        return ByFields(name, codec)
    if merge == KEEP_BOTH:
        return KeepBoth(name, codec)
    if not callable(merge):
        raise InvalidArgument(
            f"merge must be 'last_writer_wins', 'fields', 'keep_both' or a function of the list of siblings; got {merge!r:.100}"
        )
    if inspect.iscoroutinefunction(merge):
        raise InvalidArgument(
            "a merge function is called while reading, so it cannot be asynchronous. Pass a plain function"
        )
    return KeepBoth(name, codec, cast("Callable[[list[T]], Any]", merge))


def _named(merge: object) -> str:
    return str(getattr(merge, "__qualname__", repr(merge)))


def split_fields(data: bytes, value: object = None) -> tuple[tuple[str, bytes], ...]:
    """The top-level fields of an encoded value. Raises InvalidValue for one that has none."""
    try:
        return tuple((name, bytes(raw)) for name, raw in _fields_decoder.decode(data).items())
    except msgspec.ValidationError:
        keys = "whose keys are not all text" if isinstance(value, dict) else "which has no fields"
        raise InvalidValue(
            "a map with merge='fields' holds dicts, Structs and dataclasses, whose fields have text as names; got "
            f"{value!r:.100}, {keys}. Use another merge for other values"
        ) from None


def joined_fields(row: Cells) -> bytes:
    """The encoded value of which these are the fields."""
    return encode(
        {name: msgspec.Raw(cell.value) for name, cell in row.fields.items() if cell.value is not None}
    )


def _cell(data: bytes) -> Cell:
    return Cell(0, 1, 0, data)


def _version_of_fields(
    shard: int, base: tuple[int, int] | None, fields: dict[str, tuple[int, int]]
) -> RegionVersion:
    latest: dict[int, int] = {}
    for region, seq in (*(() if base is None else (base,)), *fields.values()):
        latest[region] = max(seq, latest.get(region, 0))
    data = encode((base, sorted((name, *dot) for name, dot in fields.items())))
    digest = hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
    return RegionVersion(tuple((shard, region, seq) for region, seq in sorted(latest.items())), digest)
