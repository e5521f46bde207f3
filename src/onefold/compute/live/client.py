"""A live job as the programs that start it, work on it and look at it use it: operations of its rows in the state fold.

Nothing is decided here. What users ask is read at the connection's level. Workers read what is here: what they decide by an old
row is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from onefold import config, errors
from onefold.backoff import Deadline
from onefold.compute.plan.nodes import HISTORY, history_table
from onefold.errors import (
    Conflict,
    InvalidArgument,
    InvalidPlan,
    OnefoldError,
    SpaceError,
)
from onefold.machine.undisturbed import MayFail
from onefold.state.core.afterwards import Happened
from onefold.state.core.client import StateClient, rejection
from onefold.state.core.consistency import SESSION, STRONG
from onefold.state.encoding.keys import encode_key
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import (
    ENDINGS_VERSION,
    LIVE_VERSION,
    AddInputs,
    Cancel,
    Drain,
    DropJob,
    Ending,
    FenceStart,
    LiveOp,
    PartSpec,
    Replay,
    StartJob,
    Stop,
    Swap,
)
from onefold.state.fold.live.rows import GenerationRow, JobRow
from onefold.state.fold.outcomes import Answer, Outcome, Rejected

if TYPE_CHECKING:
    from onefold.shard.api import View

SINK: Final = "sink"
"""What a signature calls the kind and name of the job's sink."""
Ends = Sequence[tuple[str, int, int, int]]
"""(part, input, partition, offset)."""
PASSING: Final = errors.PASSING
"""What says nothing of the job."""
now_or_later: Final = MayFail(*PASSING)
"""A ``with`` block for what somebody else does later, if it cannot be done now."""


class BundleLost(Conflict):
    """The bundle is not this worker's as it believes: it was taken, split, fused, or committed by another attempt.

    Definite: nothing was written. Drop what is in memory for it, and claim again.
    """


class NotRunning(Conflict):
    """The job takes no commits: it was stopped, failed, is done, or was dropped. Definite. Programs catch it as ``Conflict``."""


class OtherPlan(Conflict):
    """The job has another plan by now. Definite: it was not stopped."""


class Unreserved(Conflict):
    """The reservation of the job's name was given up. Definite: nothing was begun; reserve the name again."""


class Started(NamedTuple):
    """What became of a start."""

    generation: int
    before: str
    """``new``, ``running``, ``stopped`` or ``failed``."""


class Found(NamedTuple):
    """A generation of a job."""

    job: LiveJob
    generation: int

    @property
    def id(self) -> str:
        """Its name and generation."""
        return f"{self.job.name}/{self.generation}"


class Listed(NamedTuple):
    """A generation in a list of all."""

    found: Found
    is_current: bool
    """Whether it is the job's present one."""
    row: GenerationRow


