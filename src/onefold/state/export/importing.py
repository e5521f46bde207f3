"""Importing what ``exporting`` exported.

The file is read twice: first all of it is checked, so that a bad line, or a key that is there already, is reported before
anything is written; then it is written in batches. Appends to queues and streams carry a request id made of the file's id and the
line, so an import that was cut short can be run again (with ``replace``) and nothing is there twice, within
``config.REQUEST_ID_RETENTION_S``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, NamedTuple

from onefold import config
from onefold.errors import Conflict, InvalidArgument, InvalidValue
from onefold.machine.undisturbed import let_pass
from onefold.state.core.client import StateClient
from onefold.state.encoding.keys import encode_key
from onefold.state.export.lines import Item, Line, Queued, RecordLine, StreamLine, parsed, read_head
from onefold.state.export.region_lines import RegionLine
from onefold.state.export.region_writing import OnConflict, RegionChecker, RegionWriter, Target
from onefold.state.fold import rows
from onefold.state.fold.kinds import Write
from onefold.state.fold.maps.ops import Put
from onefold.state.fold.ops import Read
from onefold.state.fold.queues import rows as queue_rows
from onefold.state.fold.queues.ops import Enqueue, Message
from onefold.state.fold.streams.ops import Append
from onefold.state.streams import frames as stream_frames
from onefold.state.streams.layout import Layout

_TRIES = 100


class Imported(NamedTuple):
    """What was imported."""

    items: int = 0
    messages: int = 0
    records: int = 0
    skipped: int = 0
    """Items whose key was there."""
    ended: int = 0
    """Items whose lifetime was over."""
    counters: int = 0
    elements: int = 0
    """Of sets."""


def import_file(
    client: StateClient, file: IO[str], on_conflict: OnConflict = "error", region: Target | None = None
) -> Imported:
    """Put what the seekable ``file`` holds into the space.

    ``region``: where its collections for every region become new writes; it is opened if there are any. Of values side by side
    ``"error"`` refuses the file, and the others take the latest. ``"replace"`` makes a counter what the file says.

    ``on_conflict``, when a map's key is there already: ``"error"``: nothing is imported, and Conflict is raised (also when a
    queue or stream of the file holds anything); ``"replace"`` it; ``"skip"`` the line. Queues and streams are added to otherwise.

    Raises, before anything was written, what ``check_file`` raises. While writing what writing raises; run it again with
    ``"replace"`` then.
    """
    check_file(client, file, on_conflict, region)
    file.seek(0)
    writer = _Writer(client, on_conflict, read_head(file.readline())["id"], region)
    file.seek(0)
    for number, line in parsed(file):
        writer.add(number, line)
    return writer.finish()


def check_file(
    client: StateClient, file: IO[str], on_conflict: OnConflict = "error", region: Target | None = None
) -> None:
    """Whether the file can be imported. Raises InvalidValue (with the line's number), InvalidArgument, Conflict, TooLarge."""
    if on_conflict not in ("error", "replace", "skip"):
        raise InvalidArgument(f"on_conflict must be 'error', 'replace' or 'skip'; got {on_conflict!r}")
    for shard in range(client.shard_count):
        client.settle_due(shard)
    checker = _Checker(client, region, strict=on_conflict == "error")
    file.seek(0)
    for number, line in parsed(file):
        checker.add(number, line)
    checker.finish()


# -- checking


class _Checker:
    """The first reading: what the space says to it."""

    def __init__(self, client: StateClient, region: Target | None, *, strict: bool) -> None:
        self._client = client
        self._region = RegionChecker(region, strict=strict)
        self._strict = strict
        self._partitions: dict[str, int] = {}
        self._queues: set[str] = set()
        self._keys: dict[tuple[int, str], list[tuple[bytes, int]]] = {}

    def add(self, number: int, line: Line) -> None:
        match line:
            case StreamLine(name, partitions, _):
                self._partitions[name] = partitions
                self._check_stream(number, name, partitions)
            case RecordLine(name, partition, _, _):
                if partition >= self._partitions.get(name, 0):
                    raise InvalidValue(
                        f"line {number}: no partition {partition} of stream {name!r} was announced. Nothing was imported"
                    )
            case RegionLine():
                self._region.add(number, line)
            case Item(name, key, _, _):
                self._region.add_map(number, name)
                if not self._strict:
                    return
                place = self._client.shard_of(key), name
                keys = self._keys.setdefault(place, [])
                keys.append((key, number))
                if len(keys) >= config.IMPORT_BATCH_LINES:
                    self._check_keys(place)
            case Queued(name) if self._strict and name not in self._queues:
                self._queues.add(name)
                self._check_queue(number, name)

    def finish(self) -> None:
        for place in list(self._keys):
            self._check_keys(place)
        self._region.finish()

    def _check_keys(self, place: tuple[int, str]) -> None:
        shard, name = place
        keys = self._keys.pop(place)
        with self._client.view(shard) as view:
            found = view.get_many(rows.map_table(name), [key for key, _ in keys])
        taken = next(((key, number) for key, number in keys if key in found), None)
        if taken is not None:
            from onefold.state.core.client import shown_key

            raise Conflict(
                f"line {taken[1]}: {shown_key(taken[0])} of map {name!r} is there already. Nothing was imported; "
                "say --on-conflict replace or skip (on_conflict=)"
            )

    def _check_queue(self, number: int, name: str) -> None:
        with self._client.view(self._client.shard_of(encode_key(name))) as view:
            counts = queue_rows.read_counts(view, queue_rows.queue_table(name))
        if counts.live or counts.dead:
            raise Conflict(
                f"line {number}: the queue {name!r} holds {counts.live + counts.dead} messages already. Nothing was imported; "
                "--on-conflict replace adds to them"
            )

    def _check_stream(self, number: int, name: str, partitions: int) -> None:
        layout = Layout(self._client, name)
        row = layout.find()
        if row is None:
            return
        if row.partitions != partitions:
            raise Conflict(
                f"line {number}: the stream {name!r} has {row.partitions} partitions here and {partitions} in the file. "
                "Nothing was imported"
            )
        heads, _ = layout.heads(range(partitions))
        if self._strict and any(head.next for head in heads.values()):
            raise Conflict(
                f"line {number}: the stream {name!r} holds records already. Nothing was imported; "
                "--on-conflict replace adds to them"
            )


# -- writing


class _Batch:
    """What goes into one record of a shard."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.bytes = 0
        self.lines: list[Item | Queued | RecordLine] = []


class _Writer:
    """The second reading. Items of maps, and what is appended, go in batches of their own."""

    def __init__(self, client: StateClient, on_conflict: OnConflict, id: str, region: Target | None) -> None:
        self._client = client
        self._on_conflict = on_conflict
        self._id = id
        self._batches: dict[tuple[int, bool], _Batch] = {}
        self._layouts: dict[str, Layout] = {}
        self._region = RegionWriter(region, on_conflict)
        self._done = Imported()

    def add(self, number: int, line: Line) -> None:
        match line:
            case StreamLine(name, partitions, retention_ms):
                layout = self._layouts[name] = Layout(self._client, name, partitions)
                row = layout.make()
                if row.retention_ms != retention_ms:
                    row = layout.set_retention(retention_ms)
                for shard in layout.by_shard(range(partitions)):
                    layout.copy_to(shard, row)
            case RegionLine():
                self._region.add(number, line)
            case Item(_, key, value, _):
                self._put(number, self._client.shard_of(key), line, len(key) + len(value))
            case Queued(name, message, _):
                self._put(number, self._client.shard_of(encode_key(name)), line, len(message.value))
            case RecordLine(name, partition, _, value):
                self._put(number, self._layouts[name].shard(partition), line, len(value))

    def finish(self) -> Imported:
        for place in list(self._batches):
            self._flush(place)
        region, done = self._region.finish(), self._done
        return done._replace(
            items=done.items + region.items,
            skipped=done.skipped + region.skipped,
            ended=done.ended + region.ended,
            counters=region.counters,
            elements=region.elements,
        )

    def _put(self, number: int, shard: int, line: Item | Queued | RecordLine, size: int) -> None:
        place = shard, isinstance(line, Item)
        batch = self._batches.get(place)
        full = batch is not None and (
            len(batch.lines) >= config.IMPORT_BATCH_LINES or batch.bytes + size > config.IMPORT_BATCH_BYTES
        )
        if full:
            self._flush(place)
            batch = None
        if batch is None:
            batch = self._batches[place] = _Batch(number)
        batch.lines.append(line)
        batch.bytes += size

    def _flush(self, place: tuple[int, bool]) -> None:
        shard, of_maps = place
        batch = self._batches.pop(place)
        if of_maps:
            self._put_items(shard, batch)
        else:
            self._append(shard, batch)

    def _put_items(self, shard: int, batch: _Batch) -> None:
        items = [line for line in batch.lines if isinstance(line, Item)]
        for attempt in range(_TRIES):
            wall_ms = self._client.env.wall_ms()
            live = [item for item in items if item.expires_ms is None or item.expires_ms > wall_ms]
            wanted = self._absent(shard, live) if self._on_conflict == "skip" else live
            reads = () if self._on_conflict == "replace" else tuple(Read(i.map, i.key, 0, 0) for i in wanted)
            if wanted:
                try:
                    self._client.commit(shard, tuple(_puts(wanted, wall_ms)), reads)
                except Conflict as error:
                    let_pass(error)
                    if self._on_conflict == "skip" and attempt < _TRIES - 1:
                        continue  # somebody put one of them meanwhile
                    raise Conflict(
                        f"{error} What stands before line {batch.first} was imported; say --on-conflict replace"
                    ) from error
            done = self._done
            self._done = done._replace(
                items=done.items + len(wanted),
                skipped=done.skipped + len(live) - len(wanted),
                ended=done.ended + len(items) - len(live),
            )
            return

    def _absent(self, shard: int, items: list[Item]) -> list[Item]:
        with self._client.view(shard) as view:
            return [item for item in items if view.get(rows.map_table(item.map), item.key) is None]

    def _append(self, shard: int, batch: _Batch) -> None:
        wall_ms = self._client.env.wall_ms()
        writes: list[Write] = []
        queued: list[Queued] = []
        records: list[RecordLine] = []
        for line in [*batch.lines, None]:
            if queued and (not isinstance(line, Queued) or line.queue != queued[0].queue):
                writes.append(_enqueue(queued, wall_ms))
                queued = []
            same = isinstance(line, RecordLine) and records and line[:2] == records[0][:2]
            if records and not same:
                writes.extend(_appends(records))
                records = []
            if isinstance(line, Queued):
                queued.append(line)
            elif isinstance(line, RecordLine):
                records.append(line)
        self._client.commit(shard, tuple(writes), request_id=f"import {self._id} {shard} {batch.first}")
        messages = sum(isinstance(line, Queued) for line in batch.lines)
        self._done = self._done._replace(
            messages=self._done.messages + messages,
            records=self._done.records + len(batch.lines) - messages,
        )


def _puts(items: list[Item], wall_ms: int) -> Iterator[Put]:
    plain: dict[str, list[tuple[bytes, bytes]]] = {}
    for item in items:
        if item.expires_ms is None:
            plain.setdefault(item.map, []).append((item.key, item.value))
        else:
            yield Put(item.map, ((item.key, item.value),), item.expires_ms - wall_ms)
    for name, pairs in plain.items():
        yield Put(name, tuple(pairs))


def _enqueue(lines: list[Queued], wall_ms: int) -> Enqueue:
    messages = [
        Message(m.value, m.key, max(0, line.due_ms - wall_ms), m.origin, m.errors, m.dead)
        for line in lines
        for m in (line.message,)
    ]
    return Enqueue(lines[0].queue, tuple(messages))


def _appends(records: list[RecordLine]) -> Iterator[Append]:
    pairs = [(record.key, record.value) for record in records]
    for count, frame in stream_frames.cut_records(pairs):
        yield Append(records[0].stream, records[0].partition, count, frame, stream_frames.RECORDS)
