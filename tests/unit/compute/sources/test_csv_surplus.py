"""Records with too many fields, found in packed bits, against Python's own CSV reader, which reads field by field."""

from __future__ import annotations

import csv
import io
import random

import pytest

from onefold.compute.sources.formats import surplus
from onefold.compute.sources.formats.surplus import has_surplus

PLAIN = ("1", "x", "", "é", "w" * 61, "long " * 40)
QUOTED = ('""', '"q"', '"q,r"', '"l\nm"', '"l\r\nm,"', '"d""d"', '""""', '"' + ",\n" * 50 + '"', '"é"')


@pytest.fixture(params=["steps", "counts", "small blocks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "small blocks":
        monkeypatch.setattr(surplus, "STEPPED_COLUMNS_MAX", 1000 if request.param == "steps" else 0)
    else:
        monkeypatch.setattr(surplus, "_CACHED_BYTES", 64)
    return str(request.param)


def fields_at_most(records: str, separator: str, quote: str | None) -> int:
    rows = csv.reader(
        io.StringIO(records, newline=""),
        delimiter=separator,
        quotechar=quote,
        quoting=csv.QUOTE_NONE if quote is None else csv.QUOTE_MINIMAL,
    )
    return max((len(row) for row in rows), default=0)


def drawn(rng: random.Random, separator: str, quote: str | None) -> str:
    palette = (
        PLAIN if rng.random() < 0.4 else PLAIN + QUOTED if rng.random() < 0.7 else ("", '""', '"', "1")[:2]
    )
    columns = rng.choice((1, 2, 3, 5, 12, 25))
    widths = rng.choice(
        ((columns,), (columns,) * 9 + (columns + 1,), (columns, max(1, columns - 1), columns + 1))
    )
    rows = [
        separator.join(rng.choice(palette) for _ in range(rng.choice(widths))).replace(",", separator)
        for _ in range(rng.randrange(1, rng.choice((3, 40))))
    ]
    end = rng.choice(("\n", "\r\n"))
    text = end.join(rows) + rng.choice(("", end))
    if quote is None:
        return text.replace('"', "")
    return text.replace('"', quote)


@pytest.mark.parametrize("block", range(3))
def test_the_same_as_a_reader_of_fields(way: str, block: int) -> None:
    rng = random.Random(3_400 + block)
    found = {True: 0, False: 0}
    for _ in range(120):
        separator, quote = rng.choice((",", ";", "\t", "|")), rng.choice(('"', '"', "'", None))
        records = drawn(rng, separator, quote)
        most = fields_at_most(records, separator, quote)
        for columns in {max(1, most - 1), max(1, most), most + 1}:
            expected = most > columns
            seen = has_surplus(records.encode(), separator.encode(), (quote or "").encode(), columns)
            assert seen == expected, (records, separator, quote, columns)
            found[expected] += 1
    assert min(found.values()) > 40


@pytest.mark.parametrize("columns", [2, 5, 10, 11, 30])
def test_one_record_wherever_it_stands(way: str, columns: int) -> None:
    """Bits are carried from word to word, whatever the distance of the separators from the borders."""
    for before in range(0, 140):
        start = "x" * before + "," * (columns - 1) + "\n"
        for row in ("," * columns, ("a" * 70 + ",") * columns, "," * (columns - 1) + '"' + "b" * 64 + '",'):
            assert has_surplus((start + row + "\n" + start).encode(), b",", b'"', columns)
            assert not has_surplus(
                (start + row[: row.rindex(",")] + "\n" + start).encode(), b",", b'"', columns
            )


def test_short_records_do_not_make_up_for_long_ones(way: str) -> None:
    assert has_surplus(b"1,2,3\n4\n5,6,7,\n8,9,1\n", b",", b"", 3)
    assert has_surplus(b"1,2,3\n4,\n5,6,,\n8,9,1\n", b",", b"", 3)
    assert not has_surplus(b"1,2,3\n4\n5,,\n\n,,\n", b",", b"", 3)
    assert not has_surplus(b"", b",", b'"', 3)
