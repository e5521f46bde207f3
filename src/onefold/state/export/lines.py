"""The lines of an export, read and checked: what each of them puts into a space."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from onefold import config
from onefold.errors import InvalidValue, TooLarge
from onefold.state.encoding.json_values import from_json, key_from_json
from onefold.state.encoding.keys import encode_key
from onefold.state.encoding.names import check_name
from onefold.state.encoding.values import encode_value
from onefold.state.export.exporting import EXPORT_FORMAT, EXPORT_VERSION
from onefold.state.export.region_lines import WHAT, RegionLine, read_region_line
from onefold.state.fold.queues.ops import Message
from onefold.state.streams.layout import check_stream_name

_NUMBER_MAX = (1 << 53) - 1


class Item(NamedTuple):
    """An item of a map."""

    map: str
    key: bytes
    value: bytes
    expires_ms: int | None


class Queued(NamedTuple):
    """A message of a queue, or a dead letter."""

    queue: str
    message: Message
    due_ms: int


class StreamLine(NamedTuple):
    """What a stream is like."""

    stream: str
    partitions: int
    retention_ms: int | None


class RecordLine(NamedTuple):
    """A record of a stream."""

    stream: str
    partition: int
    key: bytes | None
    value: bytes


Line = Item | Queued | StreamLine | RecordLine | RegionLine


def read_head(line: str) -> dict[str, Any]:
    """The first line of an export. Raises InvalidValue."""
    try:
        head = json.loads(line)
    except (ValueError, RecursionError):
        head = None
    if (
        not isinstance(head, dict)
        or head.get("format") != EXPORT_FORMAT
        or not isinstance(head.get("id"), str)
    ):
        raise InvalidValue("line 1: this is not a file of `onefold export`. Nothing was imported")
    if not isinstance(head.get("version"), int) or head["version"] > EXPORT_VERSION:
        raise InvalidValue(
            f"line 1: the file has version {head.get('version')}; this program knows {EXPORT_VERSION}. "
            "Upgrade: pip install -U onefold"
        )
    return head


def parsed(file: IO[str]) -> Iterator[tuple[int, Line]]:
    """Each line with its number. Raises InvalidValue, which names the line."""
    number, ended = 0, False
    try:
        for number, text in enumerate(file, 1):
            if number == 1:
                read_head(text)
                continue
            if ended:
                raise InvalidValue("there is something after the end")
            item = json.loads(text)
            if not isinstance(item, dict):
                raise InvalidValue("an object was expected")
            if item.get("end") is True:
                ended = True
                if item.get("lines") != number - 2:
                    raise InvalidValue(f"the file has {number - 2} lines; {item.get('lines')} were written")
                continue
            yield number, _line(item)
    except (ValueError, TypeError, KeyError, RecursionError, TooLarge) as error:
        if isinstance(error, InvalidValue) and str(error).startswith("line "):
            raise
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InvalidValue(f"line {number or 1}: {what}. Nothing was imported") from error
    if not ended:
        raise InvalidValue(
            f"line {number + 1}: the file ends before its end: it was cut off. Nothing was imported"
        )


def _line(item: dict[str, Any]) -> Line:
    if "map" in item:
        return Item(
            check_name("map", item["map"]),
            encode_key(key_from_json(item["key"])),
            encode_value(from_json(item["value"])),
            _number(item, "expires_ms"),
        )
    if "queue" in item:
        return _queued(item)
    if any(what in item for what in WHAT):
        return read_region_line(item)
    if "stream" not in item:
        raise InvalidValue(f"neither a map, a queue, a stream nor an available collection: {str(item)[:80]}")
    name = check_stream_name(item["stream"])
    if "partitions" in item:
        partitions = _number(item, "partitions") or 0
        if not 1 <= partitions <= config.STREAM_PARTITIONS_MAX:
            raise InvalidValue(f"a stream of {partitions} partitions")
        return StreamLine(name, partitions, _number(item, "retention_ms"))
    key = item.get("key")
    return RecordLine(
        name,
        _number(item, "partition") or 0,
        None if key is None else encode_key(key_from_json(key)),
        encode_value(from_json(item["value"])),
    )


def _queued(item: dict[str, Any]) -> Queued:
    key, origin = item.get("key"), item.get("origin")
    errors = tuple(item.get("errors", ()))
    if not all(isinstance(error, str) for error in errors):
        raise InvalidValue("errors must be texts")
    if origin is not None:
        name, number, attempts = origin
        origin = check_name("queue", name), _number({"": number}, "") or 0, _number({"": attempts}, "") or 0
    message = Message(
        encode_value(from_json(item["value"])),
        None if key is None else encode_key(key_from_json(key)),
        origin=origin,
        errors=errors,
        dead=_number(item, "dead") or 0,
    )
    return Queued(check_name("queue", item["queue"]), message, _number(item, "due_ms") or 0)


def _number(item: dict[str, Any], name: str) -> int | None:
    found = item.get(name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= _NUMBER_MAX:
        raise InvalidValue(f"{name} must be a whole number; got {found!r:.60}")
    return found
