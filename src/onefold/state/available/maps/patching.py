"""What ``patch`` may be given, checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from onefold import config
from onefold.available.kinds.cells import Cells
from onefold.available.kinds.row import Cell, Row
from onefold.errors import InvalidArgument, InvalidValue, TooLarge
from onefold.state.available.maps.merges import ByFields, Kind, joined_fields
from onefold.state.encoding.values import encode_value

Fields = tuple[tuple[str, bytes | None], ...]
_NOWHERE = (0, 1, 0)
"""Stands for the stamp of a field that is not written yet."""


def by_fields(kind: Kind[Any, Any]) -> ByFields[Any]:
    """The kind of map, if it can be patched. Raises InvalidArgument."""
    if not isinstance(kind, ByFields):
        raise InvalidArgument(
            f"map {kind.name!r} does not keep its fields apart, so it cannot be patched. Use merge='fields', or modify"
        )
    return kind


def check_absent(**given: object) -> None:
    """Raises InvalidArgument for what only consistent maps take."""
    for name, value in given.items():
        if value is not None:
            raise InvalidArgument(
                f"patch of an available map takes fields to set and to unset, and no {name}: other regions may write at this "
                "moment. Use counters or sets for what adds up, or a consistent map"
            )


def encode_patch(set: Mapping[str, Any] | None, unset: Iterable[str] | str | None) -> Fields:
    """The encoded fields, None for those that are removed. Raises InvalidArgument, InvalidValue, TooLarge."""
    if set is not None and not isinstance(set, Mapping):
        raise InvalidArgument(f"patch takes a dict of the fields to set; got {set!r:.100}")
    removed = [unset] if isinstance(unset, str) else unset
    if removed is not None and not isinstance(removed, Iterable):
        raise InvalidArgument(f"unset takes the names of fields; got {unset!r:.100}")
    fields: dict[str, bytes | None] = {}
    for name, value in (set or {}).items():
        _check_field(name)
        try:
            fields[name] = encode_value(value)
        except (InvalidValue, TooLarge) as error:
            raise type(error)(f"the field {name!r:.80}: {error}") from None
    for name in removed or ():
        _check_field(name)
        if set is not None and name in set:
            raise InvalidArgument(f"the field {name!r:.80} cannot be both set and unset")
        fields[name] = None
    if not fields:
        raise InvalidArgument("patch was given no field to set or to unset")
    return tuple(fields.items())


def check_patched(kind: ByFields[Any], row: Row | None, fields: Fields) -> None:
    """Whether the item as it is here, with these fields, would be of the map's type and not too large.

    Raises InvalidValue, TooLarge.
    """
    cells = dict(row.fields) if isinstance(row, Cells) else {}
    cells |= {name: Cell(*_NOWHERE, data) for name, data in fields}
    data = joined_fields(Cells(None, cells))
    if len(data) > config.VALUE_BYTES_MAX:
        raise TooLarge(
            f"the item would take {len(data)} bytes encoded; at most {config.VALUE_BYTES_MAX} fit. Split it into several"
        )
    if kind.codec.typed:
        try:
            kind.codec.decode(data)
        except InvalidValue as error:
            raise InvalidValue(
                f"the patched item would not be of the type of map {kind.name!r}: {error}"
            ) from None


def _check_field(name: object) -> None:
    if not isinstance(name, str):
        raise InvalidArgument(f"fields have text as names; got {name!r:.100}")
    if "." in name:
        raise InvalidArgument(
            f"{name!r:.100} is a path: fields of an available map are patched whole, at the top. Set the whole field"
        )
