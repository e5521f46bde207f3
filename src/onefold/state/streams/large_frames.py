"""Large frames of streams: a blob has the bytes, and the record names the blob.

The blob is durable before the record. A writer that dies between the two leaves a blob that nothing names, which is swept
``config.ORPHAN_BLOB_AGE_S`` later. So that it cannot be swept for one append while another one names it, no two appends have the
same blob, even of equal frames: each begins with bytes of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

from onefold import config
from onefold.errors import AppendUnknown, InvalidValue, OnefoldError, SpaceError, TooOld, Unavailable
from onefold.machine.undisturbed import best_effort, is_interrupt, let_pass
from onefold.state.core.consistency import STRONG
from onefold.state.fold import blobs as named_blobs
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.fold.streams.ops import STREAM_BLOBS_VERSION, Append, AppendBlob
from onefold.state.streams.layout import check_offset

if TYPE_CHECKING:
    from onefold.fold.api import StoreView
    from onefold.state.core.client import StateClient
    from onefold.state.fold.kinds import Write
    from onefold.state.fold.streams.rows import Run
    from onefold.state.streams.layout import Layout

_MAGIC: Final = b"1FF"
_TAG_BYTES: Final = 5
_HEAD_BYTES: Final = 16
_NAME: Final = "large frames"
_Error = TypeVar("_Error", bound=Unavailable | InvalidValue)


class Blobs(Protocol):
    """Where the blobs of a space are. Thread-safe. Every method raises Unavailable when the place does not answer."""

    def put(self, data: bytes) -> str:
        """Store bytes; returns their name once they are durable for everybody."""

    def find(self, name: str) -> bytes | None:
        """The blob's bytes; None: there is no such blob."""

    def keeps(self, name: str) -> bool:
        """Whether the blob is there for everybody."""

    def prefetch(self, names: Iterable[str]) -> None:
        """Bring blobs here that will be read soon."""

    def discard(self, name: str) -> None:
        """Remove a blob that nothing names and nothing will name, if this process may."""


@dataclass(frozen=True)
class LargeFrames:
    """What a client does with large frames."""

    blobs: Callable[[], Blobs]
    frame_bytes: Callable[[], int]
    """A frame over this size goes into a blob."""
    record_bytes: Callable[[], int]
    """Frames of this size together fit into one record."""
    stored: Callable[[], None] = lambda: None
    """Called when something was stored."""
    present: StateClient | None = None
    """Where the client reads the past: one that reads the present of the same space."""
    _ready: set[int] = field(default_factory=set)
    """Shards that are known to apply records with blobs."""

    def are_ready(self, client: StateClient, shards: Iterable[int]) -> bool:
        """Whether records of these shards may name blobs: no program of an earlier release has the space open."""
        for shard in shards:
            if shard not in self._ready:
                if not client.reach_version(shard, STREAM_BLOBS_VERSION):
                    return False
                self._ready.add(shard)
        return True


def shared_by(client: StateClient) -> LargeFrames | None:
    """What the client does with large frames; None: they stay in the records."""
    if _NAME not in client.shared:
        client.shared.setdefault(_NAME, client.large_frames())
    found: LargeFrames | None = client.shared[_NAME]
    return found


def is_frame(data: bytes, incarnation: str | None = None) -> bool:
    """Whether these bytes, or the bytes that begin with these, are of a blob with a frame. ``incarnation``: and of that space;
    several may keep blobs in one place."""
    return data.startswith(_MAGIC if incarnation is None else _MAGIC + _tag(incarnation))


def _tag(incarnation: str) -> bytes:
    return hashlib.blake2s(incarnation.encode(), digest_size=_TAG_BYTES).digest()


# -- writing


