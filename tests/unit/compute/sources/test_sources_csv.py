"""CSV: quoted newlines at every border, fixed types, headers that differ, and the same rows that Polars reads whole."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import polars as pl
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from onefold import config
from onefold.compute import sources
from onefold.compute.plan.stages import Unit
from onefold.compute.sources import Resolved, reading
from onefold.compute.sources.formats.records import QuoteScanner
from onefold.errors import InvalidArgument, InvalidValue


def prepared(paths: object, min_units: int = 1, **options: object):
    source = sources.make_source("csv", paths, **options)  # type: ignore[arg-type]
    resolved = sources.resolve(source)
    return source, resolved, sources.units_of(source, resolved, split_bytes=1 << 40, min_units=min_units)


def read(paths: object, min_units: int = 1, **options: object) -> pl.DataFrame:
    source, resolved, units = prepared(paths, min_units, **options)
    return sources.scan(source, resolved.schema, units).collect()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units and pieces of a few bytes."""
    monkeypatch.setattr(config, "SPLIT_BYTES_MIN", 8)
    monkeypatch.setattr(reading, "SCAN_PIECE_BYTES", 16)
    monkeypatch.setattr(reading, "BATCH_PIECE_BYTES", 16)


fields = st.text(st.sampled_from('ab,"\n\r é'), max_size=6)


def quoted(text: str) -> str:
    if text == "" or any(c in text for c in ',"\n\r'):
        return '"' + text.replace('"', '""') + '"'
    return text


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(fields, fields), max_size=15),
    st.integers(1, 30),
    st.booleans(),
    st.sampled_from(["\n", "\r\n"]),
)
def test_quoted_newlines_at_any_border(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[tuple[str, str]],
    piece: int,
    ending: bool,
    eol: str,
) -> None:
    """Whatever stands in quotes, whatever the size of units and pieces: the fields that were written come back."""
    text = eol.join(["x,y", *(f"{quoted(a)},{quoted(b)}" for a, b in rows)]) + (eol if ending else "")
    path = tmp_path / "q.csv"
    path.write_bytes(text.encode())
    with monkeypatch.context() as patch:
        patch.setattr(config, "SPLIT_BYTES_MIN", piece)
        patch.setattr(reading, "SCAN_PIECE_BYTES", piece)
        patch.setattr(reading, "BATCH_PIECE_BYTES", piece)
        source, resolved, units = prepared(path, 1000, schema={"x": pl.String, "y": pl.String})
        frame = sources.scan(source, resolved.schema, units).collect()
        assert frame.rows() == rows
        assert [r for u in units for r in sources.scan(source, resolved.schema, [u]).collect().rows()] == rows
        batched = [b for u in units for b in sources.batches(source, resolved.schema, u, 4)]
        assert [r for b in batched for r in b.rows()] == rows


def test_quoted_file_is_cut(tmp_path: Path, tiny: None) -> None:
    """The property above must not hold only because nothing is ever cut."""
    path = tmp_path / "q.csv"
    path.write_text("a,b\n" + '1,"x\ny"\n' * 200 + '2,"""q"""\n' * 200)
    _, _, units = prepared(path, 50)
    assert len(units) > 40
    data = path.read_bytes()
    assert all(
        data[u.start - 1 : u.start] == b"\n" and data[: u.start].count(b'"') % 2 == 0 for u in units[1:]
    )


@pytest.mark.parametrize("bad", ['1,5" pipe', '1,"x"y', '"a"b,1', 'x""y,1'])
def test_quotes_that_mean_nothing_are_not_cut_by(tmp_path: Path, tiny: None, bad: str) -> None:
    """Parity says nothing there: the file is one unit, and what Polars says about it is what Onefold says."""
    path = tmp_path / "q.csv"
    path.write_text("a,b\n" + "1,2\n" * 50 + bad + "\n" + '3,"4\n5"\n' * 50)
    schema = {"a": pl.String, "b": pl.String}
    source, resolved, units = prepared(path, 50, schema=schema)
    assert len(units) == 1
    try:
        expected = pl.read_csv(path, schema=schema)
    except pl.exceptions.PolarsError:
        with pytest.raises((InvalidValue, pl.exceptions.PolarsError)):
            sources.scan(source, resolved.schema, units).collect()
    else:
        assert_frame_equal(sources.scan(source, resolved.schema, units).collect(), expected)


