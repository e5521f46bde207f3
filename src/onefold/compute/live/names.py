"""Names of tables: one name has one job, batch or live.

The batch jobs of a table are rows of the jobs fold, in the first shard. A live job is rows of the state fold, in the shard of its
name. No operation decides over both, so the name of a live job is reserved in the first shard before the job begins, and the jobs
fold refuses runs into reserved names:

- begin: ``ReserveName``, a new reservation; then ``StartJob`` under it;
- drop: ``DropJob``, which fences the reservation: nothing is begun under it any more; then ``FreeName`` of that reservation;
- a batch job that is refused: ``FenceStart``, refused where the job exists; then ``FreeName``. So a program that died between two
  of these steps keeps no name.

A start whose reservation was fenced meanwhile reserves again. Jobs of releases before this have no reservation until they are
started again: a batch job looks for the job itself first. Where a program of such a release has the space open, nothing is
reserved, and two starts at the same moment may both succeed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from onefold.compute.jobs import state as batch_state
from onefold.compute.jobs.ops import NAMES_VERSION, FreeName, Refused, Reserved, ReserveName
from onefold.compute.live.client import LiveJob, Unreserved
from onefold.compute.plan.nodes import WITHOUT_TABLE
from onefold.errors import Conflict, InvalidArgument
from onefold.machine.undisturbed import let_pass
from onefold.state.core.afterwards import Happened

if TYPE_CHECKING:
    from onefold.compute.client import JobClient
    from onefold.state.core.client import StateClient

T = TypeVar("T")
_TRIES = 100
"""Each costs another program that drops a job of this name at the same moment."""


def begin(jobs: JobClient, job: LiveJob, start: Callable[[int], T]) -> T:
    """Start a job under a reservation of its name. ``start``: begins it under the one that is given; 0: none is needed.

    Raises what starting raises, and InvalidArgument when a batch job makes this table.
    """
    if job.name.startswith(WITHOUT_TABLE):
        return start(0)
    for attempt in range(_TRIES):
        # One that is there does as well: who gives it up fences it first.
        token = _reservation(jobs, job.name) if attempt == 0 else 0
        try:
            return start(token or _reserved(jobs, job))
        except Unreserved as error:
            let_pass(error)
    raise Conflict(f"other programs keep dropping live job {job.name!r}; start it again when they are done")


def _reserved(jobs: JobClient, job: LiveJob) -> int:
    check_no_batch(jobs, job.name)
    shards = {0, job.home}
    if not all(job.client.reach_version(shard, NAMES_VERSION) for shard in shards):
        return 0
    (outcome,) = jobs.submit(ReserveName(job.name))
    if isinstance(outcome, Refused):
        raise _made_by_batch(job.name) if outcome.code == "table_exists" else InvalidArgument(outcome.message)
    return outcome.token if isinstance(outcome, Reserved) else 0


def check_no_batch(jobs: JobClient, table: str) -> None:
    """Raise InvalidArgument when a batch job makes this table."""
    with jobs.shard.view() as view:
        row = batch_state.read_table(view, table)
    if row is not None:
        raise _made_by_batch(table)


def _made_by_batch(table: str) -> InvalidArgument:
    return InvalidArgument(
        f"table {table!r} is made by a batch job, and a table has one job: give the live job another name, or drop that one "
        f"with db.drop({table!r})"
    )


def drop(jobs: JobClient, job: LiveJob, generation: int, settle: Callable[[], None]) -> None:
    """Forget a generation; with the last one the name is free again. ``settle``: as for ``LiveJob.drop``. Raises Conflict while
    it runs; definite."""
    reservation = _reservation(jobs, job.name)
    job.drop(generation, reservation, settle)
    with Happened(f"live job {job.name}/{generation} was dropped"):
        if reservation and job.row() is None:
            jobs.submit(FreeName(job.name, reservation))


def free_abandoned(jobs: JobClient, client: StateClient, table: str) -> None:
    """A run was refused since the name is reserved: free it where there is no live job of that name. Raises InvalidArgument where
    there is one."""
    jobs.catch_up()
    reservation = _reservation(jobs, table)
    if reservation:
        LiveJob(client, table).fence(reservation)
        jobs.submit(FreeName(table, reservation))


def _reservation(jobs: JobClient, table: str) -> int:
    with jobs.shard.view() as view:
        return batch_state.reservation(view, table)
