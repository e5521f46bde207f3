"""Making a source: its arguments are checked when it is written, not when it is read."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Mapping
from typing import Any, get_args
from urllib.parse import unquote, urlsplit

from onefold.arguments import check_flag, check_whole
from onefold.compute.plan import schemas
from onefold.compute.plan.nodes import Source, SourceKind
from onefold.compute.sources import listing, remote
from onefold.errors import InvalidArgument

_COMMON = ("include_file_paths", "storage_options")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "text": ("encoding", "errors", *_COMMON),
    "csv": (
        "schema",
        "schema_overrides",
        "infer_schema_length",
        "has_header",
        "separator",
        "quote_char",
        "null_values",
        "comment_prefix",
        "skip_lines",
        "try_parse_dates",
        "decimal_comma",
        "truncate_ragged_lines",
        "encoding",
        *_COMMON,
    ),
    "jsonl": ("schema", "schema_overrides", "infer_schema_length", *_COMMON),
    "parquet": ("schema", *_COMMON),
    "files": ("storage_options",),
}
_NONE_MEANS_SOMETHING = ("quote_char", "infer_schema_length")


def source_kinds() -> tuple[str, ...]:
    """The kinds that ``make_source`` knows."""
    return tuple(kind for kind in get_args(SourceKind) if kind != "stream")


def make_source(
    kind: SourceKind, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], **options: Any
) -> Source:
    """A frozen source. ``None`` stands for an option's default, but for ``quote_char`` and ``infer_schema_length``.

    Raises ``InvalidArgument`` for unknown kinds and options, options of the wrong type, no paths, and URLs that
    other processes could not read.
    """
    if kind not in source_kinds():
        raise InvalidArgument(f"unknown kind of source {kind!r}; one of {', '.join(source_kinds())}")
    frozen: list[tuple[str, Any]] = []
    for name, value in sorted(options.items()):
        if name not in _OPTIONS[kind]:
            raise InvalidArgument(f"read_{kind} has no option {name!r}; it has {', '.join(_OPTIONS[kind])}")
        if value is None and name not in _NONE_MEANS_SOMETHING:
            continue
        check = _csv_encoding if (kind, name) == ("csv", "encoding") else _CHECKS[name]
        frozen.append((name, check(f"read_{kind}: {name}=", value)))
    return Source(kind, _paths(paths), tuple(frozen))


def _paths(paths: Any) -> tuple[str, ...]:
    given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    if isinstance(given, (bytes, Mapping)) or not isinstance(given, Iterable):
        raise InvalidArgument(f"paths: a path or several expected, not {type(paths).__name__}")
    result = []
    for path in given:
        if not isinstance(path, (str, os.PathLike)):
            raise InvalidArgument(f"paths: {path!r} is not a path")
        text = os.fspath(path)
        if not isinstance(text, str) or not text or "\0" in text:
            raise InvalidArgument(f"paths: {path!r} is not a path")
        listing.check_name(text)
        if text.startswith("file://"):
            parts = urlsplit(text)
            if parts.netloc not in ("", "localhost"):
                raise InvalidArgument(
                    f"{text!r} names the host {parts.netloc!r}; file:// URLs are for this machine"
                )
            text = unquote(text[len("file://") + len(parts.netloc) :])
        remote.check_url(text)
        result.append(text)
    if not result:
        raise InvalidArgument("paths: no path given")
    return tuple(result)


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidArgument(f"{what} takes a text, not {value!r}")
    return value


def _flag(what: str, value: Any) -> bool:
    check_flag(what, value)
    return bool(value)


def _count(what: str, value: Any) -> int:
    check_whole(what, value, least=0)
    return int(value)


def _rows(what: str, value: Any) -> int | None:
    if value is not None and _count(what, value) < 1:
        raise InvalidArgument(f"{what} takes a number from 1, or None for all rows, not {value!r}")
    return value  # type: ignore[no-any-return]


def _byte(what: str, value: Any) -> str:
    if not isinstance(value, str) or len(value.encode()) != 1 or value in "\r\n":
        raise InvalidArgument(f"{what} takes one ASCII character, not {value!r}")
    return value


def _byte_or_none(what: str, value: Any) -> str | None:
    return None if value is None else _byte(what, value)


def _encoding(what: str, value: Any) -> str:
    try:
        return codecs.lookup(_text(what, value)).name
    except LookupError as error:
        raise InvalidArgument(f"{what} unknown encoding {value!r}") from error


def _csv_encoding(what: str, value: Any) -> str:
    name = {"utf8": "utf8", "utf-8": "utf8", "utf8-lossy": "utf8-lossy"}.get(_text(what, value).lower())
    if name is None:
        raise InvalidArgument(
            f"{what} takes 'utf8' or 'utf8-lossy', not {value!r}; convert other encodings first, or use read_text(encoding=)"
        )
    return name


def _errors(what: str, value: Any) -> str:
    try:
        codecs.lookup_error(_text(what, value))
    except LookupError as error:
        raise InvalidArgument(f"{what} takes 'strict', 'replace', 'ignore', …, not {value!r}") from error
    return str(value)


def _null_values(what: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return tuple((_text(what, k), str(v)) for k, v in sorted(value.items()))
    if isinstance(value, Iterable):
        values = tuple(value)
        if all(isinstance(v, str) for v in values):
            return values
    raise InvalidArgument(
        f"{what} takes a text, a list of texts, or a dict of column and text, not {value!r}"
    )


def _schema(what: str, value: Any) -> tuple[tuple[str, Any], ...]:
    import polars as pl

    try:
        return tuple(schemas.specified(value).items())
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise InvalidArgument(f"{what} takes a dict of column and Polars type: {error}") from error


def _storage(what: str, value: Any) -> tuple[tuple[str, Any], ...]:
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"{what} takes a dict of fsspec options, not {type(value).__name__}")

    def freeze(item: Any) -> Any:
        if isinstance(item, Mapping):
            return tuple((str(k), freeze(v)) for k, v in sorted(item.items()))
        return tuple(freeze(v) for v in item) if isinstance(item, (list, tuple)) else item

    return freeze(value)  # type: ignore[no-any-return]


_CHECKS: dict[str, Any] = {
    "schema": _schema,
    "schema_overrides": _schema,
    "infer_schema_length": _rows,
    "has_header": _flag,
    "separator": _byte,
    "quote_char": _byte_or_none,
    "null_values": _null_values,
    "comment_prefix": _text,
    "skip_lines": _count,
    "try_parse_dates": _flag,
    "decimal_comma": _flag,
    "truncate_ragged_lines": _flag,
    "encoding": _encoding,
    "errors": _errors,
    "include_file_paths": _text,
    "storage_options": _storage,
}
