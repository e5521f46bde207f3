"""Text files: every range border, line ending, encoding and compression gives the lines that Python gives."""

from __future__ import annotations

import gzip
import itertools
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onefold import config
from onefold.compute import sources
from onefold.compute.plan.nodes import Source
from onefold.compute.plan.stages import Unit
from onefold.compute.sources import content, reading
from onefold.errors import InvalidArgument, InvalidValue


def python_lines(data: bytes) -> list[str]:
    """Lines end with \\n or \\r\\n; the last one may lack it."""
    lines = data.decode().split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def whole(path: Path) -> Unit:
    status = path.stat()
    return Unit(
        str(path),
        0,
        status.st_size,
        status.st_size,
        f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}",
        status.st_size,
    )


def ranges(path: Path, borders: Sequence[int]) -> list[Unit]:
    unit = whole(path)
    edges = [0, *borders, unit.size]
    return [Unit(unit.path, a, b, unit.size, unit.etag, b - a) for a, b in itertools.pairwise(edges)]


def lines_of(source: Source, units: Sequence[Unit]) -> list[str]:
    return sources.scan(source, (("line", pl.String()),), units).collect()["line"].to_list()


def read(path: Path, **options: object) -> list[str]:
    source = sources.make_source("text", path, **options)
    resolved = sources.resolve(source)
    units = sources.units_of(source, resolved, split_bytes=1 << 30, min_units=1)
    return sources.scan(source, resolved.schema, units).collect()["line"].to_list()


SAMPLES = {
    "plain": b"one\ntwo\nthree\n",
    "no end": b"one\ntwo\nthree",
    "crlf": b"one\r\ntwo\r\n\r\nthree\r\n",
    "crlf no end": b"one\r\ntwo",
    "lone cr at end": b"one\ntwo\r",
    "inner cr": b"a\rb\r\r\nc\n",
    "empty lines": b"\n\n\na\n\n",
    "only newline": b"\n",
    "multi-byte": "aé\n漢字😀\n\u2028\x85x\x0b\x0c\x1c\n".encode(),
    "nul": b"a\x00b\n\x00\n",
    "long line": b"x" * 40 + b"\ny\n",
    "one line": b"abcdef",
    "bom": b"\xef\xbb\xbfa\nb\n",
}


@pytest.mark.parametrize("streamed", [False, True], ids=["pread", "stream"])
@pytest.mark.parametrize("name", SAMPLES)
def test_every_border_gives_every_line_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, streamed: bool
) -> None:
    """For each single border and seeded sets of several: the ranges' lines in order are the file's lines."""
    data = SAMPLES[name]
    path = tmp_path / "t.txt"
    path.write_bytes(data)
    if streamed:
        monkeypatch.setattr(content.RawFile, "is_local", property(lambda self: False))
    monkeypatch.setattr(reading, "SCAN_PIECE_BYTES", 3)
    source = sources.make_source("text", path)
    expected = python_lines(data)
    assert lines_of(source, [whole(path)]) == expected
    for border in range(1, len(data)):
        units = ranges(path, [border])
        assert [line for unit in units for line in lines_of(source, [unit])] == expected, border
    rng = random.Random(f"borders {name}")
    for _ in range(10):
        borders = sorted(rng.sample(range(1, len(data)), min(len(data) - 1, rng.randint(1, 5))))
        assert lines_of(source, ranges(path, borders)) == expected, borders


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.sampled_from("ab\r\n\n\né漢😀\u2028"), max_size=80).map(str.encode),
    st.lists(st.floats(0, 1), max_size=6),
    st.integers(1, 50),
    st.booleans(),
)
def test_any_file_any_ranges_any_piece_size(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
    cuts: list[float],
    piece: int,
    streamed: bool,
) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(data)
    with monkeypatch.context() as patch:
        patch.setattr(reading, "SCAN_PIECE_BYTES", piece)
        patch.setattr(reading, "BATCH_PIECE_BYTES", piece)
        if streamed:
            patch.setattr(content.RawFile, "is_local", property(lambda self: False))
        source = sources.make_source("text", path)
        units = ranges(path, sorted({int(cut * len(data)) for cut in cuts} - {0, len(data)}))
        assert lines_of(source, units) == python_lines(data)
        batched = [
            batch["line"].to_list()
            for unit in units
            for batch in sources.batches(source, (("line", pl.String()),), unit, 3)
        ]
        assert [line for batch in batched for line in batch] == python_lines(data)
        assert all(0 < len(batch) <= 3 for batch in batched)


