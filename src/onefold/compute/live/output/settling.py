"""What commits have left for other shards when nobody works on the job any more: the program that ends the job does it.

A worker may have died, or be stopped, between its commit and the forwarding. What is committed belongs into the job's sink all
the same: the other rows of that commit are there. Once it is done, or given up, the cursors of the other shards stand behind it,
so a worker that comes back then finds its messages done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from onefold.compute.live.output.forwarder import Forwarder
from onefold.compute.live.output.left import say_given_up, stale_cursors, unsent
from onefold.errors import JobFailed
from onefold.machine.undisturbed import MayFail, if_possible
from onefold.state.core.time_limits import limited_step
from onefold.state.fold.live.ops import ENDINGS_VERSION, DropCursors
from onefold.state.fold.outcomes import Answer

if TYPE_CHECKING:
    from onefold.backoff import Deadline
    from onefold.compute.live.client import LiveJob
    from onefold.state.core.client import StateClient


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


def settle(job: LiveJob, generation: int, say: Callable[[str], None] = say_given_up) -> None:
    """Do all that waits of a generation that is over; what a shard refuses is given up, and said. Raises as ``Shard.submit``:
    then calling again continues."""
    for why in Forwarder(job, generation).settle():
        say(why)


def drop_cursors(client: StateClient, name: str | None = None) -> int:
    """Remove the cursors of generations that were dropped, of one job or of all; in how many shards there were any. What a shard
    does not know yet stays, and is removed when this is called again. Raises as ``Shard.submit``."""
    done = 0
    for shard, job, below in stale_cursors(client, name):
        if client.reach_version(shard, ENDINGS_VERSION):
            while client.submit(shard, DropCursors(job.name, job.home, below)) == Answer(True):
                pass
            done += 1
    return done


def settle_left(client: StateClient, say: Callable[[str], None] = say_given_up) -> int:
    """``settle`` for all jobs whose program died after it had cancelled or dropped them; for how many generations. Raises as
    that."""
    done = 0
    for found in unsent(client):
        settle(found.job, found.generation, say)
        done += 1
    return done
