"""Lines of JSON on stdin as records of a stream: appended as they come, and each that cannot be one named by its number."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from onefold import config
from onefold.errors import InvalidKey, InvalidValue, TooLarge

if TYPE_CHECKING:
    from onefold.state.streams.stream import Stream

_APPEND_LINES: Final = 1000
"""Lines that are appended together, all or none of them."""
_READ_BYTES: Final = 1 << 16
_LINE_BYTES_MAX: Final = 16 * config.VALUE_BYTES_MAX
"""A longer line is not read to its end: no value takes that much, however it is written."""


Batch = list[tuple[int, Any]]
"""Values, with the numbers of their lines."""


def append_lines(stream: Stream[Any], batches: Iterable[Batch], key: str | None) -> int:
    """Append a record for each line; how many there were.

    Raises InvalidValue, with the number of the line: those before it are appended. Definite.
    """
    count = 0
    for batch in batches:
        _append(stream, batch, key)
        count += len(batch)
    return count


def _append(stream: Stream[Any], batch: Batch, key: str | None) -> None:
    """Append these values, with the numbers of their lines; all of those before the first that cannot be a record."""
    try:
        if len(batch) > 1:
            stream.append_many([value for _, value in batch], key=key)
            return
        for _, value in batch:
            stream.append(value, key=None if key is None else value[key])
    except (InvalidKey, InvalidValue, TooLarge) as error:
        if len(batch) == 1:
            raise _bad_line(batch[0][0], error) from None
        half = len(batch) // 2
        _append(stream, batch[:half], key)
        _append(stream, batch[half:], key)


def read_batches(source: Any, key: str | None) -> Iterator[Batch]:
    """The lines of a binary stream, as many at a time as are there. A bad line raises InvalidValue, after those before it."""
    number = 0
    for lines in _lines(source):
        batch: Batch = []
        for line in lines:
            number += 1
            if line is not None and not line.strip():
                continue
            try:
                batch.append((number, _record(line, key)))
            except (ValueError, RecursionError) as error:
                if batch:
                    yield batch
                raise _bad_line(number, error) from None
            if len(batch) >= _APPEND_LINES:
                yield batch
                batch = []
        if batch:
            yield batch


def _lines(source: Any) -> Iterator[list[bytes | None]]:
    """The lines that are there whenever some have come; None for one that is too long, and none after it."""
    begun: list[bytes] = []
    size = 0
    while data := source.read1(_READ_BYTES):
        first, *others = data.split(b"\n")
        begun.append(first)
        size += len(first)
        if size > _LINE_BYTES_MAX:
            yield [None]
            return
        if others:
            yield [b"".join(begun), *others[:-1]]
            begun = [others[-1]]
            size = len(others[-1])
    if size:
        yield [b"".join(begun)]


def _record(line: bytes | None, key: str | None) -> Any:
    """The value of a line. Raises ValueError (InvalidValue is one)."""
    from onefold.state.encoding.json_values import from_json

    if line is None:
        raise ValueError(
            f"it is longer than {_LINE_BYTES_MAX:,} bytes, and a value takes at most {config.VALUE_BYTES_MAX:,}"
        )
    value = from_json(json.loads(line))
    if key is not None and (not isinstance(value, dict) or key not in value):
        raise ValueError(f"it has no field {key!r} to be its key")
    return value


def _bad_line(number: int, error: BaseException) -> InvalidValue:
    return InvalidValue(
        f"line {number} of stdin is not a record: {error}. The lines before it are appended; correct it, and append "
        f"from there on (tail -n +{number})"
    )
