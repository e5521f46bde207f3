"""Operations of live jobs, and the write of a commit: see the package.

Times are in microseconds since 1970, as event times are; fold time is in milliseconds, as everywhere in the fold. All operations
go to the home shard of the job's name, except ``MoveCursor`` and ``HoldInput``.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from onefold.state.fold.kind import Natural, Operation, Positive, Write

LIVE_VERSION: Final = 3
"""The fold version from which live jobs exist."""
NAMES_VERSION: Final = 4
"""The fold version from which starts under a reservation can be fenced."""
STANDBY_VERSION: Final = 4
"""The fold version from which workers stand by."""
HOLDS_VERSION: Final = 4
"""The fold version from which nothing is held for a generation that is known to be over."""
ENDINGS_VERSION: Final = 4
"""The fold version from which nothing of a job that ends is left behind, or undoes what came after it."""
TIME_MAX_US: Final = (1 << 62) - 1
"""Event times are within this of 1970, on either side."""
WATERMARK_END_US: Final = 1 << 62
"""The watermark of a drained bundle: all its windows are closed. Above every event time."""

Micros = Annotated[int, msgspec.Meta(ge=-TIME_MAX_US, le=TIME_MAX_US)]
Watermark = Annotated[int, msgspec.Meta(ge=-TIME_MAX_US, le=WATERMARK_END_US)]
Token = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]

Index = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
"""Of an operation in its record, of a shard."""

RunKind = Literal["state", "result", "late", "dead"]
Ending = Literal["stopped", "failed"]


class PartSpec(msgspec.Struct, frozen=True, array_like=True):
    """A part of a job as it is started: what is fixed for as long as its state lives."""

    name: str
    """Of its keyed operator; unique in the job."""
    lanes: Positive
    signature: tuple[tuple[str, str], ...]
    """What its state depends on, as pairs of a name that users know and a value: ``("window", "tumbling 1m")``."""
    starts: tuple[tuple[Natural, Natural, Natural], ...]
    """(input, partition, offset to begin at) of every input partition."""
    by_partition: bool = False
    """A lane keeps the rows of its partitions (``lanes.of_partition``), and a bundle reads its own partitions only.
    Otherwise every bundle reads all of them, and keeps the rows of its lanes."""
    hop: str = ""
    """The part that reads the stream of the job's own (``rows.hop_stream``) to which its commits append, as its input 0; empty:
    there is no such stream."""


class Position(msgspec.Struct, frozen=True, array_like=True):
    """How far an input partition is committed."""

    input: Natural
    partition: Natural
    next: Natural
    """The first offset that is not committed."""
    max_us: Micros | None = None
    """The highest event time of the rows before it, of those that count for the watermark; None: there was none."""
    idle: bool = False
    """Whether it was found silent. Only a row takes that back."""


class Counters(msgspec.Struct, frozen=True, array_like=True):
    """What happened to rows: of one commit, or of all commits of a bundle."""

    rows: Natural = 0
    late: Natural = 0
    dead: Natural = 0
    ahead: Natural = 0
    before_seam: Natural = 0
    commits: Natural = 0
    """The fold counts these."""
    left_out: Natural = 0
    """Records with a column that the schema of their input does not have."""


class RunId(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A run's place among the runs of its part, and its identity: no later run has the same one.

    Runs are in the order of (offset, index), the place in the log of the commit that added them. A compacted run has that of the
    newest run it replaces.
    """

    offset: Natural
    index: Index
    made: Natural
    """The offset at which this run was added."""
    ordinal: Natural


class Cover(msgspec.Struct, frozen=True, array_like=True):
    """Lanes that a run no longer covers."""

    run: RunId
    lanes: bytes


