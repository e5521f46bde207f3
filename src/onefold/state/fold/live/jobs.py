"""The life of a job: it begins, stops, drains, is replayed, swapped and dropped.

A *generation* is a job under one frozen input and one set of signatures; its state is its own. A replay is a second generation
next to the present one. All states but ``running`` and ``draining`` refuse commits, so what was stopped moves nothing any more,
whatever is on its way.

A drain that was stopped, or failed, on its way is undone by the next start only as long as no bundle has closed all of its
windows. After that the generation drains on, to the same ends: a bundle that is drained never reads again.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from onefold import config
from onefold.fold.api import Context, Store, StoreView, prefix_stop
from onefold.state.fold import blobs
from onefold.state.fold.live import bundles as bundle_fold
from onefold.state.fold.live import commit as commits
from onefold.state.fold.live import hops, outbox, runs
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import (
    ENDINGS_VERSION,
    WATERMARK_END_US,
    Cancel,
    Drain,
    DropJob,
    FenceStart,
    PartSpec,
    Replay,
    StartJob,
    Stop,
    Swap,
)
from onefold.state.fold.live.rows import ACTIVE, OVER, GenerationRow, JobRow, PartRow
from onefold.state.fold.outcomes import Answer, Outcome, Rejected


def start(store: Store, context: Context, op: StartJob) -> Outcome:
    """A job begins or continues."""
    why = _why_malformed(op.plan, op.parts)
    if why:
        return Rejected("malformed", why)
    job = live_rows.job_of(store, op.job)
    if job is None:
        if 0 < op.reservation <= live_rows.fenced_of(store, op.job):
            return Rejected("unreserved", op.job)
        number = live_rows.newest_of(store, op.job) + 1
        _begin(store, context, op, number)
        live_rows.put_job(store, op.job, JobRow(number, number))
        return Answer([number, "new"])
    number = op.generation or job.current
    found = live_rows.generation_of(store, op.job, number)
    if found is None or found.state in OVER:
        state = "gone" if found is None else found.state
        return Rejected("over", f"{op.job} is {state}: start a replay of it, or drop it first")
    why = _why_changed(store, op, number)
    if why:
        return Rejected("changed", why)
    if op.plan != found.plan:
        blobs.name(store, op.plan)
        blobs.unname(store, context, found.plan)
    after = _continued(store, op, number, found)
    if after != found:
        live_rows.put_generation(store, op.job, number, after)
    commits.finish(store, op.job, number)  # when all that was left of a drain is done
    return Answer([number, found.state])


def fence(store: Store, op: FenceStart) -> Outcome:
    """No job of that name is begun under this reservation any more."""
    if live_rows.job_of(store, op.job) is not None:
        return Rejected("exists", op.job)
    live_rows.fence(store, op.job, op.reservation)
    return Answer(None)


def _continued(store: StoreView, op: StartJob, number: int, found: GenerationRow) -> GenerationRow:
    """The generation after a start."""
    drains = found.state == "draining" or any(
        row.watermark_us == WATERMARK_END_US
        for _, rows in _bundles_by_part(store, op.job, number)
        for row in rows
    )
    if not drains:
        return GenerationRow("running", op.plan, found.offset, created_ms=found.created_ms)
    return GenerationRow("draining", op.plan, found.offset, "", found.ends, found.created_ms)


def stop(store: Store, op: Stop, fold_version: int) -> Outcome:
    """No more commits."""
    found = live_rows.generation_of(store, op.job, op.generation)
    if found is None:
        return Rejected("no_job", f"{op.job} (generation {op.generation})")
    if found.state in OVER:
        return Rejected("over", f"{op.job} is {found.state}")
    if fold_version >= ENDINGS_VERSION and op.plan not in ("", found.plan):
        return Rejected("other_plan", op.job)
    if found.state in ACTIVE:
        error = op.error[: config.LIVE_ERROR_CHARS_MAX]
        after = msgspec.structs.replace(found, state=op.ending, error=error)  # with the ends of a drain
        live_rows.put_generation(store, op.job, op.generation, after)
    return Answer(found.state)


def drain(store: Store, op: Drain) -> Outcome:
    """Read up to the ends, and be done. Ends that were set first stay."""
    found = commits.active(store, op.job, op.generation)
    if isinstance(found, Rejected):
        return found
    why = _why_no_ends(store, op)
    if why:
        return Rejected("malformed", why)
    if found.state == "running":
        after = msgspec.structs.replace(found, state="draining", ends=op.ends)
        live_rows.put_generation(store, op.job, op.generation, after)
    return Answer("draining")


def replay(store: Store, context: Context, op: Replay) -> Outcome:
    """A hidden generation begins."""
    why = _why_malformed(op.plan, op.parts)
    if why:
        return Rejected("malformed", why)
    job = live_rows.job_of(store, op.job)
    if job is None:
        return Rejected("no_job", op.job)
    if job.replaying:
        return Rejected("replaying", f"generation {job.replaying} of {op.job} replays already")
    number = job.newest + 1
    _begin(store, context, op, number)
    live_rows.put_job(store, op.job, JobRow(job.current, number, number))
    return Answer(number)


def swap(store: Store, op: Swap) -> Outcome:
    """The hidden generation becomes the job's."""
    job = live_rows.job_of(store, op.job)
    if job is None or job.replaying != op.generation:
        return Rejected("no_replay", f"generation {op.generation} of {op.job} does not replay")
    found = live_rows.generation_of(store, op.job, op.generation)
    if found is None or found.state not in ACTIVE:
        state = "gone" if found is None else found.state
        return Rejected(
            "no_replay", f"generation {op.generation} of {op.job} is {state}: only one that runs is swapped"
        )
    why = "" if op.force else _why_behind(store, op)
    if why:
        return Rejected("lagging", why)
    live_rows.put_job(store, op.job, JobRow(op.generation, job.newest))
    before = live_rows.generation_of(store, op.job, job.current)
    if before is not None and before.state in ACTIVE:
        stopped = msgspec.structs.replace(before, state="stopped")
        live_rows.put_generation(store, op.job, job.current, stopped)
    return Answer(job.current)


