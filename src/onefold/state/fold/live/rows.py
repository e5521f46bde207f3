"""How live jobs are kept: tables, rows, and reading them. None of the tables has history."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

import msgspec

from onefold import config
from onefold.fold.api import Store, StoreView, prefix_stop
from onefold.state.encoding.keys import decode_key, encode_key
from onefold.state.fold.blobs import LIVE_JOBS
from onefold.state.fold.live.ops import Counters, PartSpec, Position, RunId, RunKind
from onefold.state.fold.streams import rows as stream_rows

JOBS: Final = LIVE_JOBS
"""Job -> ``JobRow``."""
FENCED: Final = "state/l/fenced"
"""Job -> the newest reservation of its name under which none is begun any more."""
GENERATIONS: Final = "state/l/generations"
"""(job, generation) -> ``GenerationRow``."""
PARTS: Final = "state/l/parts"
"""(job, generation, part) -> ``PartRow``."""
BUNDLES: Final = "state/l/bundles"
"""(job, generation, part), id -> ``BundleRow``."""
WORKERS: Final = "state/l/workers"
"""(job, generation, worker) -> ``WorkerRow``."""
STANDBY: Final = "state/l/standby"
"""(job, generation), id of a worker that has no share of the lanes -> nothing. Not in the worker's row, which programs of earlier
releases write too."""
RUNS: Final = "state/l/runs"
"""(job, generation, part), run id -> ``RunRow``."""
INLINE: Final = "state/l/inline"
"""The same key -> a run's bytes, when they are not in a blob: so listing runs reads none."""
OUTBOX: Final = "state/l/outbox"
"""(job, generation), shard, number -> writes that wait for the forwarder."""
OUTBOX_HEADS: Final = "state/l/outbox_heads"
"""(job, generation), shard -> ``OutboxHead``."""
CURSORS: Final = "state/l/cursors"
"""In a target shard: (job, generation, home) -> offset where the generation began, number up to which it is done. As generation 0
(there is none) -> the first generation that may not be dropped yet, 0: those before it have no cursors, and get none."""

_ID = struct.Struct(">Q")
_RUN = struct.Struct(">QIQQ")
_MESSAGE = struct.Struct(">IQ")
_SHARD = struct.Struct(">I")
_CURSOR = struct.Struct(">QQ")

State = Literal["running", "draining", "stopped", "failed", "done", "cancelled", "dropped"]
ACTIVE: Final[tuple[State, ...]] = ("running", "draining")
OVER: Final[tuple[State, ...]] = ("done", "cancelled", "dropped")


class JobRow(msgspec.Struct, frozen=True, array_like=True):
    """A job. It stays when the job is dropped: numbers of generations are never given twice, since cursors in other shards and
    the bytes of runs have them."""

    current: int
    """The generation whose table has the job's name; 0: the job was dropped."""
    newest: int
    replaying: int = 0
    """The hidden generation; 0: none."""


class GenerationRow(msgspec.Struct, frozen=True, array_like=True):
    """A job under one frozen input and one set of signatures."""

    state: State
    plan: str
    offset: int
    """Of its beginning."""
    error: str = ""
    ends: tuple[tuple[str, int, int, int], ...] = ()
    """Of a job that drains, or that was stopped or failed while it drained."""
    created_ms: int = 0
    """The fold time of its beginning."""


class PartRow(msgspec.Struct, frozen=True, array_like=True):
    """A part of a generation."""

    spec: PartSpec
    next_bundle: int
    """Ids of bundles are never given twice."""
    wanted: int = 0
    """Lanes that workers with too few wait for, beyond those that nobody owns."""
    schema_changes: int = 0
    schema: bytes = b""
    """The columns of its inputs, as the commit said that changed them last; empty: none were seen yet."""


class WorkerRow(msgspec.Struct, frozen=True, array_like=True):
    """A worker of a generation."""

    member: str
    beats: int = 0
    state_bytes: int = 0
    """It holds so much open state that it reads nothing; 0: it reads."""


