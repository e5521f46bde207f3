"""Compressed files: told by their first bytes, unpacked in blocks of bounded size, or refused by name.

gzip, zstd, bzip2, xz (and the older ``.lzma``), zlib and zip archives with one file are unpacked. What else is known to be
compressed, or to be no text at all, is an error: read as text it would be a table of garbage. The name of a file counts only
where the bytes cannot tell: ``.zz``, ``.zlib``, ``.lzma`` and ``.br`` have no magic number, or one that text may begin with.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from onefold.errors import InvalidValue

HEAD_BYTES = 300
"""As many first bytes of a file tell how it is packed."""
_STORED_BYTES = 64 * 1024
_ZSTD_STEP_BYTES_MAX = 4096
_XZ_MEMORY_BYTES_MAX = 1 << 30
_ZIP_LOCAL = struct.Struct("<4s5H3I2H")
_ZIP_ENTRY = struct.Struct("<4s6H3I5H2I")
_ZIP_END = struct.Struct("<4s4H2IH")
_ZIP_COMMENT_BYTES_MAX = 65_535
_ZIP64 = 0xFFFFFFFF

ReadAt = Callable[[int, int], bytes]

_READ = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
)
_REFUSED = (
    (b"\x1f\x9d", "compressed by compress (.Z)"),
    (b"\x1f\xa0", "compressed by compress (.Z)"),
    (b"\x1f\x1e", "compressed by pack (.z)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x04\x22\x4d\x18", "compressed by lz4"),
    (b"\x02\x21\x4c\x18", "compressed by lz4 (its legacy format)"),
    (b"\xff\x06\x00\x00sNaPpY", "compressed by snappy"),
    (b"\x89LZO\x00\x0d\x0a\x1a\x0a", "compressed by lzop"),
    (b"LZIP\x01", "compressed by lzip"),
    (b"PK\x07\x08", "a zip archive in several parts"),
    (b"PAR1", "Parquet: read it with read_parquet"),
    (b"PARE", "encrypted Parquet"),
    (b"ARROW1\x00\x00", "an Arrow IPC (Feather) file"),
    (b"FEA1", "a Feather file"),
    (b"ORC\x0a", "an ORC file"),
    (b"Obj\x01", "an Avro file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document (.xls)"),
    (b"%PDF-", "a PDF document"),
    (b"\x7fELF", "a program"),
    (b"\xcf\xfa\xed\xfe", "a program"),
    (b"\xca\xfe\xba\xbe", "a program or a Java class"),
    (b"\x00asm", "WebAssembly"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF87a", "a GIF picture"),
    (b"GIF89a", "a GIF picture"),
    (b"II*\x00", "a TIFF picture"),
    (b"MM\x00*", "a TIFF picture"),
    (b"RIFF", "a RIFF file (WebP, WAV or AVI)"),
    (b"OggS\x00", "an Ogg file"),
    (b"fLaC\x00", "a FLAC file"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM film"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x80\x04\x95", "a pickle"),
    (b"\x80\x05\x95", "a pickle"),
)
_BY_NAME = {
    ".br": "compressed by brotli",
    ".lzo": "compressed by lzo",
    ".sz": "compressed by snappy",
    ".snappy": "compressed by snappy",
    ".lz4": "compressed by lz4",
    ".7z": "a 7z archive",
    ".rar": "a RAR archive",
    ".z": "compressed by compress (.Z)",
}
"""Refused where no magic number says what it is."""
_UNPACKED_SUFFIXES = {
    ".gz": "gzip",
    ".zst": "zstd",
    ".bz2": "bzip2",
    ".xz": "xz",
    ".zip": "zip",
    ".zz": "zlib",
    ".zlib": "zlib",
    ".lzma": "lzma",
}
SUFFIXES = ("", *_UNPACKED_SUFFIXES)
"""What may stand behind the suffix of a format."""


def kind_of(path: str, head: bytes) -> str | None:
    """How a file is packed: a kind that ``blocks`` unpacks, or None for what is plain.

    Raises ``InvalidValue`` for what is known to be something else, naming it.
    """
    if kind := _packed_as(head):
        return kind
    if what := _refused_as(head):
        raise InvalidValue(f"{path} is {what}; unpack or convert it first: {_WHAT_IS_READ}")
    suffix = path[path.rfind(".") :].lower() if "." in path else ""
    if suffix in (".zz", ".zlib") and _is_zlib(head):
        return "zlib"
    if suffix == ".lzma" and head.startswith(b"\x5d\x00"):
        return "lzma"
    if suffix in _BY_NAME and head:
        raise InvalidValue(f"{path} is {_BY_NAME[suffix]}; unpack it first: {_WHAT_IS_READ}")
    if suffix in _UNPACKED_SUFFIXES and head and _is_binary(head):
        raise InvalidValue(
            f"{path} is not {_UNPACKED_SUFFIXES[suffix]} and not text either: it is damaged; replace the file and run again"
        )
    return None


_WHAT_IS_READ = "gzip, zstd, bzip2, xz and zip are read as they are"


def _packed_as(head: bytes) -> str | None:
    for magic, kind in _READ:
        if head.startswith(magic) and (kind != "bzip2" or _is_bzip2(head)):
            return kind
    return None


def _refused_as(head: bytes) -> str | None:
    for magic, what in _REFUSED:
        if head.startswith(magic) and (not magic.strip().isalnum() or _is_binary(head)):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[4:8] == b"ftyp" and head[:1] == b"\0":
        return "an MP4 film or one of its kin"
    return None


def _is_bzip2(head: bytes) -> bool:
    """Text may begin with BZh as well; the number and the magic of a block, or of the end, may not."""
    return head[3:4] in b"123456789" and head[4:10] in (
        b"\x31\x41\x59\x26\x53\x59",
        b"\x17\x72\x45\x38\x50\x90",
    )


def _is_zlib(head: bytes) -> bool:
    return len(head) > 1 and head[0] & 0x0F == 8 and int.from_bytes(head[:2], "big") % 31 == 0


def _is_binary(head: bytes) -> bool:
    """Whether these bytes are no text: control characters, or bytes that UTF-8 has not."""
    return any(byte > 0xF7 or (byte < 0x20 and byte not in b"\t\n\v\f\r\x1b\x1a") for byte in head)


def blocks(
    path: str, head: bytes, read_at: ReadAt, size: int, start: int, block_bytes: int
) -> Iterator[bytes]:
    """The content of a whole file in blocks of bounded size; plain content begins at ``start``.

    Raises ``InvalidValue`` for what is cut off, damaged, or packed in a way that is not known.
    """
    kind = kind_of(path, head)
    if kind is None:
        return _stored(read_at, start, size, block_bytes)
    return _known_plain(path, kind, _unpacked(path, kind, read_at, size, block_bytes))


def _known_plain(path: str, kind: str, unpacked: Iterator[bytes]) -> Iterator[bytes]:
    """The blocks as they are. Raises ``InvalidValue`` if what was packed is packed again, or known to be no text."""
    held: list[bytes] = []
    size = 0
    for block in unpacked:
        held.append(block)
        size += len(block)
        if size >= HEAD_BYTES:
            break
    head = b"".join(held)[:HEAD_BYTES]
    if inner := _packed_as(head):
        raise InvalidValue(f"{path} is compressed twice ({inner} inside {kind}); unpack it once first")
    if what := _refused_as(head):
        raise InvalidValue(f"{path} is {what} inside {kind}; unpack or convert it first")
    yield from held
    yield from unpacked


def _unpacked(path: str, kind: str, read_at: ReadAt, size: int, block_bytes: int) -> Iterator[bytes]:
    if kind == "zip":
        return _zip_member(path, read_at, size, block_bytes)
    stored = _stored(read_at, 0, size, _STORED_BYTES)
    if kind == "gzip":
        return _members(path, stored, lambda: zlib.decompressobj(wbits=31), zlib.error, block_bytes)
    if kind == "zlib":
        return _members(path, stored, zlib.decompressobj, zlib.error, block_bytes)
    if kind == "bzip2":
        return _members(
            path, stored, lambda: _Lazy(bz2.BZ2Decompressor()), (OSError, ValueError), block_bytes
        )
    if kind in ("xz", "lzma"):
        form = lzma.FORMAT_XZ if kind == "xz" else lzma.FORMAT_ALONE
        make = lambda: _Lazy(lzma.LZMADecompressor(form, memlimit=_XZ_MEMORY_BYTES_MAX))  # noqa: E731
        return _members(path, stored, make, lzma.LZMAError, block_bytes, ends_open=kind == "lzma")
    import zstandard

    return _joined(_members(path, stored, _ZstdFrame, zstandard.ZstdError, block_bytes), block_bytes)


def _stored(read_at: ReadAt, start: int, stop: int, block_bytes: int) -> Iterator[bytes]:
    position = start
    while position < stop:
        block = read_at(position, min(block_bytes, stop - position))
        yield block
        position += len(block)


class _Lazy:
    """A decompressor of ``bz2`` or ``lzma`` with the interface of ``zlib.decompressobj``."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.eof = False
        self.unused_data = self.unconsumed_tail = b""

    def decompress(self, data: bytes, limit: int) -> bytes:
        """At most ``limit`` bytes of what ``data`` holds; what the object keeps for itself comes with the next call."""
        out: bytes = self._inner.decompress(data, limit)
        parts = [out]
        size = len(out)
        while size < limit and not self._inner.eof and not self._inner.needs_input:
            out = self._inner.decompress(b"", limit - size)
            if not out:
                break
            parts.append(out)
            size += len(out)
        self.eof = self._inner.eof
        self.unused_data = self._inner.unused_data if self.eof else b""
        return b"".join(parts)

    @property
    def pending(self) -> bool:
        """Whether it can give more without more input."""
        return not self._inner.eof and not self._inner.needs_input


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
    path: str,
    stored: Iterator[bytes],
    new: Callable[[], Any],
    broken: type[Exception] | tuple[type[Exception], ...],
    output_bytes: int,
    *,
    ends_open: bool = False,
) -> Iterator[bytes]:
    """Decompress a file of one or more members (gzip), streams (bzip2, xz) or frames (zstd), one after the other.

    ``ends_open``: the format need not say where it ends.
    """
    decoder = None
    try:
        for data in stored:
            while data:
                if decoder is None:
                    # All formats are padded with zeros by some writers (tar, block devices).
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                    decoder = new()
                if out := _fed(decoder, data, output_bytes, broken):
                    yield out
                while getattr(decoder, "pending", False) and (
                    out := _fed(decoder, b"", output_bytes, broken)
                ):
                    yield out
                if decoder.eof:
                    data, decoder = decoder.unused_data, None
                else:
                    data = decoder.unconsumed_tail
    except _Damaged as damage:
        error = damage.__cause__
        raise InvalidValue(f"{path} is damaged: {error}; replace the file and run again") from error
    if decoder is not None and not ends_open:
        raise InvalidValue(
            f"{path} is cut off: its compressed data has no end; replace the file and run again"
        )