class Stored:
    """Writes whose large frames are in blobs."""

    def __init__(self, client: StateClient, parts: Mapping[int, Sequence[Write]]) -> None:
        self.parts = parts
        self._frames: LargeFrames | None = None
        self._client = client
        self._data: dict[str, bytes] = {}
        self._at_ms = 0

    def store(self, frames: LargeFrames, large: Sequence[Append]) -> None:
        """Store these frames, several at a time. Raises Unavailable (definite)."""
        self._frames, self._at_ms = frames, self._client.env.wall_ms()
        blobs, token = frames.blobs(), self._client.env.token
        head = _MAGIC + _tag(self._client.shards[0].incarnation)
        sealed = [head + token(_HEAD_BYTES - len(head)) + write.frame for write in large]
        try:
            names = _put(blobs, sealed)
        except OSError as error:
            let_pass(error)
            raise Unavailable(
                f"a large frame cannot be stored: {error.strerror or error} ({error.filename}); nothing was appended"
            ) from error
        self._data = dict(zip(names, sealed, strict=True))
        named = {id(write): name for write, name in zip(large, names, strict=True)}
        self.parts = {
            shard: [_beside(write, named.get(id(write))) for write in writes]
            for shard, writes in self.parts.items()
        }
        frames.stored()

    def drop_unnamed(self) -> None:
        """Remove those of the blobs that nothing names: the append was refused, or had happened before under its request id, with
        other blobs. Raises nothing: the sweeper finds what stays, and on a cluster all."""
        if self._frames is None or not self._data or not self._client.always_strong:
            return
        with best_effort:
            left = set(self._data)
            for shard in self.parts:
                # Strong: what is prepared and decided is settled first.
                with self._client.view(shard, STRONG) as view:
                    left -= named_blobs.known(view, left)
            for name in left:
                self._frames.blobs().discard(name)

    def __enter__(self) -> Stored:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """The append has happened, or not."""
        if not self._data or self._frames is None:
            return
        if error is None:
            self.keep()
        elif isinstance(error, OnefoldError) and error.definite and not is_interrupt(error):
            self.drop_unnamed()

    def keep(self) -> None:
        """After the record: store those again that were swept before it, as this process stood still for so long. Raises
        AppendUnknown."""
        late_ms = config.ORPHAN_BLOB_AGE_S * 1000 / 2
        if self._frames is None or self._client.env.wall_ms() - self._at_ms < late_ms:
            return
        blobs = self._frames.blobs()
        try:
            for name, data in self._data.items():
                if not blobs.keeps(name):
                    blobs.put(data)
        except (OnefoldError, OSError) as error:
            let_pass(error)
            raise AppendUnknown(
                "the records were appended, but this program had stood still for so long that their large frames may have been "
                f"removed, and they cannot be stored again: {error}. Append them again if reading says that a blob is missing"
            ) from error


def stored(client: StateClient, parts: Mapping[int, Sequence[Write]]) -> Stored:
    """The writes of each shard, with large frames in blobs: in a ``with`` block that appends them. Raises Unavailable (definite)
    when a blob cannot be stored."""
    found = Stored(client, parts)
    if _frame_bytes(parts) <= config.STREAM_BLOB_BYTES_MIN:
        return found  # most appends
    frames = shared_by(client)
    if frames is not None:
        large = {shard: list(_large(writes, frames)) for shard, writes in parts.items()}
        shards = [shard for shard, writes in large.items() if writes]
        if shards and frames.are_ready(client, shards):
            found.store(frames, [write for shard in shards for write in large[shard]])
    return found


def _frame_bytes(parts: Mapping[int, Sequence[Write]]) -> int:
    found = 0
    for writes in parts.values():
        for write in writes:
            if isinstance(write, Append):
                found += len(write.frame)
    return found


def _large(writes: Sequence[Write], frames: LargeFrames) -> Iterator[Append]:
    """The appends whose frames do not go into the record: large ones, and the largest of those that do not fit together."""
    appends = [write for write in writes if isinstance(write, Append)]
    left = sum(len(write.frame) for write in appends)
    for write in sorted(appends, key=lambda write: len(write.frame), reverse=True):
        size = len(write.frame)
        if size <= config.STREAM_INLINE_BYTES_MAX:
            return
        if size > frames.frame_bytes() or left > frames.record_bytes():
            left -= size
            yield write


