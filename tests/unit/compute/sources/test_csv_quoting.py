"""CSV whose quotes follow no rule: every row that plain Polars reads, or an error with file and line; whatever the split."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pytest

from onefold import config
from onefold.compute import sources
from onefold.compute.sources import reading
from onefold.errors import InvalidValue, OnefoldError

FIELDS = (
    "1",
    "23",
    "x",
    "",
    'x"',
    '"',
    'a"b',
    '"q"',
    '"q,r"',
    '"l\nm"',
    '"d""d"',
    '"b\\"b"',
    '"e\\',
    "\\",
    "é",
    '""',
    '12"',
)
SOBER = tuple(
    field for field in FIELDS if field in ("1", "23", "x", "", "é", '"q"', '"q,r"', '"l\nm"', '"d""d"')
)


def read(path: Path, splits: int, columns: list[str] | None = None, **options: object) -> pl.DataFrame:
    source = sources.make_source(
        "csv", path, schema={"a": pl.String, "b": pl.String, "c": pl.String}, **options
    )
    resolved = sources.resolve(source)
    units = sources.units_of(source, resolved, split_bytes=1 << 40, min_units=splits)
    rows = sources.scan(source, resolved.schema, units)
    return rows.select(columns or pl.all()).collect()


def outcome(path: Path, splits: int, columns: list[str] | None = None, **options: object) -> object:
    try:
        return read(path, splits, columns, **options).rows()
    except InvalidValue as error:
        return "refused" if path.name in str(error) else f"no file named: {error}"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units and pieces of a few bytes."""
    monkeypatch.setattr(config, "SPLIT_BYTES_MIN", 8)
    monkeypatch.setattr(reading, "SCAN_PIECE_BYTES", 16)


def drawn(rng: random.Random) -> bytes:
    odd = rng.random() < 0.7
    rows = []
    for _ in range(rng.randrange(1, 14)):
        palette = FIELDS if odd and rng.random() < 0.3 else SOBER
        rows.append(",".join(rng.choice(palette) for _ in range(3)))
    return ("a,b,c\n" + "\n".join(rows) + rng.choice(("", "\n"))).encode()


@pytest.mark.moving(4)
@pytest.mark.parametrize("block", range(4))
def test_rows_of_plain_polars_or_an_error(tmp_path: Path, tiny: None, block: int) -> None:
    rng = random.Random(7_000 + block)
    path = tmp_path / "drawn.csv"
    read_rows = refused = 0
    for _ in range(60):
        data = drawn(rng)
        path.write_bytes(data)
        whole = outcome(path, 1)
        assert outcome(path, 6) == whole, data
        for columns in (["a"], ["c", "b"]):
            some = outcome(path, rng.choice((1, 6)), columns)
            expected = (
                whole
                if isinstance(whole, str)
                else [tuple(row["abc".index(c)] for c in columns) for row in whole]
            )
            assert some == expected, (data, columns)
        try:
            plain: object = pl.read_csv(data, infer_schema=False).rows()
        except pl.exceptions.PolarsError:
            plain = None
        if isinstance(whole, str):
            assert whole == "refused", (whole, data)
            refused += 1
        elif plain is not None:
            assert whole == plain, data
            read_rows += 1
    assert read_rows > 15 and refused > 5


