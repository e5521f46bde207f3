"""What the engine's answer to an append means: an offset, a definite error, or an unknown outcome.

Only refusals that come before the record is proposed to the stream's replicas are definite (by the source of servers 2.15).
One that comes from storing it may concern the leader alone, while the others have it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from onefold.errors import AppendUnknown, SpaceError, TooLarge, Unavailable
from onefold.log.api import NoRoom
from onefold.log.jetstream.client.message import NO_RESPONDERS, Msg

_TOO_LARGE: Final = 10054
_OTHER_STREAM: Final = 10060
_NOT_ENABLED: Final = (10039, 10076)
_NO_ROOM: Final = (10002, 10023)


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    error: _Error | None = None


_decoder = msgspec.json.Decoder(_Ack)


def offset_of(answer: Msg | None, stream: str, what: str) -> int:
    """The offset that an answer acknowledges. ``answer``: None when there was none; ``what``: the log, for messages.

    Raises Unavailable, TooLarge and SpaceError (all definite), and AppendUnknown.
    """
    if answer is None:
        raise AppendUnknown(f"{what} gave no answer in time; the record may be in it, or may surface later")
    if answer.status == NO_RESPONDERS and not answer.data:
        raise Unavailable(f"{what} has no leader now, or is not there. Try again")
    try:
        ack = _decoder.decode(answer.data)
    except msgspec.MsgspecError as error:
        raise AppendUnknown(
            f"{what} gave an answer that is none ({error}); the record may be in it"
        ) from error
    if ack.error is not None:
        raise _refusal(ack.error, what)
    if ack.stream != stream or ack.seq < 1:
        raise AppendUnknown(
            f"{what} was answered by {ack.stream or 'nobody'!r} at {ack.seq}; the record may be in it"
        )
    return ack.seq


def _refusal(error: _Error, what: str) -> Exception:
    said = f"{error.description or 'no reason'}, {error.err_code}"
    match error.err_code:
        case code if code == _TOO_LARGE:
            return TooLarge(f"a record is too large for {what} ({said}). Write less at once")
        case code if code == _OTHER_STREAM:
            return SpaceError(
                f"{what}: another stream takes its subject ({said}). Look at the streams of the account"
            )
        case code if code in _NOT_ENABLED:
            return SpaceError(f"{what}: JetStream is not enabled for this account ({said}). Enable it")
        case code if code in _NO_ROOM:
            return NoRoom(f"{what} has no room ({said}). Free some disk, or raise max_file, on its servers")
        case _:
            return AppendUnknown(f"{what} refused a record after it may have been taken ({said})")
