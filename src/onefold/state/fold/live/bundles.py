"""Who owns which lanes: claim, beat, give, fuse, expire, leave.

No step here changes what is committed: bundles are split and fused with their positions, watermark and runs as they are. Ids of
bundles are never given twice, and each owner has an epoch of its own, so nothing that an earlier owner sends late is accepted.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from onefold import config
from onefold.fold.api import Store, StoreView
from onefold.state.fold.live import commit as commits
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live import sharing
from onefold.state.fold.live.lanes import Lanes
from onefold.state.fold.live.ops import (
    STANDBY_VERSION,
    AddInputs,
    Beat,
    Claim,
    Counters,
    Expire,
    Fuse,
    Give,
    Leave,
    Position,
)
from onefold.state.fold.live.rows import Bundle, BundleRow, PartRow, WorkerRow
from onefold.state.fold.outcomes import Answer, Outcome, Rejected


def activity(bundles: Iterable[Bundle], worker: str) -> int:
    """A number of the worker's bundles of all parts that changes with each commit, while they are the same bundles."""
    return sum(bundle.row.seq for bundle in bundles if bundle.row.owner == worker)


def claim(store: Store, op: Claim, fold_version: int) -> Outcome:
    """A worker takes what nobody owns, or stands by."""
    active = _active_part(store, op)
    if isinstance(active, Rejected):
        return active
    key, part = active
    if not live_rows.is_name(op.worker) or len(op.member) > config.NAME_BYTES_MAX:
        return Rejected("malformed", op.job)
    known = live_rows.workers(store, op.job, op.generation)
    is_new = op.worker not in known
    worker_key = live_rows.worker_key(op.job, op.generation, op.worker)
    if is_new:
        if len(known) >= config.LIVE_WORKERS_MAX:
            return Rejected("too_many", f"{op.job} has {len(known)} workers")
        store.put(live_rows.WORKERS, worker_key, live_rows.encode(WorkerRow(op.member)))
    if op.standby and fold_version >= STANDBY_VERSION:
        if is_new:
            store.put(live_rows.STANDBY, worker_key, b"")
        return Answer(_owned_by(store, key, op.worker))
    if store.get(live_rows.STANDBY, worker_key) is not None:
        store.delete(live_rows.STANDBY, worker_key)
        is_new = True
    workers = live_rows.sharing_workers(store, op.job, op.generation)
    bundles = live_rows.bundles(store, key)
    room = sharing.share_max(part.spec.lanes, len(workers)) - sharing.owned(bundles).get(op.worker, 0)
    for bundle in bundles:
        lanes = lane_sets.unpack(bundle.row.lanes)
        if bundle.row.owner or room <= 0:
            continue
        taken = lane_sets.first_of(lanes, room)
        room -= lane_sets.count(taken)
        if taken == lanes:
            _own(store, key, bundle, op.worker)
        else:
            part = _split(store, key, part, bundle, taken, op.worker)
    if is_new:
        note_wanted(store, op.job, op.generation)
    else:
        _note_wanted(store, key, part, workers)
    return Answer(_owned_by(store, key, op.worker))


def _owned_by(store: StoreView, part: bytes, worker: str) -> list[int]:
    return [bundle.id for bundle in live_rows.bundles(store, part) if bundle.row.owner == worker]


def beat(store: Store, op: Beat) -> Outcome:
    """The worker lives."""
    row = live_rows.worker_of(store, op.job, op.generation, op.worker)
    if row is None:
        return Answer(False)
    key = live_rows.worker_key(op.job, op.generation, op.worker)
    store.put(live_rows.WORKERS, key, live_rows.encode(WorkerRow(row.member, row.beats + 1, op.state_bytes)))
    return Answer(True)


