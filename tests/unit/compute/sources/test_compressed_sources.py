"""Compressed files: unpacked whatever their name, in bounded memory, or refused by name; never a table of garbage."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import zstandard

from onefold.compute import sources
from onefold.compute.sources import compression
from onefold.errors import InvalidValue

ROWS = b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(30_000))


def zipped(data: bytes, method: int = zipfile.ZIP_DEFLATED, files: tuple[str, ...] = ("a.csv",)) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name in files:
            archive.writestr(name, data)
    return out.getvalue()


def halves(pack: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda data: pack(data[:1000]) + pack(data[1000:])


PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": (".gz", gzip.compress),
    "gzip members": (".gz", halves(gzip.compress)),
    "zstd": (".zst", zstandard.compress),
    "bzip2": (".bz2", bz2.compress),
    "bzip2 streams": (".bz2", halves(bz2.compress)),
    "xz": (".xz", lzma.compress),
    "xz streams": (".xz", halves(lzma.compress)),
    "lzma": (".lzma", lambda data: lzma.compress(data, lzma.FORMAT_ALONE)),
    "zlib": (".zz", zlib.compress),
    "zip": (".zip", zipped),
    "zip, stored": (".zip", lambda data: zipped(data, zipfile.ZIP_STORED)),
}
BY_MAGIC = [kind for kind in PACKED if kind not in ("lzma", "zlib")]


def read(path: Path, kind: str = "csv") -> pl.DataFrame:
    source = sources.make_source(kind, path)  # type: ignore[arg-type]
    resolved = sources.resolve(source)
    units = sources.units_of(source, resolved, split_bytes=1 << 40, min_units=8)
    return sources.scan(source, resolved.schema, units).collect()


@pytest.mark.parametrize("kind", PACKED)
def test_unpacked(tmp_path: Path, kind: str) -> None:
    suffix, pack = PACKED[kind]
    path = tmp_path / f"a.csv{suffix}"
    path.write_bytes(pack(ROWS))
    assert read(path).equals(pl.read_csv(ROWS))
    assert read(tmp_path).height == 30_000, "found in its folder"
    lines = tmp_path / f"b.txt{suffix}"
    lines.write_bytes(pack(b"one\ntwo"))
    assert read(lines, "text")["line"].to_list() == ["one", "two"]
    objects = tmp_path / f"c.jsonl{suffix}"
    objects.write_bytes(pack(b'{"v": 1}\n{"v": 2}\n'))
    assert read(objects, "jsonl")["v"].to_list() == [1, 2]
    empty = tmp_path / f"d.txt{suffix}"
    empty.write_bytes(pack(b""))
    assert read(empty, "text").height == 0


@pytest.mark.parametrize("kind", BY_MAGIC)
@pytest.mark.parametrize("name", ["a.csv", "a", "a.csv.gz", "a.csv.bz2", "a.csv.zip"])
def test_known_by_content_whatever_the_name(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(PACKED[kind][1](b"a,b\n1,2\n"))
    assert read(path).rows() == [(1, 2)]


@pytest.mark.parametrize("kind", PACKED)
def test_cut_off_or_damaged(tmp_path: Path, kind: str) -> None:
    suffix, pack = PACKED[kind]
    rng = random.Random(11)
    data = bytes(rng.randrange(97, 123) if rng.random() < 0.9 else 10 for _ in range(20_000))
    packed = pack(data)
    path = tmp_path / f"a.txt{suffix}"
    whole = [line.decode() for line in data.removesuffix(b"\n").split(b"\n")]
    for cut in (len(packed) // 2, len(packed) - 30):
        if kind == "lzma":
            continue  # that format has no end: a cut file is told only by its last line
        path.write_bytes(packed[:cut])
        with pytest.raises(InvalidValue, match=r"a\.txt"):
            read(path, "text")
    for _ in range(10):
        at = rng.randrange(40, len(packed) - 30)
        path.write_bytes(packed[:at] + bytes([packed[at] ^ 0x55]) + packed[at + 1 :])
        try:
            got = read(path, "text")["line"].to_list()
        except InvalidValue as error:
            assert "a.txt" in str(error)  # noqa: PT017
        else:
            assert kind in ("zstd", "lzma") or got == whole


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("a.csv.Z", b"\x1f\x9d\x90garbage", "compress"),
        ("a.csv", b"7z\xbc\xaf\x27\x1c\x00\x04", "7z"),
        ("a.csv", b"Rar!\x1a\x07\x01\x00", "RAR"),
        ("a.csv.lz4", b"\x04\x22\x4d\x18\x64\x40", "lz4"),
        ("a.csv", b"\xff\x06\x00\x00sNaPpY\x01", "snappy"),
        ("a.csv.snappy", b"\x10\x20\x30", "snappy"),
        ("a.csv.br", b"\x0b\x02\x80a,b\n\x03", "brotli"),
        ("a.csv", b"PAR1\x15\x04\x15", "read_parquet"),
        ("a.csv", b"ARROW1\x00\x00\xff\xff", "Arrow"),
        ("a.csv", b"SQLite format 3\x00\x10", "SQLite"),
        ("a.csv", b"\x00" * 257 + b"ustar\x0000", "tar"),
        ("a.csv.zip", zipped(b"a\n1\n", files=("a.csv", "b.csv")), "2 files"),
        ("a.csv.zip", zipped(b"", files=("dir/",)), "0 files"),
        ("a.csv.zip", zipped(b"a\n1\n", zipfile.ZIP_LZMA), "method 14"),
        ("a.csv.gz", b"\x00\xff\xfe\x01", "damaged"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "text", "jsonl"])
def test_what_cannot_be_unpacked_is_refused(
    tmp_path: Path, name: str, data: bytes, word: str, kind: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InvalidValue, match=word) as caught:
        read(path, kind)
    assert name in str(caught.value)


PACKED_UP = (
    *((PACKED[kind][1](b"a,b\n1,2\n"), "twice") for kind in BY_MAGIC),
    (b"a.csv".ljust(257, b"\0") + b"ustar\x0000" + b"\0" * 250 + b"a,b\n1,2\n", "tar"),
    (b"PAR1\x15\x04\x15", "Parquet"),
    (b"7z\xbc\xaf\x27\x1c\x00\x04", "7z"),
    (b"SQLite format 3\x00\x10", "SQLite"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
)
NO_TEXT = (
    (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "PNG"),
    (b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG"),
    (b"GIF89a\x01\0\x01\0", "GIF"),
    (b"\x7fELF\x02\x01", "program"),
    (b"\0asm\x01\0\0\0", "WebAssembly"),
    (b"\0\0\0\x20ftypisom\0\0", "MP4"),
    (b"RIFF\x24\0\0\0WAVEfmt ", "RIFF"),
    ("a,b\n1,2\n".encode("utf-16"), "UTF-16"),
    (b"\xfe\xff" + "a,b\n1,2\n".encode("utf-16-be"), "UTF-16"),
    ("a,b\n1,2\n".encode("utf-32"), "UTF-32"),
)


@pytest.mark.parametrize("outer", PACKED)
@pytest.mark.parametrize("kind", ["csv", "text", "jsonl"])
def test_what_is_packed_is_known_too(tmp_path: Path, outer: str, kind: str) -> None:
    suffix, pack = PACKED[outer]
    path = tmp_path / f"a.csv{suffix}"
    for data, word in PACKED_UP:
        path.write_bytes(pack(data))
        with pytest.raises(InvalidValue, match=rf"a\.csv.*{word}"):
            read(path, kind)


@pytest.mark.parametrize("kind", ["csv", "text", "jsonl"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_no_text_is_refused_by_name(tmp_path: Path, kind: str, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.csv"
    for data, word in NO_TEXT:
        path.write_bytes(pack(data * 9))
        with pytest.raises(InvalidValue, match=rf"a\.csv is .*{word}"):
            read(path, kind)


def test_zero_bytes_are_text_for_text_only(tmp_path: Path) -> None:
    for data in ("a,b\n1,2\n".encode("utf-16-le"), b"a,b\n1,\0\n"):
        path = tmp_path / "a.csv"
        path.write_bytes(data)
        for kind in ("csv", "jsonl"):
            with pytest.raises(InvalidValue, match=r"a\.csv is not UTF-8 text"):
                read(path, kind)
        assert read(path, "text").height == data.count(b"\n") + (not data.endswith(b"\n"))


def test_other_encodings_of_text_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("é\nü\n".encode("utf-16"))
    with pytest.raises(InvalidValue, match=r"encoding='utf-16'"):
        read(path, "text")
    for options, first in (({"encoding": "utf-16"}, "é"), ({"errors": "replace"}, "\ufffd\ufffd\ufffd\0")):
        source = sources.make_source("text", path, **options)
        resolved = sources.resolve(source)
        units = sources.units_of(source, resolved, split_bytes=1 << 40, min_units=1)
        assert sources.scan(source, resolved.schema, units).collect()["line"][0] == first


@pytest.mark.parametrize(
    "data", [b"BZh, was\n1,2\n", b"PK,b\n1,2\n", b"PAR1,b\n1,2\n", b"ORC\n1\n", "é,b\n1,2\n".encode()]
)
def test_text_that_begins_like_something_else(tmp_path: Path, data: bytes) -> None:
    for name in ("a.csv", "a.csv.gz"):
        path = tmp_path / name
        path.write_bytes(data)
        assert read(path).rows() in ([(1, 2)], [(1,)])


@pytest.mark.parametrize("kind", [kind for kind in PACKED if " " not in kind])
def test_blocks_are_bounded(tmp_path: Path, kind: str) -> None:
    suffix, pack = PACKED[kind]
    data = b"0" * (8 << 20)
    packed = pack(data)
    got = 0
    for block in compression.blocks(
        f"bomb{suffix}", packed[:300], lambda at, count: packed[at : at + count], len(packed), 0, 1 << 16
    ):
        assert len(block) <= (1 << 21 if kind == "zstd" else 1 << 18)
        got += len(block)
    assert got == len(data)