@pytest.mark.parametrize("rows", [2, 4, 10, 1000])
def test_a_stray_quote_in_a_column_that_is_not_used(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "inches.csv"
    path.write_text("a,b,c\n" + "".join(f'{i},,{i}"\n' for i in range(rows)) + f"{rows},,z\n")
    for columns in (["a"], ["a", "c"], None):
        with pytest.raises(InvalidValue, match=r"inches\.csv: line 2: .*quote_char=None"):
            read(path, 1, columns)
    assert read(path, 1, ["a"], quote_char=None).height == rows + 1


def test_quotes_escaped_by_a_backslash_do_not_glue_rows(tmp_path: Path) -> None:
    path = tmp_path / "back.csv"
    path.write_text('a,b,c\n0,0,0\n1,1,"x\\"y"\n2,2,"p\\"q"\n3,3,z\n')
    assert pl.read_csv(path).height == 3, "plain Polars reads two rows as one"
    with pytest.raises(InvalidValue, match=r"back\.csv: line 3: .*quote_char=None"):
        read(path, 1)
    assert read(path, 1, quote_char=None)["c"].to_list() == ["0", '"x\\"y"', '"p\\"q"', "z"]


def test_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    path = tmp_path / "open.csv"
    path.write_text('a,b,c\n0,0,0\n1,1,"x\n2,2,y\n3,3,z\n')
    for columns in (["a"], None):
        with pytest.raises(InvalidValue, match=r"open\.csv: line 3"):
            read(path, 1, columns)


def test_inner_quotes_and_line_breaks_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "both.csv"
    path.write_text('a,b,c\n1,in "the" middle,"two\nlines"\n2,x,y\n')
    assert read(path, 1, ["a"]).rows() == [("1",), ("2",)]
    assert read(path, 1)["c"].to_list() == ["two\nlines", "y"]


def test_a_header_with_a_stray_quote(tmp_path: Path) -> None:
    path = tmp_path / "head.csv"
    path.write_text('a,b"\n1,2\n3,4\n')
    source = sources.make_source("csv", path)
    with pytest.raises(OnefoldError, match=r"head\.csv: the header.*quote_char=None"):
        sources.resolve(source)
    named = sources.resolve(sources.make_source("csv", path, quote_char=None))
    assert [name for name, _ in named.schema] == ["a", 'b"']


def test_quotes_in_comments(tmp_path: Path, tiny: None) -> None:
    path = tmp_path / "notes.csv"
    path.write_text('# 12" pipes\na,b,c\n1,x,"two\nlines"\n# and 10" too\n2,"y",z\n')
    for splits in (1, 4):
        assert read(path, splits, ["a"], comment_prefix="#").rows() == [("1",), ("2",)]
        assert read(path, splits, comment_prefix="#")["c"].to_list() == ["two\nlines", "z"]


def test_a_head_that_is_longer_than_a_piece(tmp_path: Path, tiny: None) -> None:
    path = tmp_path / "long.csv"
    path.write_text("".join(f"# note {i}\n" for i in range(40)) + "a,b,c\n1,2,3\n4,5,6\n")
    for splits in (1, 6):
        assert read(path, splits, comment_prefix="#").rows() == [("1", "2", "3"), ("4", "5", "6")]
    path.write_text("".join(f"skipped {i}\n" for i in range(40)) + "a,b,c\n1,2,3\n4,5,6\n")
    for splits in (1, 6):
        assert read(path, splits, skip_lines=40).rows() == [("1", "2", "3"), ("4", "5", "6")]


def test_a_byte_order_mark_before_a_quoted_name(tmp_path: Path, tiny: None) -> None:
    path = tmp_path / "mark.csv"
    path.write_bytes(b'\xef\xbb\xbf"a","b","c"\n' + b"1,2,3\n" * 40)
    source = sources.make_source("csv", path)
    resolved = sources.resolve(source)
    assert [name for name, _ in resolved.schema] == ["a", "b", "c"]
    assert len(sources.units_of(source, resolved, split_bytes=1 << 40, min_units=6)) > 1
    assert read(path, 6).height == 40


def test_types_from_all_rows(tmp_path: Path) -> None:
    path = tmp_path / "late.csv"
    path.write_text("k,v\n" + "x,1\n" * 30 + "x,1.5\n")
    (tmp_path / "later.csv").write_text("k,v\ny,z\n")
    for paths, kind in (([path], pl.Float64), ([path, tmp_path / "later.csv"], pl.String)):
        source = sources.make_source("csv", paths, infer_schema_length=None)
        assert dict(sources.resolve(source).schema) == {"k": pl.String, "v": kind}
    few = sources.make_source("csv", path, infer_schema_length=5)
    assert dict(sources.resolve(few).schema)["v"] == pl.Int64
    (tmp_path / "bare.csv").write_text("1,2\n3,4\n")
    bare = sources.make_source("csv", tmp_path / "bare.csv", infer_schema_length=None, has_header=False)
    assert [kind for _, kind in sources.resolve(bare).schema] == [pl.Int64, pl.Int64]


RAGGED = (
    b"1,2,3\n4,5,6,7\n8,9,1\n",
    b"1,2,3\n4,5,6,\n8,9,1\n",
    b"1,2,3\n4,5,6,,9\n8,9,1\n",
    b"1,2,3\n4,5\n8,9,1,2\n",
    b"1,,3\n4,,,\n8,9,1\n",
    b'1,"x,y",3\n4,"x",6,"7"\n',
    b'1,"x,y",3\n4,"x",6,\n',
    b'1,"x,y",3\n4,"",,""\n',
    b'1,"x\ny",3\n4\n5,6,7,8\n',
)


@pytest.mark.parametrize("body", RAGGED)
@pytest.mark.parametrize("options", [{}, {"null_values": ["7", "9"]}, {"comment_prefix": "#"}])
def test_too_many_fields_whatever_columns_are_read(
    tmp_path: Path, body: bytes, options: dict[str, object]
) -> None:
    path = tmp_path / "ragged.csv"
    for data in (body, body.replace(b"\n", b"\r\n"), body.removesuffix(b"\n"), b"# a,b,c,d,e\n" + body):
        path.write_bytes(b"a,b,c\n" + data)
        if data.startswith(b"#") and "comment_prefix" not in options:
            continue
        if b'"' in data and "comment_prefix" in options:
            continue  # read with all columns anyhow
        for columns in (None, ["a"], ["c"], ["b", "a"], ["c", "a"]):
            with pytest.raises(
                InvalidValue, match=r"ragged\.csv: line \d: found more fields.*truncate_ragged"
            ):
                read(path, 1, columns, **options)
        cut = read(path, 1, truncate_ragged_lines=True, **options)
        assert read(path, 1, ["c"], truncate_ragged_lines=True, **options).equals(cut.select("c"))


@pytest.mark.moving(4)
@pytest.mark.parametrize("block", range(4))
def test_some_columns_give_what_all_give(tmp_path: Path, tiny: None, block: int) -> None:
    rng = random.Random(8_100 + block)
    path = tmp_path / "drawn.csv"
    read_rows = refused = 0
    for _ in range(50):
        fields = ("1", "x", "", "é") if rng.random() < 0.5 else ("1", "", '""', '"q,r"', '"l\nm"', '"d""d"')
        widths = rng.choice(((3,), (3, 3, 2, 1), (3, 3, 3, 3, 2, 4)))
        rows = [
            ",".join(rng.choice(fields) for _ in range(rng.choice(widths)))
            for _ in range(rng.randrange(1, 9))
        ]
        end = rng.choice(("\n", "\r\n"))
        path.write_text("a,b,c" + end + end.join(rows) + rng.choice(("", end)), newline="")
        options = rng.choice(({}, {"null_values": "1"}))
        whole = outcome(path, 1, **options)
        assert outcome(path, 5, **options) == whole
        for columns in (["a"], ["c"], ["c", "b"]):
            expected = (
                whole
                if isinstance(whole, str)
                else [tuple(row["abc".index(c)] for c in columns) for row in whole]
            )
            assert outcome(path, rng.choice((1, 5)), columns, **options) == expected, path.read_bytes()
        refused += whole == "refused"
        read_rows += whole != "refused"
    assert read_rows > 15 and refused > 5


def test_a_header_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("k\u00e9y,v\n1,2\n".encode("latin-1"))
    for options in ({}, {"schema": {"k\ufffdy": pl.Int64, "v": pl.Int64}}):
        with pytest.raises(
            InvalidValue, match=r"latin\.csv: the header: byte 2 .*not valid UTF-8.*utf8-lossy"
        ):
            sources.resolve(sources.make_source("csv", path, **options))
    lossy = sources.resolve(sources.make_source("csv", path, encoding="utf8-lossy"))
    assert [name for name, _ in lossy.schema] == ["k\ufffdy", "v"]
