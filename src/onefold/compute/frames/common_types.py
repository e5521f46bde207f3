"""The one type that values of two types have together, if there is one: the same for one chunk, two chunks and two tasks.

Null meets anything, whole numbers meet in a wider one that holds both, whole numbers and floats in a float, decimals in the
larger scale; lists and structs meet where what they hold does, arrays of two sizes in a list. Nothing else meets: not text and
numbers, not dates and times with dates, not times of two zones. Whatever is not exact would depend on how the input is split.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from onefold.errors import InvalidValue

if TYPE_CHECKING:
    import polars as pl


def common_type(left: Any, right: Any) -> Any | None:
    """The type that holds the values of both; None where there is none. Commutative and associative."""
    import polars as pl

    if left == right:
        return left
    if pl.Null in (left, right):
        return right if left == pl.Null else left
    if left.is_decimal() and right.is_decimal():
        return pl.Decimal(max(left.precision, right.precision, 38), max(left.scale, right.scale))
    if left.is_decimal() or right.is_decimal():
        return None
    if left.is_integer() and right.is_integer():
        return _whole(left, right)
    if pl.UInt128 in (left, right):
        return None  # with a signed type there is none either, and whether there is one must not depend on the order
    if left.is_numeric() and right.is_numeric():
        both = left.is_float() and right.is_float()
        return pl.Float64() if not both or pl.Float64 in (left, right) else pl.Float32()
    if isinstance(left, pl.Array | pl.List) and isinstance(right, pl.Array | pl.List):
        inner = common_type(left.inner, right.inner)
        if inner is None:
            return None
        if isinstance(left, pl.Array) and isinstance(right, pl.Array) and left.size == right.size:
            return pl.Array(inner, left.size)
        return pl.List(inner)
    if isinstance(left, pl.Struct) and isinstance(right, pl.Struct):
        return _struct(left, right)
    return None


def common_schema(schemas: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The columns of all schemas, in order of appearance, with their common types. Raises InvalidValue."""
    found: dict[str, Any] = {}
    for schema in schemas:
        for name, dtype in schema.items():
            before = found.setdefault(name, dtype)
            if before == dtype:
                continue
            common = common_type(before, dtype)
            if common is None:
                raise mixed(*kinds_of(name, before, dtype))
            found[name] = common
    return found


def mixed(name: str, kinds: Iterable[str]) -> InvalidValue:
    """The error for values that no one column can hold: the same whether one task has met them or several."""
    return InvalidValue(
        f"column {name!r} mixes {', '.join(sorted(kinds))}, which no one column type can hold; "
        f"convert them in the function that makes them, or give it schema="
    )


def kinds_of(name: str, left: Any, right: Any) -> tuple[str, list[str]]:
    """The column, or what in it has two types, and what these are called in Python."""
    import polars as pl

    if isinstance(left, pl.List) and isinstance(right, pl.List):
        return kinds_of(f"{name}[]", left.inner, right.inner)
    if isinstance(left, pl.Struct) and isinstance(right, pl.Struct):
        others = {field.name: field.dtype for field in right.fields}
        for field in left.fields:
            other = others.get(field.name, field.dtype)
            if common_type(field.dtype, other) is None:
                return kinds_of(f"{name}.{field.name}", field.dtype, other)
    kinds = [called(left), called(right)]
    return name, kinds if kinds[0] != kinds[1] else [str(left), str(right)]


def called(dtype: Any) -> str:
    """What values of the type are called in Python."""
    import polars as pl

    if isinstance(dtype, pl.Datetime):
        return f"datetime in {dtype.time_zone}" if dtype.time_zone else "datetime without a zone"
    if dtype.is_integer():
        return "int"
    if dtype.is_float():
        return "float"
    names = {
        "Boolean": "bool",
        "String": "str",
        "Binary": "bytes",
        "List": "list",
        "Struct": "dict",
        "Date": "date",
        "Time": "time",
        "Duration": "timedelta",
        "Decimal": "Decimal",
    }
    name = str(dtype.base_type())
    return names.get(name, str(dtype))


def fitted(frame: pl.DataFrame, schema: Mapping[str, Any]) -> pl.DataFrame:
    """The frame with exactly these columns, of which it may lack some. Raises InvalidValue for a value that does not fit."""
    import polars as pl

    if frame.schema == schema:
        return frame
    made = [
        pl.lit(None, dtype=dtype).alias(name)
        if name not in frame.columns or frame.schema[name] == pl.Null
        else cast_expr(pl.col(name), frame.schema[name], dtype).alias(name)
        for name, dtype in schema.items()
    ]
    try:
        # Next to a column of the frame, since literals alone would be one row.
        return frame.with_columns(made).select(list(schema))
    except pl.exceptions.PolarsError as error:
        raise InvalidValue(
            f"the parts of a result cannot be brought to common types: {str(error).strip().splitlines()[0]}; "
            f"convert the values in the function that makes them, or give it schema="
        ) from error


def cast_expr(expr: pl.Expr, held: Any, dtype: Any) -> pl.Expr:
    """Field by field, since Polars' strict cast of a struct to one of more fields fails where another field is cast too."""
    import polars as pl

    if held == dtype:
        return expr
    if isinstance(held, pl.Struct) and isinstance(dtype, pl.Struct):
        types = {field.name: field.dtype for field in held.fields}
        fields = [
            cast_expr(expr.struct.field(field.name), types[field.name], field.dtype).alias(field.name)
            if field.name in types
            # As long as the others are, which a literal is not.
            else pl.when(expr.is_null()).then(None).otherwise(None).cast(field.dtype).alias(field.name)
            for field in dtype.fields
        ]
        return pl.when(expr.is_not_null()).then(pl.struct(fields)) if fields else expr.cast(dtype)
    if isinstance(dtype, pl.List) and isinstance(held, pl.List | pl.Array) and _holds_struct(dtype):
        lists = expr.arr.to_list() if isinstance(held, pl.Array) else expr
        return lists.list.eval(cast_expr(pl.element(), held.inner, dtype.inner)).cast(dtype)
    return expr.cast(dtype)


def _holds_struct(dtype: Any) -> bool:
    import polars as pl

    return isinstance(dtype, pl.Struct) or (
        isinstance(dtype, pl.List | pl.Array) and _holds_struct(dtype.inner)
    )


def _whole(left: Any, right: Any) -> Any | None:
    import polars as pl

    signed = [pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.Int128]
    unsigned = [pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64, pl.UInt128]
    for widths in (signed, unsigned):
        if left in widths and right in widths:
            return widths[max(widths.index(left), widths.index(right))]()
    one, other = (left, right) if left in signed else (right, left)
    width = max(signed.index(one), unsigned.index(other) + 1)
    return signed[width]() if width < len(signed) else None


def _struct(left: Any, right: Any) -> Any | None:
    import polars as pl

    fields: dict[str, Any] = {field.name: field.dtype for field in left.fields}
    for field in right.fields:
        common = common_type(fields.get(field.name, field.dtype), field.dtype)
        if common is None:
            return None
        fields[field.name] = common
    return pl.Struct(fields)
