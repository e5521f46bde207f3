"""When a ``LaneCommit`` is refused, and what it does.

It is refused, and with it everything in the same ``Commit``, unless the job runs or drains under that generation; the bundle is
there with exactly those lanes; owner and epoch are in force; ``seq`` is the last one plus one; no position and no watermark goes
back. So each input row is in exactly one accepted commit of the lane that keeps it: a process that was given up fails on the
epoch, a late copy of an attempt on ``seq``, and bundles that were split or fused since on the lanes.
"""

from __future__ import annotations

from msgspec import structs

from onefold import config
from onefold.fold.api import Context, Store, StoreView
from onefold.invariants import invariant
from onefold.state.fold.kind import NATURAL_MAX
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import outbox, runs
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import WATERMARK_END_US, Counters, Fuse, Give, LaneCommit, Position
from onefold.state.fold.live.rows import ACTIVE, BundleRow, GenerationRow, PartRow
from onefold.state.fold.outcomes import Rejected
from onefold.state.fold.streams import rows as stream_rows


def refusal(store: StoreView, write: LaneCommit) -> Rejected | None:
    """Why the commit cannot be done, if so."""
    if not _is_plain(write):
        return Rejected("malformed", write.job[:100])
    generation = active(store, write.job, write.generation)
    if isinstance(generation, Rejected):
        return generation
    key = live_rows.part_key(write.job, write.generation, write.part)
    bundle = held(store, key, write.bundle, write.owner, write.epoch)
    if isinstance(bundle, Rejected):
        return bundle
    if write.seq != bundle.seq + 1:
        return Rejected(
            "out_of_order", f"bundle {write.bundle} is at commit {bundle.seq}: {write.seq} does not follow it"
        )
    lanes = lane_sets.unpack(bundle.lanes)
    if lane_sets.unpack(write.lanes) != lanes:
        return Rejected("lanes", f"bundle {write.bundle} has other lanes now")
    why = _why_back(bundle, write)
    if why:
        return Rejected("went_back", f"bundle {write.bundle}: {why}")
    if write.watermark_us == WATERMARK_END_US:
        why = _why_not_drained(store, generation, bundle, write)
        if why:
            return Rejected("not_drained", f"bundle {write.bundle}: {why}")
    why = runs.why_refused(store, key, lanes, write)
    if why:
        return Rejected("bad_run", why)
    return None if write.schema is None else _why_schema(store, key, write.schema)


def _why_schema(store: StoreView, key: bytes, schema: tuple[int, bytes]) -> Rejected | None:
    part = live_rows.part_of(store, key)
    if part is None or part.schema_changes != schema[0]:
        return Rejected("schema", "another bundle has said what the columns of the inputs are")
    return None


def apply(store: Store, context: Context, write: LaneCommit) -> object:
    """Do a commit that was not refused: (seq, lanes wanted, bytes in the outbox)."""
    key = live_rows.part_key(write.job, write.generation, write.part)
    before, part = live_rows.bundle_of(store, key, write.bundle), live_rows.part_of(store, key)
    if before is None or part is None:
        invariant(False, "a commit that was not refused has a bundle", job=write.job, bundle=write.bundle)
        return None
    after = committed(before, write)
    in_order = after.seq == before.seq + 1 and no_time_went_back(before, after)
    invariant(in_order, "a bundle moves forward", before=before, after=after)
    live_rows.put_bundle(store, key, write.bundle, after)
    runs.apply(store, context, key, write)
    waiting = outbox.add(store, live_rows.generation_key(write.job, write.generation), write.outbox)
    if write.schema is not None:
        number, schema = write.schema
        live_rows.put_part(store, key, structs.replace(part, schema_changes=number + 1, schema=schema))
    if write.watermark_us == WATERMARK_END_US:
        finish(store, write.job, write.generation)
    return write.seq, part.wanted, waiting


def committed(before: BundleRow, write: LaneCommit) -> BundleRow:
    """The bundle after the commit."""
    moved = {(position.input, position.partition): position for position in write.positions}
    return BundleRow(
        before.lanes,
        before.owner,
        before.epoch,
        write.seq,
        write.nonce,
        tuple(moved.get((old.input, old.partition), old) for old in before.positions),
        before.watermark_us if write.watermark_us is None else write.watermark_us,
        total(before.counters, write.counted, commits=1),
    )


def total(one: Counters, other: Counters, commits: int | None = None) -> Counters:
    """The sum, as far as a row can hold it. ``commits``: instead of the other's."""
    counted = other.commits if commits is None else commits
    pairs = (
        (one.rows, other.rows),
        (one.late, other.late),
        (one.dead, other.dead),
        (one.ahead, other.ahead),
        (one.before_seam, other.before_seam),
        (one.commits, counted),
        (one.left_out, other.left_out),
    )
    return Counters(*(min(first + second, NATURAL_MAX) for first, second in pairs))


