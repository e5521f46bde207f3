"""Values and keys as JSON that any program can read, with a name for what JSON has no word for.

An object with one member whose name begins with ``$`` stands for such a thing::

    {"$bytes": "AAE="}          base64               {"$map": [[1, "x"]]}         a dict with keys that are not plain text
    {"$int": "9007199254740993"} beyond 2^53         {"$tuple": [1, 2]}           a tuple (as a key of such a dict)
    {"$float": "nan"}           nan, inf, -inf       {"$datetime": "2024-05-01T12:00:00+00:00"}
    {"$decimal": "1.10"}                             {"$date": ...}  {"$time": ...}  {"$timedelta": [days, seconds, micros]}
    {"$uuid": "..."}

A dict with a key that is not text, or that begins with ``$``, is a ``$map``; so nothing else has such a member. Of a nan only
that it is one is kept. In a **key** of a map, an array is a tuple.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final
from uuid import UUID

from onefold.errors import InvalidValue
from onefold.state.encoding.keys import Key

_EXACT_MAX: Final = 1 << 53
_INT_DIGITS_MAX: Final = 100_000


def dump_line(item: Any) -> str:
    """One line of JSON, without its end: compact, and the same text for the same item."""
    return json.dumps(item, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def to_json(value: Any) -> Any:
    """What ``json`` takes, for a value as ``decode_value`` gives it."""
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if -_EXACT_MAX <= value <= _EXACT_MAX else {"$int": _digits(value)}
        case float():
            return value if math.isfinite(value) else {"$float": str(value)}
        case bytes():
            return {"$bytes": base64.b64encode(value).decode()}
        case list():
            return [to_json(item) for item in value]
        case tuple():
            return {"$tuple": [to_json(item) for item in value]}
        case dict():
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {key: to_json(item) for key, item in value.items()}
            return {"$map": [[to_json(key), to_json(item)] for key, item in value.items()]}
        case datetime():
            return {"$datetime": value.isoformat()}
        case date():
            return {"$date": value.isoformat()}
        case time():
            return {"$time": value.isoformat()}
        case timedelta():
            return {"$timedelta": [value.days, value.seconds, value.microseconds]}
        case Decimal():
            return {"$decimal": str(value)}
        case UUID():
            return {"$uuid": str(value)}
    raise InvalidValue(f"a {type(value).__name__} has no portable form; convert it first")


def from_json(item: Any) -> Any:
    """The value that ``to_json`` made this of. Raises InvalidValue."""
    if isinstance(item, list):
        return [from_json(part) for part in item]
    if not isinstance(item, dict):
        return item
    named = [key for key in item if key.startswith("$")]
    if not named:
        return {key: from_json(part) for key, part in item.items()}
    if len(item) > 1 or named[0] not in _READ:
        raise InvalidValue(
            f"an object with the member {named[0]!r} means nothing; a dict with such a key is {{'$map': [[key, value], ...]}}"
        )
    ((name, content),) = item.items()
    try:
        return _READ[name](content)
    except InvalidValue:
        raise
    except (TypeError, ValueError, ArithmeticError, binascii.Error, InvalidOperation) as error:
        raise InvalidValue(f"{{{name!r}: {str(content)[:60]!r}}} cannot be read: {error}") from None


def key_to_json(key: Key) -> Any:
    """A key of a map; a tuple is an array."""
    if isinstance(key, tuple):
        return [key_to_json(part) for part in key]
    return to_json(key)


def key_from_json(item: Any) -> Key:
    """The key. Raises InvalidValue for what can be none (the rest is left to ``encode_key``)."""
    if isinstance(item, list):
        return tuple(key_from_json(part) for part in item)
    found = from_json(item)
    if isinstance(found, str | int | bytes | bool | None):
        return found
    raise InvalidValue(
        f"a {type(found).__name__} is not a key: a key is text, a whole number, bytes, a bool, null, or an array"
    )


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # Python writes no more than some thousand digits at once
        return hex(value)


def _int(text: Any) -> int:
    if not isinstance(text, str) or len(text) > _INT_DIGITS_MAX:
        raise ValueError("not the text of a whole number")
    return int(text, 16) if text.lstrip("-").startswith("0x") else int(text)


def _float(text: Any) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise ValueError("nan, inf or -inf was expected")
    return float(text)


def _bytes(text: Any) -> bytes:
    return base64.b64decode(text, validate=True)


def _pairs(content: Any) -> dict[Any, Any]:
    found = {_hashable(from_json(key)): from_json(value) for key, value in content}
    if len(found) != len(content):
        raise ValueError("a key is there twice")
    return found


def _hashable(key: Any) -> Any:
    hash(key)
    return key


def _tuple(content: Any) -> tuple[Any, ...]:
    if not isinstance(content, list):
        raise TypeError("an array was expected")
    return tuple(from_json(part) for part in content)


def _timedelta(content: Any) -> timedelta:
    days, seconds, micros = content
    return timedelta(days=days, seconds=seconds, microseconds=micros)


_READ: Final[dict[str, Callable[[Any], Any]]] = {
    "$int": _int,
    "$float": _float,
    "$bytes": _bytes,
    "$map": _pairs,
    "$tuple": _tuple,
    "$datetime": datetime.fromisoformat,
    "$date": date.fromisoformat,
    "$time": time.fromisoformat,
    "$timedelta": _timedelta,
    "$decimal": Decimal,
    "$uuid": UUID,
}
