"""What was written to a map, read from the log itself and not through any replica: an oracle for those who see some prefix of
it."""

from __future__ import annotations

from typing import Any, cast

from onefold.codec import CorruptRecord, Op, decode_record
from onefold.db import Database
from onefold.state.encoding.keys import decode_key, encode_key
from onefold.state.encoding.values import decode_value
from onefold.state.fold.maps.ops import Put
from onefold.state.fold.ops import STATE_FOLD, Commit, decode_op


def records_of(db: Database, name: str, group: str) -> list[dict[Any, Any]]:
    """What each operation put into the keys ``(group, key)`` of a map, in order, as {key: value}; a record that was appended
    again by a retry counts once.

    For maps that are only ever written by unconditional puts, of a log that was not trimmed.
    """
    log = db._shards[db._state.shard_of(encode_key(group))].log  # type: ignore[attr-defined]
    numbers: dict[str, int] = {}
    found: list[dict[Any, Any]] = []
    offset = 1
    while entries := log.read(offset, 4 << 20):
        for entry in entries:
            offset = entry.offset + 1
            try:
                record = decode_record(entry.data)
            except CorruptRecord:
                continue
            if record.number != numbers.get(record.client, 0) + 1:
                continue
            numbers[record.client] = record.number
            found += [written for op in record.ops if (written := _written(op, name))]
    return found


def _written(op: Op, name: str) -> dict[Any, Any]:
    commit = decode_op(op.body) if op.fold == STATE_FOLD else None
    if not isinstance(commit, Commit):
        return {}
    return {
        cast(tuple[Any, Any], decode_key(key))[1]: decode_value(value)
        for write in commit.writes
        if isinstance(write, Put) and write.map == name
        for key, value in write.items
    }