def give(store: Store, op: Give) -> Outcome:
    """The owner splits a bundle."""
    active = _active_part(store, op)
    if isinstance(active, Rejected):
        return active
    key, part = active
    bundle = commits.held_at(store, op, op.bundle, op.epoch, op.seq)
    if isinstance(bundle, Rejected):
        return bundle
    given, lanes = lane_sets.unpack(op.lanes), lane_sets.unpack(bundle.lanes)
    if not given or given == lanes or not lane_sets.covers(lanes, given):
        return Rejected("lanes", f"some, and not all, lanes of bundle {op.bundle} can be given")
    workers = live_rows.sharing_workers(store, op.job, op.generation)
    to = op.to if op.to in workers else ""
    part = _split(store, key, part, Bundle(op.bundle, bundle), given, to)
    _note_wanted(store, key, part, workers)
    return Answer(part.next_bundle - 1)


def fuse(store: Store, op: Fuse) -> Outcome:
    """Two bundles become one."""
    active = _active_part(store, op)
    if isinstance(active, Rejected):
        return active
    key, part = active
    first, second = (commits.held_at(store, op, *bundle) for bundle in (op.first, op.second))
    if isinstance(first, Rejected):
        return first
    if isinstance(second, Rejected):
        return second
    if op.first[0] == op.second[0]:
        return Rejected("malformed", "a bundle and itself")
    if first.watermark_us != second.watermark_us:
        return Rejected("unequal", "their watermarks differ")
    if not part.spec.by_partition and first.positions != second.positions:
        return Rejected("unequal", "their positions differ")
    positions = {(one.input, one.partition): one for one in (*first.positions, *second.positions)}
    fused = BundleRow(
        lane_sets.pack(lane_sets.unpack(first.lanes) | lane_sets.unpack(second.lanes)),
        first.owner,
        max(first.epoch, second.epoch) + 1,
        first.seq,
        first.nonce,
        tuple(positions[place] for place in sorted(positions)),
        first.watermark_us,
        commits.total(first.counters, second.counters),
    )
    live_rows.put_bundle(store, key, op.first[0], fused)
    store.delete(live_rows.BUNDLES, live_rows.bundle_key(key, op.second[0]))
    return Answer(None)


def expire(store: Store, op: Expire) -> Outcome:
    """A worker is dead, or was silent."""
    row = live_rows.worker_of(store, op.job, op.generation, op.worker)
    if row is None or row.beats != op.beats:
        return Answer(False)
    if activity(_all_bundles(store, op.job, op.generation), op.worker) != op.activity:
        return Answer(False)
    _forget(store, op, died=op.died)
    return Answer(True)


def leave(store: Store, op: Leave) -> Outcome:
    """A worker ends."""
    if live_rows.worker_of(store, op.job, op.generation, op.worker) is None:
        return Answer(False)
    _forget(store, op, died=False)
    return Answer(True)


def note_wanted(store: Store, job: str, generation: int) -> None:
    """Workers came or went: what is wanted of each part."""
    workers = live_rows.sharing_workers(store, job, generation)
    for key, part in live_rows.parts(store, job, generation):
        _note_wanted(store, key, part, workers)


def first_bundle(part: PartRow) -> BundleRow:
    """What a part begins with: all lanes, owned by nobody."""
    positions = tuple(Position(number, partition, offset) for number, partition, offset in part.spec.starts)
    return BundleRow(lane_sets.pack(lane_sets.all_lanes(part.spec.lanes)), "", 0, 0, 0, positions)