class NewRun(msgspec.Struct, frozen=True, array_like=True):
    """A run that a commit adds. Its bytes are in the record, or in a blob that is durable before it."""

    kind: RunKind
    lanes: bytes
    rows: Natural
    size: Natural
    """In bytes."""
    blob: str = ""
    inline: bytes = b""
    low_us: Micros | None = None
    """The lowest and highest window end in it; None: no windows."""
    high_us: Micros | None = None
    replaces: tuple[Cover, ...] = ()
    """Compaction: these runs, in order, without a run of the same kind and lanes between them that is not named. They are of its
    kind, and lose all of its lanes."""


class Outgoing(msgspec.Struct, frozen=True, array_like=True):
    """Writes for another shard, sent by a forwarder after the commit, in order."""

    shard: Index
    writes: bytes
    """As the forwarder encodes them; the fold does not look into it."""


class LaneCommit(Write, frozen=True, array_like=True, tag="lane"):
    """A bundle's commit. Result: (seq, lanes that other workers wait for, bytes in the outbox).

    Rejected, and everything with it, as ``no_job``, ``not_running``, ``no_bundle``, ``fenced`` (owner or epoch), ``lanes``,
    ``out_of_order`` (seq), ``schema`` (it was changed by another bundle), ``went_back`` (a position or the watermark),
    ``not_drained``, ``bad_run`` or ``malformed``.
    """

    job: str
    generation: Positive
    part: str
    bundle: Natural
    owner: str
    epoch: Positive
    seq: Positive
    """That of the bundle's last commit, plus one."""
    lanes: bytes
    """Exactly those of the bundle."""
    nonce: Token
    """Drawn at random by each that holds the bundle: who finds ``seq`` committed learns by it whether that was its own commit."""
    positions: tuple[Position, ...] = ()
    """Of the input partitions that moved, each once."""
    watermark_us: Watermark | None = None
    runs: tuple[NewRun, ...] = ()
    dropped: tuple[Cover, ...] = ()
    """Runs whose rows are past their time."""
    counted: Counters = Counters()
    """By this commit."""
    outbox: tuple[Outgoing, ...] = ()
    schema: tuple[Natural, bytes] | None = None
    """The columns of the part's inputs, if they change: (number of changes before this one, what they are now). The fold does
    not look into them."""


class MoveCursor(Write, frozen=True, array_like=True, tag="lcursor"):
    """In a target shard, together with what is forwarded: it is now done up to ``to``. Result: None.

    Rejected as ``forwarded`` unless the cursor is at ``before``; so each outgoing message is done once. As ``over`` when the
    generation was dropped (``DropCursors``).
    """

    job: str
    generation: Positive
    home: Index
    since: Natural
    """Where the generation began (``GenerationRow.offset``): a job that was dropped and begun again numbers from 1 again, and
    nothing of the former one may count for it."""
    before: Natural
    to: Natural


class StartJob(Operation, frozen=True, array_like=True, tag="lstart"):
    """Begin a job, or continue it: one that runs or drains gets the plan for its next commits, one that stopped or failed runs
    again, or drains on if a bundle of it is drained.

    Answer: (generation, state before: ``new`` when there was none). Rejected as ``changed`` when its parts are not those that the
    job was begun with, as ``over`` when it is done or was cancelled, as ``malformed``.
    """

    job: str
    plan: str
    """The blob of the plan."""
    parts: tuple[PartSpec, ...]
    generation: Natural = 0
    """The one to continue; 0: the job's present one."""
    reservation: Natural = 0
    """The one that the job's name has among tables; 0: none. One that was fenced begins no job: rejected as ``unreserved``."""


class FenceStart(Operation, frozen=True, array_like=True, tag="lfence"):
    """No job of this name is begun under this reservation or an earlier one any more, so that the name can be given back. Answer:
    None. Rejected as ``exists`` when there is such a job.

    Not known before fold version ``NAMES_VERSION``.
    """

    job: str
    reservation: Positive


