"""A value as msgspec is to encode it: with extensions for what msgpack lacks, and every type made sure of.

msgspec alone would store a Decimal or a set as something else, without a word.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from enum import Enum
from typing import Any, Final

import msgspec

from onefold.config import VALUE_DEPTH_MAX
from onefold.state.encoding.extensions import pack_big_int, pack_special

_INT_MIN: Final = -(2**63)
_INT_MAX: Final = 2**64 - 1
LEAVES: Final = frozenset({type(None), bool, int, float, str, bytes})
_INSTEAD: Final = {
    "set": "use a list",
    "frozenset": "use a list",
    "complex": "use a list of two floats",
    "generator": "use a list",
    "ndarray": "use .tolist()",
    "DataFrame": "use .to_dicts()",
}


class Refused(Exception):
    """A part of a value that has no encoding; ``steps`` lead to it, innermost first."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what)
        self.what = what
        self.advice = advice
        self.steps: list[object] = []

    def __str__(self) -> str:
        place = "".join(f"[{_shown(step)}]" for step in reversed(self.steps))
        place = place and f" (at value{place})"
        return f"{self.what} cannot be stored{place}; {self.advice}"


class _ExtKey:
    """An extension as the key of a dict: Ext itself has no hash."""

    __slots__ = ("ext",)

    def __init__(self, ext: msgspec.msgpack.Ext) -> None:
        self.ext = ext


def encode_hook(value: Any) -> Any:
    """For msgspec's Encoder of prepared values."""
    if isinstance(value, _ExtKey):
        return value.ext
    raise TypeError(type(value).__name__)


def is_plain(value: object, depth: int) -> bool:
    """Whether msgspec alone encodes the value as we do. Elements are looked at without a step of Python for each."""
    kind = type(value)
    if kind is dict:
        if not LEAVES.issuperset(map(type, value)):  # type: ignore[call-overload]
            return False
        items: Any = value.values()  # type: ignore[attr-defined]
    elif kind is list or kind is tuple:
        items = value
    else:
        return False
    if depth <= 0:
        return False
    if LEAVES.issuperset(map(type, items)):
        return True
    return all(type(item) in LEAVES or is_plain(item, depth - 1) for item in items)


def prepare(value: Any, depth: int, sets: bool) -> Any:
    """The value as msgspec is to encode it; ``depth`` counts what is around it, ``sets`` allows sets."""
    leaf = _prepare_leaf(value)
    if leaf is not _NO_LEAF:
        return leaf
    if depth >= VALUE_DEPTH_MAX:
        raise Refused(
            f"a value nested deeper than {VALUE_DEPTH_MAX} (or one that holds itself)", "make it flatter"
        )
    if isinstance(value, dict):
        return _prepare_dict(value, depth + 1, sets)
    if isinstance(value, list | tuple) or (sets and isinstance(value, set | frozenset)):
        return [_step(item, at, depth + 1, sets) for at, item in enumerate(value)]
    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        if config.array_like:
            tag = [] if config.tag is None else [config.tag]
            return tag + [_step(item, name, depth + 1, sets) for name, item in _struct_fields(value)]
        fields = {} if config.tag is None else {config.tag_field: config.tag}
        return fields | {name: _step(item, name, depth + 1, sets) for name, item in _struct_fields(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {
            name: _step(getattr(value, name), name, depth + 1, sets) for name in names if hasattr(value, name)
        }
    raise _no_encoding(value)


_NO_LEAF: Final = object()


def _prepare_leaf(value: Any) -> Any:
    """The value as msgspec is to encode it if it holds no others, else _NO_LEAF. Subclasses become their base."""
    if isinstance(value, Enum):
        return _prepare_leaf(value.value)
    if isinstance(value, str):
        if not str.isascii(value):
            try:
                str.encode(value)
            except UnicodeEncodeError:
                raise Refused("a string with half a surrogate pair", "it has no UTF-8; remove it") from None
        return value if type(value) is str else str.__str__(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        value = int.__index__(value)
        return value if _INT_MIN <= value <= _INT_MAX else pack_big_int(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return b"".join((value,)) if isinstance(value, bytes) else bytes(value)
    try:
        ext = pack_special(value)
    except ValueError as error:
        raise Refused(f"this {type(value).__name__}", str(error)) from None
    return _NO_LEAF if ext is None else ext


def _prepare_dict(value: dict[Any, Any], depth: int, sets: bool) -> dict[Any, Any]:
    prepared = {}
    for key, item in dict.items(value):
        try:
            new_key = _prepare_key(key, depth)
        except Refused as error:
            error.what += " as key of a dict"
            raise
        if new_key in prepared:
            raise Refused(f"a dict with two keys that are both encoded as {_shown(key)}", "rename one")
        prepared[new_key] = _step(item, key, depth, sets)
    return prepared


def _prepare_key(key: Any, depth: int) -> Any:
    leaf = _prepare_leaf(key)
    if isinstance(leaf, msgspec.msgpack.Ext):
        return _ExtKey(leaf)
    if leaf is not _NO_LEAF:
        return leaf
    if not isinstance(key, tuple):
        raise _no_encoding(key)
    if depth >= VALUE_DEPTH_MAX:
        raise Refused(f"a tuple nested deeper than {VALUE_DEPTH_MAX}", "make it flatter")
    return tuple(_prepare_key(item, depth + 1) for item in tuple.__iter__(key))


def _step(value: Any, step: object, depth: int, sets: bool) -> Any:
    try:
        return prepare(value, depth, sets)
    except Refused as error:
        error.steps.append(step)
        raise


def _struct_fields(value: msgspec.Struct) -> Iterator[tuple[str, Any]]:
    for name, stored_name in zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True):
        item = getattr(value, name, msgspec.UNSET)
        if item is not msgspec.UNSET:
            yield stored_name, item


def _no_encoding(value: object) -> Refused:
    name = type(value).__name__
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    return Refused(f"{article} {name}", _INSTEAD.get(name, "convert it to builtin types first"))


def _shown(key: object) -> str:
    try:
        return f"{key!r:.60}"
    except ValueError:  # an int of more digits than Python writes
        return f"a {type(key).__name__}"