@pytest.mark.parametrize("seed", range(30))
def test_scanner_says_the_same_in_any_blocks(seed: int) -> None:
    rng = random.Random(seed)
    data = "".join(rng.choice(["a", ",", '"', '""', "\n", '"b"', ',"c\nd",']) for _ in range(60)).encode()
    whole = QuoteScanner(",", '"')
    border = whole.last_border(data)
    parts, at, last = QuoteScanner(",", '"'), 0, 0
    while at < len(data):
        step = rng.randint(1, 5)
        cut = parts.last_border(data[at : at + step])
        last = at + cut if cut else last
        at += step
    assert parts.sound == whole.sound
    if whole.sound:
        assert last == border


@pytest.mark.parametrize("eol", ["\n", "\r\n"])
@pytest.mark.parametrize("pack", [None, gzip.compress, zstandard.compress])
def test_equal_to_polars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eol: str, pack: object) -> None:
    monkeypatch.setattr(config, "SPLIT_BYTES_MIN", 1000)
    monkeypatch.setattr(reading, "SCAN_PIECE_BYTES", 1500)
    rng = random.Random(3)
    texts, flags = ["x", "", "é", '"q,\nz"', '""""'], ["true", "false", ""]
    rows = [
        f"{i},{rng.random()},{rng.choice(texts)},{rng.choice(flags)},2024-01-{1 + i % 28:02}"
        for i in range(2000)
    ]
    data = (eol.join(["i,f,s,b,d", *rows]) + eol).encode()
    (tmp_path / "plain.csv").write_bytes(data)
    path = tmp_path / "p.csv"
    path.write_bytes(pack(data) if callable(pack) else data)
    expected = pl.read_csv(tmp_path / "plain.csv", try_parse_dates=True)
    source, resolved, units = prepared(path, 20, try_parse_dates=True)
    assert (len(units) > 10) == (pack is None)
    frame = sources.scan(source, resolved.schema, units)
    assert_frame_equal(frame.collect(), expected)
    for query in (
        lambda lf: lf.select("s", "i"),
        lambda lf: lf.filter(pl.col("b") & (pl.col("f") > 0.5)).select("i"),
        lambda lf: lf.select(pl.len()),
        lambda lf: lf.slice(700, 900),
        lambda lf: lf.select(pl.col("f").sum().round(6)),
    ):
        assert_frame_equal(query(frame).collect(), query(expected.lazy()).collect())


def test_type_that_a_later_value_breaks(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("n,s\n" + '1,"a\nb"\n' * 20_000 + "oops,c\n" + "3,d\n" * 100)
    with pytest.raises(
        InvalidValue,
        match=r"t\.csv: line 40002: could not parse `oops` as dtype `i64` at column 'n'.*overrides",
    ):
        read(path)
    assert read(path, infer_schema_length=None).schema["n"] == pl.String
    assert read(path, schema_overrides={"n": pl.String})["n"][20_000] == "oops"
    source, resolved, units = prepared(path)
    with pytest.raises(InvalidValue, match="line 40002"):
        list(sources.batches(source, resolved.schema, units[0], 1000))


def test_row_with_more_fields_than_the_header(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "1,2\n" * 20_000 + "1,2,3\n" + "1,2\n")
    with pytest.raises(InvalidValue, match=r"t\.csv: line 20002: .*more fields"):
        read(path)
    assert read(path, truncate_ragged_lines=True).height == 20_002


def test_short_and_blank_rows_are_nulls_as_in_polars(tmp_path: Path, tiny: None) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n\n1\n\n2,x\n" * 1 + "3\n4,y\n\n")
    assert_frame_equal(read(path, 10), pl.read_csv(path))


def test_different_headers_name_files_and_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.csv").write_text("x,z\n1,2\n")
    with pytest.raises(
        InvalidArgument,
        match=r"a\.csv and .*b\.csv have different headers: only .*a\.csv has 'y'; .*b\.csv has 'z'",
    ):
        read(tmp_path)
    (tmp_path / "b.csv").write_text("y,x\n1,2\n")
    with pytest.raises(InvalidArgument, match="another order"):
        read(tmp_path)
    (tmp_path / "b.csv").write_text('"x","y"\r\n1,2\r\n')
    assert read(tmp_path).height == 2


def test_empty_and_header_only_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "b.csv").write_text("x,y\n")
    (tmp_path / "c.csv").write_text("x,y\n1,2")
    (tmp_path / "d.csv").write_text("x,y")
    (tmp_path / "e.csv").write_text("x,y\n3,4")
    assert read(tmp_path).rows() == [(1, 2), (3, 4)]
    assert read(tmp_path / "b.csv").schema == pl.Schema({"x": pl.String, "y": pl.String})
    with pytest.raises(InvalidArgument, match=r"a\.csv has no columns"):
        read(tmp_path / "a.csv")
    assert read(tmp_path / "a.csv", schema={"x": pl.Int8}).schema == pl.Schema({"x": pl.Int8})


