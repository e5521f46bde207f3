"""The bytes of a unit: opened, checked to be the file that was listed, and decompressed.

A file is checked when it is opened and again after its last byte was read, both on the open descriptor: a file that was
replaced meanwhile is either wholly the old one or refused, and one that was written to in place is refused.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from onefold.compute.plan import Source
from onefold.compute.sources import etags, remote
from onefold.compute.stages import Unit
from onefold.errors import InvalidValue

Compression = Literal["gzip", "zstd"]
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_STEP_BYTES_MAX = 4096
_STORED_BYTES = 64 * 1024


def display(path: str) -> str:
    """A path for messages: relative to the current directory where it is below that, else as it is."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return path


def changed(path: str, detail: str = "") -> InvalidValue:
    """The error for a file that is not the one the job was made for."""
    return InvalidValue(f"{display(path)} changed while the job ran{detail}; run it again")


def compression_of(head: bytes) -> Compression | None:
    """What the first bytes of a file say; names are not trusted."""
    if head.startswith(_GZIP_MAGIC):
        return "gzip"
    return "zstd" if head.startswith(_ZSTD_MAGIC) else None


class RawFile:
    """The stored bytes of one file at any offset."""

    def __init__(self, source: Source, unit: Unit) -> None:
        self._unit = unit
        self._source = source
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


def content_blocks(raw: RawFile, unit: Unit, start: int, block_bytes: int) -> Iterator[bytes]:
    """What the file says from ``start`` on, decompressed if need be, in blocks of bounded size.

    Raises ``InvalidValue`` for a compressed file that is cut off or damaged. The consumer stops at ``unit.stop``.
    """
    kind = compression_of(raw.read_at(0, 4)) if is_whole(unit) else None
    if kind is None:
        return stored_blocks(raw, unit, start, block_bytes)
    stored = stored_blocks(raw, unit, 0, _STORED_BYTES)
    if kind == "gzip":
        return _members(unit.path, stored, lambda: zlib.decompressobj(wbits=31), zlib.error, block_bytes)
    import zstandard

    return _joined(_members(unit.path, stored, _ZstdFrame, zstandard.ZstdError, block_bytes), block_bytes)


class _ZstdFrame:
    """One zstd frame with the interface of ``zlib.decompressobj``, whose output is bounded.

    zstandard's own object gives all that its input holds, and 4 bytes may hold 128 KiB. So it is fed in steps as large as
    the ratio so far allows for ``limit`` bytes of output; only where the ratio leaps may a step give more (128 MiB at most).
    """

    def __init__(self) -> None:
        import zstandard

        self._inner = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
        self._step = 64
        self.eof = False
        self.unused_data = self.unconsumed_tail = b""

    def decompress(self, data: bytes, limit: int) -> bytes:
        """Some of what ``data`` holds; what was not looked at is then in ``unconsumed_tail`` or ``unused_data``."""
        step = self._step
        out = self._inner.decompress(data[:step])
        self._step = max(16, min(step * 2, _ZSTD_STEP_BYTES_MAX, step * limit // max(1, len(out))))
        self.eof = self._inner.eof
        rest = data[step:]
        self.unused_data = self._inner.unused_data + rest if self.eof else b""
        self.unconsumed_tail = b"" if self.eof else rest
        return out


def _members(
    path: str, stored: Iterator[bytes], new: Callable[[], Any], broken: type[Exception], output_bytes: int
) -> Iterator[bytes]:
    """Decompress a file of one or more members (gzip) or frames (zstd), one after the other."""
    decoder = None
    try:
        for data in stored:
            while data:
                if decoder is None:
                    # Both formats are padded with zeros by some writers (tar, block devices).
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                    decoder = new()
                if out := decoder.decompress(data, output_bytes):
                    yield out
                if decoder.eof:
                    data, decoder = decoder.unused_data, None
                else:
                    data = decoder.unconsumed_tail
    except broken as error:
        raise InvalidValue(f"{display(path)} is damaged: {error}; replace the file and run again") from error
    if decoder is not None:
        raise InvalidValue(
            f"{display(path)} is cut off: its compressed data has no end; replace the file and run again"
        )


def _joined(pieces: Iterator[bytes], block_bytes: int) -> Iterator[bytes]:
    """Small pieces put together to blocks of at least ``block_bytes``."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= block_bytes:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
