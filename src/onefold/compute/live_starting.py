"""From ``db.read_stream`` to a live job that runs in this process."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from onefold import config
from onefold.arguments import check_whole, shown
from onefold.compute import arguments
from onefold.compute.blobs.sweeping import Remembered
from onefold.compute.bounded import histories
from onefold.compute.dataset import check_dataset
from onefold.compute.live import names
from onefold.compute.live.client import Found, LiveJob, Started, now_or_later
from onefold.compute.live.holds import Holding, release_if_it_can
from onefold.compute.live.job.beginning import part_spec, put_plan, start_places
from onefold.compute.live.job.changes import changes
from onefold.compute.live.job.loops import check_no_loop
from onefold.compute.live.job.status import rows_of
from onefold.compute.live.job.stored import LiveJobs
from onefold.compute.live.output.settling import drop_cursors, forward_all, settle
from onefold.compute.live.tables import LiveTable
from onefold.compute.live.worker.local_workers import LocalWorkers
from onefold.compute.live_dataset import LiveDataset, sources_of
from onefold.compute.live_runs import LiveRun
from onefold.compute.plan.nodes import WITHOUT_TABLE, Node, Seam, Source, StreamSource, Union
from onefold.compute.runs import leave_to_nodes, run_started
from onefold.durations import micros
from onefold.errors import Conflict, InvalidArgument, InvalidValue
from onefold.machine.undisturbed import MayFail, if_possible, let_pass
from onefold.space.kept_log import say_log_keep
from onefold.state.core.afterwards import Happened
from onefold.state.core.time_limits import limited_call
from onefold.state.encoding.positions import Position
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import PartSpec
from onefold.state.streams.layout import check_stream_name
from onefold.state.streams.reading import check_start, utc_of

if TYPE_CHECKING:
    from onefold.compute.dataset import Dataset
    from onefold.compute.engine import Engine
    from onefold.compute.live.client import Listed
    from onefold.compute.live.plan import LivePlan
    from onefold.durations import Duration
    from onefold.state.core.client import StateClient
    from onefold.state.fold.live.rows import GenerationRow


LATENCY_US: Final = 20_000
LATENCY_CLUSTER_US: Final = 50_000
LOG_KEPT = (
    "onefold: this space has its first live job, so from now on its log is kept up to 1 GB. Its state stays. db.at and "
    "`onefold restore --to` reach less far back once it is longer (`onefold status` says how far). To keep more, or all: "
    'onefold.connect(path, log_keep="10GB" or None)'
)
"""Said on stderr."""
CHANGED = (
    "onefold: live job {job!r} continues with changed {steps}: what is committed stays, and the new code counts from the next "
    "commit on"
)
"""Said on stderr: the job may also be another one, which was given the same name."""


class _Begun(NamedTuple):
    """What was started: the plan with all that is known of its streams, and its blobs, whose ``keep`` is still to be called."""

    plan: LivePlan
    blob: str
    started: Started
    blobs: Remembered


class LiveHost:
    """The live jobs of one connection. Thread-safe."""

    def __init__(
        self,
        client: Callable[[], StateClient],
        engine: Callable[[], Engine],
        keep_swept: Callable[[], None] = lambda: None,
    ) -> None:
        """``keep_swept``: has somebody remove what nothing names any more; called where there is going to be something."""
        self._engine = engine
        self._keep_swept = keep_swept
        self.jobs = LiveJobs(client, lambda: engine().blobs)
        self._made: LocalWorkers | None = None
        self._lock = threading.Lock()

    @property
    def workers(self) -> LocalWorkers:
        """This process's workers."""
        with self._lock:
            if self._made is None:
                self._made = LocalWorkers(self.jobs, keep_swept=self._keep_swept)
                # Behind the engine's, so before it: what is held is given back while the space is open.
                atexit.register(_close_at_exit, weakref.ref(self), os.getpid())
            return self._made

    # -- starting

    def latency_us(self) -> int:
        """On a cluster each replica applies each commit, so there are fewer of them."""
        return LATENCY_US if not self.jobs.blobs.shared else LATENCY_CLUSTER_US

    def lanes_of(self, job: str) -> int | None:
        """How many lanes a job was begun with; None: there is no such job."""
        found = self.jobs.find(job)
        if found is None:
            return None
        with found.job.view() as view:
            parts = live_rows.parts(view, job, found.generation)
        return parts[0][1].spec.lanes if parts else None

    def begin(
        self, plan: LivePlan, starts: tuple[Any, ...], workers: int | None, crossing: Node | None = None
    ) -> LiveRun:
        """Start a job or continue it; see ``PreparedLiveJob.start``. ``crossing``: the plan, if it has a seam."""
        names.check_no_batch(self._engine(), plan.job)
        check_no_loop(self.jobs, plan)
        job = LiveJob(self.jobs.client, plan.job)
        found = self.jobs.find(plan.job)
        known = self._known_plan(found, needed=crossing is not None)
        begun = self._started(plan, starts, workers, crossing, found, known)
        if known is not None and begun.started.before == "new":
            known = None  # it was dropped meanwhile: nothing of it counts
            with Happened(f"live job {plan.job!r} has begun, with an old plan"):
                begun = self._started(plan, starts, workers, crossing, None, None)
        plan, blob, started, blobs = begun
        live = Found(job, started.generation)
        with Happened(f"live job {live.id} has begun, but its start did not come to its end"):
            Holding(job, started.generation, plan.parts).look_if_it_can()
            blobs.keep()
            self._keep_log()
            changed = [] if known is None or started.before == "new" else changes(known, plan)
            if changed:
                print(CHANGED.format(job=plan.job, steps=", ".join(changed)), file=sys.stderr)
            self._begin_history(live, plan, blob, workers)
            return self._working(live, workers)

    def _started(
        self,
        plan: LivePlan,
        starts: tuple[Any, ...],
        workers: int | None,
        crossing: Node | None,
        found: Found | None,
        known: LivePlan | None,
    ) -> _Begun:
        """Start the job, or continue the one that was found with a plan that is known."""
        job = LiveJob(self.jobs.client, plan.job)
        blobs = Remembered(self.jobs.blobs)
        if crossing is not None:
            plan = histories.prepared(self._engine(), self.jobs.client, plan, crossing, known)
            histories.remove_left(self._engine(), job)
        blob, parts = self._stored(plan, starts, blobs)
        if found is not None and known is not None and histories.is_same(known, plan):
            row = found.job.generation(found.generation)
            if row is not None and row.state not in live_rows.OVER:
                # Before the job runs again: a history that has failed would fail it again.
                histories.begin(self._engine(), found, plan, workers)
        return _Begun(plan, blob, names.begin(self._engine(), job, partial(job.start, blob, parts)), blobs)

    def _begin_history(self, found: Found, plan: LivePlan, blob: str, workers: int | None) -> None:
        """Begin the history of a job that is there. One that never can begin fails the job, which would wait for it for ever.
        Any other error passes, and the next start or resume of the job begins it."""
        try:
            histories.begin(self._engine(), found, plan, workers)
        except histories.FAULTS as error:
            let_pass(error)
            with if_possible:
                if error.definite and not histories.has_begun(self._engine(), found, plan):
                    found.job.stop(found.generation, "failed", f"its history could not begin: {error}", blob)
            raise

    def _known_plan(self, found: Found | None, *, needed: bool) -> LivePlan | None:
        """The plan that a job has; None: there is no such job. ``needed``: raise InvalidValue where it cannot be loaded."""
        with nullcontext() if needed else MayFail(InvalidValue):
            return None if found is None else self.jobs.plan_of(found)
        return None

    def replay(self, plan: LivePlan, starts: tuple[Any, ...], workers: int | None) -> LiveRun:
        """Begin a hidden generation; see ``PreparedLiveJob.replay``."""
        job = LiveJob(self.jobs.client, plan.job)
        blobs = Remembered(self.jobs.blobs)
        blob, parts = self._stored(plan, starts, blobs)
        with limited_call(job.client):
            live = Found(job, job.replay(blob, parts))
        with Happened(f"live job {live.id} has begun, but nobody of this process works on it: resume it"):
            Holding(job, live.generation, plan.parts).look_if_it_can()
            blobs.keep()
            self._keep_log()
            return self._working(live, workers)

    def _keep_log(self) -> None:
        """Bound the logs of a space in a folder, if nobody has said how much of them is kept, and say so."""
        if say_log_keep(self.jobs.client.shards, config.LOG_KEEP_BYTES_LIVE, only_if_unsaid=True):
            print(LOG_KEPT, file=sys.stderr)

    def _working(self, found: Found, workers: int | None) -> LiveRun:
        count = 0 if leave_to_nodes else 1 if workers is None else workers
        run = self.run(found)
        for started in run_started:
            started(self._engine().shard.url, run)
        self.workers.work(found, count)
        return run

    def _stored(
        self, plan: LivePlan, starts: tuple[Any, ...], blobs: Remembered
    ) -> tuple[str, list[PartSpec]]:
        """The plan as a blob, and its parts as they are started: with the partitions of those streams that are there."""
        first = plan.parts[0]
        read = [one for one in first.inputs if not one.history]
        inputs = tuple(replace(one, start=start) for one, start in zip(read, starts, strict=True))
        inputs = (*inputs, *(one for one in first.inputs if one.history))
        plan = replace(plan, parts=(replace(first, inputs=inputs), *plan.parts[1:]))
        found = start_places(self.jobs.client, plan.parts[0].inputs, range(len(inputs)))
        specs = [part_spec(part, found) for part in plan.parts]
        blob = put_plan(blobs, plan, self.jobs.client.shards[0].incarnation)
        self.jobs.remember(blob, plan)
        return blob, specs

    # -- those that were found

    def run(self, found: Found) -> LiveRun:
        """A generation, to follow. Raises InvalidArgument when it was dropped."""
        return LiveRun(self.jobs, found, self.workers, self._before_resume)

    def _before_resume(self, found: Found, plan: LivePlan, workers: int | None) -> None:
        """The program that began the job may have died on its way."""
        self._keep_log()
        histories.resume(self._engine(), found, plan, workers)

    def runs(self, listed: Iterable[Listed]) -> Iterator[tuple[GenerationRow, LiveRun]]:
        """Those of these that are kept, with the rows that were read: asking a run for them would read them again."""
        for found, _, row in listed:
            if row.state != "dropped":
                with MayFail(InvalidArgument):  # it was dropped meanwhile
                    yield row, self.run(found)

    def table(self, name: str) -> LiveTable:
        """A table by its name, or ``NAME/GENERATION``. Raises InvalidArgument."""
        return LiveTable(self.jobs, name, self.workers.reader)

    def tables(self, listed: Iterable[Listed]) -> list[LiveTable]:
        """The tables of those jobs that have one, by name: of their present generations."""
        made: list[LiveTable] = []
        for one in _with_table(listed):
            with MayFail(InvalidArgument):  # it was dropped meanwhile
                made.append(LiveTable(self.jobs, one.job.name, self.workers.reader))
        return made

    def counted(self, listed: Iterable[Listed]) -> list[tuple[str, int]]:
        """The same tables by name, with the rows that were taken in. Needs no job's plan, which this process may be unable to
        load."""
        made: list[tuple[str, int]] = []
        for one in _with_table(listed):
            with MayFail(InvalidArgument):  # it was dropped meanwhile
                made.append((one.job.name, rows_of(one)))
        return made

    def explain(self, found: Found) -> list[str]:
        """Sentences that say how a job's table is made. Raises InvalidValue where this process cannot load its plan."""
        parts = self.jobs.plan_of(found).parts
        said = [f"live job {found.id} is {self.run(found).state}"]
        for part in parts:
            what = f"part {part.name!r} " if len(parts) > 1 else ""
            said.append(f"{what}{part.how}")
            said += [f"{what}{about}: {value}" for about, value in part.signature]
        return said

    def drop(self, name: str, found: Found) -> None:
        """Forget the job that was found by a name, its state and its table; or one generation of it.

        Raises Conflict while it runs. Definite.
        """
        job = found.job
        with limited_call(job.client):
            left = [found.generation] if name != job.name else self._to_drop(found)
            self._forget(Found(job, left[0]))
            with Happened(f"live job {found.id} is being dropped, and some of it is left: drop it again"):
                for number in left[1:]:
                    self._forget(Found(job, number))
                release_if_it_can(job.client)
                self._keep_swept()  # what it leaves may be the last that there is of live jobs
                histories.remove_left(self._engine(), job)

    def _to_drop(self, found: Found) -> list[int]:
        """All generations of a job, in the order in which they go. No worker of this process is left of them. Raises Conflict
        while one of them runs."""
        job = found.job
        with job.view() as view:
            rows = live_rows.generations(view, job.name)
        running = [number for number, row in rows if row.state in live_rows.ACTIVE]
        if running:
            one = f"{job.name}/{running[0]}"
            named = job.name if running[0] == found.generation else one
            raise Conflict(
                f"live job {one} runs: stop it first (run.stop(), or `onefold stop {named}`), then drop it"
            )
        for number, _ in rows:
            self.workers.stop(job.name, number)
        return sorted((number for number, _ in rows), key=lambda one: (one == found.generation, one))

    def drop_left(self, name: str) -> bool:
        """Remove what a drop of a live job left that did not come to its end. Whether there was something."""
        return live_rows.is_name(name) and histories.remove_left(
            self._engine(), LiveJob(self.jobs.client, name)
        )

    def _forget(self, found: Found) -> None:
        """A generation, after what it has committed is in the other shards."""
        forward_all(*found)
        names.drop(self._engine(), *found, partial(settle, *found))
        with (
            Happened(f"live job {found.id} was dropped"),
            now_or_later,
        ):  # by the next to look (``compute.upkeep``)
            drop_cursors(self.jobs.client, found.job.name)

    def close(self) -> None:
        """End this process's workers; the jobs stay."""
        with self._lock:
            made = self._made
        if made is not None:
            made.close()


