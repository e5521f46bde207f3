"""What jobs that are over have left in other shards, or for them, as far as it can be read here. ``settling`` ends it.

Imports nothing that computes: programs look before they load that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from onefold.compute.live.client import Found, LiveJob
from onefold.state.core.consistency import SESSION
from onefold.state.fold.live import outbox
from onefold.state.fold.live import rows as live_rows

if TYPE_CHECKING:
    from onefold.state.core.client import StateClient

GIVEN_UP: Final = "onefold: {why}. The job is over, so these rows are given up"


def say_given_up(why: str) -> None:
    """Say on stderr that a shard refuses what a job that is over has committed for it."""
    print(GIVEN_UP.format(why=why), file=sys.stderr)


def unsent(client: StateClient) -> Iterator[Found]:
    """Generations that were cancelled or dropped and have committed rows for other shards that are not there yet. Raises as
    reading."""
    for shard in range(client.shard_count if client.shard_count > 1 else 0):
        with client.view(shard, SESSION) as view:
            left = outbox.left(view)
        for name, generation in left:
            yield Found(LiveJob(client, name), generation)


def stale_cursors(client: StateClient, name: str | None = None) -> Iterator[tuple[int, LiveJob, int]]:
    """(shard, job, generation) of cursors that are of generations before this one, which were dropped; of one job or of all.
    Raises as reading."""
    for shard in range(client.shard_count if client.shard_count > 1 else 0):
        with client.view(shard, SESSION) as view:
            oldest: dict[str, int] = {}
            for cursor in live_rows.cursors(view, name):
                oldest.setdefault(cursor.job, cursor.generation)
        for job in [LiveJob(client, one) for one in oldest]:
            with job.local() as view:
                kept = [number for number, _ in live_rows.generations(view, job.name)]
                # A number is never given twice, so what is said here is true however old the view is.
                below = min(kept, default=live_rows.newest_of(view, job.name) + 1)
            if oldest[job.name] < below:
                yield shard, job, below
