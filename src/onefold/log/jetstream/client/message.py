"""Messages and their headers, as they come over the wire."""

from __future__ import annotations

import calendar
import functools
import re
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from onefold.errors import InvalidArgument

_LINE: Final = b"\r\n"
_VERSION: Final = b"NATS/1.0"
STATUS: Final = "Status"
DESCRIPTION: Final = "Description"
SEQUENCE: Final = "Nats-Sequence"
STREAM: Final = "Nats-Stream"
SUBJECT: Final = "Nats-Subject"
TIME_STAMP: Final = "Nats-Time-Stamp"
NUM_PENDING: Final = "Nats-Num-Pending"
EXPECTED_STREAM: Final = "Nats-Expected-Stream"
EXPECTED_LAST_SUBJECT_SEQUENCE: Final = "Nats-Expected-Last-Subject-Sequence"
NO_RESPONDERS: Final = "503"
_NOBODY: Final = b"NATS/1.0 503"
_RECORD: Final = re.compile(
    rb"Nats-Stream: ([^\r]*)\r\nNats-Subject: ([^\r]*)\r\nNats-Sequence: (\d{1,20})\r\n"
    rb"Nats-Time-Stamp: (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z)\r\n"
    rb"(?:Nats-Num-Pending: \d+\r\n)?(?:Nats-Last-Sequence: \d+\r\n)?\r\n\Z"
)


class Msg(NamedTuple):
    """A message. ``headers``: the last value of each, and ``Status`` and ``Description`` of the first line."""

    subject: str
    reply: str
    headers: Mapping[str, str] | None
    data: bytes

    @property
    def status(self) -> str | None:
        """What the server says instead of an answer (``"503"``: nobody took it). None for an answer, and for a message out of a
        stream, whatever headers its writer gave it."""
        return None if self.headers is None or SEQUENCE in self.headers else self.headers.get(STATUS)


def parse_headers(block: bytes | None) -> dict[str, str] | None:
    """The headers in a block. The last of a name counts: servers add theirs behind what a publisher wrote."""
    if not block:
        return None
    first, *lines = block.split(_LINE)
    found: dict[str, str] = {}
    words = first[len(_VERSION) :].strip().split(b" ", 1)
    if words[0].isdigit():
        found[STATUS] = words[0].decode("ascii")
        if len(words) > 1:
            found[DESCRIPTION] = words[1].decode("utf-8", "replace")
    for line in lines:
        name, mark, value = line.partition(b":")
        if mark:
            found[name.decode("utf-8", "replace")] = value.strip().decode("utf-8", "replace")
    return found or None


def nobody_answers(block: bytes | None) -> bool:
    """Whether it is the server's word that nobody took a question."""
    if block is None or not block.startswith(_NOBODY):
        return False
    return SEQUENCE not in (parse_headers(block) or {})


class Place(NamedTuple):
    """Where a message out of a stream is there."""

    stream: bytes
    subject: bytes
    """What it was published on."""
    sequence: int
    stamp_ms: int


def record_headers(block: bytes | None) -> Place | None:
    """Where a message out of a stream is, by its headers; None when they do not say.

    The servers' own are the last, whatever a writer put before them.
    """
    if block is None:
        return None
    match = _RECORD.search(block)
    if match is not None:
        stream, subject, sequence, stamp = match.groups()
        return Place(stream, subject, int(sequence), milliseconds(stamp.decode("ascii")))
    headers = parse_headers(block) or {}  # of a server that writes them in another order
    try:
        stamp_ms = milliseconds(headers[TIME_STAMP])
        return Place(headers[STREAM].encode(), headers[SUBJECT].encode(), int(headers[SEQUENCE]), stamp_ms)
    except (KeyError, ValueError):
        return None


def header_block(headers: Mapping[str, str] | None) -> bytes:
    """The block for these headers; empty for none. Raises InvalidArgument for line breaks."""
    if not headers:
        return b""
    lines = [f"{name}: {value}" for name, value in headers.items()]
    if any("\r" in line or "\n" in line for line in lines):
        raise InvalidArgument("a header with a line break")
    return ("NATS/1.0\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()


def milliseconds(stamp: str) -> int:
    """Milliseconds since 1970 of a server's time stamp (``2025-01-31T12:00:00.123456789Z``), cut off. Raises ValueError."""
    if not stamp.endswith("Z"):
        raise ValueError(f"not a time in UTC: {stamp!r}")
    whole, _, fraction = stamp[:-1].partition(".")
    return _seconds(whole) * 1000 + int((fraction + "000")[:3])


@functools.lru_cache(maxsize=64)
def _seconds(whole: str) -> int:
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S"))