def _with_table(listed: Iterable[Listed]) -> list[Found]:
    return [
        one
        for one, is_current, row in listed
        if is_current and row.state != "dropped" and not one.job.name.startswith(WITHOUT_TABLE)
    ]


def _close_at_exit(host: weakref.ref[LiveHost], pid: int) -> None:
    found = host()
    if found is not None and os.getpid() == pid:  # a forked child has no workers to end
        found.close()


def live_dataset(
    host: LiveHost,
    name: str,
    *,
    event_time: str | None,
    watermark_delay: Duration,
    start: Any,
    idle: Duration | None,
    max_ahead: Duration | None,
    hold: Duration,
    schema: Mapping[str, Any] | None,
    partitions: int | Sequence[int] | None,
) -> LiveDataset:
    """See ``Database.read_stream``: one that is followed."""
    _check_time(event_time)
    source = StreamSource(
        check_stream_name(name),
        event_time,
        micros(watermark_delay, "watermark_delay"),
        None if idle is None else micros(idle, "idle"),
        None if max_ahead is None else micros(max_ahead, "max_ahead"),
        micros(hold, "hold"),
        check_start(start, name),
        arguments.schema("read_stream", schema),
        _partitions(partitions),
    )
    return LiveDataset(source, _NoBatch(), host)


