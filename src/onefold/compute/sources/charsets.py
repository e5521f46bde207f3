"""Text that is in another encoding than the reader's, or no text at all: told by the first bytes and refused by name."""

from __future__ import annotations

import codecs

from onefold.compute.plan.nodes import Source
from onefold.errors import InvalidValue

_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""Byte order marks; the first of UTF-32 begins like one of UTF-16."""


def check_head(source: Source, path: str, head: bytes) -> None:
    """Raise ``InvalidValue`` if these first bytes of a file, unpacked, are not what the source reads.

    Text may hold zero bytes, and has encodings to choose from; CSV and JSON lines are UTF-8 and have no use for them.
    """
    if source.kind == "text":
        encoding = codecs.lookup(source.option("encoding", "utf8")).name
        if encoding not in ("utf-8", "utf-8-sig") or source.option("errors", "strict") != "strict":
            return
    elif source.kind not in ("csv", "jsonl"):
        return
    for mark, name in _MARKS:
        if head.startswith(mark):
            advice = (
                f"give encoding={name.lower()!r}" if source.kind == "text" else "convert it to UTF-8 first"
            )
            raise InvalidValue(f"{path} is {name} and not UTF-8; {advice}")
    if source.kind != "text" and b"\0" in head:
        raise InvalidValue(
            f"{path} is not UTF-8 text: zero bytes stand at its beginning, as in UTF-16 or binary files; convert it first"
        )
