"""The exact rule of quotes in CSV, for files in which the fast scanner has met a quote that it cannot explain.

By RFC 4180 a quote opens a field, closes one, or is doubled inside one. Where a file breaks that rule (``12" pipe``, quotes
escaped with a backslash), parsers differ in what they take for a record, and Polars' depends on the columns that are asked
for. The next best rule is that a quote inside a field that does not begin with one is a character like others; all columns
read, Polars follows it or fails. From the first record on that breaks that rule as well, every line has to be a record.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple


class Lawful(NamedTuple):
    """How far the records of some bytes follow the rule."""

    records: int
    """Records before ``stop``, without comments."""
    stop: int
    """Where the first record begins that breaks the rule; the number of bytes if none does."""


def lawful(
    data: bytes, separator: bytes, quote: bytes, comment: bytes, *, inner_quotes: bool = False
) -> Lawful:
    """Count the records from the start on, up to the first one whose quotes break the rule.

    ``inner_quotes``: fields that do not begin with a quote may hold some.
    """
    record = _record(separator, quote, inner_quotes)
    at = records = 0
    size = len(data)
    while at < size:
        end = data.find(b"\n", at) + 1 or size
        if comment and data.startswith(comment, at):
            at = end
            continue
        if data.find(quote, at, end) >= 0:
            found = record.match(data, at)
            if found is None:
                break
            end = found.end()
        records += 1
        at = end
    return Lawful(records, at)


def lines(data: bytes, comment: bytes) -> int:
    """The lines of these bytes that are not comments."""
    count = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    if comment and comment in data:
        count -= data.count(b"\n" + comment) + data.startswith(comment)
    return count


@lru_cache(maxsize=16)
def _record(separator: bytes, quote: bytes, inner_quotes: bool) -> re.Pattern[bytes]:
    s, q = re.escape(separator), re.escape(quote)
    bare = b"(?!" + q + b")[^" + s + rb"\n]*+" if inner_quotes else b"[^" + s + q + rb"\n]*+"
    closed = q + b"[^" + q + b"]*+(?:" + q + q + b"[^" + q + b"]*+)*+" + q + rb"(?:\r" + bare + b")?"
    field = b"(?:" + closed + b"|" + bare + b")"
    return re.compile(field + b"(?:" + s + field + rb")*+(?:\n|\Z)")
