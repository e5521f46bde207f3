"""``db.at``: the database as it was at a moment, or at a session token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import cast

from onefold.errors import InvalidArgument, SpaceError, TokenAhead, TokenError, TooOld
from onefold.fold.api import Fold
from onefold.shard.api import Space
from onefold.space.log_prefix import as_time, offset_at, time_at
from onefold.space.past import LoggedSpace, PastSpace
from onefold.state.core import recovery
from onefold.state.core.client import StateClient
from onefold.state.core.consistency import Level
from onefold.state.core.tokens import decode_token


def past_spaces(
    spaces: Sequence[Space], folds: Callable[[int, int], Sequence[Fold]], when: datetime | str
) -> list[PastSpace]:
    """Every shard as it was. ``folds``: given a shard and how many there are, fresh folds.

    ``when``: a moment (naive: local time), which means in each shard the last record whose fold time is not beyond it; or the
    text of a session token, which means its offsets. Raises, all definite: InvalidArgument (neither of both, or the future),
    TokenError, TooOld.
    """
    for space in spaces:
        if not hasattr(space, "log"):
            raise SpaceError(f"{space.url} keeps no log here that its past could be read from")
    logged = [cast("LoggedSpace", space) for space in spaces]
    if isinstance(when, str):
        offsets = _of_token(logged, when)
    elif isinstance(when, datetime):
        offsets = [_at_moment(space, when) for space in logged]
    else:
        raise InvalidArgument(f"when must be a datetime or the text of a session token; got {when!r:.80}")
    # With several shards a transaction may be decided in one and not yet carried out in another. That can be seen, and mended,
    # in a fold of the logs only.
    alone = len(logged) == 1
    pasts = [
        PastSpace(space, offset, folds(shard, len(logged)), use_history=alone)
        for shard, (space, offset) in enumerate(zip(logged, offsets, strict=True))
    ]
    if not alone:
        _carry_out([past.replay() for past in pasts])
    return pasts


def _carry_out(replays: Sequence[Space]) -> None:
    """Carry out in the folded past what was decided in it. What was undecided then was not acknowledged, and is not there."""
    client = StateClient(replays)
    for shard in range(len(replays)):
        recovery.settle(client, shard)


def _of_token(spaces: Sequence[LoggedSpace], text: str) -> list[int]:
    token = decode_token(text, spaces[0].incarnation, len(spaces))
    offsets = []
    for shard, space in enumerate(spaces):
        offset, applied = token.offsets.get(shard), space.applied
        if offset is None and applied:
            raise TokenError(
                f"the session token says nothing of shard {shard}, so the moment it means there is unknown. "
                "Give a datetime, or a `db.session.token`"
            )
        if offset is not None and offset > applied:
            raise TokenAhead(
                f"the session token has seen offset {offset} of shard {shard}; there is nothing beyond {applied} here"
            )
        offsets.append(offset or 0)
    return offsets


def _at_moment(space: LoggedSpace, when: datetime) -> int:
    try:
        ms = int(when.timestamp() * 1000 // 1)
    except (ValueError, OverflowError, OSError):
        raise InvalidArgument(f"{when!r} is no moment that this machine can tell") from None
    if ms > space.env.wall_ms():
        raise InvalidArgument(f"{when.isoformat()} is in the future; nobody knows what will be there")
    first = space.log.first
    offset = offset_at(space.log, ms)
    if first > 1 and offset < first:
        # The record before the oldest one is gone, and with it its moment; only the head tells of it, while it is the last.
        with space.view() as view:
            head = view.head()
        if head.applied >= first or ms < head.now_ms:
            oldest = time_at(space.log, first) or head.now_ms
            raise TooOld(
                f"{when.isoformat()} is before the oldest record that {space.url} still has, of {as_time(oldest)}. "
                "Ask for a later moment, or restore a backup of that time"
            )
    return offset


class PastClient(StateClient):
    """Shared state as it was: reads need no level, nothing is due, and every write is refused by the space."""

    def settle_due(self, shard: int) -> None:
        """Nothing ends in the past."""

    def ready(self, shard: int, level: Level | None = None, timeout: float | None = None) -> None:
        """The past is there at once."""