class BundleRow(msgspec.Struct, frozen=True, array_like=True):
    """A bundle. The lanes of all bundles of a part are disjoint, and together they are all of its lanes."""

    lanes: bytes
    owner: str
    """The worker; empty: nobody."""
    epoch: int
    """Grows with every owner."""
    seq: int
    """Of the last commit; 0: none yet."""
    nonce: int
    """Of that commit."""
    positions: tuple[Position, ...]
    """Of all its input partitions, in order; they never go back."""
    watermark_us: int | None = None
    """Never goes back. None: below every time."""
    counters: Counters = Counters()
    deaths: int = 0
    """How many owners died since the last commit."""


class RunRow(msgspec.Struct, frozen=True, array_like=True):
    """A run. It is there while it covers lanes."""

    kind: RunKind
    lanes: bytes
    rows: int
    size: int
    blob: str = ""
    low_us: int | None = None
    high_us: int | None = None


class OutboxHead(msgspec.Struct, frozen=True, array_like=True):
    """What waits for one shard: messages ``first`` up to before ``next``."""

    first: int = 1
    next: int = 1
    size: int = 0


class Bundle(NamedTuple):
    """A bundle with its id."""

    id: int
    row: BundleRow


class Run(NamedTuple):
    """A run with its id."""

    id: RunId
    row: RunRow


encode = msgspec.msgpack.Encoder().encode
_job = msgspec.msgpack.Decoder(JobRow)
_generation = msgspec.msgpack.Decoder(GenerationRow)
_part = msgspec.msgpack.Decoder(PartRow)
_worker = msgspec.msgpack.Decoder(WorkerRow)
_bundle = msgspec.msgpack.Decoder(BundleRow)
_run = msgspec.msgpack.Decoder(RunRow)
_head = msgspec.msgpack.Decoder(OutboxHead)


# -- keys


def generation_key(job: str, generation: int) -> bytes:
    """The key of a generation, and the prefix of everything that belongs to it."""
    return encode_key((job, generation))


def part_key(job: str, generation: int, part: str) -> bytes:
    """The key of a part, and the prefix of its bundles and runs."""
    return encode_key((job, generation, part))


def hop_stream(job: str, generation: int, part: str) -> str:
    """The stream that a part with ``PartSpec.hop`` writes: of one partition, in the home shard, and of no concern to users."""
    return (
        stream_rows.HOP_PREFIX + hashlib.blake2s(part_key(job, generation, part), digest_size=16).hexdigest()
    )


def worker_key(job: str, generation: int, worker: str) -> bytes:
    """The key of a worker."""
    return encode_key((job, generation, worker))


def bundle_key(part: bytes, bundle: int) -> bytes:
    """The key of a bundle of the part with that key."""
    return part + _ID.pack(bundle)


def run_key(part: bytes, run: RunId) -> bytes:
    """The key of a run of the part with that key; keys are in the order of runs."""
    return part + _RUN.pack(run.offset, run.index, run.made, run.ordinal)


def outbox_key(generation: bytes, shard: int, number: int) -> bytes:
    """The key of a message."""
    return generation + _MESSAGE.pack(shard, number)


def outbox_head_key(generation: bytes, shard: int) -> bytes:
    """The key of the head of what waits for a shard."""
    return generation + _SHARD.pack(shard)


# -- reading


def job_of(view: StoreView, job: str) -> JobRow | None:
    """The job; None: there is none."""
    found = view.get(JOBS, job.encode())
    row = None if found is None else _job.decode(found)
    return row if row is not None and row.current else None


def newest_of(view: StoreView, job: str) -> int:
    """The number of the newest generation that a job of that name ever had; 0: none."""
    found = view.get(JOBS, job.encode())
    return 0 if found is None else _job.decode(found).newest


def fenced_of(view: StoreView, job: str) -> int:
    """The newest reservation under which no job of that name is begun any more; 0: none."""
    found = view.get(FENCED, job.encode())
    return 0 if found is None else int(_ID.unpack(found)[0])


