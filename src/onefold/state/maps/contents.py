"""All maps of a space: see ``state.core.contents``."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any

from onefold.shard.api import View
from onefold.state.core.client import StateClient
from onefold.state.core.contents import Collection, Contents, table_names
from onefold.state.encoding.json_values import key_to_json, to_json
from onefold.state.encoding.keys import decode_key
from onefold.state.encoding.values import decode_value
from onefold.state.fold import rows


def _collections(views: Sequence[View]) -> Iterator[Collection]:
    for name in table_names(views, rows.MAPS):
        counts = [view.count(rows.map_table(name)) for view in views]
        if any(counts):
            shards = tuple(shard for shard, count in enumerate(counts) if count)
            yield Collection("map", name, sum(counts), shards)


def _export(client: StateClient, views: Sequence[View]) -> Iterator[dict[str, Any]]:  # noqa: ARG001
    for name in table_names(views, rows.MAPS):
        table = rows.map_table(name)
        for key, data in heapq.merge(*(view.scan(table) for view in views), key=lambda pair: pair[0]):
            row = rows.read_row(data)
            line = {
                "map": name,
                "key": key_to_json(decode_key(key)),
                "value": to_json(decode_value(row.value)),
            }
            yield line if row.expires_ms is None else line | {"expires_ms": row.expires_ms}


CONTENTS = Contents(_collections, _export)
