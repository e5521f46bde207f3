"""Exporting shared state: JSON lines that any program can read, and that ``state.export.importing`` reads back.

The way out of every format: what is in maps, queues and streams, without logs, versions or numbers of this space. Lines::

    {"format": "onefold-export", "version": 1, "id": ..., "created": ..., "program": ...}
    {"map": "m", "key": "k", "value": 1, "expires_ms": 1700000000000}                    expires_ms: if it ends by itself
    {"queue": "q", "value": 1, "key": "k", "due_ms": ..., "errors": [...], "origin": [...]}     to be done
    {"queue": "q", "value": 1, "dead": 5, "errors": [...]}                              a dead letter, after so many tries
    {"stream": "s", "partitions": 8, "retention_ms": null}
    {"stream": "s", "partition": 0, "key": "k", "value": 1, "time_ms": ...}
    {"end": true, "lines": 5}                                                           without it the file is cut off

What collections for every region have is between the streams and the end: see ``export.available``.

Maps come by name and in key order, queues by name and in order, streams by name, partition and offset. A message that somebody
has is exported as one to be done. Locks, consumer groups and the tables of jobs are not exported.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from onefold._version import __version__
from onefold.ids import new_id
from onefold.space import cuts
from onefold.state import catalog
from onefold.state.available.contents import places_in
from onefold.state.core.client import StateClient
from onefold.state.encoding.items import utc
from onefold.state.encoding.json_values import dump_line
from onefold.state.export import available
from onefold.state.kinds import KINDS

if TYPE_CHECKING:
    from onefold.shard.api import View
    from onefold.state.available.client import RegionClient

EXPORT_FORMAT = "onefold-export"
EXPORT_VERSION = 2
PLAIN_VERSION = 1
"""Of a file without collections for every region, which earlier releases can read."""


class Counts(NamedTuple):
    """What was exported or imported."""

    items: int = 0
    """Of maps."""
    messages: int = 0
    records: int = 0
    """Of streams."""
    counters: int = 0
    elements: int = 0
    """Of sets."""


def export(client: StateClient, write: Callable[[str], object], region: RegionClient | None = None) -> Counts:
    """Give ``write`` one line after the other, each with its newline: everything as of one instant, in constant memory.

    ``region``: the one whose collections are exported, as of an instant of its own (None: there is none).

    Raises what reading does, and InvalidValue for a value that a newer program wrote.
    """
    for shard in range(client.shard_count):
        client.settle_due(shard)
    lines = items = messages = records = counters = elements = 0
    with catalog.cut(client) as views, ExitStack() as stack:
        of_region = [] if region is None else _views_of(region, stack)
        wall_ms = client.env.wall_ms()
        created = utc(wall_ms)
        version = EXPORT_VERSION if places_in(of_region) else PLAIN_VERSION
        head = {"format": EXPORT_FORMAT, "version": version, "id": new_id("e", client.env)}
        about = {"created": None if created is None else created.isoformat(), "program": __version__}
        write(dump_line(head | about) + "\n")
        for kind in KINDS:
            for line in kind.export(client, views) if kind.export is not None else ():
                lines += 1
                items += "map" in line
                messages += "queue" in line
                records += "partition" in line
                write(dump_line(line) + "\n")
        for line in available.lines(of_region, wall_ms):
            lines += 1
            items += "available" in line
            counters += "counters" in line
            elements += "sets" in line
            write(dump_line(line) + "\n")
        write(dump_line({"end": True, "lines": lines}) + "\n")
    return Counts(items, messages, records, counters, elements)


def _views_of(region: RegionClient, stack: ExitStack) -> list[View]:
    """A view of each of the region's shards, all of one instant, with what this session has seen elsewhere."""
    region.region.look()
    for shard in range(region.shard_count):
        region.meet(shard, region.level)
    return stack.enter_context(cuts.cut(region.shards, lambda shard: shard.view(), lambda view: view.offset))