def jobs(view: StoreView) -> Iterator[tuple[str, JobRow]]:
    """All jobs of the shard, by name."""
    for key, value in view.scan(JOBS):
        row = _job.decode(value)
        if row.current:
            yield key.decode(), row


def generation_of(view: StoreView, job: str, generation: int) -> GenerationRow | None:
    """A generation; None: there is none."""
    found = view.get(GENERATIONS, generation_key(job, generation))
    return None if found is None else _generation.decode(found)


def generations(view: StoreView, job: str) -> list[tuple[int, GenerationRow]]:
    """All generations of a job that are kept, oldest first."""
    prefix = encode_key((job,))
    found: list[tuple[int, GenerationRow]] = []
    for key, value in view.scan(GENERATIONS, prefix, prefix_stop(prefix)):
        decoded = decode_key(key)
        if isinstance(decoded, tuple) and isinstance(decoded[1], int):
            found.append((decoded[1], _generation.decode(value)))
    return found


def part_of(view: StoreView, key: bytes) -> PartRow | None:
    """The part with that key; None: there is none."""
    found = view.get(PARTS, key)
    return None if found is None else _part.decode(found)


def parts(view: StoreView, job: str, generation: int) -> list[tuple[bytes, PartRow]]:
    """The parts of a generation with their keys, by name."""
    prefix = generation_key(job, generation)
    return [(key, _part.decode(value)) for key, value in view.scan(PARTS, prefix, prefix_stop(prefix))]


def bundle_of(view: StoreView, part: bytes, bundle: int) -> BundleRow | None:
    """A bundle of the part with that key; None: there is none (any more)."""
    found = view.get(BUNDLES, bundle_key(part, bundle))
    return None if found is None else _bundle.decode(found)


def bundles(view: StoreView, part: bytes) -> list[Bundle]:
    """The bundles of the part with that key, by id."""
    return [
        Bundle(int(_ID.unpack_from(key, len(part))[0]), _bundle.decode(value))
        for key, value in view.scan(BUNDLES, part, prefix_stop(part))
    ]


def worker_of(view: StoreView, job: str, generation: int, worker: str) -> WorkerRow | None:
    """A worker; None: it is not known."""
    found = view.get(WORKERS, worker_key(job, generation, worker))
    return None if found is None else _worker.decode(found)


def workers(view: StoreView, job: str, generation: int) -> dict[str, WorkerRow]:
    """The workers of a generation, by id."""
    prefix = generation_key(job, generation)
    found: dict[str, WorkerRow] = {}
    for key, value in view.scan(WORKERS, prefix, prefix_stop(prefix)):
        decoded = decode_key(key)
        if isinstance(decoded, tuple) and isinstance(decoded[2], str):
            found[decoded[2]] = _worker.decode(value)
    return found


def sharing_workers(view: StoreView, job: str, generation: int) -> dict[str, WorkerRow]:
    """The workers that share the lanes: those that do not stand by."""
    prefix = generation_key(job, generation)
    standby = {key for key, _ in view.scan(STANDBY, prefix, prefix_stop(prefix))}
    found = workers(view, job, generation)
    if not standby:
        return found
    return {name: row for name, row in found.items() if worker_key(job, generation, name) not in standby}


def run_of(view: StoreView, part: bytes, run: RunId) -> RunRow | None:
    """A run of the part with that key; None: it is not there any more."""
    found = view.get(RUNS, run_key(part, run))
    return None if found is None else _run.decode(found)


def runs(
    view: StoreView, part: bytes, first: RunId | None = None, last: RunId | None = None
) -> Iterator[Run]:
    """The runs of the part with that key from ``first`` to ``last``, in order."""
    start = part if first is None else run_key(part, first)
    stop = prefix_stop(part) if last is None else run_key(part, last) + b"\x00"
    for key, value in view.scan(RUNS, start, stop):
        offset, index, made, ordinal = _RUN.unpack_from(key, len(part))
        yield Run(RunId(offset, index, made, ordinal), _run.decode(value))


