"""The bytes of a unit: opened, checked to be the file that was listed, and decompressed.

A file is checked when it is opened and again after its last byte was read, both on the open descriptor: a file that was
replaced meanwhile is either wholly the old one or refused, and one that was written to in place is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from onefold.compute.plan.nodes import Source
from onefold.compute.plan.stages import Unit
from onefold.compute.sources import charsets, compression, etags, remote
from onefold.errors import InvalidValue


def display(path: str) -> str:
    """A path for messages: relative to the current directory where it is below that, else as it is."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return path


def changed(path: str, detail: str = "") -> InvalidValue:
    """The error for a file that is not the one the job was made for."""
    return InvalidValue(f"{display(path)} changed while the job ran{detail}; run it again")


class RawFile:
    """The stored bytes of one file at any offset."""

    def __init__(self, source: Source, unit: Unit) -> None:
        self._unit = unit
        self.source = source
        self._fd = -1
        self._handle: IO[bytes] | None = None
        if remote.is_remote(unit.path):
            remote.check_unchanged(source, unit.path, unit.size, unit.etag)
            self._handle = remote.open_remote(source, unit.path)
        else:
            try:
                self._fd = os.open(unit.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise changed(unit.path, " (it is gone)") from error
            except OSError as error:
                raise InvalidValue(f"cannot read {display(unit.path)}: {error.strerror}") from error
            try:
                self.verify()
            except BaseException:
                os.close(self._fd)
                raise

    @property
    def is_local(self) -> bool:
        """Whether reads at random offsets cost nothing extra."""
        return self._handle is None

    def verify(self) -> None:
        """Raise ``InvalidValue`` if the open file is not, or no longer, what was listed."""
        if self._handle is None and not etags.is_same(
            self._unit.etag, self._unit.path, os.fstat(self._fd), self._fd
        ):
            raise changed(self._unit.path)

    def read_at(self, offset: int, count: int) -> bytes:
        """Exactly the stored bytes ``[offset, offset + count)``, fewer only at the end of the file."""
        count = max(0, min(count, self._unit.size - offset))
        if self._handle is not None:
            self._handle.seek(offset)
            data = self._handle.read(count)
        else:
            data = os.pread(self._fd, count, offset)
            if 0 < len(data) < count:
                data = self._read_rest(data, offset, count)
        if len(data) != count:
            raise changed(self._unit.path, " (it got shorter)")
        return data

    def _read_rest(self, data: bytes, offset: int, count: int) -> bytes:
        """Linux gives at most 2 GiB at once, and a signal may cut a read short."""
        parts = [data]
        got = len(data)
        while got < count and (more := os.pread(self._fd, count - got, offset + got)):
            parts.append(more)
            got += len(more)
        return b"".join(parts)

    def close(self) -> None:
        """Give the file back."""
        if self._handle is not None:
            self._handle.close()
        elif self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextmanager
def open_raw(source: Source, unit: Unit) -> Iterator[RawFile]:
    """The file of a unit, checked at both ends of its use."""
    raw = RawFile(source, unit)
    try:
        yield raw
        raw.verify()
    finally:
        raw.close()


def is_whole(unit: Unit) -> bool:
    """Whether the unit is a whole file (a compressed file always is)."""
    return unit.start == 0 and unit.stop >= unit.size


def stored_blocks(raw: RawFile, unit: Unit, start: int, block_bytes: int) -> Iterator[bytes]:
    """The stored bytes from ``start`` to the end of the file, block by block."""
    position = start
    while position < unit.size:
        block = raw.read_at(position, block_bytes)
        yield block
        position += len(block)


def is_packed(raw: RawFile, unit: Unit) -> bool:
    """Whether the file is compressed. Raises ``InvalidValue`` for one that is known to be no text."""
    head = raw.read_at(0, compression.HEAD_BYTES)
    if compression.kind_of(display(unit.path), head) is not None:
        return True
    charsets.check_head(raw.source, display(unit.path), head)
    return False


def content_blocks(raw: RawFile, unit: Unit, start: int, block_bytes: int) -> Iterator[bytes]:
    """What the file says from ``start`` on, decompressed if need be, in blocks of bounded size.

    Raises ``InvalidValue`` for a compressed file that is cut off, damaged, or packed in a way that is not known. The consumer
    stops at ``unit.stop``.
    """
    if not is_whole(unit):
        return stored_blocks(raw, unit, start, block_bytes)
    head = raw.read_at(0, compression.HEAD_BYTES)
    blocks = compression.blocks(display(unit.path), head, raw.read_at, unit.size, start, block_bytes)
    return blocks if start else _checked_text(raw, unit, blocks)


def _checked_text(raw: RawFile, unit: Unit, blocks: Iterator[bytes]) -> Iterator[bytes]:
    held, size = list[bytes](), 0
    for block in blocks:
        held.append(block)
        size += len(block)
        if size >= compression.HEAD_BYTES:
            break
    charsets.check_head(raw.source, display(unit.path), b"".join(held)[: compression.HEAD_BYTES])
    yield from held
    yield from blocks
