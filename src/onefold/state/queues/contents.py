"""All queues of a space: see ``state.core.contents``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from onefold.shard.api import View
from onefold.state.core.client import StateClient
from onefold.state.core.contents import Collection, Contents, table_names
from onefold.state.encoding.json_values import key_to_json, to_json
from onefold.state.encoding.keys import decode_key, encode_key, shard_of
from onefold.state.encoding.values import decode_value
from onefold.state.fold.queues import rows as q

_FLIGHTS_LOOKED_AT: Final = 10_000
_body: msgspec.msgpack.Decoder[q.Body] = msgspec.msgpack.Decoder(q.Body)
_letter: msgspec.msgpack.Decoder[q.Letter] = msgspec.msgpack.Decoder(q.Letter)


def _collections(views: Sequence[View]) -> Iterator[Collection]:
    for name in table_names(views, q.QUEUES):
        shard = shard_of(encode_key(name), len(views))
        yield Collection("queue", name, q.read_counts(views[shard], q.queue_table(name)).live, (shard,))


def _holders(view: View) -> Iterator[tuple[str, str]]:
    for name in table_names([view], q.QUEUES):
        for number, flight in q.flights(view, q.queue_table(name), _FLIGHTS_LOOKED_AT):
            yield f"message {number} of queue {name!r}", flight.member


def _given_up(view: View) -> Iterator[tuple[str, int]]:
    for name in table_names([view], q.QUEUES):
        counts = q.read_counts(view, q.queue_table(name))
        if counts.dead:
            yield name, counts.dead


def _export(client: StateClient, views: Sequence[View]) -> Iterator[dict[str, Any]]:  # noqa: ARG001
    for name in table_names(views, q.QUEUES):
        view = views[shard_of(encode_key(name), len(views))]
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


CONTENTS = Contents(_collections, _export, _holders, _given_up)