def inline_of(view: StoreView, part: bytes, run: RunId) -> bytes | None:
    """The bytes of a run that are not in a blob."""
    return view.get(INLINE, run_key(part, run))


def outbox_head_of(view: StoreView, key: bytes) -> OutboxHead:
    """The head with that key."""
    found = view.get(OUTBOX_HEADS, key)
    return OutboxHead() if found is None else _head.decode(found)


def outbox_heads(view: StoreView, generation: bytes) -> list[tuple[int, OutboxHead]]:
    """The heads of the generation with that key, by shard."""
    return [
        (int(_SHARD.unpack_from(key, len(generation))[0]), _head.decode(value))
        for key, value in view.scan(OUTBOX_HEADS, generation, prefix_stop(generation))
    ]


def cursor_of(view: StoreView, key: bytes, since: int) -> int:
    """Up to which number a target shard is done with a generation that began there."""
    began, done = _CURSOR.unpack(view.get(CURSORS, key) or _CURSOR.pack(0, 0))
    return int(done) if began == since else 0


def is_old_cursor(view: StoreView, key: bytes, since: int) -> bool:
    """Whether a later generation of that number has moved the cursor: what comes now is of one that was dropped."""
    return int(_CURSOR.unpack(view.get(CURSORS, key) or _CURSOR.pack(0, 0))[0]) > since


class Cursor(NamedTuple):
    """Whose cursor is in a target shard."""

    job: str
    generation: int
    home: int


def cursors(view: StoreView, job: str | None = None) -> Iterator[Cursor]:
    """Those that are there, of one job or of all."""
    prefix = b"" if job is None else encode_key((job,))
    for key, _ in view.scan(CURSORS, prefix, prefix_stop(prefix) if prefix else None):
        decoded = decode_key(key[: -_SHARD.size])
        if (
            isinstance(decoded, tuple)
            and isinstance(decoded[0], str)
            and isinstance(decoded[1], int)
            and decoded[1]
        ):
            yield Cursor(decoded[0], decoded[1], int(_SHARD.unpack(key[-_SHARD.size :])[0]))


def dropped_below(view: StoreView, job: str, home: int) -> int:
    """The generations of a job before this one are known to be dropped in a target shard."""
    found = view.get(CURSORS, outbox_head_key(generation_key(job, 0), home))
    return 0 if found is None else int(_CURSOR.unpack(found)[0])


def put_dropped_below(store: Store, job: str, home: int, generation: int) -> None:
    """Say so."""
    store.put(CURSORS, outbox_head_key(generation_key(job, 0), home), _CURSOR.pack(generation, 0))


def write_cursor(store: Store, key: bytes, since: int, to: int) -> None:
    """Move it."""
    store.put(CURSORS, key, _CURSOR.pack(since, to))


# -- writing


def put_bundle(store: Store, part: bytes, bundle: int, row: BundleRow) -> None:
    """Set a bundle."""
    store.put(BUNDLES, bundle_key(part, bundle), encode(row))


def put_part(store: Store, key: bytes, row: PartRow) -> None:
    """Set a part."""
    store.put(PARTS, key, encode(row))


def put_generation(store: Store, job: str, generation: int, row: GenerationRow) -> None:
    """Set a generation."""
    store.put(GENERATIONS, generation_key(job, generation), encode(row))


def fence(store: Store, job: str, reservation: int) -> None:
    """Begin no job of that name under this reservation, or an earlier one, any more."""
    if reservation > fenced_of(store, job):
        store.put(FENCED, job.encode(), _ID.pack(reservation))


def put_job(store: Store, job: str, row: JobRow) -> None:
    """Set a job."""
    store.put(JOBS, job.encode(), encode(row))


def is_name(name: str) -> bool:
    """Whether it can be the name of a job, a part or a worker. Keys of rows begin with names, and a zero byte in one would make
    the key of another name begin alike."""
    return 0 < len(name.encode()) <= config.NAME_BYTES_MAX and "\x00" not in name
