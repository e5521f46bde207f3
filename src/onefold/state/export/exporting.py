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

from collections.abc import Callable
from typing import NamedTuple

from onefold._version import __version__
from onefold.ids import new_id
from onefold.state import catalog
from onefold.state.core.client import StateClient
from onefold.state.encoding.items import utc
from onefold.state.encoding.json_values import dump_line
from onefold.state.kinds import KINDS

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
    lines = items = messages = records = 0
    with catalog.cut(client) as views:
        created = utc(client.env.wall_ms())
        head = {"format": EXPORT_FORMAT, "version": EXPORT_VERSION, "id": new_id("e", client.env)}
        about = {"created": None if created is None else created.isoformat(), "program": __version__}
        write(dump_line(head | about) + "\n")
        for kind in KINDS:
            for line in kind.export(client, views) if kind.export is not None else ():
                lines += 1
                items += "map" in line
                messages += "queue" in line
                records += "partition" in line
                write(dump_line(line) + "\n")
        write(dump_line({"end": True, "lines": lines}) + "\n")
    return Counts(items, messages, records)
