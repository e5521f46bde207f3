"""Cutting what a server sends into messages and lines. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_LINE_BYTES_MAX: Final = 1 << 20
"""INFO lines tell of all servers of a cluster; a line that is longer than this is not of this protocol."""

Message = Callable[[int, bytes, bytes, bytes, bytes | None], bool]
"""Takes the subscription's number, subject, reply subject, payload and header block. False: no more are wanted."""
Line = Callable[[bytes], bool]
"""Takes any other line, without its end. False: no more are wanted."""


class Malformed(Exception):
    """Bytes that are not of the protocol."""


class Parser:
    """Feed it what arrives, in pieces of any size; it calls back for each message and line, in order."""

    def __init__(self, message: Message, line: Line) -> None:
        self._message = message
        self._line = line
        self._kept: list[bytes] = []
        """The beginning of what is not complete yet."""
        self._kept_bytes = 0
        self._needed_bytes = 0
        """It cannot be complete before there is so much of it."""

    def feed(self, data: bytes) -> None:
        """Raises Malformed, and whatever the callbacks raise."""
        if self._kept:
            self._kept.append(data)
            self._kept_bytes += len(data)
            if self._kept_bytes < self._needed_bytes:
                return
            data = b"".join(self._kept)
            self._kept.clear()
        at = self._cut(data)
        if at < len(data):
            self._kept.append(data[at:] if at else data)
            self._kept_bytes = len(data) - at

    def _cut(self, data: bytes) -> int:
        """Call back for all that is complete; where the rest begins."""
        at, end = 0, len(data)
        while at < end:
            stop = data.find(b"\r\n", at)
            if stop < 0:
                if end - at > _LINE_BYTES_MAX:
                    raise Malformed(f"a line of more than {_LINE_BYTES_MAX} bytes")
                self._needed_bytes = end - at + 1
                return at
            if not data.startswith((b"MSG ", b"HMSG "), at):
                if not self._line(data[at:stop]):
                    return end
                at = stop + 2
                continue
            words = data[at:stop].split(b" ")  # and at nothing else: a subject may hold a vertical tab
            try:
                whole, sid = int(words[-1]), int(words[2])
                headed = int(words[-2]) if words[0] == b"HMSG" else 0
                reply = words[3] if len(words) == (6 if headed else 5) else b""
            except (IndexError, ValueError):
                raise Malformed(f"the line {data[at:stop][:200]!r}") from None
            start = stop + 2
            over = start + whole
            if over + 2 > end:
                self._needed_bytes = over + 2 - at
                return at
            if headed:
                block, payload = data[start : start + headed], data[start + headed : over]
            else:
                block, payload = None, data[start:over]
            if not self._message(sid, words[1], reply, payload, block):
                return end
            at = over + 2
        return end
