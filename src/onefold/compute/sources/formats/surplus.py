"""Finds CSV records that have more fields than there are columns, 64 bytes at a time.

Polars looks for such records only when it reads all columns, which may cost several times as much as reading a few. Here the
separators, the newlines and the quotes of a block are sets with a bit for every byte, in words of 64 bits, so that an
operation on words finds the next separator of all records at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Bits = np.ndarray[Any, np.dtype[np.uint64]]

STEPPED_COLUMNS_MAX = 10
"""Up to here, a step for each column costs less than counting the separators of each record."""
_CACHED_BYTES = 256 * 1024
"""Vectors of this size stay in the processor's cache."""


def has_surplus(records: bytes, separator: bytes, quote: bytes, columns: int) -> bool:
    """Whether one of these records has more fields than ``columns``.

    They are whole records whose quotes follow RFC 4180; ``quote`` is empty if quotes are text.
    """
    if not records:
        return False
    wanted = separator + b"\n" + (quote if quote in records else b"")
    separators, newlines, *quotes = _places(records, wanted)
    if quotes:
        outside = ~_between(quotes[0])
        separators &= outside
        newlines &= outside
    if columns <= STEPPED_COLUMNS_MAX:
        return _found_by_steps(separators, newlines, columns)
    return _found_by_counts(separators, newlines, columns)


def _places(data: bytes, wanted: bytes) -> list[Bits]:
    """Where each of the wanted bytes stands: bit ``i`` of word ``w`` is byte ``64 * w + i``."""
    import numpy as np

    held = np.frombuffer(data, dtype=np.uint8)
    size = -(-len(data) // 8)
    places = np.zeros((len(wanted), -(-size // 8) * 8), dtype=np.uint8)
    is_wanted = np.empty(min(len(data), _CACHED_BYTES), dtype=np.bool_)
    for at in range(0, len(data), _CACHED_BYTES):
        part = held[at : at + _CACHED_BYTES]
        found = is_wanted[: len(part)]
        for byte, row in zip(wanted, places, strict=True):
            np.equal(part, byte, out=found)
            row[at // 8 : min(at + _CACHED_BYTES, len(data) + 7) // 8] = np.packbits(found, bitorder="little")
    return list(places.view("<u8"))


def _between(quotes: Bits) -> Bits:
    """The bytes after an odd number of quotes, and the opening quotes themselves."""
    import numpy as np

    odd = quotes.copy()
    for distance in (1, 2, 4, 8, 16, 32):
        odd ^= odd << np.uint64(distance)
    carried = np.bitwise_xor.accumulate(odd >> np.uint64(63))
    odd[1:] ^= np.uint64(0) - carried[:-1]
    return odd


def _found_by_steps(separators: Bits, newlines: Bits, columns: int) -> bool:
    """Of all separators, keep those that follow one which was kept in the step before. What is left after n steps is at
    least the separator n + 1 of its record.
    """
    import numpy as np

    marks = separators | newlines
    if not (some := marks != 0).all():  # a word without marks would hand a carry on to the next one
        separators, marks = separators[some], marks[some]
    text, kept = np.invert(marks, out=marks), separators.copy()
    starts, reached, carried = np.empty_like(kept), np.empty_like(kept), np.empty(len(kept), dtype=np.bool_)
    for _ in range(columns - 1):
        np.left_shift(kept, np.uint64(1), out=starts)
        starts[1:] |= np.right_shift(kept[:-1], np.uint64(63), out=reached[1:])
        # The sum carries each start over the text behind it, which is all ones, to the next mark.
        np.add(starts, text, out=reached)
        np.less(reached, starts, out=carried)
        reached[1:] += carried[:-1]
        np.bitwise_and(reached, separators, out=kept)
    return bool(kept.any())


def _found_by_counts(separators: Bits, newlines: Bits, columns: int) -> bool:
    """Count the separators before each newline, and compare it with the count before the newline before."""
    import numpy as np

    ends = np.flatnonzero(np.unpackbits(newlines.view(np.uint8), bitorder="little").view(np.bool_))
    in_word = _ones(separators)
    until = np.cumsum(in_word)
    word, bit = ends >> 6, (ends & 63).astype(np.uint64)
    before = (until - in_word)[word] + _ones(separators[word] & ((np.uint64(1) << bit) - np.uint64(1)))
    counts = np.concatenate((np.zeros(1, dtype=np.uint64), before, until[-1:]))
    return bool((counts[1:] - counts[:-1] >= columns).any())


def _ones(words: Bits) -> Bits:
    """How many bits of each word are set."""
    import numpy as np

    pairs = words - ((words >> np.uint64(1)) & np.uint64(0x5555555555555555))
    fours = (pairs & np.uint64(0x3333333333333333)) + (
        (pairs >> np.uint64(2)) & np.uint64(0x3333333333333333)
    )
    bytes_ = (fours + (fours >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    ones: Bits = (bytes_ * np.uint64(0x0101010101010101)) >> np.uint64(56)
    return ones