def _partitions(given: object) -> tuple[int, ...] | None:
    """Raises InvalidArgument. Definite."""
    if given is None:
        return None
    chosen = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str | bytes) else (given,)
    for one in chosen:
        check_whole("partitions", one, least=0, most=config.STREAM_PARTITIONS_MAX - 1)
    if not chosen or len(set(chosen)) < len(chosen):
        raise InvalidArgument(f"partitions must name each partition once; got {shown(given)}")
    return chosen


NOT_FOLLOWED: Final[Mapping[str, Duration | None]] = {
    "watermark_delay": 0,
    "idle": "10s",
    "max_ahead": "1m",
    "hold": "1d",
}
"""The defaults of ``Database.read_stream``, of what has a meaning only with ``follow=True``."""


def check_not_followed(**given: Duration | None) -> None:
    """Raises InvalidArgument for what says something of a stream that is followed, and would be ignored otherwise."""
    for name, value in given.items():
        default = NOT_FOLLOWED[name]
        if value == default:
            continue
        if value is None or default is None or micros(value, name) != micros(default, name):
            raise InvalidArgument(
                f"read_stream: {name}={arguments.shown(value)} has a meaning only for a stream that is followed: add "
                f"follow=True, or leave {name} out"
            )


def bounded_source(
    name: str,
    *,
    event_time: str | None,
    start: Any,
    schema: Mapping[str, Any] | None,
    partitions: int | Sequence[int] | None,
) -> Source:
    """See ``Database.read_stream``: the records up to the submission of a job over them."""
    _check_time(event_time)
    begins = check_start(start, check_stream_name(name))
    given: dict[str, Any] = {
        "event_time": event_time,
        "partitions": _partitions(partitions),
        "schema": arguments.schema("read_stream", schema),
        # A moment as text, since a job is called by what it is made of.
        "start": utc_of(begins) if isinstance(begins, datetime) else str(begins),
    }
    return Source(
        "stream",
        (check_stream_name(name),),
        tuple((option, value) for option, value in sorted(given.items()) if value is not None),
    )


