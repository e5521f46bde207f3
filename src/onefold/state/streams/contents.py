"""All streams of a space: see ``state.core.contents``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from onefold import config
from onefold.shard.api import View
from onefold.state.core.client import StateClient
from onefold.state.core.contents import Collection, Contents
from onefold.state.encoding.json_values import key_to_json, to_json
from onefold.state.encoding.keys import encode_key, shard_of
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.streams.appending import StreamCodec
from onefold.state.streams.large_frames import with_frames
from onefold.state.streams.layout import Layout
from onefold.state.streams.reading import decode_run, read_page


def _collections(views: Sequence[View]) -> Iterator[Collection]:
    for name in _names(views):
        row = _row(views, name)
        partitions = 0 if row is None else row.partitions
        where = [_shard_of(len(views), name, partition) for partition in range(partitions)]
        heads = [stream_rows.head_of(views[shard], name, partition) for partition, shard in enumerate(where)]
        kept = sum(head.next - head.first for head in heads)
        yield Collection("stream", name, kept, tuple(sorted(set(where))))


def _export(client: StateClient, views: Sequence[View]) -> Iterator[dict[str, Any]]:
    codec = StreamCodec(None)
    for name in _names(views):
        row = _row(views, name)
        if row is None:
            continue
        yield {"stream": name, "partitions": row.partitions, "retention_ms": row.retention_ms}
        for partition in range(row.partitions):
            view = views[_shard_of(len(views), name, partition)]
            head = stream_rows.head_of(view, name, partition)
            offset = head.first
            while offset < head.next:
                page = read_page(view, name, partition, offset, head.next, config.STREAM_PAGE_BYTES)
                if not page.runs:
                    break
                layout = Layout(client, name)
                for run in with_frames(layout, partition, page.runs):
                    for record in decode_run(codec, partition, run, offset, head.next, name):
                        line = {"stream": name, "partition": partition, "value": to_json(record.value)}
                        if record.key is not None:
                            line["key"] = key_to_json(record.key)
                        yield line | {"time_ms": record.time_ms}
                offset = page.next


def _names(views: Sequence[View]) -> list[str]:
    """Of those that were made."""
    names = {key.decode() for view in views for key, _ in view.scan(stream_rows.STREAMS)}
    return sorted(name for name in names if not name.startswith(stream_rows.HOP_PREFIX))


def _row(views: Sequence[View], name: str) -> stream_rows.StreamRow | None:
    """What a stream is like, by its newest word."""
    found = [stream_rows.read_stream(view.get(stream_rows.STREAMS, name.encode())) for view in views]
    return max((row for row in found if row is not None), key=lambda row: row.version, default=None)


def _shard_of(shards: int, name: str, partition: int) -> int:
    """Where a partition of a stream lives; see ``state.streams.layout``."""
    return shard_of(encode_key(((name, partition),)), shards)


CONTENTS = Contents(_collections, _export)
