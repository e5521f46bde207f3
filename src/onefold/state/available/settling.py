"""Lifetimes where nobody writes: what is due by a reader's clock ends by a record that carries the time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onefold.available.rows import number_key, shown_tables

if TYPE_CHECKING:
    from onefold.state.available.client import RegionClient

_TICKS_IN_VAIN_MAX = 8


def settle_due(client: RegionClient, shard_id: int) -> None:
    """Let end what is due by this client's clock, as far as that can be waited for.

    Raises SpaceError (read-only, closed) and Unavailable, both definite."""
    shard = client.shards[shard_id]
    before: bytes | None = None
    in_vain = 0
    for _ in range(1000):
        with shard.view() as view:
            stop = number_key(client.env.wall_ms() + 1)
            due = next(view.scan(shown_tables(view).due, stop=stop, limit=1), None)
        if due is None:
            return
        if due[0] == before:
            in_vain += 1
            if in_vain > _TICKS_IN_VAIN_MAX:
                return  # this clock is ahead of the log's, which decides: ever more ticks would change nothing
            shard.pause(0.001)  # a record stamped as the one before it ends nothing
        before = due[0]
        client.tick(shard_id)
