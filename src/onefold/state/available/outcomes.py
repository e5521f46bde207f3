"""What became of a write with a ``request_id``, where a region is asked too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from onefold.available.ops import Rejected, decode_outcome
from onefold.available.rows import shown_tables
from onefold.errors import Unavailable
from onefold.machine.undisturbed import let_pass
from onefold.state.core.outcomes import outcome

if TYPE_CHECKING:
    from onefold.state.available.client import RegionClient

Kept = Literal["committed", "rejected"] | None


def region_outcome(client: RegionClient, request_id: str) -> Kept:
    """What the region's own log keeps under the request id, effects of other regions that it has heard of included.

    Raises Unavailable (definite) when a shard of the region cannot be asked.
    """
    for shard in range(client.shard_count):
        kept = client.shards[shard].outcome(request_id, client.strongly(shard))
        if kept is not None:
            return "rejected" if isinstance(decode_outcome(kept), Rejected) else "committed"
        with client.shards[shard].view(need=client.strongly(shard)) as view:
            if view.get(shown_tables(view).requests, request_id.encode()) is not None:
                return "committed"
    return None


def outcome_of_both(client: RegionClient, request_id: str) -> Kept:
    """What the region keeps; if that is nothing, what the space does. A write that one of them knows needs the other one not.

    Raises Unavailable (definite) when the one that can be asked knows nothing of it."""
    unasked: Unavailable | None = None
    try:
        found = region_outcome(client, request_id)
    except Unavailable as error:
        let_pass(error)
        found, unasked = None, error
    if found is not None:
        return found
    region = client.region.name
    try:
        found = outcome(client.space, request_id)
    except Unavailable as error:
        let_pass(error)
        if unasked is not None:
            raise
        raise Unavailable(
            f"no write in region {region} has the request_id {request_id!r}, and none that it has heard of. Whether one of a "
            f"consistent collection has, cannot be known now: {error}"
        ) from error
    if found is None and unasked is not None:
        raise Unavailable(
            f"no write of a consistent collection has the request_id {request_id!r}. Whether one in region {region} has, cannot "
            f"be known now: {unasked}"
        ) from unasked
    return found