def _check_time(event_time: object) -> None:
    if event_time is not None and (not isinstance(event_time, str) or not event_time):
        raise InvalidArgument(f"event_time must be the name of a column; got {event_time!r:.60}")


def concat(history: Dataset, live: LiveDataset, at: datetime | Position) -> LiveDataset:
    """See ``Database.concat``."""
    check_dataset("concat", history)
    check_dataset("concat", live)
    if isinstance(history, LiveDataset) or not isinstance(live, LiveDataset):
        raise InvalidArgument(
            "concat takes bounded rows first, then rows of a stream that is followed: db.concat(db.read_parquet(…), "
            'db.read_stream("s", follow=True, event_time="at"), at=…)'
        )
    if not isinstance(at, datetime | Position):
        raise InvalidArgument(
            f"concat: at= is a datetime, the event time of the seam, or a position of the stream; got {shown(at)}"
        )
    sources = sources_of(live.node)
    times = {source.event_time for source in sources}
    if len(times) > 1 or None in times:
        raise InvalidArgument(
            "concat: name the event time of the stream, event_time= in read_stream: the history has it in a column of that name"
        )
    if isinstance(at, Position):
        if len(sources) > 1:
            raise InvalidArgument(
                "concat: a position is of one stream, and the live side reads several: give a time as at="
            )
        rows = live._rows("concat")
        return live._then(Seam(history._rows("concat"), rows, None, times.pop() or "", str(at)))
    at_us = (at.replace(tzinfo=UTC) if at.tzinfo is None else at) - datetime(1970, 1, 1, tzinfo=UTC)
    micro = timedelta(microseconds=1)
    return live._then(
        Seam(
            history._rows("concat"),
            _since(live._rows("concat"), at_us // micro),
            at_us // micro,
            times.pop() or "",
        )
    )


def _since(node: Node, at_us: int) -> Node:
    """The plan, whose streams leave out what is before a time."""
    if isinstance(node, StreamSource):
        return replace(node, since_us=at_us)
    if isinstance(node, Union):
        return Union(tuple(_since(one, at_us) for one in node.inputs))
    return replace(node, input=_since(node.input, at_us))  # type: ignore[attr-defined, call-arg]


class _NoBatch:
    """Live plans are not started as batch runs."""

    def start(self, job: Any, **options: Any) -> Any:  # noqa: ARG002
        """Never called: a live dataset has sinks of its own."""
        raise InvalidArgument("a plan over a stream that is followed ends with into, into_map or into_stream")

    run = start