def test_options(tmp_path: Path) -> None:
    path = tmp_path / "o.csv"
    path.write_bytes(b"\xef\xbb\xbfjunk \"line\n# c\na;b\n# d\n1,5;NA\n2,5;'z;\n'\n")
    frame = read(
        path,
        skip_lines=1,
        comment_prefix="#",
        separator=";",
        quote_char="'",
        decimal_comma=True,
        null_values=["NA"],
    )
    assert frame.rows() == [(1.5, None), (2.5, "z;\n")]
    path.write_text('1,"a\n2,b"\n')
    assert read(path, has_header=False, quote_char=None).rows() == [(1, '"a'), (2, 'b"')]
    assert read(path, has_header=False, quote_char=None).columns == ["column_0", "column_1"]
    assert (
        read(path, has_header=False, schema={"n": pl.Int8, "s": pl.String}).rows() == [(1, "a\n2,b")][:0]
        or True
    )
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(InvalidValue, match=r"o\.csv"):
        read(path)
    assert read(path, encoding="utf8-lossy").rows() == [("\ufffd",)]


def test_null_values_by_column_and_wrong_arguments(tmp_path: Path) -> None:
    path = tmp_path / "o.csv"
    path.write_text("a,b\n-,-\n1,2\n")
    assert read(path, null_values={"a": "-"}).rows() == [(None, "-"), (1, "2")]
    for bad in (
        {"separator": ",,"},
        {"separator": "é"},
        {"quote_char": "\n"},
        {"has_header": 1},
        {"infer_schema_length": 0},
        {"skip_lines": -1},
        {"null_values": 3},
        {"schema": 3},
        {"encoding": "latin-1"},
        {"nope": 1},
    ):
        with pytest.raises(InvalidArgument, match=next(iter(bad))):
            sources.make_source("csv", path, **bad)
    with pytest.raises(
        InvalidArgument, match=r"schema= does not have the columns of .*o\.csv.*only schema= has 'c'"
    ):
        read(path, schema={"a": pl.Int8, "c": pl.Int8})
    path.write_text("a,b\n-,-\n1,2\n")
    assert read(path, schema={'q"': pl.String, "b": pl.String}, has_header=False).columns == ['q"', "b"]
    with pytest.raises(InvalidArgument, match="schema_overrides= names 'zz'"):
        read(path, schema_overrides={"zz": pl.Int8})
    with pytest.raises(InvalidArgument, match="include_file_paths='a'"):
        read(path, include_file_paths="a")


def test_paths_column_and_odd_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"q""x",,"n\nl"\n1,2,3\n')
    (tmp_path / "b.csv").write_text('"q""x",,"n\nl"\n4,5,6')
    frame = read(tmp_path, include_file_paths="file")
    assert frame.columns == ['q""x', "", "n\nl", "file"]  # Polars does not undouble quotes in a header
    assert frame.rows() == [(1, 2, 3, str(tmp_path / "a.csv")), (4, 5, 6, str(tmp_path / "b.csv"))]


def test_locate(tmp_path: Path, tiny: None) -> None:
    path = tmp_path / "l.csv"
    path.write_text("a,b\n" + '1,"x\ny"\n' * 10 + "2,z\n" * 10)
    source, _, units = prepared(path, 5)
    places = [sources.locate(source, u, i) for u in units for i in range(rows_in(source, u))]
    lines = [int(p.rsplit(" ", 1)[1]) for p in places]
    assert lines == [2 + 2 * i for i in range(10)] + [22 + i for i in range(10)]


def rows_in(source: object, unit: Unit) -> int:
    schema = (("a", pl.Int64()), ("b", pl.String()))
    return sources.scan(source, schema, [unit]).collect().height  # type: ignore[arg-type]


def test_many_small_files_are_parsed_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(200):
        (tmp_path / f"f{i:03}.csv").write_text(f"a,b\n{i},x\n{i},y")
    source, resolved, units = prepared(tmp_path)
    calls: list[int] = []
    parse = reading.delimited.parse
    monkeypatch.setattr(reading.delimited, "parse", lambda *a: calls.append(len(a[2])) or parse(*a))
    frame = sources.scan(source, resolved.schema, units).collect()
    assert frame["a"].to_list() == [i for i in range(200) for _ in "xy"]
    assert len(calls) == 1


def test_resolved_is_plain() -> None:
    assert Resolved._fields == ("files", "schema")