class AddInputs(Operation, frozen=True, array_like=True, tag="linputs"):
    """A stream that a part waits for is there: these are its partitions. Answer: whether that was new.

    Every bundle of the part gets a new epoch, so no commit that knows nothing of them is accepted. Rejected as ``no_job``,
    ``not_running``, ``malformed``.
    """

    job: str
    generation: Positive
    part: str
    starts: tuple[tuple[Natural, Natural, Natural], ...]
    """As of ``PartSpec``. An input that the part has partitions of already gets no more."""


class Claim(Operation, frozen=True, array_like=True, tag="lclaim"):
    """A worker takes lanes of a part that nobody owns, up to its share. It becomes known as a worker by its first claim.

    Answer: the ids of all bundles of the part that it owns now. Rejected as ``no_job``, ``not_running``, ``too_many``.
    """

    job: str
    generation: Positive
    part: str
    worker: str
    member: str
    """Its process, as ``Shard.member_alive`` knows it."""
    standby: bool = False
    """It becomes known as a worker that stands by: it has no share of the lanes, and takes none, until it claims without this.
    Does nothing to one that is known. Not known before fold version ``STANDBY_VERSION``, where it claims like any other."""


class Beat(Operation, frozen=True, array_like=True, tag="lbeat"):
    """The worker lives. Needed only where other processes cannot know that, or where it reads nothing and says why. Answer:
    whether it is a worker of the job."""

    job: str
    generation: Positive
    worker: str
    state_bytes: Natural = 0
    """It holds so much open state that it reads nothing; 0: it reads."""


class Give(Operation, frozen=True, array_like=True, tag="lgive"):
    """The owner splits a bundle: a new one with these lanes has the same position, watermark and runs. Answer: its id.

    Rejected as ``LaneCommit``; ``lanes`` unless they are some, and not all, of the bundle's.
    """

    job: str
    generation: Positive
    part: str
    bundle: Natural
    owner: str
    epoch: Positive
    seq: Natural
    """Of its last commit."""
    lanes: bytes
    to: str = ""
    """The worker that owns the new bundle, if it is still known; otherwise nobody does."""


class Fuse(Operation, frozen=True, array_like=True, tag="lfuse"):
    """Two bundles of one owner become the first of them, under its next epoch. Answer: None.

    Rejected as ``LaneCommit``; ``unequal`` unless their positions and watermarks are the same.
    """

    job: str
    generation: Positive
    part: str
    owner: str
    first: tuple[Natural, Positive, Natural]
    """(bundle, epoch, seq)."""
    second: tuple[Natural, Positive, Natural]


class Expire(Operation, frozen=True, array_like=True, tag="lexpire"):
    """A worker died, or was silent for a lease on the observer's clock: its bundles have no owner, and it is forgotten.

    Answer: whether that was so. Nothing happens unless ``beats`` and ``activity`` are as the observer saw them, so a commit or
    a beat that comes first wins.
    """

    job: str
    generation: Positive
    worker: str
    beats: Natural
    activity: Natural
    """``bundles.activity``: it changes with each commit of the worker."""
    died: bool
    """Whether the process is known to be dead; counted by its bundles."""


class Leave(Operation, frozen=True, array_like=True, tag="lleave"):
    """The worker ends: as ``Expire``, by itself. Answer: whether it was a worker."""

    job: str
    generation: Positive
    worker: str


class Stop(Operation, frozen=True, array_like=True, tag="lstop"):
    """No more commits of the generation. Its state is kept. Answer: the state before. Rejected as ``no_job``, ``over``,
    ``other_plan``."""

    job: str
    generation: Positive
    ending: Ending = "stopped"
    error: str = ""
    """Of ``failed``: why."""
    plan: str = ""
    """Only while it has this plan: what failed is the program that it had, and it may have been corrected since. Empty: whatever
    plan it has, as before fold version ``ENDINGS_VERSION``."""


class Drain(Operation, frozen=True, array_like=True, tag="ldrain"):
    """Read up to ``ends``, close all windows and be done. Answer: the state now. Rejected as ``no_job``, ``not_running``."""

    job: str
    generation: Positive
    ends: tuple[tuple[str, Natural, Natural, Natural], ...]
    """(part, input, partition, offset): a bundle is drained at the earliest there."""


