"""Operations of the space itself: they travel in the log like any other, so every replica obeys them at the same offset."""

from __future__ import annotations

import msgspec

from onefold.codec import Op

SYSTEM_FOLD = "onefold"
"""The reserved fold name of these operations."""
ACCEPTED = b"accepted"
REFUSED = b"refused"


class Register(msgspec.Struct, frozen=True, array_like=True, tag="register"):
    """These folds exist from here on; an operation for any other is garbage, refused by all alike."""

    names: tuple[str, ...]


class RaiseFoldVersion(msgspec.Struct, frozen=True, array_like=True, tag="fold_version"):
    """Folds apply by this version from the next operation on. Programs that cannot must stop."""

    version: int


class ExpireClients(msgspec.Struct, frozen=True, array_like=True, tag="expire_clients"):
    """Clients whose last record is below the floor are forgotten."""

    floor: int


class Trim(msgspec.Struct, frozen=True, array_like=True, tag="trim"):
    """Records below ``before`` may be removed from the log."""

    before: int


class Tick(msgspec.Struct, frozen=True, array_like=True, tag="tick"):
    """Nothing but a record: it moves fold time."""


SystemOp = Register | RaiseFoldVersion | ExpireClients | Trim | Tick

_decoder: msgspec.msgpack.Decoder[SystemOp] = msgspec.msgpack.Decoder(SystemOp)


def system_op(body: SystemOp) -> Op:
    """The operation to submit."""
    return Op(SYSTEM_FOLD, msgspec.msgpack.encode(body))


def decode(body: bytes) -> SystemOp | None:
    """The operation in these bytes, or None for garbage."""
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError):
        return None
