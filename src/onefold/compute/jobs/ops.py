"""What is said to the jobs fold, and what it answers.

Every decision about a job is made by folding these operations: who runs which task, which result counts, when
a run is finished. Workers, observers and submitters only ask.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from onefold.compute.plan.stages import Failure, Result


class StageSpec(msgspec.Struct, frozen=True, array_like=True):
    """One stage of a submitted run. Tasks are in dispatch order: position = index in the stage."""

    tasks: tuple[bytes, ...]
    """16-byte task identities (see ``onefold.compute.code.identity``), in the seeded random dispatch order."""
    needs: tuple[int, ...]
    """Stages that must be complete before a task of this one can be claimed."""
    inputs: str
    """Blob with the msgpack of ``list[TaskInput]`` in the same order."""
    costs: tuple[int, ...] = ()
    """Input bytes of each task, for progress (empty: unknown)."""


class Submit(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Make a run. Tasks whose identity the table has already done are taken over as *reused*."""

    run: str
    table: str
    sink: Literal["table", "parquet"]
    mode: Literal["continue", "replace", "error"]
    version: str | None
    digest: str
    """Normalised digest of the plan."""
    columns: tuple[str, ...] | None
    """Result columns when the plan tells them, for the check against an existing table."""
    plan: str
    """Blob with the pickled job and its compiled stages."""
    seed: int
    on_error: Literal["fail", "skip"]
    max_attempts: int
    stages: tuple[StageSpec, ...]
    member: str
    """The process that submits."""
    expect: str | None = None
    """The table's head run that the splits were packed against; anything else in force is a Conflict."""
    supersede: bool = False
    """Cancel the table's running run (whose processes are gone) instead of joining it or being refused."""
    explain: str = ""
    """Blob with what the identities were made of, for ``onefold explain``."""


class Claim(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Ask for up to ``count`` open tasks, or for a backup of one running claim."""

    run: str
    worker: str
    """``member/slot``."""
    count: int = 1
    backup: tuple[int, int, int] | None = None
    """(stage, index, epoch) of a slow claim of somebody else."""
    avoid: tuple[tuple[int, int], ...] = ()
    """(stage, index) of open tasks that this worker cannot do: its machine has not their input."""


class Done(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A task's result. The first one for an open task wins; later ones are refused."""

    run: str
    stage: int
    index: int
    epoch: int
    result: Result


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """An attempt that failed."""

    run: str
    stage: int
    index: int
    epoch: int
    failure: Failure


class Release(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A worker gives a claim back unfinished (shutting down): not a failed attempt."""

    run: str
    stage: int
    index: int
    epoch: int


class Expire(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """An observer saw a claim's owner dead or silent for a lease: the claim ends, not as a failed attempt.

    Accepted only while the claim with this epoch is in force.
    """

    run: str
    stage: int
    index: int
    epoch: int


class Unfit(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A node says why it does not work on a run, or on some task of it; an empty reason takes that back.

    It moves no task: other workers continue. It is there for programs that wait for the run.
    """

    run: str
    node: str
    reason: str
    stage: int = -1
    """The task that it is about; -1: all of the run."""
    index: int = -1


class Renew(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A member says that it lives; observers see its count move."""

    member: str


class Lost(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A done task's blob cannot be had: the task reopens (and its run, when it was done)."""

    run: str
    stage: int
    index: int
    blob: str


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stop a run; what was finished stays."""

    run: str
    reason: str = ""


class Resume(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Resume a failed or cancelled run: attempts start again, finished tasks stay."""

    run: str
    member: str


class DropTable(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Forget a table with all of its runs and results. Refused as ``no_table`` and ``running``; before ``DROP_VERSION`` of the
    folds as ``malformed``."""

    table: str


class ReserveName(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Keep a table's name for a live job, whose own rows are in another fold and maybe another shard. ``Reserved`` has a new
    reservation, which takes the place of an earlier one. Refused as ``table_exists`` when runs have made such a table; before
    ``NAMES_VERSION`` of the folds as ``malformed``."""

    table: str


class FreeName(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Give a name back, if this is its reservation still. Before ``NAMES_VERSION`` of the folds ``malformed``.

    Only after the live job's own rows refuse a start under this reservation (``FenceStart``).
    """

    table: str
    token: int


class Swept(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Take blobs off the garbage list, to delete them.

    ``Accepted.blobs`` says which of them nothing names now: only those may be deleted. They are hidden before this is appended,
    and what is not among them is put back (see ``compute.blobs.sweeping``).
    """

    blobs: tuple[str, ...]


DROP_VERSION: Final = 3
"""The fold version from which tables can be dropped."""
NAMES_VERSION: Final = 4
"""The fold version from which names are reserved for live jobs."""
Operation = (
    Submit
    | Claim
    | Done
    | Failed
    | Release
    | Expire
    | Unfit
    | Renew
    | Lost
    | Cancel
    | Resume
    | DropTable
    | ReserveName
    | FreeName
    | Swept
)


class Assignment(msgspec.Struct, frozen=True, array_like=True):
    """A task handed to a worker under an epoch, which fences it."""

    stage: int
    index: int
    epoch: int
    attempt: int
    """From 1; expired and released claims do not count."""
    isolate: bool = False
    """Find the record that breaks it instead of running it whole."""
    skip_errors: bool = False
    """Dead-letter the records that raise (last attempt of a run with ``on_error="skip"``)."""


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The operation took effect. ``state`` is the run's state afterwards."""

    state: str = ""
    assignments: tuple[Assignment, ...] = ()
    run: str = ""
    """The run that the submitter works on: its own, or the equal one that was running already."""
    blobs: tuple[str, ...] = ()
    """For ``Swept``: what may be deleted now."""


class Reserved(Accepted, frozen=True, array_like=True, tag=True):
    """The name is reserved. One more field in ``Accepted`` would change rows, since outcomes are kept."""

    token: int = 0
    """The reservation."""


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The operation had no effect. ``code`` is for programs, ``message`` for people."""

    code: Literal[
        "no_such_run",
        "no_such_task",
        "not_running",
        "fenced",
        "already_done",
        "table_exists",
        "no_table",
        "running",
        "different_columns",
        "conflict",
        "busy",
        "reserved",
        "malformed",
        "exists",
    ]
    message: str


Outcome = Accepted | Reserved | Refused
