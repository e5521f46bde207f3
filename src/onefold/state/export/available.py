"""Collections for every region as lines of an export: what one region knows of them.

Lines::

    {"available": "carts", "merge": "last_writer_wins", "key": "k", "value": 1, "expires_ms": ...}    also of merge "fields"
    {"available": "drafts", "merge": "keep_both", "key": "k", "siblings": [{"value": 1, "expires_ms": ...}, ...]}
    {"counters": "likes", "key": "k", "value": 5}                                      with "floor": 0 if they have one
    {"sets": "tags", "key": "k", "element": "e", "expires_ms": ...}                     one for each element

A deleted item, who wrote what, and the rights of regions to counters with a floor are not exported.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any, cast

from onefold.available import reading
from onefold.available.kinds import places
from onefold.available.kinds.cells import Cells
from onefold.available.kinds.dots import Dots
from onefold.available.kinds.places import read_row, split_key, split_place
from onefold.available.kinds.row import Row
from onefold.available.rows import table_of
from onefold.shard.api import View
from onefold.state.available.contents import MERGES, places_in
from onefold.state.available.maps.merges import joined_fields
from onefold.state.encoding.json_values import key_to_json, to_json
from onefold.state.encoding.keys import decode_key
from onefold.state.encoding.values import decode_value


def lines(views: Sequence[View], wall_ms: int) -> Iterator[dict[str, Any]]:
    """Everything that has not ended by that clock, by name and in key order. ``views``: one of each of the region's shards.

    Raises InvalidValue for a value that a newer program wrote.
    """
    for place in places_in(views):
        tables = [view.scan(table_of(view, place)) for view in views]
        for key, data in heapq.merge(*tables, key=lambda pair: pair[0]):
            row = read_row(place, data).expired(wall_ms)
            if row.is_live():
                yield _line(place, key, row)


def _line(place: str, key: bytes, row: Row) -> dict[str, Any]:
    letter, name, floor = split_place(place)
    if letter == places.SET:
        at, element = split_key(key)
        line = {"sets": name, "key": _key(at), "element": _key(element)}
        ends = [cell.ends_ms for cell in cast(Dots, row).cells]
        return line if None in ends else line | {"expires_ms": max(cast("list[int]", ends))}
    value = reading.visible(row, place)
    if letter in (places.COUNTER, places.BOUNDED):
        kind = {"counters": name} if floor is None else {"counters": name, "floor": to_json(floor)}
        return kind | {"key": _key(key), "value": to_json(value)}
    head = {"available": name, "merge": MERGES[letter], "key": _key(key)}
    if letter == places.KEEP_BOTH:
        return head | {"siblings": [_item(cell.value or b"", cell.ends_ms) for cell in cast(Dots, row).cells]}
    if letter == places.REGISTER:
        return head | _item(cast(bytes, value), row.ends_ms())
    fields = cast(Cells, row)
    ends = [cell.ends_ms for cell in fields.all() if cell.value is not None]
    return head | _item(joined_fields(fields), None if None in ends else max(cast("list[int]", ends)))


def _item(value: bytes, ends_ms: int | None) -> dict[str, Any]:
    shown = {"value": to_json(decode_value(value))}
    return shown if ends_ms is None else shown | {"expires_ms": ends_ms}


def _key(encoded: bytes) -> Any:
    return key_to_json(decode_key(encoded))
