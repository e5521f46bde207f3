"""What became of a write with a ``request_id``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from onefold.state.core.time_limits import limited
from onefold.state.fold.outcomes import Blocked, Decided, Outcome, Rejected, Voted, decode_outcome

if TYPE_CHECKING:
    from onefold.state.core.client import StateClient


def outcome(client: StateClient, request_id: str) -> Literal["committed", "rejected"] | None:
    """What is kept under the request id; None when nothing is, in any shard: it did not happen so far, or longer ago than
    ``config.REQUEST_ID_RETENTION_S``.

    None does not mean that it cannot happen any more: an append that failed indefinitely may surface later. Submitting it again
    under the same id settles that. Raises Unavailable (definite) when a shard cannot be asked.
    """
    with limited(client, client.env.boot_s() + client.timeout):
        return _outcome(client, request_id)


def _outcome(client: StateClient, request_id: str) -> Literal["committed", "rejected"] | None:
    for shard_id in range(client.shard_count):
        kept = client.outcome(shard_id, request_id)
        found = None if kept is None else _meaning(decode_outcome(kept))
        if found is not None:
            return found
    return None


def _meaning(kept: Outcome) -> Literal["committed", "rejected"] | None:
    match kept:
        case Decided():
            return "committed" if kept.commit else "rejected"
        case Rejected():
            return "rejected"
        case Voted() | Blocked():
            return None  # a step of a transaction over several shards, whose decision is kept in its home
    return "committed"
