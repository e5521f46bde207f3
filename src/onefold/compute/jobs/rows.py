"""What the jobs fold keeps: its tables, their keys and their rows.

All rows are msgpack arrays, so a later version may append fields with defaults. Keys are in bytewise order:
names end with a zero byte (so no name is a prefix of another's keys), numbers are big endian.

=================  ============================  =============================================================
table              key                           value
=================  ============================  =============================================================
jobs/run           run                           RunState: what changes with every claim
jobs/spec          run                           RunSpec: what a run was submitted with
jobs/task          run, stage, index             TaskState
jobs/open          run, queue, stage, index      empty: nobody works on it (queue 0: reopened, 1: others)
jobs/claim         run, stage, index, epoch      ClaimState: claims in force
jobs/tries         run, stage, index             Tries: failed attempts since the last Submit or Resume
jobs/change        run, sequence                 (stage, index): a task's latest change, one row a task
jobs/error         run, sequence                 ErrorState: the latest failed attempts
jobs/unfit         run, node                     UnfitState: why a node does not work on it
jobs/dead          run, stage, index             result id whose dead letters the task has
jobs/result        result id                     ops' Result without its dead letters
jobs/letters       result id                     tuple of DeadLetter
jobs/reference     result id                     how many tasks name the result, when more than one
jobs/known         table, identity               Known: the result that a new run takes over
jobs/table         table                         TableState
jobs/reserved      table                         the reservation (a log offset) of a name that is a live job's
jobs/blob          blob                          how many results and runs name the blob
jobs/garbage       blob                          offset at which the last name of the blob went
jobs/member        member                        MemberState
=================  ============================  =============================================================
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any, Final, TypeVar

import msgspec

from onefold.compute import jobs
from onefold.compute.plan.stages import Failure

RUN: Final = "jobs/run"
SPEC: Final = "jobs/spec"
TASK: Final = "jobs/task"
OPEN: Final = "jobs/open"
CLAIM: Final = "jobs/claim"
TRIES: Final = "jobs/tries"
CHANGE: Final = "jobs/change"
ERROR: Final = "jobs/error"
UNFIT: Final = "jobs/unfit"
DEAD: Final = "jobs/dead"
RESULT: Final = "jobs/result"
LETTERS: Final = "jobs/letters"
REFERENCE: Final = "jobs/reference"
KNOWN: Final = "jobs/known"
TABLE: Final = "jobs/table"
RESERVED: Final = "jobs/reserved"
BLOB: Final = "jobs/blob"
GARBAGE: Final = jobs.GARBAGE
MEMBER: Final = "jobs/member"

REOPENED: Final = 0
"""Queue of tasks that were done and have to run again: they come first, since others wait for them."""
WAITING: Final = 1
"""Queue of all other open tasks, in (stage, dispatch index) order."""

NO_CONTENT: Final = bytes(16)


class StageState(msgspec.Struct, array_like=True):
    """Counters of one stage of a run."""

    count: int
    needs: tuple[int, ...]
    cost: int = 0
    """Input bytes of all its tasks, as far as the submission told."""
    done: int = 0
    """How many of its tasks have a result in force: from 0 to ``count``."""
    reused: int = 0
    cost_done: int = 0
    rows_in: int = 0
    """Rows read by the tasks that this run did itself and whose results are in force."""
    bytes_in: int = 0
    content: bytes = NO_CONTENT
    """Sum (mod 2^128) of the tokens of its tasks' latest results: says which data the stage gives, whatever
    the order."""
    consumed: bytes = b""
    """Digest of the inputs that its finished and running tasks read; empty: nobody has read yet."""
    upstream: bytes = b""
    """Digest of the identities of all tasks that it needs, directly or not; empty: it needs none."""
    held: bool = False
    """Whether a task has been handed out since all its tasks were fenced last."""


class RunError(msgspec.Struct, frozen=True, array_like=True):
    """Why a run failed (``failure``, of one task) or was cancelled (``reason``)."""

    reason: str
    stage: int = -1
    index: int = -1
    failure: Failure | None = None


class RunState(msgspec.Struct, array_like=True):
    """What of a run changes while it runs."""

    table: str
    state: str
    on_error: str
    max_attempts: int
    member: str
    stages: list[StageState]
    kept: bool = True
    """Whether its tasks and results are still there (they go when a later run of the table is done)."""
    changes: int = 0
    """Sequence number of the latest change of a task."""
    errors: int = 0
    """Sequence number of the latest failed attempt."""
    failed: int = 0
    retried: int = 0
    dead: int = 0
    updated_ms: int = 0
    error: RunError | None = None


class RunSpec(msgspec.Struct, frozen=True, array_like=True):
    """What a run was submitted with."""

    table: str
    sink: str
    mode: str
    version: str | None
    digest: str
    columns: tuple[str, ...] | None
    plan: str
    seed: int
    explain: str
    inputs: tuple[str, ...]
    lineages: tuple[bytes, ...]
    """Per stage: a digest of the identities of its tasks and of all that they need, whatever their order."""
    previous: str | None
    """The table's head when this run was submitted."""
    submission: bytes
    """Digest of the whole Submit operation, to know a repeated one."""
    created_ms: int
    created_offset: int