def test_a_line_longer_than_several_ranges_belongs_to_the_first(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"a\n" + b"x" * 1000 + b"\nb\n")
    source = sources.make_source("text", path)
    lines = [len(lines_of(source, [unit])) for unit in ranges(path, list(range(100, 1000, 100)))]
    assert lines == [2, 0, 0, 0, 0, 0, 0, 0, 0, 1]


def test_units_tile_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"0123456789abcde\n" * 100_000)
    source = sources.make_source("text", path)
    resolved = sources.resolve(source)
    units = sources.units_of(source, resolved, split_bytes=1 << 30, min_units=10)
    assert len(units) == 10
    assert units[0].start == 0 and units[-1].stop == path.stat().st_size
    assert all(a.stop == b.start for a, b in itertools.pairwise(units))
    assert sum(len(lines_of(source, [u])) for u in units) == 100_000
    small = sources.units_of(source, resolved, split_bytes=1, min_units=10**6)
    assert all(u.cost >= config.SPLIT_BYTES_MIN for u in small)


def test_equal_to_polars_over_many_pieces(tmp_path: Path) -> None:
    rng = random.Random(5)
    path = tmp_path / "t.txt"
    path.write_bytes(
        b"".join(rng.randbytes(rng.randint(0, 99)).hex().encode() + b"\n" for _ in range(120_000))
    )
    assert read(path) == pl.read_lines(path)["line"].to_list()


@pytest.mark.parametrize("suffix", [".gz", ".zst", ""])
@pytest.mark.parametrize("parts", [1, 3])
def test_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, parts: int) -> None:
    """Several members or frames, borders inside lines, names that say nothing; zero padding behind gzip."""
    monkeypatch.setattr(reading, "SCAN_PIECE_BYTES", 1000)
    data = b"".join(b"line %d \xc3\xa9\r\n" % i for i in range(5000))
    step = len(data) // parts + 1
    compress = zstandard.compress if suffix == ".zst" else gzip.compress
    packed = b"".join(compress(data[i : i + step]) for i in range(0, len(data), step))
    path = tmp_path / f"t.txt{suffix}"
    path.write_bytes(packed + (b"\0" * 512 if suffix == ".gz" else b""))
    assert read(path) == python_lines(data)