class _Damaged(Exception):
    """What the decompressor raised, and not what reading the file did."""


def _fed(
    decoder: Any, data: bytes, limit: int, broken: type[Exception] | tuple[type[Exception], ...]
) -> bytes:
    try:
        out: bytes = decoder.decompress(data, limit)
    except broken as error:
        raise _Damaged from error
    return out


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


# -- zip: the list of files stands at the end


def _zip_member(path: str, read_at: ReadAt, size: int, block_bytes: int) -> Iterator[bytes]:
    """The one file of an archive. Raises ``InvalidValue`` for several files, passwords and other methods than deflate."""
    tail_at = max(0, size - _ZIP_END.size - _ZIP_COMMENT_BYTES_MAX)
    tail = read_at(tail_at, size - tail_at)
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or len(tail) - found < _ZIP_END.size:
        _bad_zip(path, "it is cut off: its list of files is missing")
    _, _, _, _, count, listed_bytes, listed_at, _ = _ZIP_END.unpack_from(tail, found)
    if _ZIP64 in (listed_bytes, listed_at):
        _bad_zip(path, "it is in the zip64 format")
    listed = read_at(listed_at, listed_bytes)
    entries, at = [], 0
    for _ in range(count):
        if len(listed) - at < _ZIP_ENTRY.size or listed[at : at + 4] != b"PK\x01\x02":
            _bad_zip(path, "its list of files is damaged")
        entry = _ZIP_ENTRY.unpack_from(listed, at)
        name = listed[at + _ZIP_ENTRY.size :][: entry[10]]
        at += _ZIP_ENTRY.size + entry[10] + entry[11] + entry[12]
        if not name.endswith(b"/") and not name.startswith(b"__MACOSX/"):
            entries.append((name.decode("utf-8", "backslashreplace"), entry))
    if len(entries) != 1:
        _bad_zip(path, f"it has {len(entries)} files, and only archives with one are read")
    _, entry = entries[0]
    flags, method, crc, stored_bytes, plain_bytes, local_at = (
        entry[3],
        entry[4],
        entry[7],
        entry[8],
        entry[9],
        entry[16],
    )
    if flags & 1:
        _bad_zip(path, "it has a password")
    if method not in (0, 8):
        _bad_zip(path, f"it is packed by method {method}, and only deflate is read")
    if _ZIP64 in (stored_bytes, plain_bytes, local_at):
        _bad_zip(path, "it is in the zip64 format")
    local = read_at(local_at, _ZIP_LOCAL.size)
    if len(local) < _ZIP_LOCAL.size or local[:4] != b"PK\x03\x04":
        _bad_zip(path, "it is damaged")
    name_bytes, extra_bytes = _ZIP_LOCAL.unpack(local)[9:11]
    begin = local_at + _ZIP_LOCAL.size + name_bytes + extra_bytes
    stored = _stored(
        read_at, begin, min(size, begin + stored_bytes), _STORED_BYTES if method else block_bytes
    )
    plain = (
        _members(path, stored, lambda: zlib.decompressobj(wbits=-15), zlib.error, block_bytes)
        if method
        else stored
    )
    return _checked(path, plain, plain_bytes, crc)


def _checked(path: str, plain: Iterator[bytes], size: int, crc: int) -> Iterator[bytes]:
    got = so_far = 0
    for block in plain:
        got += len(block)
        so_far = zlib.crc32(block, so_far)
        yield block
    if (got, so_far) != (size, crc):
        _bad_zip(path, "its content does not match its checksum")


def _bad_zip(path: str, why: str) -> NoReturn:
    raise InvalidValue(
        f"{path} is a zip archive that cannot be read: {why}; unpack it first, or replace the file"
    )
