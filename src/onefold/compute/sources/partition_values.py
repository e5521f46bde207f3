"""Values of partition columns as folder names, and back.

A partition column is not in the files: its name and its value are the folder, ``name=value``, both percent-encoded as
Spark and Arrow do it. The value's text tells every two different values of its type apart, and its type is written into
each file, so that what is read back is what was published. Other readers find the same text and infer a type from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from onefold import config
from onefold.errors import InvalidPlan, InvalidValue

if TYPE_CHECKING:
    import polars as pl

NULL_PARTITION: Final = "__HIVE_DEFAULT_PARTITION__"
_SHOWN_CHARS: Final = 60
METADATA_KEY: Final = "onefold.partitions"
"""Under which a published file has its partition columns' types: a JSON map from the column to its kind."""
_ESCAPED: Final = re.compile(r"[\x00-\x1f\x7f\"#%'*/:=?\\{}\[\]^<>|]")
_INTEGERS: Final = (
    "Int8", "Int16", "Int32", "Int64", "Int128", "UInt8", "UInt16", "UInt32", "UInt64", "UInt128",
)  # fmt: skip
_PLAIN: Final = (*_INTEGERS, "Float32", "Float64", "Boolean", "String", "Categorical", "Date", "Time", "Null")
_PER_SECOND: Final = {"ms": 10**3, "us": 10**6, "ns": 10**9}
_DATE: Final = re.compile(r"([+-]?\d{4,})-(\d\d)-(\d\d)", re.ASCII)
_TIME: Final = re.compile(r"(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?", re.ASCII)
_OFFSET: Final = re.compile(r"([+-])(\d\d):(\d\d)", re.ASCII)


# -- types ---------------------------------------------------------------------------------------------------


def kind_of(dtype: Any) -> list[Any] | None:
    """The type as plain data, such as ``["Datetime", "ns", "UTC"]``; None for a type that cannot be a folder."""
    import polars as pl

    if isinstance(dtype, pl.Datetime):
        return ["Datetime", dtype.time_unit, dtype.time_zone]
    if isinstance(dtype, pl.Decimal):
        return ["Decimal", dtype.precision, dtype.scale]
    if isinstance(dtype, pl.Enum):
        return ["Enum", dtype.categories.to_list()]
    name = str(dtype.base_type())
    return [name] if name in _PLAIN else None


def dtype_of(kind: Sequence[Any]) -> Any:
    """The type that ``kind_of`` described; None for what a newer release may have written."""
    import polars as pl

    try:
        match kind:
            case ["Datetime", unit, zone]:
                return pl.Datetime(unit, zone)
            case ["Decimal", precision, scale]:
                return pl.Decimal(precision, scale)
            case ["Enum", categories]:
                return pl.Enum(categories)
            case [str(name)] if name in _PLAIN:
                return getattr(pl, name)()
    except (TypeError, ValueError, pl.exceptions.PolarsError):
        return None
    return None


def check_types(by: Iterable[str], schema: Mapping[str, Any]) -> None:
    """Raise InvalidPlan for a partition column without a name, or of a type whose values make no folder names."""
    import polars as pl

    for name in by:
        if not name:
            raise InvalidPlan(
                "write_parquet: partition_by: a column without a name makes no folder; rename it"
            )
        if len(f"{_escape_name(name)}={NULL_PARTITION}".encode()) > config.PARTITION_FOLDER_BYTES_MAX:
            raise InvalidPlan(
                f"write_parquet: partition_by: the column's name {name[:_SHOWN_CHARS]!r}… is too long for the name of a folder; "
                f"rename it"
            )
        dtype = schema.get(name)
        if dtype is None or dtype == pl.Unknown or kind_of(dtype) is not None:
            continue
        instead = {
            pl.Binary: 'make text of it, for example with bin.encode("hex")',
            pl.Duration: "make a number of it, for example with dt.total_microseconds()",
            pl.Struct: "take a field of it",
        }.get(dtype.base_type(), "make text or a number of it")
        raise InvalidPlan(
            f"write_parquet: partition_by: column {name!r} is {dtype}, whose values make no folder names; {instead}"
        )


def encode_types(types: Mapping[str, Any]) -> dict[str, str]:
    """The types as metadata of a file."""
    return {
        METADATA_KEY: msgspec.json.encode({name: kind_of(dtype) for name, dtype in types.items()}).decode()
    }