def cancel(store: Store, context: Context, op: Cancel) -> Outcome:
    """A generation ends, and its open state goes."""
    found = live_rows.generation_of(store, op.job, op.generation)
    if found is None or found.state == "dropped":
        return Rejected("no_job", f"{op.job} (generation {op.generation})")
    if found.state == "done":
        return Answer(False)
    if found.state != "cancelled":
        after = msgspec.structs.replace(found, state="cancelled", ends=())
        live_rows.put_generation(store, op.job, op.generation, after)
    left = config.LIVE_DROPPED_RUNS_MAX
    for key, part in live_rows.parts(store, op.job, op.generation):
        if part.spec.name not in op.parts:
            continue
        for run in live_rows.runs(store, key):
            if left == 0:
                return Answer(True)
            if run.row.kind == "state":
                runs.remove(store, context, key, run.id, run.row)
                left -= 1
    return Answer(False)


def drop(store: Store, context: Context, op: DropJob, fold_version: int) -> Outcome:
    """Forget a generation, some runs at a time."""
    job = live_rows.job_of(store, op.job)
    found = live_rows.generation_of(store, op.job, op.generation)
    if job is None or found is None:
        return Rejected("no_job", f"{op.job} (generation {op.generation})")
    if found.state in ACTIVE:
        return Rejected("running", f"{op.job} is {found.state}: stop it first")
    others = [number for number, _ in live_rows.generations(store, op.job) if number != op.generation]
    if job.current == op.generation and others:
        return Rejected("current", f"drop generation {others[0]} of {op.job} first")
    if found.state != "dropped":
        live_rows.put_generation(
            store, op.job, op.generation, msgspec.structs.replace(found, state="dropped")
        )
    prefix = live_rows.generation_key(op.job, op.generation)
    if fold_version >= ENDINGS_VERSION and not outbox.is_empty(store, prefix):
        return Answer(True)
    left = config.LIVE_DROPPED_RUNS_MAX
    for key, _ in live_rows.parts(store, op.job, op.generation):
        for run in live_rows.runs(store, key):
            if left == 0:
                return Answer(True)
            runs.remove(store, context, key, run.id, run.row)
            left -= 1
    _forget(store, context, op, found, job)
    return Answer(False)


def _forget(store: Store, context: Context, op: DropJob, found: GenerationRow, job: JobRow) -> None:
    """All rows of a generation without runs."""
    prefix = live_rows.generation_key(op.job, op.generation)
    for _, part in live_rows.parts(store, op.job, op.generation):
        if part.spec.hop:
            hops.drop(store, op.job, op.generation, part.spec.name)
    for table in (
        live_rows.PARTS,
        live_rows.BUNDLES,
        live_rows.WORKERS,
        live_rows.STANDBY,
        live_rows.OUTBOX,
        live_rows.OUTBOX_HEADS,
        live_rows.GENERATIONS,
    ):
        store.delete_range(table, prefix, prefix_stop(prefix))
    blobs.unname(store, context, found.plan)
    if job.current == op.generation:
        live_rows.put_job(store, op.job, JobRow(0, job.newest))
        live_rows.fence(store, op.job, op.reservation)
    elif job.replaying == op.generation:
        live_rows.put_job(store, op.job, JobRow(job.current, job.newest))


