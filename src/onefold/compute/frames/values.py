"""Frames out of Python values, and frames of several chunks as one.

A column has one type: that of all its values (see ``onefold.compute.frames.value_types``), and over several chunks their common
type (see ``onefold.compute.frames.common_types``). Which values make a chunk changes no type and no error.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from onefold.compute import foreign
from onefold.compute.frames.common_types import common_schema, fitted
from onefold.compute.frames.named import frame_of, is_pattern
from onefold.compute.frames.schema_values import conforming
from onefold.compute.frames.value_types import plain, type_of
from onefold.errors import InvalidValue

if TYPE_CHECKING:
    import polars as pl

VALUE: Final = "value"
"""The column in which bare values are kept."""
Schema = tuple[tuple[str, Any], ...]


def frame_of_values(values: Sequence[Any], schema: Schema | None) -> pl.DataFrame:
    """One column ``value`` of bare values. Raises InvalidValue when one type cannot hold them."""
    if schema is not None:
        if len(schema) != 1:
            raise InvalidValue(
                f"the function gave bare values, but schema= names {len(schema)} columns "
                f"({', '.join(name for name, _ in schema)}); give dicts with these keys"
            )
        return column_of(schema[0][0], values, schema[0][1]).to_frame()
    return column_of(VALUE, values, None).to_frame()


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
    columns = [column_of(name, [row.get(name) for row in rows], types.get(name)) for name in names]
    return frame_of(columns)


def column_of(name: str, values: Sequence[Any], dtype: Any) -> pl.Series:
    """The column of the values: of this type, or (None) of the one that they have. Raises InvalidValue."""
    import polars as pl

    wanted = f"of the type {dtype} that schema= gives it" if dtype is not None else "of one type"
    try:
        if dtype is not None:
            dtype = pl.Series([], dtype=dtype).dtype  # an instance, where a class was given
            whole = _as_it_is(name, values, dtype)
            if whole is not None:
                return whole
            series = pl.Series(name, conforming(name, values, dtype), dtype=dtype, strict=True)
            return series if series.dtype == dtype else series.cast(dtype, strict=True)
        kinds = set(map(type, values))
        kinds.discard(type(None))
        whole = _of_whole_numbers(name, values) if kinds == {int} else None
        if whole is not None:
            return whole
        found, as_they_are = type_of(name, values, kinds)
        held = values if as_they_are else [plain(value) for value in values]
        series = pl.Series(name, held, dtype=found, strict=True)
    except BaseException as error:
        if not foreign.is_foreign(error):
            raise
        raise InvalidValue(
            f"column {name!r} cannot be held in a column {wanted}: {_first_line(error)}"
        ) from error
    if series.dtype == pl.Object:
        names = sorted({type(value).__name__ for value in values if value is not None})
        raise InvalidValue(
            f"column {name!r} holds {', '.join(names)}, which no column can hold; "
            f"give numbers, text, bytes, dates, lists or dicts"
            + (" (is the function async? pass the async function itself)" if "coroutine" in names else "")
        )
    return series


def _as_it_is(name: str, values: Sequence[Any], dtype: Any) -> pl.Series | None:
    """A column of a type for which Polars takes nothing that it would change; None where it does not take it."""
    import polars as pl

    if not (dtype.is_integer() or dtype in (pl.String, pl.Boolean, pl.Binary)):
        return None
    try:
        series = pl.Series(name, values, dtype=dtype, strict=True)
    except BaseException as error:
        if not foreign.is_foreign(error):
            raise
        return None
    return series if series.dtype == dtype else None


def _of_whole_numbers(name: str, values: Sequence[Any]) -> pl.Series | None:
    """The usual column of whole numbers, without a look at each; None where some are beyond 64 bits."""
    import polars as pl

    try:
        return pl.Series(name, values, dtype=pl.Int64, strict=True)
    except BaseException as error:
        if not foreign.is_foreign(error):
            raise
        return None


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


def has_inexact_values(dtype: Any) -> bool:
    """Whether Python has no objects of their own for some values of the type (see ``exact_values``)."""
    return bool(_exact_type(dtype) != dtype)


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
