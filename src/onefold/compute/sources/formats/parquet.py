"""Parquet: row ranges aligned to row groups, read by Polars with projection, predicate and slice pushed into the scan."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from onefold.compute import foreign
from onefold.compute.plan.nodes import Source
from onefold.compute.plan.stages import Unit
from onefold.compute.sources import partition_values, remote
from onefold.compute.sources.content import display, open_raw
from onefold.compute.sources.formats.parquet_footer import (
    TAIL_BYTES,
    BrokenFooter,
    Footer,
    footer_size,
    parse_footer,
)
from onefold.compute.sources.listing import FileInfo, absolute
from onefold.errors import InvalidArgument, InvalidValue

if TYPE_CHECKING:
    import polars as pl

_TAIL_GUESS_BYTES = 64 * 1024
_FOOTERS_KEPT_MAX = 4096
_footers: dict[FileInfo, Footer] = {}
_HIVE_NULL = partition_values.NULL_PARTITION


def whole_unit(info: FileInfo) -> Unit:
    """A unit that stands for the bytes of the whole file."""
    return Unit(info.path, 0, info.size, info.size, info.etag, info.size)


def read_footer(source: Source, info: FileInfo) -> Footer:
    """The footer of a file. Raises ``InvalidValue`` naming a file that is torn or no Parquet."""
    # Kept by etag: resolving, cutting and scanning ask for the same footers one after the other.
    if (known := _footers.get(info)) is not None:
        return known
    try:
        with open_raw(source, whole_unit(info)) as raw:
            start = max(0, info.size - _TAIL_GUESS_BYTES)
            tail = raw.read_at(start, info.size - start)
            size = footer_size(tail, info.size)
            if size + TAIL_BYTES > len(tail):
                tail = raw.read_at(info.size - size - TAIL_BYTES, size + TAIL_BYTES)
        footer = parse_footer(tail[-size - TAIL_BYTES : -TAIL_BYTES])
    except BrokenFooter as error:
        raise InvalidValue(
            f"cannot read {display(info.path)}: {error}; replace the file and run again"
        ) from error
    while len(_footers) >= _FOOTERS_KEPT_MAX:
        _footers.pop(next(iter(_footers)), None)
    _footers[info] = footer
    return footer


def file_schema(source: Source, info: FileInfo) -> dict[str, Any]:
    """Columns and types of one file."""
    try:
        with foreign.translated(
            f"cannot read {display(info.path)}", hint="write the file again with other types"
        ):
            return dict(_scan_path(source, info.path, with_paths=False).collect_schema())
    except OSError as error:
        raise InvalidValue(f"cannot read {display(info.path)}: {error}") from error


def hive_parts(source: Source, path: str) -> dict[str, str]:
    """``column=value`` folders between the directory (or a glob's fixed part) that the source names and the file."""
    for given in source.paths:
        root = given if remote.is_remote(given) else absolute(given)
        fixed = root
        for i, c in enumerate(root):
            if c in "*?[":
                fixed = root[:i].rsplit("/", 1)[0]
                break
        fixed = fixed.rstrip("/") + "/"
        if path.startswith(fixed):
            folders = path[len(fixed) :].split("/")[:-1]
            return {unquote(k): unquote(v) for k, eq, v in (f.partition("=") for f in folders) if eq and k}
    return {}


def hive_schema(
    source: Source, files: Sequence[FileInfo], notes: Iterable[bytes | None] = ()
) -> dict[str, Any]:
    """Partition columns of a dataset, in the types in which Onefold published them; of others Int64 where every value is
    one, else String.

    ``notes``: what the files have under ``partition_values.METADATA_KEY``.
    """
    import polars as pl

    declared = _declared(notes)
    values: dict[str, list[str]] = {}
    for index, info in enumerate(files):
        parts = hive_parts(source, info.path)
        if index and parts.keys() != values.keys():
            other, this = set(values), set(parts)
            raise InvalidArgument(
                f"{display(files[0].path)} and {display(info.path)} have different partition folders: "
                f"{', '.join(sorted(other ^ this))}"
            )
        for name, value in parts.items():
            values.setdefault(name, []).append(value)
    return {
        name: declared[name]
        if name in declared and all(partition_values.fits(v, declared[name]) for v in set(held))
        else pl.Int64()
        if all(_is_int(v) or v == _HIVE_NULL for v in held) and held
        else pl.String()
        for name, held in values.items()
    }


def _declared(notes: Iterable[bytes | None]) -> dict[str, Any]:
    """Types on which all files agree that say one."""
    import polars as pl

    found: dict[str, Any] = {}
    disputed: set[str] = set()
    for note in set(notes):
        for name, dtype in ((partition_values.decode_types(note) or {}) if note is not None else {}).items():
            known = found.get(name)
            if known is None or known == pl.Null:
                found[name] = dtype
            elif dtype not in (known, pl.Null):
                disputed.add(name)
    return {name: dtype for name, dtype in found.items() if name not in disputed}


def _is_int(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and str(int(text)) == text and abs(int(text)) < 2**63


def cut(source: Source, info: FileInfo, *, split_bytes: int) -> list[Unit]:
    """Row ranges of about ``split_bytes`` stored bytes, each one or more whole row groups."""
    footer = read_footer(source, info)
    units: list[Unit] = []
    start = rows = stored = 0
    for group in footer.row_groups:
        if rows and stored + group.stored_bytes > split_bytes:
            units.append(Unit(info.path, start, start + rows, info.size, info.etag, stored))
            start, rows, stored = start + rows, 0, 0
        rows += group.rows
        stored += group.stored_bytes
    if rows or not units:
        units.append(Unit(info.path, start, start + rows, info.size, info.etag, stored or info.size))
    return units


def scan(source: Source, schema: Sequence[tuple[str, pl.DataType]], units: Sequence[Unit]) -> pl.LazyFrame:
    """The rows of these units, in order. Consecutive whole files are one scan, row ranges are pushed-down slices."""
    import polars as pl

    for path in dict.fromkeys((u.path, u.size, u.etag) for u in units):
        check_unchanged(source, *path)
    frames: list[pl.LazyFrame] = []
    merged = merge_ranges(units)
    has_hive = any(hive_parts(source, u.path) for u in merged)
    for (alone, _), run in groupby(
        merged, key=lambda u: (has_hive or not _is_all(source, u), u if has_hive else None)
    ):
        held = list(run)
        if alone or remote.is_remote(held[0].path):
            frames.extend(_scan_unit(source, schema, unit) for unit in held)
        else:
            frames.append(_finish(source, schema, _scan_path(source, [u.path for u in held]), None))
    if not frames:
        return pl.LazyFrame(schema=dict(schema))
    return frames[0] if len(frames) == 1 else pl.concat(frames)


def merge_ranges(units: Sequence[Unit]) -> list[Unit]:
    """Neighbouring row ranges of a file, put together."""
    merged: list[Unit] = []
    for unit in units:
        last = merged[-1] if merged else None
        if last is not None and (last.path, last.etag, last.stop) == (unit.path, unit.etag, unit.start):
            merged[-1] = Unit(unit.path, last.start, unit.stop, unit.size, unit.etag, last.cost + unit.cost)
        else:
            merged.append(unit)
    return merged


def _is_all(source: Source, unit: Unit) -> bool:
    """Whether the unit is every row of its file."""
    return (
        unit.start == 0 and read_footer(source, FileInfo(unit.path, unit.size, unit.etag)).rows == unit.stop
    )


def _scan_unit(source: Source, schema: Sequence[tuple[str, pl.DataType]], unit: Unit) -> pl.LazyFrame:
    if _is_all(source, unit):
        return _finish(source, schema, _scan_path(source, unit.path), unit.path)
    # With equal scans of a file in one plan, Polars would read all of it once, keep it and slice that. ``n_rows`` makes them
    # differ; together with the slice it still becomes one pushed-down row range.
    frame = _scan_path(source, unit.path, n_rows=unit.stop).slice(unit.start, unit.stop - unit.start)
    return _finish(source, schema, frame, unit.path)


def _finish(
    source: Source, schema: Sequence[tuple[str, pl.DataType]], frame: pl.LazyFrame, path: str | None
) -> pl.LazyFrame:
    """Add the partition and path columns of a file and put the columns into order."""
    import polars as pl

    added: list[pl.Expr] = []
    if path is not None:
        parts = hive_parts(source, path)
        types = dict(schema)
        added = [_partition(path, name, value, types[name]) for name, value in parts.items() if name in types]
        if (column := source.option("include_file_paths")) is not None and remote.is_remote(path):
            added.append(pl.lit(path).alias(column))
    if added:
        frame = frame.with_columns(added)
    return frame.select([name for name, _ in schema])


def _partition(path: str, name: str, value: str, dtype: Any) -> pl.Expr:
    """The value of a partition column, for all rows of a file."""
    import polars as pl

    try:
        held = partition_values.parse(value, dtype)
    except ValueError as error:
        raise InvalidValue(
            f"the folder of {display(path)} says that {name!r} is {value!r}, which is not a {dtype}"
        ) from error
    if held.null_count():
        return pl.lit(None, dtype=dtype).alias(name)
    if dtype.is_temporal():  # a Python object has neither nanoseconds nor the repeated hour of a clock change
        physical = held.to_physical()
        return pl.lit(physical.item(), dtype=physical.dtype).cast(dtype).alias(name)
    return pl.lit(held.cast(pl.String).item() if _as_text(dtype) else held.item(), dtype=dtype).alias(name)


def _as_text(dtype: Any) -> bool:
    import polars as pl

    return isinstance(dtype, pl.Categorical | pl.Enum)


def _scan_path(
    source: Source, path: str | list[str], *, with_paths: bool = True, n_rows: int | None = None
) -> pl.LazyFrame:
    import polars as pl

    first = path if isinstance(path, str) else path[0]
    if remote.is_remote(first):
        options = remote.polars_options(source, first)
        if options is None:
            return pl.scan_parquet(io.BytesIO(remote.read_all(source, first)), n_rows=n_rows)
        return pl.scan_parquet(
            first, n_rows=n_rows, glob=False, hive_partitioning=False, storage_options=options or None
        )
    return pl.scan_parquet(
        path,
        n_rows=n_rows,
        glob=False,
        hive_partitioning=False,
        include_file_paths=source.option("include_file_paths") if with_paths else None,
    )


def check_unchanged(source: Source, path: str, size: int, etag: str) -> None:
    """Raise ``InvalidValue`` if the file is not the one that was listed."""
    with open_raw(source, Unit(path, 0, size, size, etag, size)):
        pass


def batches(
    source: Source, schema: Sequence[tuple[str, pl.DataType]], unit: Unit, batch_rows: int
) -> Iterator[pl.DataFrame]:
    """The rows of a unit, read row group by row group."""
    footer = read_footer(source, FileInfo(unit.path, unit.size, unit.etag))
    start = 0
    for group in footer.row_groups:
        first, last = max(start, unit.start), min(start + group.rows, unit.stop)
        start += group.rows
        if first >= last:
            continue
        part = Unit(unit.path, first, last, unit.size, unit.etag, group.stored_bytes)
        with foreign.translated(f"cannot read {display(unit.path)}"):
            frame = scan(source, schema, [part]).collect()
        for at in range(0, frame.height, batch_rows):
            yield frame.slice(at, batch_rows)
