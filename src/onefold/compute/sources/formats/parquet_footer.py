"""The part of a Parquet footer that cutting needs: how many rows and bytes each row group has.

A footer is a Thrift struct in compact protocol (https://github.com/apache/parquet-format, ``parquet.thrift``). Polars reads
the data and the schema but has no public way to see row groups, and pyarrow is not required, so this reads the few fields
it takes and skips the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

MAGIC = b"PAR1"
_ENCRYPTED_MAGIC = b"PARE"
TAIL_BYTES = 8
_OWN = b"onefold"

_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(13)


class BrokenFooter(Exception):
    """Bytes that are no Parquet footer; the text says why."""


class RowGroup(NamedTuple):
    """Rows, and stored (compressed) bytes, of one row group."""

    rows: int
    stored_bytes: int


class Footer(NamedTuple):
    """``schema`` digests the schema as it is stored: files with the same digest have the same columns and types."""

    rows: int
    row_groups: tuple[RowGroup, ...]
    schema: bytes
    notes: Mapping[bytes, bytes]
    """Key-value metadata that Onefold wrote: keys that begin with ``onefold``."""


def footer_size(tail: bytes, file_bytes: int) -> int:
    """Bytes of the footer by the last 8 bytes of a file. Raises ``BrokenFooter``."""
    if len(tail) < TAIL_BYTES or file_bytes < TAIL_BYTES + len(MAGIC):
        raise BrokenFooter(f"it has only {file_bytes} bytes")
    if tail[-4:] == _ENCRYPTED_MAGIC:
        raise BrokenFooter("it is encrypted, which is not supported")
    if tail[-4:] != MAGIC:
        raise BrokenFooter("it does not end with a Parquet footer: it is cut off or no Parquet file")
    size = int.from_bytes(tail[-8:-4], "little")
    if size + TAIL_BYTES + len(MAGIC) > file_bytes:
        raise BrokenFooter("its footer is longer than the file: it is cut off or damaged")
    return size


def parse_footer(data: bytes) -> Footer:
    """The footer (without the 8 bytes behind it). Raises ``BrokenFooter``."""
    try:
        return _parse(data)
    except (IndexError, RecursionError) as error:
        raise BrokenFooter("its footer is damaged") from error


def _parse(data: bytes) -> Footer:
    reader = _Compact(data)
    rows = 0
    groups: list[RowGroup] = []
    described = b""
    notes: dict[bytes, bytes] = {}
    field = 0
    while (header := reader.field(field)) is not None:
        field, kind = header
        begin = reader.at
        if field == 5 and kind == _LIST:
            count, _ = reader.list_header()
            notes = dict(pair for pair in (_note(reader) for _ in range(count)) if pair[0].startswith(_OWN))
            described += data[begin : reader.at]  # Arrow's types are in these
        elif field == 3 and kind == _I64:
            rows = reader.zigzag()
        elif field == 4 and kind == _LIST:
            count, _ = reader.list_header()
            groups = [_row_group(reader) for _ in range(count)]
        else:
            reader.skip(kind)
            if field == 2:  # the schema elements
                described += data[begin : reader.at]
    if sum(group.rows for group in groups) != rows:
        raise BrokenFooter("its footer is damaged: the row groups do not sum up to the rows")
    return Footer(rows, tuple(groups), hashlib.blake2b(described, digest_size=16).digest(), notes)


def _note(reader: _Compact) -> tuple[bytes, bytes]:
    """A key and its value; values may be missing."""
    key = value = b""
    field = 0
    while (header := reader.field(field)) is not None:
        field, kind = header
        if field == 1 and kind == _BINARY:
            key = reader.binary()
        elif field == 2 and kind == _BINARY:
            value = reader.binary()
        else:
            reader.skip(kind)
    return key, value


def _row_group(reader: _Compact) -> RowGroup:
    rows = uncompressed = 0
    compressed: int | None = None
    field = 0
    while (header := reader.field(field)) is not None:
        field, kind = header
        if field == 2 and kind == _I64:
            uncompressed = reader.zigzag()
        elif field == 3 and kind == _I64:
            rows = reader.zigzag()
        elif field == 6 and kind == _I64:
            compressed = reader.zigzag()
        else:
            reader.skip(kind)
    return RowGroup(rows, uncompressed if compressed is None else compressed)


class _Compact:
    """A reader of Thrift's compact protocol over bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def varint(self) -> int:
        data, at = self._data, self.at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                self.at = at
                return value
            shift += 7

    def zigzag(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def binary(self) -> bytes:
        length = self.varint()
        if self.at + length > len(self._data):
            raise BrokenFooter("its footer is damaged: a text is longer than the footer")
        self.at += length
        return self._data[self.at - length : self.at]

    def field(self, previous: int) -> tuple[int, int] | None:
        """(id, type) of the next field of a struct; None at its end."""
        byte = self._data[self.at]
        self.at += 1
        if byte == _STOP:
            return None
        delta = byte >> 4
        return (previous + delta if delta else self.zigzag()), byte & 0x0F

    def list_header(self) -> tuple[int, int]:
        byte = self._data[self.at]
        self.at += 1
        count = byte >> 4
        return (self.varint() if count == 15 else count), byte & 0x0F

    def skip(self, kind: int, *, element: bool = False) -> None:
        """Pass over a value; a Boolean takes a byte only as an element of a list."""
        if kind in (_TRUE, _FALSE):
            self.at += 1 if element else 0
        elif kind == _BYTE:
            self.at += 1
        elif kind in (_I16, _I32, _I64):
            data = self._data
            while data[self.at] >= 0x80:
                self.at += 1
            self.at += 1
        elif kind == _DOUBLE:
            self.at += 8
        elif kind == _BINARY:
            length = self.varint()
            self.at += length
        elif kind in (_LIST, _SET):
            count, inner = self.list_header()
            for _ in range(count):
                self.skip(inner, element=True)
        elif kind == _MAP:
            count = self.varint()
            if count:
                kinds = self._data[self.at]
                self.at += 1
                for _ in range(count):
                    self.skip(kinds >> 4, element=True)
                    self.skip(kinds & 0x0F, element=True)
        elif kind == _STRUCT:
            field = 0
            while (header := self.field(field)) is not None:
                field = header[0]
                self.skip(header[1])
        else:
            raise BrokenFooter("its footer is damaged: unknown type")