class TaskState(msgspec.Struct, array_like=True):
    """One task of a run."""

    identity: bytes
    cost: int = 0
    epoch: int = 0
    """The latest epoch that was handed out; 0: never claimed."""
    fence: int = 1
    """Results of lower epochs are refused: they may come from an input that was lost."""
    claims: tuple[int, ...] = ()
    """Epochs of the claims in force."""
    result: bytes = b""
    """Result id; empty while the task is open."""
    token: bytes = b""
    """Digest of identity and content of the latest result; stays when the task reopens, to compare."""
    reused: bool = False
    queue: int = WAITING
    sequence: int = 0
    """Its row in the change table; 0: none."""
    rows_in: int = 0
    bytes_in: int = 0
    dead: int = 0


class ClaimState(msgspec.Struct, frozen=True, array_like=True):
    """A claim in force."""

    worker: str
    attempt: int
    isolate: bool
    backup: bool
    since_ms: int
    """Fold time of the claim."""


class Tries(msgspec.Struct, array_like=True):
    """Failed attempts of a task."""

    errors: int = 0
    deaths: int = 0
    isolated: int = 0
    """Failures of isolating attempts, whatever they died of."""

    @property
    def total(self) -> int:
        """All failed attempts."""
        return self.errors + self.deaths + self.isolated


class ErrorState(msgspec.Struct, frozen=True, array_like=True):
    """One failed attempt."""

    stage: int
    index: int
    epoch: int
    attempt: int
    worker: str
    at_ms: int
    failure: Failure


class UnfitState(msgspec.Struct, frozen=True, array_like=True):
    """Why a node does not work on a run, or on a task of it."""

    reason: str
    stage: int
    index: int
    at_ms: int


class Known(msgspec.Struct, frozen=True, array_like=True):
    """A result under its task's name."""

    result: bytes
    token: bytes
    consumed: bytes
    dead: int = 0


class TableState(msgspec.Struct, array_like=True):
    """A table: the runs that made it."""

    head: str
    sink: str
    columns: tuple[str, ...] | None
    exact: bool = False
    done: str | None = None
    """The latest run that completed and whose results are kept."""
    live: list[str] = []
    """Runs whose tasks and results are kept, the head last."""
    past: list[str] = []
    """Earlier runs, of which only the run rows are kept."""
    explained: str | None = None
    """A past run whose ``explain`` blob is kept, to tell why the head computed something again."""
    updated_ms: int = 0


class MemberState(msgspec.Struct, frozen=True, array_like=True):
    """A process that renews."""

    renewals: int
    offset: int
    at_ms: int


encode = msgspec.msgpack.Encoder().encode

T = TypeVar("T")
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def decode(data: bytes, kind: type[T]) -> T:
    """A row of this kind."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    return decoder.decode(data)  # type: ignore[no-any-return]


def known_as(identity: bytes, upstream: bytes) -> bytes:
    """Under which name a table knows a task's result.

    The identities of the upstream tasks are a part of it, so that the result of, say, a reduction is never
    taken over by a run with other splits, even if both gave that task one identity.
    """
    return hashlib.blake2b(identity + upstream, digest_size=16).digest() if upstream else identity


_TASK = struct.Struct(">HI")
_QUEUED = struct.Struct(">BHI")
_CLAIM = struct.Struct(">HIQ")
_RESULT = struct.Struct(">QI")
_U64 = struct.Struct(">Q")


def name_key(name: str) -> bytes:
    """The prefix of everything under a run or table."""
    return name.encode() + b"\0"


def name_of(key: bytes) -> str:
    """The name in a key of the tables that are keyed by name only."""
    return key.rstrip(b"\0").decode()


def task_key(run: str, stage: int, index: int) -> bytes:
    """Key of a task."""
    return name_key(run) + _TASK.pack(stage, index)


def task_of(key: bytes) -> tuple[int, int]:
    """(stage, index) at the end of a task's or an open task's key."""
    stage, index = _TASK.unpack_from(key, len(key) - _TASK.size)
    return stage, index


def node_key(run: str, node: str) -> bytes:
    """Key of what a node said of a run."""
    return name_key(run) + node.encode()


def stage_range(run: str, stage: int, start: int = 0, stop: int | None = None) -> tuple[bytes, bytes]:
    """(first key, key after the last) of the tasks, or claims, of a stage."""
    last = (
        task_key(run, stage, stop)
        if stop is not None
        else name_key(run) + struct.pack(">I", (stage + 1) << 16)
    )
    return task_key(run, stage, start), last


def queue_key(run: str, queue: int, stage: int, index: int) -> bytes:
    """Key of an open task."""
    return name_key(run) + _QUEUED.pack(queue, stage, index)


def claim_key(run: str, stage: int, index: int, epoch: int) -> bytes:
    """Key of a claim."""
    return name_key(run) + _CLAIM.pack(stage, index, epoch)


def claim_of(key: bytes) -> tuple[int, int, int]:
    """(stage, index, epoch) at the end of a claim's key."""
    stage, index, epoch = _CLAIM.unpack_from(key, len(key) - _CLAIM.size)
    return stage, index, epoch


def sequence_key(run: str, sequence: int) -> bytes:
    """Key of a change or an error."""
    return name_key(run) + _U64.pack(sequence)


def sequence_of(key: bytes) -> int:
    """The sequence number at the end of a key."""
    (sequence,) = _U64.unpack_from(key, len(key) - _U64.size)
    return int(sequence)


def result_id(offset: int, index: int) -> bytes:
    """Where in the log a result was given: that names it."""
    return _RESULT.pack(offset, index)