def active(store: StoreView, job: str, generation: int) -> GenerationRow | Rejected:
    """The generation, if it takes commits."""
    found = live_rows.generation_of(store, job, generation)
    if found is None:
        return Rejected("no_job", f"{job} (generation {generation})")
    if found.state not in ACTIVE:
        return Rejected("not_running", f"{job} (generation {generation}) is {found.state}")
    return found


def held(store: StoreView, part: bytes, bundle: int, owner: str, epoch: int) -> BundleRow | Rejected:
    """The bundle, if that owner has it under that epoch."""
    found = live_rows.bundle_of(store, part, bundle)
    if found is None:
        return Rejected("no_bundle", f"bundle {bundle} was fused with another one, or its job is gone")
    if not owner or found.owner != owner or found.epoch != epoch:
        return Rejected(
            "fenced", f"bundle {bundle} was taken from {owner or 'nobody'}: it is at epoch {found.epoch}"
        )
    return found


def held_at(store: StoreView, op: Give | Fuse, bundle: int, epoch: int, seq: int) -> BundleRow | Rejected:
    """The same, if its last commit was that one."""
    part = live_rows.part_key(op.job, op.generation, op.part)
    found = held(store, part, bundle, op.owner, epoch)
    if isinstance(found, BundleRow) and found.seq != seq:
        return Rejected("out_of_order", f"bundle {bundle} is at commit {found.seq}, not {seq}")
    return found


def no_time_went_back(before: BundleRow, after: BundleRow) -> bool:
    """Whether each position and the watermark is at least what it was."""
    at_least = all(
        old.next <= new.next and _is_at_least(old.max_us, new.max_us)
        for old, new in zip(before.positions, after.positions, strict=True)
    )
    return at_least and _is_at_least(before.watermark_us, after.watermark_us)


def _is_plain(write: LaneCommit) -> bool:
    names = live_rows.is_name(write.job) and live_rows.is_name(write.part)
    places = {(position.input, position.partition) for position in write.positions}
    bounded = sum(len(message.writes) for message in write.outbox) <= config.LIVE_OUTBOX_COMMIT_BYTES_MAX
    return (
        names
        and len(places) == len(write.positions)
        and bounded
        and (write.schema is None or len(write.schema[1]) <= config.LIVE_SCHEMA_BYTES_MAX)
        and all(message.shard < config.SHARDS_MAX and message.writes for message in write.outbox)
    )


def _why_back(bundle: BundleRow, write: LaneCommit) -> str:
    """What goes back in a commit; empty: nothing."""
    known = {(position.input, position.partition): position for position in bundle.positions}
    for new in write.positions:
        old = known.get((new.input, new.partition))
        place = f"input {new.input}, partition {new.partition}"
        if old is None:
            return f"{place} is not read by it"
        if new.next < old.next or not _is_at_least(old.max_us, new.max_us):
            return f"{place} is committed up to {old.next} already"
        if old.idle and not new.idle and new.next == old.next:
            return f"{place} is idle until a row comes"
    if write.watermark_us is not None and not _is_at_least(bundle.watermark_us, write.watermark_us):
        return "its watermark is higher already"
    return ""


def _is_at_least(old: int | None, new: int | None) -> bool:
    return old is None or (new is not None and new >= old)


def _why_not_drained(
    store: StoreView, generation: GenerationRow, bundle: BundleRow, write: LaneCommit
) -> str:
    if generation.state != "draining":
        return "only a job that drains closes all windows"
    after: dict[tuple[int, int], Position] = {
        (position.input, position.partition): position for position in (*bundle.positions, *write.positions)
    }
    for part, number, partition, offset in generation.ends:
        position = after.get((number, partition))
        if part == write.part and position is not None and position.next < offset:
            return f"input {number}, partition {partition} is to be read up to {offset} first"
    return _why_not_below(store, write, after)


def _why_not_below(store: StoreView, write: LaneCommit, after: dict[tuple[int, int], Position]) -> str:
    """A part that reads a hop ends behind the part that writes it."""
    for key, part in live_rows.parts(store, write.job, write.generation):
        if part.spec.hop != write.part:
            continue
        if any(bundle.row.watermark_us != WATERMARK_END_US for bundle in live_rows.bundles(store, key)):
            return f"part {part.spec.name!r}, whose rows it reads, is not drained"
        hop = live_rows.hop_stream(write.job, write.generation, part.spec.name)
        position, head = after.get((0, 0)), stream_rows.head_of(store, hop, 0).next
        if position is not None and position.next < head:
            return f"the rows of part {part.spec.name!r} are to be read up to {head} first"
    return ""


def finish(store: Store, job: str, generation: int) -> None:
    """The job is done when every bundle is drained, and what it sent to other shards is done there."""
    found = live_rows.generation_of(store, job, generation)
    if found is None or found.state != "draining":
        return
    parts: list[tuple[bytes, PartRow]] = live_rows.parts(store, job, generation)
    for key, _ in parts:
        for bundle in live_rows.bundles(store, key):
            if bundle.row.watermark_us != WATERMARK_END_US:
                return
    if outbox.is_empty(store, live_rows.generation_key(job, generation)):
        live_rows.put_generation(store, job, generation, structs.replace(found, state="done"))