@pytest.mark.parametrize("kind", ["gz", "zst"])
@pytest.mark.parametrize("left", [0.1, 0.5, 0.99, -1])
def test_cut_off_compressed_file_names_the_file(tmp_path: Path, kind: str, left: float) -> None:
    data = random.Random(1).randbytes(50_000).hex().encode()
    packed = (
        gzip.compress(data) if kind == "gz" else zstandard.ZstdCompressor(write_checksum=True).compress(data)
    )
    path = tmp_path / "cut.txt"
    path.write_bytes(packed[: int(len(packed) * left) if left > 0 else -1])
    with pytest.raises(InvalidValue, match=r"cut\.txt is cut off"):
        read(path)


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_damaged_compressed_file_names_the_file(tmp_path: Path, kind: str) -> None:
    data = b"hello world\n" * 10_000
    packed = (
        gzip.compress(data) if kind == "gz" else zstandard.ZstdCompressor(write_checksum=True).compress(data)
    )
    broken = bytearray(packed)
    broken[len(packed) // 2] ^= 0xFF
    path = tmp_path / "bad.txt"
    path.write_bytes(broken)
    with pytest.raises(InvalidValue, match=r"bad\.txt is (damaged|cut off)"):
        read(path)


def test_highly_compressed_file_is_read_in_bounded_pieces(tmp_path: Path) -> None:
    """30 MB of lines in some KB: the pieces stay small."""
    line = b"x" * 99 + b"\n"
    for name, packed in (
        ("a.gz", gzip.compress(line * 300_000)),
        ("a.zst", zstandard.compress(line * 300_000)),
    ):
        path = tmp_path / name
        path.write_bytes(packed)
        source = sources.make_source("text", path)
        sizes = [len(p.data) for p in reading.all_pieces(source, [whole(path)], 1 << 20)]
        assert sum(sizes) == 30_000_000
        assert max(sizes) <= 8 << 20


def test_invalid_utf8_names_file_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "b.txt"
    path.write_bytes(b"good\n" * 100_000 + b"ab\xffc\n" + b"good\n" * 10)
    with pytest.raises(
        InvalidValue, match=r"b\.txt: line 100001: byte 3 of the line \(0xff\) is not valid UTF-8"
    ):
        read(path)
    lines = read(path, errors="replace")
    assert (len(lines), lines[100_000]) == (100_011, "ab\ufffdc")
    assert read(path, errors="ignore")[100_000] == "abc"
    source = sources.make_source("text", path)
    second = ranges(path, [400_001])[1]
    with pytest.raises(InvalidValue, match=r"b\.txt: line 100001"):
        lines_of(source, [second])


def test_torn_multi_byte_character_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "b.txt"
    path.write_bytes(b"ok\n\xe6\xbc")
    with pytest.raises(InvalidValue, match=r"b\.txt: line 2"):
        read(path)


@pytest.mark.parametrize(
    "encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32", "shift_jis", "utf-8-sig"]
)
def test_encodings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setattr(reading, "SCAN_PIECE_BYTES", 101)
    text = (
        "".join(f"line {i} {'漢字' if encoding[:3] in ('utf', 'shi') else 'é'}\n" for i in range(500))
        + "\nend"
    )
    path = tmp_path / "e.txt"
    path.write_bytes(text.encode(encoding))
    assert read(path, encoding=encoding) == text.split("\n")
    source = sources.make_source("text", path, encoding=encoding)
    units = sources.units_of(source, sources.resolve(source), split_bytes=1, min_units=9)
    assert lines_of(source, units) == text.split("\n")


def test_bytes_that_another_encoding_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "e.txt"
    path.write_bytes(b"a\nb\x81c\n")
    with pytest.raises(InvalidValue, match=r"e\.txt: byte 3: not valid cp1252 \(0x81\)"):
        read(path, encoding="cp1252")
    path.write_bytes("abc\n".encode("utf-16") + b"\x00")
    with pytest.raises(InvalidValue, match=r"e\.txt: after line \d+: not valid utf-16"):
        read(path, encoding="utf-16")


