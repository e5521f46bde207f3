"""The lines of collections for every region in an export, read and checked."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from onefold.available.kinds import places
from onefold.available.kinds.places import is_place, joined_key, place_of
from onefold.available.ops import INT_MAX
from onefold.errors import InvalidValue
from onefold.state.available.contents import MERGES
from onefold.state.available.maps.merges import split_fields
from onefold.state.encoding.json_values import from_json, key_from_json
from onefold.state.encoding.keys import encode_key
from onefold.state.encoding.names import check_name
from onefold.state.encoding.values import encode_value

WHAT: Final = ("available", "counters", "sets")
"""What a line holds, one of these."""
_LETTERS: Final = {merge: letter for letter, merge in MERGES.items()}
_TIME_MAX: Final = (1 << 53) - 1


class Part(NamedTuple):
    """A value of a map."""

    value: bytes
    expires_ms: int | None


class RegionLine(NamedTuple):
    """One row of a collection for every region."""

    place: str
    name: str
    key: bytes
    """Its shard is the one of this key."""
    row: bytes
    """The key of the row: of a set's element it is another one."""
    parts: tuple[Part, ...] = ()
    """Of a map; several are siblings, the latest one last. Of a set's element there is one, without a value."""
    total: int = 0
    """Of a counter."""


def read_region_line(item: dict[str, Any]) -> RegionLine:
    """What is in a line that has one of ``WHAT``. Raises InvalidValue, TooLarge, KeyError, InvalidKey, InvalidArgument."""
    what = next(what for what in WHAT if what in item)
    name = check_name(what, item[what])
    key = encode_key(key_from_json(item["key"]))
    if what == "sets":
        row = joined_key(key, encode_key(key_from_json(item["element"])))
        place, ends_ms = place_of(places.SET, name), _ends_ms(item)
        return _checked(RegionLine(place, name, key, row, (Part(b"", ends_ms),)))
    if what == "counters":
        floor = None if item.get("floor") is None else _whole(item, "floor")
        place = place_of(places.COUNTER if floor is None else places.BOUNDED, name, floor)
        count = _whole(item, "value")
        if floor is not None and count < floor:
            raise InvalidValue(f"a counter of {count} with a floor of {floor}")
        return _checked(RegionLine(place, name, key, key, total=count))
    letter = _LETTERS.get(item["merge"])
    if letter is None:
        raise InvalidValue(f"merge must be one of {', '.join(_LETTERS)}; got {item['merge']!r:.60}")
    found = item["siblings"] if letter == places.KEEP_BOTH else [item]
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        raise InvalidValue("siblings must be a list of objects that is not empty")
    parts = tuple(Part(encode_value(from_json(one["value"])), _ends_ms(one)) for one in found)
    if letter == places.FIELDS:
        split_fields(parts[0].value, item["value"])
    return _checked(RegionLine(place_of(letter, name), name, key, key, parts))


def _checked(line: RegionLine) -> RegionLine:
    if not is_place(line.place):
        raise InvalidValue(
            f"there can be no collection {line.name!r:.60} of this kind: its name is too long, or its floor above 0"
        )
    return line


def _whole(item: dict[str, Any], name: str) -> int:
    found = from_json(item[name])
    if isinstance(found, bool) or not isinstance(found, int) or abs(found) > INT_MAX:
        raise InvalidValue(f"{name} must be a whole number of 64 bit; got {item[name]!r:.60}")
    return found


def _ends_ms(item: dict[str, Any]) -> int | None:
    found = item.get("expires_ms")
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= _TIME_MAX:
        raise InvalidValue(f"expires_ms must be a whole number; got {found!r:.60}")
    return found