class LiveJob:
    """One live job of a space. Thread-safe."""

    def __init__(self, client: StateClient, name: str) -> None:
        """Raises InvalidArgument for a name that no job can have."""
        if not live_rows.is_name(name):
            raise InvalidArgument(f"a live job has a name of at most 200 bytes, not {name!r}")
        self.client = client
        self.name = name
        self.home = client.shard_of(encode_key(name))
        """The shard of its rows."""

    # -- its life

    def start(self, plan: str, parts: Sequence[PartSpec], reservation: int = 0) -> Started:
        """Begin the job, or continue it with this plan. ``reservation``: of its name (``live.names``); 0: none.

        Raises Conflict that names the difference when it was begun with other parts, Unreserved, NotRunning when it is over,
        InvalidPlan, SpaceError when a program of an earlier release keeps the space from having live jobs; all definite.
        """
        self._reach_version()
        outcome = self.client.submit(
            self.home, StartJob(self.name, plan, tuple(parts), reservation=reservation)
        )
        if isinstance(outcome, Rejected) and outcome.reason == "changed" and self._begun_without_sink():
            outcome = self.client.submit(
                self.home, StartJob(self.name, plan, _without_sink(parts), reservation=reservation)
            )
        if isinstance(outcome, Rejected) and outcome.reason == "changed":
            outcome = Rejected(
                "changed", self._steps_changed({part.name for part in parts}) or outcome.detail
            )
        if not isinstance(outcome, Answer):
            raise refused(outcome)
        generation, before = outcome.value
        return Started(generation, before)

    def _begun_without_sink(self) -> bool:
        """Whether a program of release 0.4.0 began the job, whose signatures do not have the sink."""
        with self.view() as view:
            job = live_rows.job_of(view, self.name)
            stored = [] if job is None else live_rows.parts(view, self.name, job.current)
        return bool(stored) and not any(SINK in dict(part.spec.signature) for _, part in stored)

    def _steps_changed(self, now: set[str]) -> str:
        """A function before a key is a part of its own, which changes what the other part reads: that is what to name, not the
        partitions of its inputs. Empty: the job has the parts that it had."""
        with self.view() as view:
            job = live_rows.job_of(view, self.name)
            number = 0 if job is None else job.current
            before = {part.spec.name for _, part in live_rows.parts(view, self.name, number)}
        if len(now) == len(before):
            return ""
        what = (
            "now comes before the keys, and none did"
            if len(now) > len(before)
            else "came before the keys, and none does now"
        )
        return f"a Python function (map, flat_map or map_batches) {what}, so the job has other parts"

    def restart(self, generation: int, plan: str) -> None:
        """Continue a generation that stopped or failed, with this plan and the parts that it has. Raises NotRunning when it is
        over."""
        with self.view() as view:
            parts = tuple(part.spec for _, part in live_rows.parts(view, self.name, generation))
        self.submit(StartJob(self.name, plan, parts, generation))

    def add_inputs(self, generation: int, part: str, starts: Sequence[tuple[int, int, int]]) -> bool:
        """A stream that a part waits for is there: (input, partition, offset) of its partitions. Whether that was new."""
        return bool(self.submit(AddInputs(self.name, generation, part, tuple(starts))))

    def stop(self, generation: int, ending: Ending = "stopped", error: str = "", plan: str = "") -> str:
        """No more commits; the state before. ``plan``: only while it has that one. Raises NotRunning when it is over, and
        OtherPlan."""
        return str(self.submit(Stop(self.name, generation, ending, error, plan)))

    def drain(self, generation: int, ends: Ends) -> None:
        """Have every bundle read up to ``ends`` and close all windows. Raises NotRunning."""
        self.submit(Drain(self.name, generation, tuple(ends)))

    def replay(self, plan: str, parts: Sequence[PartSpec]) -> int:
        """Begin a hidden generation; its number. Raises Conflict when there is one already."""
        self._reach_version()
        return int(self.submit(Replay(self.name, plan, tuple(parts))))

    def swap(self, generation: int, ends: Ends, *, force: bool = False) -> int:
        """Make the hidden generation the job's; the number of the one before. Raises Conflict while it lags behind ``ends``."""
        return int(self.submit(Swap(self.name, generation, tuple(ends), force)))

    def cancel(self, generation: int, parts: Sequence[str]) -> None:
        """End a generation for ever, and forget the open state of these parts. No effect on one that is done. An error behind the
        first record, which ends it, is not definite."""
        cancel = Cancel(self.name, generation, tuple(parts))
        if not self.submit(cancel):
            return
        with Happened(f"live job {self.name}/{generation} was cancelled, but some of its state is left"):
            while self.submit(cancel):
                pass

    def drop(self, generation: int, reservation: int, settle: Callable[[], None]) -> None:
        """Forget a generation and its state; with the last one this reservation is of no use any more. ``settle``: does what
        waits for other shards, or gives it up. Raises Conflict while it runs, or while it is the job's and others are kept. An
        error behind the first record, from which on it is not started again, is not definite."""
        self.client.reach_version(self.home, ENDINGS_VERSION)
        drop = DropJob(self.name, generation, reservation)
        with MayFail(NotRunning):  # another call of it was faster
            if not self.submit(drop):
                return
            with Happened(f"live job {self.name}/{generation} is being dropped, and some of it is left"):
                settle()
                while self.submit(drop):
                    settle()

    def fence(self, reservation: int) -> None:
        """Have no job of this name begun under the reservation any more. Raises InvalidArgument when there is one."""
        outcome = self.client.submit(self.home, FenceStart(self.name, reservation))
        if isinstance(outcome, Rejected) and outcome.reason == "exists":
            raise _made_by_live(self.name)
        if not isinstance(outcome, Answer):
            raise refused(outcome)

    # -- reading

    @contextmanager
    def view(self) -> Iterator[View]:
        """A view of the home shard that shows all that was acknowledged before, by any process. On a cluster: a record."""
        with self.client.view(self.home, STRONG) as view:
            yield view

    @contextmanager
    def local(self) -> Iterator[View]:
        """A view that shows what this connection has done and seen. It costs nothing, so it may be asked again and again; what is
        decided by it is refused if it is old."""
        with self.client.view(self.home, SESSION) as view:
            yield view

    @contextmanager
    def asked(self) -> Iterator[View]:
        """A view for what a user asks: at the connection's level, which may be content with what this machine knows."""
        with self.client.view(self.home) as view:
            yield view

    def row(self, *, strong: bool = True) -> JobRow | None:
        """The job's row; None: there is no such job. ``strong``: at the connection's level."""
        with self.asked() if strong else self.local() as view:
            return live_rows.job_of(view, self.name)

    def generation(self, number: int, *, strong: bool = True) -> GenerationRow | None:
        """A generation's row; None: there is no such generation. ``strong``: at the connection's level."""
        with self.asked() if strong else self.local() as view:
            return live_rows.generation_of(view, self.name, number)

    # -- inside

    def submit(self, op: LiveOp) -> Any:
        """Submit an operation of this job; its answer. Raises what ``refused`` makes of a rejection, and as ``Shard.submit``."""
        outcome = self.client.submit(self.home, op)
        if isinstance(outcome, Answer):
            return outcome.value
        raise refused(outcome)

    def _reach_version(self) -> None:
        """In all shards: its rows may go to any of them. Nodes of a cluster raise it, soon after all of them know it."""
        here = self.client.always_strong
        deadline = Deadline.after(0.0 if here else config.LIVE_VERSION_WAIT_S, self.client.env)
        shards = range(self.client.shard_count)
        if all(self.client.reach_version(shard, ENDINGS_VERSION) for shard in shards):
            return
        while not all(self.client.reach_version(shard, LIVE_VERSION) for shard in shards):
            if not deadline.passed:
                self.client.shards[
                    self.home
                ].barrier()  # it may have been raised where this replica is not yet
                self.client.shards[self.home].pause(deadline.within(0.1))
                continue
            raise SpaceError(
                f"live jobs need fold version {LIVE_VERSION}, and a program or node of an earlier release has this space open. "
                "Upgrade it (pip install -U onefold), or stop it"
                + ("" if here else "; and a cluster needs a node, which raises the version")
            )


