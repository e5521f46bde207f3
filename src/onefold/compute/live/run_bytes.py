"""The bytes of a run: whose it is, and then its frame.

A blob's name is the hash of its content, and deltas are often equal: the same keys, the same counts. If their bytes were equal
too, a blob could be swept for the commit that dropped it while a later commit names it. So every run has the bundle, the epoch,
the commit and a number in its bytes: no two runs that are ever made are equal, and what was swept is never named again.

Stored plans say by a note whose they are.
"""

from __future__ import annotations

from typing import Final

import msgspec

from onefold.errors import InvalidValue

_MAGIC: Final = b"1FL"
_ALIGN: Final = 64
"""The frame begins at a multiple of this."""


class Origin(msgspec.Struct, frozen=True, array_like=True):
    """The commit that a run was made for, and its number among the runs of that commit."""

    job: str
    generation: int
    part: str
    bundle: int
    epoch: int
    seq: int
    nonce: int
    """Of the commit."""
    number: int
    space: str = ""
    """The incarnation of the space; of runs that 0.4.0 made, empty. Several spaces may keep blobs in one place."""


_decoder = msgspec.msgpack.Decoder(Origin)
_encode = msgspec.msgpack.Encoder().encode


def seal(origin: Origin, frame: bytes) -> bytes:
    """The run's bytes."""
    head = _encode(origin)
    start = _MAGIC + len(head).to_bytes(3, "big") + head
    return start + bytes(-len(start) % _ALIGN) + frame


def is_sealed(data: bytes) -> bool:
    """Whether these bytes, or the bytes that begin with these, are a run."""
    return data.startswith(_MAGIC)


def origin_of(data: bytes) -> Origin | None:
    """Whose the run is that begins with these bytes; None: they are of no run, or too few."""
    length = int.from_bytes(data[3:6], "big")
    if not is_sealed(data) or len(data) < 6 + length:
        return None
    try:
        return _decoder.decode(data[6 : 6 + length])
    except msgspec.MsgspecError:
        return None


def unseal(data: bytes | memoryview) -> tuple[Origin, memoryview]:
    """Whose it is, and its frame. Raises InvalidValue for bytes that are not a run."""
    view = memoryview(data)
    if bytes(view[:3]) != _MAGIC:
        raise InvalidValue(
            "these bytes are not a run of a live job: the blob is damaged, or of a later release"
        )
    length = int.from_bytes(view[3:6], "big")
    try:
        origin = _decoder.decode(view[6 : 6 + length])
    except msgspec.MsgspecError as error:
        raise InvalidValue(f"the head of a run of a live job is damaged: {error}") from error
    end = 6 + length
    return origin, view[end + (-end % _ALIGN) :]


PLAN_NOTE: Final = "live plan of "


def plan_note(space: str) -> str:
    """What is noted with a stored plan (``functions.note_of``): the incarnation of its space. Several keep blobs in one place."""
    return PLAN_NOTE + space
