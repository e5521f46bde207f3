"""What is appended, as operations: each record's or frame's partition, and pieces of a bounded size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from onefold import config
from onefold.codec import crc32c
from onefold.errors import InvalidArgument, InvalidKey, InvalidValue, TooLarge
from onefold.state.core.client import StateClient
from onefold.state.encoding.extensions import SPECIAL_TYPES
from onefold.state.encoding.keys import encode_key
from onefold.state.encoding.values import ValueCodec
from onefold.state.fold.streams.ops import Append
from onefold.state.streams import frames as stream_frames
from onefold.state.streams.frames import ARROW, RECORDS

if TYPE_CHECKING:
    import polars as pl

_NATIVES: Final = (bytes, bytearray, *SPECIAL_TYPES)


class StreamCodec:
    """Encodes and decodes the values of a stream: as those of a map, and rows of frames. See ``stream_pages.Codec``."""

    def __init__(self, type: type[Any] | None) -> None:
        """Raises InvalidArgument for a type that cannot be stored."""
        self._values: ValueCodec[Any] = ValueCodec(type)
        self._type = type

    def encode(self, value: object) -> bytes:
        """A single value. Raises InvalidValue, TooLarge."""
        return self._values.encode(value)

    def decode(self, data: bytes) -> Any:
        """A single value. Raises InvalidValue."""
        return self._values.decode(data)

    def decode_row(self, row: dict[str, Any]) -> Any:
        """A row of a frame as a value. Raises InvalidValue."""
        if self._type is None:
            return row
        try:
            return msgspec.convert(row, self._type, builtin_types=_NATIVES)
        except msgspec.ValidationError as error:
            raise InvalidValue(f"a stored row is not a {self._type.__name__}: {error}") from None

    def check_rows(self, frame: pl.DataFrame) -> None:
        """Raises InvalidValue for the first row that is not a value of the type. Untyped streams take any; the rows of a typed
        one are looked at one by one."""
        if self._type is None:
            return
        for at, row in enumerate(frame.iter_rows(named=True)):
            try:
                msgspec.convert(row, self._type, builtin_types=_NATIVES)
            except msgspec.ValidationError as error:
                raise InvalidValue(
                    f"row {at} of the frame is not a {self._type.__name__}: {error}; nothing was appended"
                ) from None


class Appending:
    """Makes the operations of one append."""

    def __init__(
        self, client: StateClient, stream: str, partitions: int, codec: StreamCodec, request_id: str | None
    ) -> None:
        """What has no key goes to partitions in turn, from a random one on; with a ``request_id`` from the same one on each
        time, so that what is tried again goes where it went."""
        self._stream = stream
        self.partitions = partitions
        """How many there are to choose from."""
        self._codec = codec
        seed = (
            int.from_bytes(client.env.token(4), "big") if request_id is None else crc32c(request_id.encode())
        )
        self._turn = seed % partitions

    def one(self, value: object, key: object) -> Append:
        """A single record. Raises InvalidKey, InvalidValue, TooLarge (definite)."""
        encoded = None if key is None else encode_key(key)
        frame = stream_frames.encode_records([(encoded, self._codec.encode(value))])
        return Append(self._stream, self._place(encoded), 1, frame, RECORDS)

    def many(self, records: object, key: str | None) -> list[Append]:
        """Many records, in order within each partition. Raises as ``one``, and InvalidArgument."""
        if key is not None and not isinstance(key, str):
            raise InvalidArgument(f"key must be the name of a column or field; got {key!r:.80}")
        frame = stream_frames.as_frame(records)
        writes = self._of_records(records, key) if frame is None else self._of_frame(frame, key)
        size = sum(len(write.frame) for write in writes)
        if size > config.TRANSACTION_BYTES_MAX:
            raise TooLarge(
                f"these records take {size} bytes; at most {config.TRANSACTION_BYTES_MAX} can be appended all or nothing. "
                "Append them in several calls"
            )
        return writes

    def _of_frame(self, frame: pl.DataFrame, key: str | None) -> list[Append]:
        stream_frames.check_frame(frame, key)
        self._codec.check_rows(frame)
        writes: list[Append] = []
        split = stream_frames.split_frame(frame, key, self.partitions, self._turn)
        for partition, rows in split:
            for count, data in stream_frames.cut_frame(rows, key):
                place = self._next() if key is None else partition
                writes.append(Append(self._stream, place, count, data, ARROW))
        return writes

    def _of_records(self, records: object, key: str | None) -> list[Append]:
        if isinstance(records, str | bytes | Mapping) or not isinstance(records, Iterable):
            raise InvalidArgument(
                f"append_many takes a list of records or a frame; got a {type(records).__name__}. Use append for a single record"
            )
        by_partition: dict[int | None, list[tuple[bytes | None, bytes]]] = {}
        for at, record in enumerate(records):
            found = None if key is None else _field(record, key, at)
            try:
                encoded = None if found is None else encode_key(found)
                value = self._codec.encode(record)
            except (InvalidKey, InvalidValue, TooLarge) as error:
                raise type(error)(f"record {at}: {error}; nothing was appended") from None
            place = None if encoded is None else self._place(encoded)
            by_partition.setdefault(place, []).append((encoded, value))
        writes: list[Append] = []
        for partition, pairs in by_partition.items():
            for count, data in stream_frames.cut_records(pairs):
                place = self._next() if partition is None else partition
                writes.append(Append(self._stream, place, count, data, RECORDS))
        return writes

    def _place(self, key: bytes | None) -> int:
        return self._next() if key is None else stream_frames.partition_of(key, self.partitions)

    def _next(self) -> int:
        turn = self._turn
        self._turn = (turn + 1) % self.partitions
        return turn


def _field(record: object, key: str, at: int) -> object:
    if isinstance(record, Mapping):
        if key in record:
            found: object = record[key]
            return found
    elif (isinstance(record, msgspec.Struct) or dataclasses.is_dataclass(record)) and hasattr(record, key):
        return getattr(record, key)
    raise InvalidArgument(f"record {at} has no field {key!r} for the key; nothing was appended")