def generation_by_name(client: StateClient, name: str, *, strong: bool = True) -> Found | None:
    """A job's present generation by the job's name, or any by ``name/generation``; None: there is none such. ``strong``: at the
    connection's level; otherwise what is here is enough."""
    if live_rows.is_name(name):
        job = LiveJob(client, name)
        row = job.row(strong=strong)
        if row is not None:
            return Found(job, row.current)
    above, _, number = name.rpartition("/")
    if not above or not number.isdecimal() or not live_rows.is_name(above):
        return None
    job = LiveJob(client, above)
    return None if job.generation(int(number), strong=False) is None else Found(job, int(number))


def all_generations(
    client: StateClient, *, strong: bool = True, shards: Iterable[int] | None = None
) -> list[Listed]:
    """All generations of all jobs, by name. ``strong``: as for ``generation_by_name``. ``shards``: of jobs with rows there
    (default: in any)."""
    listed: list[tuple[str, int, int, GenerationRow]] = []
    for shard in range(client.shard_count) if shards is None else shards:
        with client.view(shard, None if strong else SESSION) as view:
            for name, job in live_rows.jobs(view):
                for number, row in live_rows.generations(view, name):
                    listed.append((name, number, job.current, row))
    return [
        Listed(Found(LiveJob(client, name), number), number == current, row)
        for name, number, current, row in sorted(listed, key=lambda one: one[:2])
    ]


def live_of_history(table: str) -> str | None:
    """The live job that a table of that name would be the history of; None: of none."""
    name, found, rest = table.rpartition(HISTORY)
    return name if found and not rest else None


def history_by_name(client: StateClient, table: str) -> str:
    """The table that users mean: ``NAME@history`` is that of the job's present generation. Any other name is itself."""
    name = live_of_history(table)
    found = None if name is None else generation_by_name(client, name)
    return table if found is None else history_table(found.job.name, found.generation)


def check_free(client: StateClient, table: str) -> None:
    """Raise InvalidArgument when a live job makes this table. Needs none of what live jobs compute with."""
    if generation_by_name(client, table) is not None:
        raise _made_by_live(table)


def _made_by_live(table: str) -> InvalidArgument:
    return InvalidArgument(
        f"table {table!r} is made by a live job, and a table has one job: give this one another name, or drop that one "
        f"with db.drop({table!r})"
    )


def _without_sink(parts: Sequence[PartSpec]) -> tuple[PartSpec, ...]:
    return tuple(
        msgspec.structs.replace(part, signature=tuple(fact for fact in part.signature if fact[0] != SINK))
        for part in parts
    )


def refused(outcome: Outcome) -> OnefoldError:
    """The error for an outcome that is not a success; all are definite."""
    if not isinstance(outcome, Rejected):
        return rejection(outcome)
    detail = outcome.detail
    match outcome.reason:
        case "no_job":
            return NotRunning(f"there is no live job {detail}; db.runs() lists those that are there")
        case "not_running" | "over":
            return NotRunning(f"live job {detail}")
        case "no_bundle" | "fenced" | "lanes" | "out_of_order" | "schema":
            return BundleLost(f"{detail}. Nothing was written; claim again")
        case "changed":
            return Conflict(
                f"the job was begun with another plan: {detail}. Start a replay, which makes a new table next to the old one, "
                "or give the job another name (of for_each: name=)"
            )
        case "unreserved":
            return Unreserved(f"the name of live job {detail} was given back; nothing was begun")
        case "other_plan":
            return OtherPlan(f"live job {detail} has another plan now; it was not stopped")
        case "replaying":
            return Conflict(f"{detail}. Swap it, or drop it first")
        case "lagging":
            return Conflict(f"{detail}. Wait until it has caught up, or swap with force=True")
        case "no_replay":
            return Conflict(
                f"{detail}. A swap is of a replay that runs: of the run that job.replay() gave, or of "
                'db.open_run("NAME/GENERATION"); db.runs() lists them'
            )
        case "unequal" | "running" | "current" | "too_many":
            return Conflict(detail)
        case "went_back" | "not_drained" | "bad_run":
            return SpaceError(f"a commit that cannot be: {detail}: a bug in Onefold; nothing was written")
        case "malformed" if detail:
            return InvalidPlan(detail)
    return rejection(outcome)
