"""``db.at``: the database as it was at a moment, or at a session token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import cast

from onefold.arguments import shown
from onefold.errors import InvalidArgument, SpaceError, TokenAhead, TokenError, TooOld
from onefold.fold.api import Fold
from onefold.shard.api import Shard
from onefold.space.log_prefix import as_time, offset_at, time_at
from onefold.space.past import LoggedShard, PastShard
from onefold.state.core import recovery
from onefold.state.core.client import StateClient
from onefold.state.core.consistency import Level
from onefold.state.core.tokens import decode_token


def past_shards(
    shards: Sequence[Shard], folds: Callable[[int, int], Sequence[Fold]], when: datetime | str
) -> list[PastShard]:
    """Every shard as it was. ``folds``: given a shard and how many there are, fresh folds.

    ``when``: a moment (naive: local time), which means in each shard the last record whose fold time is not beyond it; or the
    text of a session token, which means its offsets. Raises, all definite: InvalidArgument (neither of both, or the future),
    TokenError, TooOld.
    """
    for shard in shards:
        if not hasattr(shard, "log"):
            raise SpaceError(f"{shard.url} keeps no log here that its past could be read from")
    logged = [cast("LoggedShard", shard) for shard in shards]
    if isinstance(when, str):
        offsets = _of_token(logged, when)
    elif isinstance(when, datetime):
        offsets = [_at_moment(shard, when) for shard in logged]
    else:
        raise InvalidArgument(f"when must be a datetime or the text of a session token; got {shown(when)}")
    # With several shards a transaction may be decided in one and not yet carried out in another. That can be seen, and mended,
    # in a fold of the logs only.
    alone = len(logged) == 1
    pasts = [
        PastShard(shard, offset, folds(shard_id, len(logged)), use_history=alone)
        for shard_id, (shard, offset) in enumerate(zip(logged, offsets, strict=True))
    ]
    if not alone:
        _carry_out([past.replay() for past in pasts])
    return pasts


def _carry_out(replays: Sequence[Shard]) -> None:
    """Carry out in the folded past what was decided in it. What was undecided then was not acknowledged, and is not there."""
    client = StateClient(replays)
    for shard in range(len(replays)):
        recovery.settle(client, shard)


def _of_token(shards: Sequence[LoggedShard], text: str) -> list[int]:
    token = decode_token(text, shards[0].incarnation, len(shards))
    offsets = []
    for shard_id, shard in enumerate(shards):
        offset, applied = token.offsets.get(shard_id), shard.applied
        if offset is None and applied:
            raise TokenError(
                f"the session token says nothing of shard {shard_id}, so the moment it means there is unknown. "
                "Give a datetime, or a `db.session.token`"
            )
        if offset is not None and offset > applied:
            raise TokenAhead(
                f"the session token has seen offset {offset} of shard {shard_id}; there is nothing beyond {applied} here"
            )
        offsets.append(offset or 0)
    return offsets


def _at_moment(shard: LoggedShard, when: datetime) -> int:
    try:
        ms = int(when.timestamp() * 1000 // 1)
    except (ValueError, OverflowError, OSError):
        raise InvalidArgument(f"{when!r} is not a moment that this machine can tell") from None
    if ms > shard.env.wall_ms():
        raise InvalidArgument(f"{when.isoformat()} is in the future; nobody knows what will be there")
    first = shard.log.first
    offset = offset_at(shard.log, ms)
    if first > 1 and offset < first:
        # The record before the oldest one is gone, and with it its moment; only the head tells of it, while it is the last.
        with shard.view() as view:
            head = view.head()
        if head.applied >= first or ms < head.now_ms:
            oldest = time_at(shard.log, first) or head.now_ms
            raise TooOld(
                f"{when.isoformat()} is before the oldest record that {shard.url} still has, of {as_time(oldest)}. "
                "Ask for a later moment, or restore a backup of that time"
            )
    return offset


class PastClient(StateClient):
    """Shared state as it was: reads need no level, nothing is due, and every write is refused by the space."""

    def settle_due(self, shard: int) -> None:
        """Nothing ends in the past."""

    def ready(self, shard: int, level: Level | None = None, timeout: float | None = None) -> None:
        """The past is there at once."""
