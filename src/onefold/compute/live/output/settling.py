"""What commits have left for other shards when nobody works on the job any more: the program that ends the job does it.

A worker may have died, or be stopped, between its commit and the forwarding. What is committed belongs into the job's sink all
the same: the other rows of that commit are there. Once it is done, or given up, the cursors of the other shards stand behind it,
so a worker that comes back then finds its messages done.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from onefold.compute.live.client import LiveJob
from onefold.compute.live.output.forwarder import Forwarder
from onefold.errors import JobFailed
from onefold.machine.undisturbed import MayFail, if_possible
from onefold.state.core.consistency import SESSION
from onefold.state.core.time_limits import limited_step
from onefold.state.fold.live import outbox
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import ENDINGS_VERSION, DropCursors
from onefold.state.fold.outcomes import Answer

if TYPE_CHECKING:
    from onefold.backoff import Deadline
    from onefold.state.core.client import StateClient

GIVEN_UP: Final = "onefold: {why}. The job is over, so these rows are given up"
"""Said on stderr."""


def forward_until(job: LiveJob, generation: int, deadline: Deadline) -> None:
    """Do what waits, as far as that can be done now: otherwise the next worker does it."""
    forwarder, more = Forwarder(job, generation), True
    with if_possible:
        while more:
            with limited_step(job.client, deadline):
                more = forwarder.forward() and not deadline.passed


def forward_all(job: LiveJob, generation: int) -> None:
    """Do all that waits, up to what a shard refuses. Raises as ``Shard.submit``."""
    forwarder = Forwarder(job, generation)
    with MayFail(JobFailed):
        while forwarder.forward():
            pass


def settle(job: LiveJob, generation: int) -> None:
    """Do all that waits of a generation that is over; what a shard refuses is given up, and said. Raises as ``Shard.submit``:
    then calling again continues."""
    for why in Forwarder(job, generation).settle():
        print(GIVEN_UP.format(why=why), file=sys.stderr)


def drop_cursors(client: StateClient, name: str | None = None) -> None:
    """Remove the cursors of generations that were dropped, of one job or of all. What a shard does not know yet stays, and is
    removed when this is called again. Raises as ``Shard.submit``."""
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
            if oldest[job.name] >= below or not client.reach_version(shard, ENDINGS_VERSION):
                continue
            while client.submit(shard, DropCursors(job.name, job.home, below)) == Answer(True):
                pass


def settle_left(client: StateClient) -> None:
    """The same for all jobs whose program died after it had cancelled or dropped them. Raises as ``settle``."""
    for shard in range(client.shard_count if client.shard_count > 1 else 0):
        with client.view(shard, SESSION) as view:
            left = outbox.left(view)
        for name, generation in left:
            settle(LiveJob(client, name), generation)