def test_file_changed_between_submission_and_reading(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes(b"one\n")
    source = sources.make_source("text", path)
    resolved = sources.resolve(source)
    units = sources.units_of(source, resolved, split_bytes=100, min_units=1)
    frame = sources.scan(source, resolved.schema, units)
    path.write_bytes(b"one\ntwo\n")
    with pytest.raises(InvalidValue, match=r"c\.txt changed while the job ran.*run it again"):
        frame.collect()
    with pytest.raises(InvalidValue, match="changed while the job ran"):
        list(sources.batches(source, resolved.schema, units[0], 10))
    path.unlink()
    with pytest.raises(InvalidValue, match=r"changed while the job ran \(it is gone\)"):
        frame.collect()


def test_file_written_to_during_reading(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes(b"one\n" * 300_000)
    source = sources.make_source("text", path)
    rows = sources.batches(source, (("line", pl.String()),), whole(path), 10)
    next(rows)
    os.utime(path, ns=(1, 1))
    with pytest.raises(InvalidValue, match="changed while the job ran"):
        list(rows)


def test_same_size_and_time_but_another_file_is_noticed(tmp_path: Path) -> None:
    path, other = tmp_path / "c.txt", tmp_path / "d.txt"
    path.write_bytes(b"one\n")
    unit = whole(path)
    other.write_bytes(b"two\n")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)
    with pytest.raises(InvalidValue, match="changed while the job ran"):
        lines_of(sources.make_source("text", path), [unit])


def test_pushdown_and_paths(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "empty.txt"):
        (tmp_path / name).write_bytes(b"" if name == "empty.txt" else f"{name} 1\n{name} 2".encode())
    source = sources.make_source("text", tmp_path, include_file_paths="file")
    resolved = sources.resolve(source)
    assert resolved.schema == (("line", pl.String()), ("file", pl.String()))
    units = sources.units_of(source, resolved, split_bytes=100, min_units=1)
    frame = sources.scan(source, resolved.schema, units)
    assert frame.collect_schema() == pl.Schema(resolved.schema)
    a, b = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    assert frame.collect().rows() == [("a.txt 1", a), ("a.txt 2", a), ("b.txt 1", b), ("b.txt 2", b)]
    assert frame.select("file").collect()["file"].to_list() == [a, a, b, b]
    assert frame.select(pl.len()).collect().item() == 4
    assert frame.filter(pl.col("line").str.ends_with("2")).select("file").collect()["file"].to_list() == [
        a,
        b,
    ]
    assert frame.slice(1, 2).collect()["line"].to_list() == ["a.txt 2", "b.txt 1"]
    assert frame.filter(pl.col("file") == b).head(1).collect().rows() == [("b.txt 1", b)]
    assert frame.tail(1).collect().rows() == [("b.txt 2", b)]
    assert frame.select("file", "line").collect().columns == ["file", "line"]
    for engine in ("in-memory", "streaming"):
        assert frame.group_by("file").agg(pl.len()).sort("file").collect(engine=engine).rows() == [
            (a, 2),
            (b, 2),
        ]
    empty = [u for u in units if u.size == 0]
    assert sources.scan(source, resolved.schema, empty).collect().schema == pl.Schema(resolved.schema)
    assert sources.scan(source, resolved.schema, []).collect().height == 0


def test_locate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("logs").mkdir()
    path = Path("logs/a.txt").absolute()
    path.write_bytes(b"".join(b"line %d\n" % i for i in range(1, 30_001)))
    source = sources.make_source("text", "logs")
    assert sources.locate(source, whole(path), 16) == "logs/a.txt: line 17"
    second = ranges(path, [100_000])[1]
    first = lines_of(source, [second])[0]
    assert sources.locate(source, second, 0) == f"logs/a.txt: {first}"
    for row in (5, 9_999, 15_000):
        assert sources.locate(source, second, row) == f"logs/a.txt: {lines_of(source, [second])[row]}"
    packed = Path("logs/z.txt").absolute()
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert sources.locate(source, whole(packed), 29_999) == "logs/z.txt: line 30000"


def test_many_small_files_are_parsed_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(300):
        (tmp_path / f"f{i:03}.txt").write_bytes(b"a\nb" if i % 2 else b"c\n")
    calls: list[int] = []
    parse = reading.text.parse
    monkeypatch.setattr(reading.text, "parse", lambda *a: calls.append(len(a[2])) or parse(*a))
    assert read(tmp_path) == ["c", "a", "b"] * 150
    assert calls == [300]


def test_arguments() -> None:
    for bad in (
        {"encoding": "no-such"},
        {"errors": "no-such"},
        {"include_file_paths": ""},
        {"schema": {}},
        {"x": 1},
    ):
        with pytest.raises(InvalidArgument, match=re.escape(next(iter(bad)))):
            sources.make_source("text", "x", **bad)
    for paths in ([], b"x", 3, [3], "", "a\0b", None):
        with pytest.raises(InvalidArgument, match="path"):
            sources.make_source("text", paths)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="unknown kind"):
        sources.make_source("avro", "x")  # type: ignore[arg-type]
    source = sources.make_source("text", "x", encoding="UTF8", errors=None)
    assert source == sources.make_source("text", ["x"], encoding="utf-8")
    assert hash(source) is not None
