"""Sections behind a stored job's pickle, which are read without loading the pickle.

``body, its length in 4 bytes, a mark of 3 bytes``: several of them stand one behind the other and are read from the end. The
pickle ends where it says, so programs that know fewer sections pass over the others.
"""

from __future__ import annotations

from typing import Final

_LENGTH_BYTES: Final = 4


def appended(data: bytes, body: bytes, mark: bytes) -> bytes:
    """The bytes with one more section behind them."""
    return data + body + len(body).to_bytes(_LENGTH_BYTES, "little") + mark


def last(data: bytes, mark: bytes) -> tuple[bytes, bytes] | None:
    """(the last section's body, what stands before it); None when the last section has another mark, or there is none."""
    end = len(data) - len(mark) - _LENGTH_BYTES
    if end < 0 or data[end + _LENGTH_BYTES :] != mark:
        return None
    start = end - int.from_bytes(data[end : end + _LENGTH_BYTES], "little")
    return (data[start:end], data[:start]) if start >= 0 else None