def add_inputs(store: Store, op: AddInputs) -> Outcome:
    """A stream that a part waits for is there."""
    active = _active_part(store, op)
    if isinstance(active, Rejected):
        return active
    key, part = active
    known = {number for number, _, _ in part.spec.starts}
    new = tuple(sorted(start for start in op.starts if start[0] not in known))
    places = {(number, partition) for number, partition, _ in new}
    if len(places) != len(new) or len(places) + len(part.spec.starts) > config.LIVE_POSITIONS_MAX:
        return Rejected("malformed", f"part {op.part!r} reads too many partitions, or one twice")
    if not new:
        return Answer(False)
    spec = msgspec.structs.replace(part.spec, starts=tuple(sorted((*part.spec.starts, *new))))
    after = msgspec.structs.replace(part, spec=spec)
    live_rows.put_part(store, key, after)
    added = tuple(Position(number, partition, offset) for number, partition, offset in new)
    for bundle in live_rows.bundles(store, key):
        lanes = lane_sets.unpack(bundle.row.lanes)
        mine = _of_lanes(added, lanes, after) if spec.by_partition else added
        ordered = sorted((*bundle.row.positions, *mine), key=lambda one: (one.input, one.partition))
        row = msgspec.structs.replace(bundle.row, positions=tuple(ordered), epoch=bundle.row.epoch + 1)
        live_rows.put_bundle(store, key, bundle.id, row)
    return Answer(True)


def _active_part(store: StoreView, op: AddInputs | Claim | Give | Fuse) -> tuple[bytes, PartRow] | Rejected:
    """The key and the row of the operation's part, if its generation takes commits."""
    generation = commits.active(store, op.job, op.generation)
    if isinstance(generation, Rejected):
        return generation
    key = live_rows.part_key(op.job, op.generation, op.part)
    part = live_rows.part_of(store, key)
    return Rejected("no_job", f"{op.job} has no part {op.part[:100]}") if part is None else (key, part)


def _note_wanted(store: Store, key: bytes, part: PartRow, workers: dict[str, WorkerRow]) -> None:
    wanted = sharing.wanted(part.spec.lanes, live_rows.bundles(store, key), workers)
    live_rows.put_part(store, key, msgspec.structs.replace(part, wanted=wanted))


def _own(store: Store, part: bytes, bundle: Bundle, owner: str) -> None:
    row = msgspec.structs.replace(bundle.row, owner=owner, epoch=bundle.row.epoch + 1)
    live_rows.put_bundle(store, part, bundle.id, row)


def _split(store: Store, key: bytes, part: PartRow, bundle: Bundle, given: Lanes, owner: str) -> PartRow:
    """Give the lanes to a new bundle of that owner (empty: of nobody); the part with its next id."""
    row = bundle.row
    left = lane_sets.unpack(row.lanes) & ~given
    kept, moved = row.positions, row.positions
    if part.spec.by_partition:
        kept, moved = _of_lanes(row.positions, left, part), _of_lanes(row.positions, given, part)
    live_rows.put_bundle(
        store, key, bundle.id, msgspec.structs.replace(row, lanes=lane_sets.pack(left), positions=kept)
    )
    new = BundleRow(lane_sets.pack(given), owner, 1, 0, 0, moved, row.watermark_us, Counters(), row.deaths)
    live_rows.put_bundle(store, key, part.next_bundle, new)
    after = msgspec.structs.replace(part, next_bundle=part.next_bundle + 1)
    live_rows.put_part(store, key, after)
    return after


def _of_lanes(positions: tuple[Position, ...], lanes: Lanes, part: PartRow) -> tuple[Position, ...]:
    return tuple(
        one for one in positions if lanes >> lane_sets.of_partition(one.partition, part.spec.lanes) & 1
    )


def _all_bundles(store: StoreView, job: str, generation: int) -> Iterable[Bundle]:
    for key, _ in live_rows.parts(store, job, generation):
        yield from live_rows.bundles(store, key)


def _forget(store: Store, op: Expire | Leave, *, died: bool) -> None:
    store.delete(live_rows.WORKERS, live_rows.worker_key(op.job, op.generation, op.worker))
    store.delete(live_rows.STANDBY, live_rows.worker_key(op.job, op.generation, op.worker))
    for key, _ in live_rows.parts(store, op.job, op.generation):
        for bundle in live_rows.bundles(store, key):
            if bundle.row.owner == op.worker:
                deaths = bundle.row.deaths + died
                row = msgspec.structs.replace(bundle.row, owner="", deaths=deaths)
                live_rows.put_bundle(store, key, bundle.id, row)
    note_wanted(store, op.job, op.generation)
