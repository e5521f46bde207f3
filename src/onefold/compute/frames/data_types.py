"""Polars data types as plain data, in names of our own.

Polars' own serialisation of types changes between its versions (its pickles name modules and attributes of classes), so it is
not stored. A type is a list here: its name, then its parameters.

>>> import polars as pl
>>> to_data(pl.List(pl.Datetime("us", "Europe/Zurich")))
['List', ['Datetime', 'us', 'Europe/Zurich']]
>>> from_data(['Decimal', 12, 2])
Decimal(precision=12, scale=2)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from onefold.errors import InvalidValue

if TYPE_CHECKING:
    import polars as pl

DataTypeData = list[Any]
"""``[name, parameter, ...]``."""

_PLAIN: Final = (
    "Boolean", "Int8", "Int16", "Int32", "Int64", "Int128", "UInt8", "UInt16", "UInt32", "UInt64", "UInt128", "Float16",
    "Float32", "Float64", "String", "Binary", "Date", "Time", "Null", "Object", "Unknown",
)  # fmt: skip
"""Types without parameters. Their names are those of Polars 2 and stay, whatever later versions call them."""


def to_data(dtype: Any) -> DataTypeData:
    """The type as data. Raises InvalidValue for one that has no form here."""
    import polars as pl

    if isinstance(dtype, type):  # pl.Int64 stands for pl.Int64(), pl.List for no type of its own
        try:
            dtype = dtype()
        except TypeError:
            raise InvalidValue(f"{dtype} is not a whole data type: its parameters are missing") from None
    match dtype:
        case pl.Datetime():
            return ["Datetime", dtype.time_unit, dtype.time_zone]
        case pl.Duration():
            return ["Duration", dtype.time_unit]
        case pl.Decimal():
            return ["Decimal", dtype.precision, dtype.scale]
        case pl.Enum():
            return ["Enum", dtype.categories.to_list()]
        case pl.Categorical():
            return ["Categorical", *_categories(dtype.categories)]
        case pl.List():
            return ["List", to_data(dtype.inner)]
        case pl.Array():
            return ["Array", to_data(dtype.inner), dtype.size]
        case pl.Struct():
            return ["Struct", [[field.name, to_data(field.dtype)] for field in dtype.fields]]
    name = type(dtype).__name__
    if name in _PLAIN:
        return [name]
    raise InvalidValue(f"the data type {dtype} cannot be stored in the description of a result")


def from_data(data: DataTypeData) -> pl.DataType:
    """The type. Raises InvalidValue for one that this release, or this Polars, does not have."""
    import polars as pl

    try:
        match data:
            case ["Datetime", unit, zone]:
                return pl.Datetime(unit, zone)
            case ["Duration", unit]:
                return pl.Duration(unit)
            case ["Decimal", precision, scale]:
                return pl.Decimal(precision, scale)
            case ["Enum", categories]:
                return pl.Enum(pl.Series("category", categories, dtype=pl.String))
            case ["Categorical"]:
                return pl.Categorical()
            case ["Categorical", name, namespace, physical]:
                return pl.Categorical(pl.Categories(name, namespace, physical=from_data(physical)))
            case ["List", inner]:
                return pl.List(from_data(inner))
            case ["Array", inner, size]:
                return pl.Array(from_data(inner), size)
            case ["Struct", fields]:
                return pl.Struct([pl.Field(name, from_data(dtype)) for name, dtype in fields])
            case [str(name)] if name in _PLAIN:
                found: pl.DataType = getattr(pl, name)()
                return found
    except (TypeError, ValueError, AttributeError, pl.exceptions.PolarsError) as error:
        raise InvalidValue(f"the data type {data!r} cannot be made here: {error}") from error
    raise InvalidValue(f"the data type {data!r} is unknown here: a later release wrote it; update this one")


def _categories(categories: Any) -> DataTypeData:
    """Nothing for the global ones. Categories without a name are of one process: readers elsewhere get global ones."""
    if categories is None or categories.is_global() or not categories.name():
        return []
    return [categories.name(), categories.namespace(), to_data(categories.physical())]
