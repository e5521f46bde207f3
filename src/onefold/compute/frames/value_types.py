"""The type of a column of Python values: the join of the types of all values, whatever their order and how they are split.

Each kind of value has a type, and two types meet as those of two tasks do (``onefold.compute.frames.common_types``). So one chunk
decides as two chunks and two tasks would. Polars' own inference believes the first values, and fits the others to them.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from onefold.compute import foreign
from onefold.compute.frames.common_types import called, common_type, kinds_of, mixed
from onefold.compute.frames.values_as_text import safe_repr
from onefold.errors import InvalidValue

DECIMAL_DIGITS_MAX: Final = 38
"""Digits of a column of decimals, before and after the point together."""
_PLAIN: Final = frozenset(
    {
        bool,
        int,
        float,
        str,
        bytes,
        decimal.Decimal,
        datetime.date,
        datetime.datetime,
        datetime.time,
        datetime.timedelta,
    }
)
"""Kinds that a column is made of as they are."""
_NUMPY: Final = {"i": "Int", "u": "UInt", "f": "Float"}
_VALUE_CHARS_MAX: Final = 200


def type_of(name: str, values: Sequence[Any], kinds: set[type] | None = None) -> tuple[Any, bool]:
    """The type of the column, and whether it can be made of the values as they are (see ``plain``).

    ``kinds``: those of the values that are not null, where they are known.

    Raises InvalidValue where no one type holds all values as they are.
    """
    import polars as pl

    if kinds is None:
        kinds = set(map(type, values))
        kinds.discard(type(None))
    if len(kinds) == 1:
        (kind,) = kinds
        return _type_of_kind(name, kind, values)
    if kinds == {int, float}:
        _whole(name, [value for value in values if type(value) is int])
        return pl.Float64(), True
    groups: defaultdict[type, list[Any]] = defaultdict(list)
    for value in values:
        if value is not None:
            groups[dict if isinstance(value, dict) else type(value)].append(value)
    found = {kind: _type_of_kind(name, kind, held) for kind, held in groups.items()}
    dtype: Any = pl.Null()
    for other, _ in found.values():
        common = common_type(dtype, other)
        if common is None:
            names = {
                kind.__name__ if of_kind == pl.Object else called(of_kind)
                for kind, (of_kind, _) in found.items()
            }
            raise mixed(name, names) if len(names) > 1 else mixed(*kinds_of(name, dtype, other))
        dtype = common
    return dtype, all(as_they_are for _, as_they_are in found.values())


def plain(value: Any) -> Any:
    """The value as Polars makes columns of it: numbers of numpy, enums, dataclasses and arrays as Python has them."""
    kind = type(value)
    if value is None or kind in _PLAIN:
        return value
    if kind is dict or isinstance(value, dict):
        return {field: plain(item) for field, item in value.items()}
    fields = _fields(kind)
    if fields is not None:
        return {field: plain(getattr(value, field)) for field in fields}
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if kind in (list, tuple, range):
        return [plain(item) for item in value]
    if _is_numpy(value):
        return value.item() if value.shape == () else plain(value.tolist())
    if _is_series(value):
        return value.to_list()
    return value


def _type_of_kind(name: str, kind: type, values: Sequence[Any]) -> tuple[Any, bool]:
    """As ``type_of``, for values that are all of one kind, or null."""
    import polars as pl

    simple = _simple_types().get(kind)
    if simple is not None:
        return simple, True
    if kind is int:
        return _whole(name, values), True
    if kind is decimal.Decimal:
        return _decimal(name, values), True
    held = [value for value in values if value is not None]
    if issubclass(kind, datetime.datetime):
        if kind is not datetime.datetime:
            _check_nanoseconds(name, held)
        return _times(name, held), True
    if kind is datetime.time:
        if any(value.tzinfo is not None for value in held):
            raise InvalidValue(
                f"column {name!r} holds times of day with a zone, which no column can hold; give them without the zone, or text"
            )
        return pl.Time(), True
    if issubclass(kind, datetime.timedelta):
        if kind is not datetime.timedelta:
            _check_nanoseconds(name, held)
        return pl.Duration("us"), True
    if kind in (list, tuple, range):
        inner, as_they_are = type_of(f"{name}[]", [item for value in held for item in value])
        return pl.List(inner), as_they_are
    if issubclass(kind, dict):
        return _struct(name, held, dict.get, lambda value: value)
    fields = _fields(kind)
    if fields is not None:
        return _struct(name, held, getattr, lambda _: fields)[0], False
    if issubclass(kind, enum.Enum):
        return _enum(name, kind, held), False
    if issubclass(kind, str):
        return pl.String(), True
    if issubclass(kind, bytes):
        return pl.Binary(), True
    if issubclass(kind, float):
        return pl.Float64(), True
    if _is_numpy(held[0]):
        return _numpy(name, held), False
    if issubclass(kind, int):
        return _whole(name, held), True
    if _is_series(held[0]):
        return _joined(name, (pl.List(value.dtype) for value in held)), False
    return _inferred(name, held), True


_found: dict[type, Any] = {}


def _simple_types() -> dict[type, Any]:
    """The kinds whose values all have one type."""
    if not _found:
        import polars as pl

        _found.update(
            {
                float: pl.Float64(),
                str: pl.String(),
                bool: pl.Boolean(),
                bytes: pl.Binary(),
                datetime.date: pl.Date(),
            }
        )
    return _found


def _whole(name: str, values: Sequence[Any]) -> Any:
    import polars as pl

    held = [value for value in values if value is not None] if None in values else values
    low, high = min(held), max(held)
    if low >= -(2**63) and high < 2**63:
        return pl.Int64()
    if low >= -(2**127) and high < 2**127:
        return pl.Int128()
    raise InvalidValue(
        f"column {name!r} cannot be held in a column of one type: {_shown(low if low < -(2**127) else high)} is too large "
        f"for 128 bits; give it as text, or as a float"
    )


def _decimal(name: str, values: Iterable[Any]) -> Any:
    import polars as pl

    before, after = decimal_digits(name, values)
    if before + after > DECIMAL_DIGITS_MAX:
        raise too_many_digits(name, before, after)
    return pl.Decimal(DECIMAL_DIGITS_MAX, after)


def decimal_digits(name: str, values: Iterable[decimal.Decimal | None]) -> tuple[int, int]:
    """How many digits the values have before and after the point, at most. Raises InvalidValue for infinities and NaN."""
    before = after = 0
    for value in values:
        if value is None:
            continue
        _, digits, exponent = value.as_tuple()
        if not isinstance(exponent, int):
            raise InvalidValue(
                f"column {name!r} holds {_shown(value)}, which no column of decimals can hold; give None, or floats"
            )
        if value:
            before = max(before, len(digits) + exponent)
        after = max(after, -exponent)
    return before, after


def too_many_digits(name: str, before: int, after: int) -> InvalidValue:
    """The error for decimals that have no common scale."""
    return InvalidValue(
        f"column {name!r} holds decimals of up to {before} digits before and {after} after the point, and a column has "
        f"{DECIMAL_DIGITS_MAX} together; round them in the function, or give floats or text"
    )


def _times(name: str, held: Sequence[datetime.datetime]) -> Any:
    """Times of one zone, or all without one. Those of a fixed offset are times in UTC."""
    import polars as pl

    zones = {value.tzinfo for value in held}
    found = {_zone(zone) for zone in zones}
    if len(found) > 1:
        raise mixed(
            name, sorted("datetime " + (f"in {zone}" if zone else "without a zone") for zone in found)
        )
    (zone,) = found
    try:
        return pl.Datetime("us", zone)
    except (ValueError, pl.exceptions.PolarsError) as error:
        raise InvalidValue(
            f"column {name!r} holds times in {zone}, which is not a zone's name: {error}"
        ) from error


def _zone(zone: datetime.tzinfo | None) -> str | None:
    if zone is None:
        return None
    return "UTC" if isinstance(zone, datetime.timezone) else str(zone)


def _check_nanoseconds(name: str, held: Sequence[Any]) -> None:
    """Subclasses of other libraries count nanoseconds, of which Polars takes the microseconds."""
    for value in held:
        if getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0):
            raise InvalidValue(
                f"column {name!r} holds {_shown(value)}, which has nanoseconds; columns of values have microseconds: "
                f"round it, or give whole numbers"
            )


def _struct(
    name: str, held: Sequence[Any], get: Callable[..., Any], fields_of: Callable[[Any], Iterable[Any]]
) -> tuple[Any, bool]:
    import polars as pl

    fields = dict.fromkeys(field for value in held for field in fields_of(value))
    if not all(isinstance(field, str) for field in fields):
        raise InvalidValue(f"the keys of the dicts in column {name!r} must be str")
    types = {
        field: type_of(f"{name}.{field}", [get(value, field, None) for value in held]) for field in fields
    }
    return (
        pl.Struct({field: dtype for field, (dtype, _) in types.items()}),
        all(as_they_are for _, as_they_are in types.values()),
    )


def _fields(kind: type) -> Sequence[str] | None:
    """The fields of a dataclass or a named tuple; None for other kinds."""
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    named = getattr(kind, "_fields", None)
    return named if issubclass(kind, tuple) and isinstance(named, tuple) else None


def _enum(name: str, kind: type[enum.Enum], held: Sequence[Any]) -> Any:
    import polars as pl

    members = [member.value for member in kind]
    if all(isinstance(member, str) for member in members):
        return pl.Enum(members)
    return type_of(name, [value.value for value in held])[0]


def _is_numpy(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic | numpy.ndarray)


def _is_series(value: Any) -> bool:
    import polars as pl

    return isinstance(value, pl.Series)


def _numpy(name: str, held: Sequence[Any]) -> Any:
    import polars as pl

    groups: defaultdict[Any, list[Any]] = defaultdict(list)
    for value in held:
        kind = value.dtype.kind
        groups[kind, value.itemsize if kind in "iuf" else 0, value.shape].append(value)
    found: list[Any] = []
    for (kind, width, shape), some in groups.items():
        if kind in "iuf" and width <= 8:
            dtype = getattr(pl, f"{_NUMPY[kind]}{width * 8}")()
        elif kind == "b":
            dtype = pl.Boolean()
        elif kind in "USO":
            dtype = type_of(f"{name}[]", [item for value in some for item in value.ravel().tolist()])[0]
        else:
            raise InvalidValue(
                f"column {name!r} holds numpy values of {some[0].dtype}, which are not made into a column; "
                f"give what their .item() or .tolist() gives, or dates and times of datetime"
            )
        for size in reversed(shape):
            dtype = pl.Array(dtype, size)
        found.append(dtype)
    return _joined(name, found)


def _joined(name: str, types: Iterable[Any]) -> Any:
    import polars as pl

    joined: Any = pl.Null()
    for dtype in types:
        common = common_type(joined, dtype)
        if common is None:
            raise mixed(*kinds_of(name, joined, dtype))
        joined = common
    return joined


def _inferred(name: str, held: Sequence[Any]) -> Any:
    """What Polars makes of kinds that only it knows."""
    import polars as pl

    try:
        return pl.Series(name, held, strict=True).dtype
    except BaseException as error:
        if not foreign.is_foreign(error):
            raise
        return pl.Object()


def _shown(value: Any) -> str:
    return safe_repr(value, _VALUE_CHARS_MAX)
