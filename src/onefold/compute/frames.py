"""Frames out of Python values, and frames of several chunks as one.

A column has one type: what Polars infers over the whole chunk, and over several chunks their common type (see
``onefold.compute.common_types``). Which values make a chunk changes no type and no error.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from onefold.compute.common_types import common_schema, fitted, mixed
from onefold.compute.named_frames import frame_of, is_pattern
from onefold.errors import InvalidValue

if TYPE_CHECKING:
    import polars as pl

VALUE: Final = "value"
"""The column in which bare values are kept."""
_NEVER_MIXED: Final = frozenset({bool, int, float, str, bytes, list, tuple, dict})
Schema = tuple[tuple[str, Any], ...]


def frame_of_values(values: Sequence[Any], schema: Schema | None) -> pl.DataFrame:
    """One column ``value`` of bare values. Raises InvalidValue when one type cannot hold them."""
    if schema is not None:
        if len(schema) != 1:
            raise InvalidValue(
                f"the function gave bare values, but schema= names {len(schema)} columns "
                f"({', '.join(name for name, _ in schema)}); give dicts with these keys"
            )
        return _series(schema[0][0], values, schema[0][1]).to_frame()
    return _series(VALUE, values, None).to_frame()


def frame_of_dicts(rows: Sequence[dict[Any, Any]], schema: Schema | None) -> pl.DataFrame:
    """The columns are the union of the dicts' keys (in order of appearance), or exactly those of ``schema``."""

    if schema is None:
        names = list(dict.fromkeys(name for row in rows for name in row))
    else:
        names = [name for name, _ in schema]
        known = set(names)
        for row in rows:
            if not row.keys() <= known:
                extra = ", ".join(repr(name) for name in row if name not in known)
                raise InvalidValue(f"the function gave {extra}, which schema= does not name")
    for name in names:
        if not isinstance(name, str):
            raise InvalidValue(f"the keys of a record must be column names (str); got {name!r}")
        if is_pattern(name):
            raise InvalidValue(
                f"a column cannot be called {name!r}, which means a pattern of names; rename it"
            )
    if rows and not names:
        raise InvalidValue(
            "the function gave dicts without keys, which make no row; give a column, or leave records out with flat_map"
        )
    types = dict(schema or ())
    columns = [_series(name, [row.get(name) for row in rows], types.get(name)) for name in names]
    return frame_of(columns)


def _series(name: str, values: Sequence[Any], dtype: Any) -> pl.Series:
    import polars as pl

    wanted = f"of the type {dtype} that schema= gives it" if dtype is not None else "of one type"
    try:
        kind = _type_of(name, values) if dtype is None else dtype
        try:
            series = pl.Series(name, values, dtype=kind, strict=True)
        except (TypeError, OverflowError, pl.exceptions.PolarsError):
            if kind is not None or set(map(type, values)) - {int, type(None)}:
                raise
            series = pl.Series(name, values, dtype=_whole_type(values), strict=True)
    except InvalidValue:
        raise
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        raise InvalidValue(
            f"column {name!r} cannot be held in a column {wanted}: {_first_line(error)}"
        ) from error
    if series.dtype == pl.Object:
        kinds = sorted({type(value).__name__ for value in values})
        raise InvalidValue(
            f"column {name!r} holds {', '.join(kinds)}, which no column can hold; "
            f"give numbers, text, bytes, dates, lists or dicts"
            + (" (is the function async? pass the async function itself)" if "coroutine" in kinds else "")
        )
    return series


def _type_of(name: str, values: Sequence[Any]) -> Any:
    """The type to build a column with; None where Polars' own inference over all values is right.

    Left to itself, Polars makes [[1], [2]] of [[1], [2.5]]: of what is inside lists and dicts it believes the first.
    """
    import polars as pl

    kinds = set(map(type, values))
    kinds.discard(type(None))
    if kinds & {datetime.datetime, datetime.date}:
        _check_times(name, values, kinds)
    if kinds == {int, float}:
        return pl.Float64
    if kinds and kinds <= {list, tuple}:
        return pl.List(
            _inner_type(f"{name}[]", [item for value in values if value is not None for item in value])
        )
    if kinds == {dict}:
        held = [value for value in values if value is not None]
        fields = dict.fromkeys(field for value in held for field in value)
        if not all(isinstance(field, str) for field in fields):
            raise InvalidValue(f"the keys of the dicts in column {name!r} must be str")
        return pl.Struct(
            {field: _inner_type(f"{name}.{field}", [value.get(field) for value in held]) for field in fields}
        )
    if len(kinds) > 1 and kinds & _NEVER_MIXED:
        raise mixed(name, (kind.__name__ for kind in kinds))
    return None


def _whole_type(values: Sequence[Any]) -> Any:
    """The type of whole numbers of which some need more than Int64; Polars' own depends on their order."""
    import polars as pl

    held = [value for value in values if value is not None]
    return pl.UInt64 if min(held) >= 0 and max(held) < 2**64 else pl.Int128


def _check_times(name: str, values: Sequence[Any], kinds: set[type]) -> None:
    """Polars would read times of another zone, or without one, as times of the first value's zone."""
    found = {f"{kind.__name__}" for kind in kinds if kind is not datetime.datetime}
    zones = {value.tzinfo for value in values if isinstance(value, datetime.datetime)}
    found |= {_zone(zone) for zone in zones}
    if len(found) > 1:
        raise mixed(name, found)


def _zone(zone: datetime.tzinfo | None) -> str:
    """The zone of the column that Polars makes of such times: those of a fixed offset become UTC."""
    if zone is None:
        return "datetime without a zone"
    return f"datetime in {'UTC' if isinstance(zone, datetime.timezone) else zone}"


def _inner_type(name: str, values: Sequence[Any]) -> Any:
    return _series(name, values, None).dtype


def concat(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """The rows of all frames in order: the union of their columns, each of the common type. Raises InvalidValue."""
    import polars as pl

    held = [frame for frame in frames if frame.width]
    if not held:
        return pl.DataFrame()
    if len(held) == 1:
        return held[0]
    first = held[0].schema
    if all(frame.schema == first for frame in held[1:]):
        return pl.concat(held, how="vertical", rechunk=False)
    schema = common_schema([frame.schema for frame in held])
    return pl.concat([fitted(frame, schema) for frame in held], how="vertical", rechunk=False)


def exact_values(series: pl.Series) -> list[Any]:
    """The values as Python objects, each different from those of other values: as Python has them, times of nanoseconds
    and the repeated hour of a clock change are equal to others. Such are numbers here, also inside lists and structs.
    """
    exact = _exact_type(series.dtype)
    return (series if exact == series.dtype else series.cast(exact)).to_list()


def _exact_type(dtype: Any) -> Any:
    import polars as pl

    if isinstance(dtype, pl.List):
        return pl.List(_exact_type(dtype.inner))
    if isinstance(dtype, pl.Array):
        return pl.List(_exact_type(dtype.inner))
    if isinstance(dtype, pl.Struct):
        return pl.Struct({field.name: _exact_type(field.dtype) for field in dtype.fields})
    inexact = (
        isinstance(dtype, pl.Time)
        or (isinstance(dtype, pl.Datetime) and (dtype.time_unit == "ns" or dtype.time_zone is not None))
        or (isinstance(dtype, pl.Duration) and dtype.time_unit == "ns")
    )
    return pl.Int64() if inexact else dtype


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
