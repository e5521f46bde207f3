"""Closed ranges of a log as files, so that the servers are never the only ones that have it.

``OFARCH2\\n`` and then one zstd stream of msgpack arrays ``[offset, data, engine_ms, trusted]``, contiguous, each after its
length (4 bytes, big endian); a length of 0 ends it. Each record carries its own checksum, and the file is named by its content.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from onefold.errors import LogCorrupt
from onefold.files import sync
from onefold.log.api import Entry

MAGIC: Final = b"OFARCH2\n"
_EARLIER: Final = b"OFARCH1\n"
"""Of releases that knew no trusted records: what it holds is trusted by nobody."""
_LEVEL: Final = 3
_CHUNK: Final = 1 << 20
_LENGTH_BYTES: Final = 4
_entries: Final = msgspec.msgpack.Decoder(tuple[int, bytes, int, bool])
_earlier: Final = msgspec.msgpack.Decoder(tuple[int, bytes, int])


class Written(NamedTuple):
    """What a file holds: offsets, both included."""

    start: int
    stop: int


def write_archive(path: Path, entries: Iterable[Entry]) -> Written:
    """Write contiguous entries, at least one, to a new file, and sync it. Raises LogCorrupt for a gap, and OSError."""
    import zstandard

    start = stop = 0
    encode = msgspec.msgpack.Encoder().encode
    with path.open("wb") as file:
        file.write(MAGIC)
        with zstandard.ZstdCompressor(level=_LEVEL).stream_writer(file, closefd=False) as packed:
            for entry in entries:
                if start and entry.offset != stop + 1:
                    raise LogCorrupt(f"offset {stop + 1} is missing before {entry.offset}")
                start, stop = start or entry.offset, entry.offset
                body = encode(entry)
                packed.write(len(body).to_bytes(_LENGTH_BYTES, "big") + body)
            packed.write(bytes(_LENGTH_BYTES))
    sync(path)
    if not start:
        raise LogCorrupt("there is nothing to archive")
    return Written(start, stop)


def read_archive(path: Path) -> Iterator[Entry]:
    """The entries of such a file, in order. Raises LogCorrupt when it is damaged or something else."""
    import zstandard

    last = 0
    with path.open("rb") as file:
        magic = file.read(len(MAGIC))
        if magic not in (MAGIC, _EARLIER):
            raise LogCorrupt(f"{path} is not an archive of a log that this program knows")
        decode = _earlier.decode if magic == _EARLIER else _entries.decode
        try:
            with zstandard.ZstdDecompressor().stream_reader(file) as packed:
                while length := int.from_bytes(_exactly(packed, _LENGTH_BYTES), "big"):
                    body = _exactly(packed, length)
                    offset, data, engine_ms, *trusted = decode(body)
                    entry = Entry(offset, data, engine_ms, bool(trusted and trusted[0]))
                    if last and entry.offset != last + 1:
                        raise LogCorrupt(f"{path}: offset {last + 1} is missing")
                    last = entry.offset
                    yield entry
        except (zstandard.ZstdError, msgspec.MsgspecError, EOFError) as error:
            raise LogCorrupt(f"{path} is damaged after offset {last}: {error}") from error


def _exactly(stream: object, count: int) -> bytes:
    """So many bytes. Raises EOFError when it ends before."""
    found = bytearray()
    while len(found) < count:
        part = stream.read(min(_CHUNK, count - len(found)))  # type: ignore[attr-defined]
        if not part:
            raise EOFError("it was cut off")
        found += part
    return bytes(found)
