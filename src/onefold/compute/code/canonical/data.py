"""Digests of plain values, and canonical forms of arrays and frames of NumPy and Polars."""

from __future__ import annotations

import datetime
import marshal
import struct
import sys
from typing import Any

from onefold.compute.code.canonical.code import hash_parts

_PLAIN = frozenset({bool, bytes, float, int, str, type(None)})
_BULK_MIN = 16


def plain_digest(value: object) -> bytes | None:
    """The digest of a value that holds no others, by type and content."""
    kind = type(value)
    if value is None or value is Ellipsis or value is NotImplemented or kind is bool:
        return hash_parts("constant", repr(value))
    if kind is int or kind is str or kind is bytes:
        return hash_parts("plain", value)  # type: ignore[arg-type]
    if kind is float:
        return hash_parts("float", struct.pack(">d", value))
    if kind is complex:
        return hash_parts("complex", struct.pack(">dd", value.real, value.imag))  # type: ignore[attr-defined]
    if kind is bytearray:
        return hash_parts("bytearray", bytes(value))  # type: ignore[call-overload]
    if kind is range or kind is slice:
        return hash_parts(kind.__name__, repr(value))
    if kind in (datetime.date, datetime.time, datetime.datetime) and getattr(value, "tzinfo", None) is None:
        return hash_parts(kind.__name__, value.isoformat(), str(getattr(value, "fold", 0)))  # type: ignore[attr-defined]
    return None


def bulk_digest(value: Any) -> bytes | None:
    """The digest of a large container of plain values at once, several times faster than value by value."""
    kind = type(value)
    if kind not in (list, tuple, dict, set, frozenset) or len(value) < _BULK_MIN:
        return None
    if kind is dict:
        items: Any = [*value, *value.values()]
    elif kind in (set, frozenset):
        if len({type(item) for item in value}) != 1 or not isinstance(next(iter(value)), int | str | bytes):
            return None
        items = sorted(value)
    else:
        items = value
    if not _PLAIN.issuperset(map(type, items)):
        return None
    name = "set" if kind is frozenset else kind.__name__
    # Format 0 knows no references, so it does not show which of the values are one object.
    return hash_parts("bulk", name, len(value), marshal.dumps(list(items), 0))


def data_form(value: Any) -> object | None:
    """Plain values that say all of an array, frame, column, expression or type; None for other objects."""
    root = type(value).__module__.partition(".")[0]
    if root == "numpy":
        return _numpy(value)
    if root == "polars":
        return _polars(value)
    return None


def _numpy(value: Any) -> object | None:
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.dtype):
        return ("dtype", repr(value.descr) if value.names else value.str)
    if isinstance(value, numpy.ufunc):
        return ("ufunc", value.__name__)
    if isinstance(value, numpy.ndarray | numpy.generic):
        array = numpy.asarray(value)
        if array.dtype.hasobject:
            return ("array", array.shape, array.tolist())
        return ("array", array.dtype.str, repr(array.dtype.descr), array.shape, array.tobytes())
    return None


def _polars(value: Any) -> object | None:
    polars = sys.modules["polars"]
    if isinstance(value, polars.Expr):
        from onefold.compute.plan.expressions import canonical
        from onefold.errors import InvalidPlan

        try:
            return ("expression", canonical(value))
        except InvalidPlan:
            return None
    if isinstance(value, polars.DataFrame):
        return ("frame", [_polars(column) for column in value.get_columns()])
    if isinstance(value, polars.Series):
        from onefold.compute.frames.values import exact_values

        return ("series", value.name, repr(value.dtype), exact_values(value))
    if isinstance(value, polars.DataType):
        return ("type", repr(value))
    if isinstance(value, type):
        return ("type", value.__name__)
    return None
