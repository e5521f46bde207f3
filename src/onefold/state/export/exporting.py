"""Exporting shared state: JSON lines that any program can read, and that ``state.export.importing`` reads back.

The way out of every format: what is in maps, queues and streams, without logs, versions or numbers of this space. Lines::

    {"format": "onefold-export", "version": 1, "id": ..., "created": ..., "program": ...}
    {"map": "m", "key": "k", "value": 1, "expires_ms": 1700000000000}                    expires_ms: if it ends by itself
    {"queue": "q", "value": 1, "key": "k", "due_ms": ..., "errors": [...], "origin": [...]}     to be done
    {"queue": "q", "value": 1, "dead": 5, "errors": [...]}                              a dead letter, after so many tries
    {"stream": "s", "partitions": 8, "retention_ms": null}
    {"stream": "s", "partition": 0, "key": "k", "value": 1, "time_ms": ...}
    {"end": true, "lines": 5}                                                           without it the file is cut off

Maps come by name and in key order, queues by name and in order, streams by name, partition and offset. A message that somebody
has is exported as one to be done. Locks, consumer groups and the tables of jobs are not exported.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from onefold import config
from onefold._version import __version__
from onefold.ids import new_id
from onefold.shard.api import View
from onefold.state import catalog
from onefold.state.core.client import StateClient
from onefold.state.encoding.items import utc
from onefold.state.encoding.keys import decode_key, encode_key
from onefold.state.encoding.values import decode_value
from onefold.state.export.json_values import dump_line, key_to_json, to_json
from onefold.state.fold import rows
from onefold.state.fold.queues import rows as q
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.streams.appending import StreamCodec
from onefold.state.streams.reading import decode_run, read_page

EXPORT_FORMAT = "onefold-export"
EXPORT_VERSION = 1


class Counts(NamedTuple):
    """What was exported or imported."""

    items: int = 0
    """Of maps."""
    messages: int = 0
    records: int = 0
    """Of streams."""


def export(client: StateClient, write: Callable[[str], object]) -> Counts:
    """Give ``write`` one line after the other, each with its newline: everything as of one instant, in constant memory.

    Raises what reading does, and InvalidValue for a value that a newer program wrote.
    """
    for shard in range(client.shard_count):
        client.settle_due(shard)
    items = messages = records = 0
    with catalog.cut(client) as views:
        created = utc(client.env.wall_ms())
        head = {"format": EXPORT_FORMAT, "version": EXPORT_VERSION, "id": new_id("e", client.env)}
        about = {"created": None if created is None else created.isoformat(), "program": __version__}
        write(dump_line(head | about) + "\n")
        for line in _maps(views):
            items += 1
            write(dump_line(line) + "\n")
        for line in _queues(client, views):
            messages += 1
            write(dump_line(line) + "\n")
        streams = 0
        for line in _streams(views):
            streams += "partitions" in line
            records += "partition" in line
            write(dump_line(line) + "\n")
        write(dump_line({"end": True, "lines": items + messages + streams + records}) + "\n")
    return Counts(items, messages, records)


def _maps(views: Sequence[View]) -> Iterator[dict[str, Any]]:
    for name in catalog.map_names(views):
        table = rows.map_table(name)
        for key, data in heapq.merge(*(view.scan(table) for view in views), key=lambda pair: pair[0]):
            row = rows.read_row(data)
            line = {
                "map": name,
                "key": key_to_json(decode_key(key)),
                "value": to_json(decode_value(row.value)),
            }
            yield line if row.expires_ms is None else line | {"expires_ms": row.expires_ms}


# -- queues


_body: msgspec.msgpack.Decoder[q.Body] = msgspec.msgpack.Decoder(q.Body)
_letter: msgspec.msgpack.Decoder[q.Letter] = msgspec.msgpack.Decoder(q.Letter)


def _queues(client: StateClient, views: Sequence[View]) -> Iterator[dict[str, Any]]:
    for name in catalog.queue_names(views):
        view = views[client.shard_of(encode_key(name))]
        table = q.queue_table(name)
        now_ms = view.head().now_ms
        # Held in memory: some hundred bytes for each message that is held back.
        due = _held_back(view, name) if q.read_counts(view, table).delayed else {}
        for key, data in view.scan(table, q.MESSAGE, q.after_kind(q.MESSAGE)):
            number, body = q.number_of(key), _body.decode(data)
            due_ms, tries = due.get(number) or (body.due_ms, _tries(view, table, number))
            line = _message(name, body.value, body.key, (*body.errors, *tries.errors))
            if due_ms > now_ms:
                line["due_ms"] = due_ms
            if body.origin is not None:
                line["origin"] = list(body.origin)
            yield line
        for _, data in view.scan(table, q.OUTBOX, q.after_kind(q.OUTBOX)):
            letter = _letter.decode(data)
            yield _message(letter.forward_to or name, letter.value, letter.key, letter.tries.errors)
        for _, data in view.scan(table, q.DEAD, q.after_kind(q.DEAD)):
            letter = _letter.decode(data)
            line = _message(name, letter.value, letter.key, letter.tries.errors)
            yield line | {"dead": max(letter.tries.attempts, 1)}


def _message(name: str, value: bytes, key: bytes | None, errors: Sequence[str]) -> dict[str, Any]:
    line: dict[str, Any] = {"queue": name, "value": to_json(decode_value(value))}
    if key is not None:
        line["key"] = key_to_json(decode_key(key))
    if errors:
        line["errors"] = list(errors)
    return line


def _held_back(view: View, name: str) -> dict[int, tuple[int, q.Tries]]:
    """When each message of the queue that is held back is due, and what was tried."""
    found = {}
    for key, data in view.scan(q.QUEUE_DUE):
        due_ms, owner, number = q.read_due_key(key)
        if owner == name:
            found[number] = due_ms, q.read_tries(data)
    return found


def _tries(view: View, table: str, number: int) -> q.Tries:
    ready = view.get(table, q.numbered(q.READY, number))
    if ready is not None:
        return q.read_tries(ready)
    flight = q.read_flight(view, table, number)
    return q.NEVER_TRIED if flight is None else flight.tries


# -- streams


def _streams(views: Sequence[View]) -> Iterator[dict[str, Any]]:
    codec = StreamCodec(None)
    for name in catalog.stream_names(views):
        row = catalog.stream_row(views, name)
        if row is None:
            continue
        yield {"stream": name, "partitions": row.partitions, "retention_ms": row.retention_ms}
        for partition in range(row.partitions):
            view = views[catalog.partition_shard(len(views), name, partition)]
            head = stream_rows.head_of(view, name, partition)
            offset = head.first
            while offset < head.next:
                page = read_page(view, name, partition, offset, head.next, config.STREAM_PAGE_BYTES)
                if not page.runs:
                    break
                for run in page.runs:
                    for record in decode_run(codec, partition, run, offset, head.next, name):
                        line = {"stream": name, "partition": partition, "value": to_json(record.value)}
                        if record.key is not None:
                            line["key"] = key_to_json(record.key)
                        yield line | {"time_ms": record.time_ms}
                offset = page.next