def _begin(store: Store, context: Context, op: StartJob | Replay, generation: int) -> None:
    row = GenerationRow("running", op.plan, context.offset, created_ms=max(0, context.now_ms))
    live_rows.put_generation(store, op.job, generation, row)
    blobs.name(store, op.plan)
    for spec in op.parts:
        ordered = msgspec.structs.replace(spec, starts=tuple(sorted(spec.starts)))
        part = PartRow(ordered, 1)
        key = live_rows.part_key(op.job, generation, spec.name)
        live_rows.put_part(store, key, part)
        if spec.hop:
            hops.make(store, op.job, generation, spec.name)
        live_rows.put_bundle(store, key, 0, bundle_fold.first_bundle(part))


def _why_malformed(plan: str, parts: tuple[PartSpec, ...]) -> str:
    if not 0 < len(plan) <= blobs.BLOB_CHARS_MAX:
        return "a job names the blob of its plan"
    names = [part.name for part in parts]
    if not 0 < len(parts) <= config.LIVE_PARTS_MAX or len(set(names)) != len(names):
        return f"a job has 1 to {config.LIVE_PARTS_MAX} parts with different names"
    for part in parts:
        if not live_rows.is_name(part.name) or part.lanes > lane_sets.LANES_MAX:
            return f"part {part.name[:100]!r}: a part has a name, and 1 to {lane_sets.LANES_MAX} lanes"
        places = {(number, partition) for number, partition, _ in part.starts}
        if len(places) != len(part.starts) or len(places) > config.LIVE_POSITIONS_MAX:
            return f"part {part.name!r} reads at most {config.LIVE_POSITIONS_MAX} input partitions, each once"
        if len(dict(part.signature)) != len(part.signature):
            return f"part {part.name!r}: its signature has a name twice"
        size = sum(len(text.encode()) for pair in part.signature for text in pair)
        if size > config.LIVE_SIGNATURE_BYTES_MAX:
            return f"part {part.name!r}: its signature has {size} bytes, at most {config.LIVE_SIGNATURE_BYTES_MAX} are possible"
        if part.hop and (part.hop not in names or part.hop == part.name):
            return f"part {part.name!r}: its rows go to a part that is not there"
    return ""


def _why_no_ends(store: StoreView, op: Drain) -> str:
    """A drain ends where partitions end that are read: others never would."""
    known = {
        (part.spec.name, number, partition)
        for _, part in live_rows.parts(store, op.job, op.generation)
        for number, partition, _ in part.spec.starts
    }
    places = [end[:3] for end in op.ends]
    if len(set(places)) < len(places):
        return "a drain names a partition twice"
    unknown = next((place for place in places if place not in known), None)
    return (
        ""
        if unknown is None
        else f"input {unknown[1]}, partition {unknown[2]} of part {unknown[0][:100]!r} is not read"
    )


def _why_changed(store: StoreView, op: StartJob, generation: int) -> str:
    """The first difference between the parts of a job and those it is started with; empty: there is none that matters."""
    old = {part.spec.name: part.spec for _, part in live_rows.parts(store, op.job, generation)}
    new = {part.name: part for part in op.parts}
    for name in sorted({*old, *new}):
        if name not in old or name not in new:
            return f"{name!r} is {'new' if name in new else 'gone'}"
        before, after = _facts(old[name], new[name]), _facts(new[name], old[name])
        for fact in sorted({*before, *after}):
            if before.get(fact) != after.get(fact):
                was, is_now = (facts.get(fact, "nothing") for facts in (before, after))
                return f"{name!r}: {fact} was {was}, and is {is_now}"
    return ""


def _facts(part: PartSpec, other: PartSpec) -> dict[str, str]:
    """What is fixed. An input that either of them waits for has no partitions yet."""
    known = {number for number, _, _ in other.starts}
    inputs = sorted((number, partition) for number, partition, _ in part.starts if number in known)
    by = "partition" if part.by_partition else "key"
    counts: dict[int, int] = {}
    for number, _ in inputs:
        counts[number] = counts.get(number, 0) + 1
    shown = ", ".join(f"input {number} with {counts[number]}" for number in sorted(counts))
    return {"lanes": f"{part.lanes} by {by}", "partitions": shown, **dict(part.signature)}


def _why_behind(store: StoreView, op: Swap) -> str:
    ends = {(part, number, partition): offset for part, number, partition, offset in op.ends}
    for part_name, bundle_rows in _bundles_by_part(store, op.job, op.generation):
        for row in bundle_rows:
            for at in row.positions:
                end = ends.get((part_name, at.input, at.partition), 0)
                if at.next < end:
                    place = f"part {part_name!r}, input {at.input}, partition {at.partition}"
                    return f"{place} is replayed up to {at.next} of {end}"
    return ""


def _bundles_by_part(
    store: StoreView, job: str, generation: int
) -> Iterable[tuple[str, list[live_rows.BundleRow]]]:
    for key, part in live_rows.parts(store, job, generation):
        yield part.spec.name, [bundle.row for bundle in live_rows.bundles(store, key)]