def decode_types(text: str | bytes) -> dict[str, Any] | None:
    """What ``encode_types`` wrote under its key; None when this release cannot read it."""
    try:
        kinds = msgspec.json.decode(text, type=dict[str, list[Any]])
    except msgspec.MsgspecError:
        return None
    types = {name: dtype_of(kind) for name, kind in kinds.items()}
    return None if None in types.values() else types


def meet(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The types that hold the values of both, by column. Raises InvalidValue where there is none without loss."""
    import polars as pl

    from onefold.compute.frames import values as frames

    met = {}
    for name, old in before.items():
        new = after[name]
        if new in (old, pl.Null):
            met[name] = old
        elif old == pl.Null:
            met[name] = new
        elif old.is_temporal() or new.is_temporal():
            raise InvalidValue(
                f"the partition column {name!r} is {old} in one part of the result and {new} in another; cast it to one type"
            )
        else:
            parts = [pl.DataFrame(schema={name: old}), pl.DataFrame(schema={name: new})]
            met[name] = frames.concat(parts).schema[name]
    return met


# -- values --------------------------------------------------------------------------------------------------


def folder_of(row: pl.DataFrame, *, escape_names: bool = True) -> str:
    """The folder of this row's values, a level for each of its columns. Raises InvalidValue.

    ``escape_names=False``: as earlier releases named it, which left the names of columns as they are.
    """
    return "/".join(_level(name, text(row[name]), escape_names) for name in row.columns)


def check_values(frame: pl.DataFrame) -> None:
    """Raise InvalidValue for a value in these columns that makes no folder name, InvalidPlan for a type that makes none.

    Looks only at those values that may make none: text that is long or the null's, and the ends of times.
    """
    import polars as pl

    check_types(frame.columns, frame.schema)
    for column in frame.get_columns():
        if column.dtype.is_temporal():
            numbers = column.to_physical()
            doubtful = column.filter((numbers == numbers.min()) | (numbers == numbers.max()))
        elif column.dtype == pl.String or isinstance(column.dtype, pl.Categorical | pl.Enum):
            values = column.unique().cast(pl.String)
            longest = config.PARTITION_FOLDER_BYTES_MAX - len(f"{_escape_name(column.name)}=".encode())
            doubtful = values.filter(
                (values == NULL_PARTITION) | (values.str.len_bytes() * len("%00") > longest)
            )
        else:
            continue
        doubtful = doubtful.unique()
        for row in range(len(doubtful)):
            folder_of(doubtful.slice(row, 1).to_frame())


def null_folder(by: Iterable[str]) -> str:
    """The folder of a row of nulls."""
    return "/".join(f"{_escape_name(name)}={NULL_PARTITION}" for name in by)


def text(value: pl.Series) -> str | None:
    """A single value as text; None for null. Raises InvalidValue for one that could not be distinguished from others."""
    import polars as pl

    if value.null_count():
        return None
    dtype = value.dtype
    if dtype.is_float() and value.item() == 0:
        value = value.abs()  # -0.0 is 0.0, as for group_by; adding 0.0 is nothing that Polars does
    if dtype == pl.Time:
        value = value.dt.to_string("%H:%M:%S%.f")
    try:
        found = str(value.cast(pl.String).item())
    except pl.exceptions.PanicException as error:  # years that Polars cannot write
        raise InvalidValue(
            f"the value of the partition column {value.name!r} ({int(value.to_physical().item())} as a number of {dtype}) "
            f"makes no folder name: it is out of range"
        ) from error
    if not dtype.is_temporal() or _is_exactly(found, value, dtype):
        return found
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        # The zone's clock was off by seconds then, which an offset in hours and minutes cannot say.
        found = str(value.dt.convert_time_zone("UTC").cast(pl.String).item())
        if _is_exactly(found, value, dtype):
            return found
    raise InvalidValue(f"the value {found} of the partition column {value.name!r} makes no folder name")


def _is_exactly(found: str, value: pl.Series, dtype: Any) -> bool:
    import polars as pl

    if dtype == pl.Time:
        return True  # up to nine digits of the second: all that a Time has
    try:
        return _physical(found, dtype) == int(value.to_physical().item())
    except ValueError:
        return False


def parse(found: str | None, dtype: Any) -> pl.Series:
    """The value of this type that ``text`` made the text of, as a series of one; nothing for the null's text.

    Raises ValueError for a text that stands for no value of the type.
    """
    import polars as pl

    if found is None or found == NULL_PARTITION:
        return pl.Series([None], dtype=dtype)
    if dtype == pl.Null:
        raise ValueError(found)
    if dtype.is_temporal():
        physical = pl.Int32 if dtype == pl.Date else pl.Int64
        try:
            return pl.Series([_physical(found, dtype)], dtype=physical).cast(dtype)
        except (OverflowError, pl.exceptions.PolarsError) as error:
            raise ValueError(found) from error
    if dtype == pl.Boolean:
        if found not in ("true", "false"):
            raise ValueError(found)
        return pl.Series([found == "true"])
    try:
        return pl.Series([found], dtype=pl.String).cast(dtype, strict=True)
    except (pl.exceptions.PolarsError, TypeError) as error:
        raise ValueError(found) from error


def fits(found: str, dtype: Any) -> bool:
    """Whether the text stands for a value of the type."""
    try:
        parse(found, dtype)
    except ValueError:
        return False
    return True


def _physical(found: str, dtype: Any) -> int:
    """The number behind a date or time. Raises ValueError."""
    import polars as pl

    if dtype == pl.Date:
        return _days(found)
    if dtype == pl.Time:
        return _clock(found, 10**9)
    if not isinstance(dtype, pl.Datetime):
        raise ValueError(found)
    day, _, clock = found.partition(" ")
    ahead_s = 0
    if dtype.time_zone is not None:
        offset = _OFFSET.fullmatch(clock[-6:])
        if offset is None:
            raise ValueError(found)
        clock = clock[:-6]
        ahead_s = (int(offset[2]) * 60 + int(offset[3])) * (60 if offset[1] == "+" else -60)
    per_second = _PER_SECOND[dtype.time_unit]
    return (_days(day) * 86_400 - ahead_s) * per_second + _clock(clock, per_second)


def _days(found: str) -> int:
    """Days since 1970 of a date of the proleptic Gregorian calendar. Raises ValueError.

    Python's dates end before year 1 and after 9999. Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms",
    ``days_from_civil``.
    """
    match = _DATE.fullmatch(found)
    if match is None:
        raise ValueError(found)
    year, month, day = int(match[1]), int(match[2]), int(match[3])
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if (
        not 1 <= month <= 12
        or not 1 <= day <= (31, 28 + leap, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)[month - 1]
    ):
        raise ValueError(found)
    year -= month <= 2
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


def _clock(found: str, per_second: int) -> int:
    """A time of day in parts of a second. Raises ValueError, also for a fraction that is finer than that."""
    match = _TIME.fullmatch(found)
    if match is None:
        raise ValueError(found)
    hours, minutes, seconds = int(match[1]), int(match[2]), int(match[3])
    if hours > 23 or minutes > 59 or seconds > 59:
        raise ValueError(found)
    fraction, rest = divmod(int((match[4] or "").ljust(9, "0")), 10**9 // per_second)
    if rest:
        raise ValueError(found)
    return ((hours * 60 + minutes) * 60 + seconds) * per_second + fraction


# -- escaping ------------------------------------------------------------------------------------------------


def _level(name: str, value: str | None, escape_name: bool) -> str:
    """The folder of one column's value. Raises InvalidValue, naming both, for a value that no folder can stand for."""
    shown = _escape_name(name) if escape_name else name
    if value is None:
        return f"{shown}={NULL_PARTITION}"
    if value == NULL_PARTITION:
        raise InvalidValue(
            f"write_parquet: partition_by: column {name!r} has the value {NULL_PARTITION!r}, which cannot be a partition: as the "
            f"name of a folder it stands for null. Replace it before write_parquet; nothing was published"
        )
    folder = f"{shown}={_ESCAPED.sub(_percent, value)}"
    size = len(folder.encode())
    if size > config.PARTITION_FOLDER_BYTES_MAX:
        start = value if len(value) <= _SHOWN_CHARS else f"{value[:_SHOWN_CHARS]}…"
        raise InvalidValue(
            f"write_parquet: partition_by: column {name!r} has a value of {len(value)} characters, {start!r}, whose folder would "
            f"have a name of {size} bytes, and file systems take {config.PARTITION_FOLDER_BYTES_MAX}. Shorten it before "
            f"write_parquet, for example by a hash; nothing was published"
        )
    return folder


def _escape_name(name: str) -> str:
    escaped = _ESCAPED.sub(_percent, name)
    return f"%2E{escaped[1:]}" if escaped.startswith(".") else escaped  # which would be a hidden folder


def _percent(match: re.Match[str]) -> str:
    return f"%{ord(match.group()):02X}"