def _put(blobs: Blobs, sealed: Sequence[bytes]) -> list[str]:
    """Store all, or none."""
    if len(sealed) == 1:
        return [blobs.put(sealed[0])]
    done: list[str] = []

    def put(data: bytes) -> str:
        name = blobs.put(data)
        done.append(name)
        return name

    try:
        with ThreadPoolExecutor(min(len(sealed), config.BLOB_TRANSFERS_MAX), "onefold frames") as pool:
            return list(pool.map(put, sealed))
    except BaseException:
        with best_effort:
            for name in done:
                blobs.discard(name)
        raise


def _beside(write: Write, blob: str | None) -> Write:
    if blob is None or not isinstance(write, Append):
        return write
    return AppendBlob(write.stream, write.partition, write.count, blob, len(write.frame), write.format)


# -- reading


def with_frames(layout: Layout, partition: int, runs: Sequence[Run]) -> Iterator[Run]:
    """The runs of a partition with their frames, also of those that are in blobs.

    Raises Unavailable (definite) for a blob that is missing or cannot be had now, TooOld when retention has removed it meanwhile,
    InvalidValue for a damaged one. These name the records; a consumer passes what is lost with ``skip``.
    """
    names = [run.blob for run in runs if run.blob]
    if not names:
        yield from runs
        return
    frames = shared_by(layout.client)
    if frames is None:
        raise SpaceError(
            f"stream {layout.name!r} has large records in blobs, which this connection does not reach"
        )
    blobs = frames.blobs()
    blobs.prefetch(names)
    for run in runs:
        yield run._replace(frame=_frame(frames, layout, partition, run)) if run.blob else run


def _frame(frames: LargeFrames, layout: Layout, partition: int, run: Run) -> bytes:
    behind = run.offset + run.count
    where = (
        f"stream {layout.name!r}, partition {partition}: the records from {run.offset} to {behind - 1} are in "
        f"blob {run.blob[:16]}…"
    )
    try:
        data = frames.blobs().find(run.blob)
    except Unavailable as error:
        let_pass(error)
        raise _placed(
            Unavailable(f"{where}, which cannot be had now: {error}"), layout, partition, run
        ) from error
    if data is not None and hashlib.blake2b(data, digest_size=32).hexdigest() == run.blob and is_frame(data):
        return data[_HEAD_BYTES:]
    with (frames.present or layout.client).shards[layout.shard(partition)].view() as view:
        head = stream_rows.head_of(view, layout.name, partition)
    if frames.present is not None and run.offset < head.first:
        raise TooOld(
            f"{where}, which was removed with them: retention has removed all before offset {head.first} since. The content of "
            "large records is kept for some minutes after that, however long the log is kept. Restore a backup of that time, or "
            f"read on from offset {behind}"
        )
    check_offset(head, layout.name, partition, run.offset)
    advice = (
        f"`onefold doctor` says what else is; restore a backup that has it, or read on from offset {behind} (a consumer does "
        "after skip(), a live job with start=)"
    )
    lost: Unavailable | InvalidValue = (
        Unavailable(f"{where}, which is missing. {advice}")
        if data is None
        else InvalidValue(f"{where}, which is damaged: its content is not what was stored. {advice}")
    )
    lost.next_offset = behind
    raise _placed(lost, layout, partition, run)


def _placed(error: _Error, layout: Layout, partition: int, run: Run) -> _Error:
    error.stream, error.partition, error.offset = layout.name, partition, run.offset
    return error


# -- which there are


class BlobRecords(NamedTuple):
    """Records whose frame is in a blob."""

    stream: str
    partition: int
    first: int
    next: int
    """The offset behind the last."""
    blob: str


def records_in(view: StoreView, blobs: Collection[str]) -> Iterator[BlobRecords]:
    """The records of a shard that are in these blobs. Looks at all segments of all streams."""
    for key, data in view.scan(stream_rows.STREAMS):
        row, name = stream_rows.read_stream(data), key.decode()
        for partition in range(0 if row is None else row.partitions):
            for at, segment in view.scan(stream_rows.segment_table(name, partition), stream_rows.FIRST_KEY):
                blob = stream_rows.blob_of(segment)
                if blob and blob in blobs:
                    base, count = stream_rows.read_segment(at, segment)[:2]
                    yield BlobRecords(name, partition, base, base + count, blob)
