"""A run's frame as bytes: blocks of rows sorted by lane, and a footer that says where each lane is.

Layout: 8 bytes of magic; blocks, each a frame as ``aggregates.encode`` writes it; the footer, a msgpack array; its length in 4
bytes, little endian; 8 bytes of magic. A block has at most ``BLOCK_ROWS`` rows.

Whose run it is stands in front of these bytes: see ``compute.live.run_bytes``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import msgspec
import numpy as np
import polars as pl

from onefold.compute.aggregates import decode, encode
from onefold.compute.live.runs.rows import LANE
from onefold.errors import InvalidValue
from onefold.invariants import invariant
from onefold.state.fold.live.lanes import Lanes, lanes_of

_MAGIC: Final = b"1FLRUN01"
_TAIL_BYTES: Final = 4 + len(_MAGIC)
BLOCK_ROWS: Final = 65_536
"""Most rows of one block."""


class Block(msgspec.Struct, frozen=True, array_like=True):
    """One block of a run file. Byte offsets count from the file's beginning; lanes are inclusive."""

    offset: int
    length: int
    rows: int
    first_lane: int
    last_lane: int


class Footer(msgspec.Struct, frozen=True, array_like=True):
    """What a run file says of itself."""

    lanes: tuple[tuple[int, int], ...]
    """(lane, rows) of the lanes that have rows, ascending."""
    blocks: tuple[Block, ...]

    @property
    def rows(self) -> int:
        """How many rows the run has."""
        return sum(rows for _, rows in self.lanes)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Footer)


def encode_run(frame: pl.DataFrame) -> bytes:
    """The run as bytes. ``frame`` is sorted by lane."""
    lanes = frame[LANE]
    invariant(lanes.is_sorted() and not lanes.null_count(), "the rows of a run are sorted by lane")
    parts: list[bytes] = [_MAGIC]
    blocks: list[Block] = []
    offset = len(_MAGIC)
    for piece in frame.iter_slices(BLOCK_ROWS) if frame.height else (frame,):
        data = encode(piece)
        first, last = (int(piece[LANE][0]), int(piece[LANE][-1])) if piece.height else (0, -1)
        blocks.append(Block(offset, len(data), piece.height, first, last))
        parts.append(data)
        offset += len(data)
    footer = Footer(_counts(lanes), tuple(blocks))
    tail = _encoder.encode(footer)
    return b"".join([*parts, tail, len(tail).to_bytes(4, "little"), _MAGIC])


def _counts(lanes: pl.Series) -> tuple[tuple[int, int], ...]:
    """(lane, rows) of a sorted column."""
    numbers = lanes.to_numpy()
    begins = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(numbers)]
    return tuple((int(numbers[at]), end - at) for at, end in pairwise(begins) if end > at)


def read_footer(data: bytes) -> Footer:
    """What the file says of itself. Raises InvalidValue for bytes that are not a run, or are cut short."""
    whole = len(data) >= len(_MAGIC) + _TAIL_BYTES and data.startswith(_MAGIC) and data.endswith(_MAGIC)
    if not whole:
        raise InvalidValue("a run of a live job cannot be read: it is cut short, or is something else")
    view = memoryview(data)
    length = int.from_bytes(view[-_TAIL_BYTES : -len(_MAGIC)], "little")
    end = len(data) - _TAIL_BYTES
    try:
        footer = _decoder.decode(view[max(0, end - length) : end])
    except msgspec.MsgspecError as error:
        raise InvalidValue(f"a run of a live job cannot be read: its footer is damaged ({error})") from error
    if any(block.offset + block.length > end - length for block in footer.blocks):
        raise InvalidValue("a run of a live job cannot be read: its footer names bytes that are not there")
    return footer


def decode_run(data: bytes) -> tuple[pl.DataFrame, Lanes]:
    """(the run's frame, sorted by lane; the lanes that have rows). Without rows it has the columns alone.

    Raises InvalidValue for bytes that are not a run.
    """
    footer = read_footer(data)
    frames = [decode(data[block.offset : block.offset + block.length]) for block in footer.blocks]
    frame = pl.concat(frames) if len(frames) > 1 else frames[0]
    return frame, lanes_of(lane for lane, _ in footer.lanes)