class Replay(Operation, frozen=True, array_like=True, tag="lreplay"):
    """Begin a generation next to the present one, hidden until ``Swap``. Answer: its number.

    Rejected as ``no_job``, ``replaying`` (there is one already), ``malformed``.
    """

    job: str
    plan: str
    parts: tuple[PartSpec, ...]


class Swap(Operation, frozen=True, array_like=True, tag="lswap"):
    """The generation that replays becomes the job's; the one before it is stopped and kept. Answer: the number of that one.

    Rejected as ``no_replay``, and as ``lagging`` unless its bundles have committed up to ``ends``, or ``force`` is set.
    """

    job: str
    generation: Positive
    ends: tuple[tuple[str, Natural, Natural, Natural], ...]
    """As of ``Drain``: the ends of the inputs that the caller saw."""
    force: bool = False


class Cancel(Operation, frozen=True, array_like=True, tag="lcancel"):
    """End a generation for ever, and forget the open state of these parts: so many runs at a time. What it has put out is kept.

    Answer: whether anything is left of that state. Nothing happens to a generation that is done. Rejected as ``no_job``.
    """

    job: str
    generation: Positive
    parts: tuple[str, ...]
    """Those whose state is not itself the table that readers see."""


class DropJob(Operation, frozen=True, array_like=True, tag="ldrop"):
    """Forget a generation that does not run, and its state: so many runs at a time. Answer: whether anything is left of it.

    As long as something waits in its outbox, only its state changes: it is not started again. Before fold version
    ``ENDINGS_VERSION`` the outbox goes with it.

    Rejected as ``no_job``, ``running``, and as ``current`` while others of the job are there.
    """

    job: str
    generation: Positive
    reservation: Natural = 0
    """Fenced with the last generation, as by ``FenceStart``; 0: none."""


class Sweep(Operation, frozen=True, array_like=True, tag="lsweep"):
    """These blobs are hidden: take those off the garbage list that nothing names. Answer: their names."""

    blobs: tuple[str, ...]


class Forwarded(Operation, frozen=True, array_like=True, tag="lforwarded"):
    """What the outbox has for a shard is done there up to a number. Answer: how many messages that were."""

    job: str
    generation: Positive
    shard: Index
    through: Natural


class DropCursors(Operation, frozen=True, array_like=True, tag="lcursors"):
    """In a target shard: all generations of the job before this one are dropped. Their cursors go, so many at a time, and are not
    moved any more. Answer: whether there are more.

    Not known before fold version ``ENDINGS_VERSION``.
    """

    job: str
    home: Index
    below: Positive


class TrimHop(Operation, frozen=True, array_like=True, tag="ltrim"):
    """Remove from the stream that a part writes what all bundles of the part that reads it have committed: some segments at a
    time. Answer: how many. Which part that is, the fold knows."""

    job: str
    generation: Positive
    part: str


class HoldInput(Operation, frozen=True, array_like=True, tag="lhold"):
    """In a shard of a stream that a part reads: from these offsets on its records are kept past the stream's retention.

    Answer: how many partitions that changed something of. Rejected as ``no_stream`` where the stream is not known, as
    ``malformed``.
    """

    job: str
    generation: Positive
    part: str
    stream: str
    offsets: tuple[tuple[Natural, Natural], ...]
    """(partition, the first offset that the part has not committed)."""
    hold_ms: Natural
    """For so much longer than the retention; 0: no longer."""


LiveWrite = LaneCommit | MoveCursor
LiveOp = (
    StartJob
    | FenceStart
    | AddInputs
    | Claim
    | Beat
    | Give
    | Fuse
    | Expire
    | Leave
    | Stop
    | Drain
    | Replay
    | Swap
    | Cancel
    | DropJob
    | Sweep
    | Forwarded
    | DropCursors
    | TrimHop
    | HoldInput
)
