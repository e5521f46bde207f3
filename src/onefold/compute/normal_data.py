"""Canonical forms of array and frame values of NumPy and Polars."""

from __future__ import annotations

import sys
from typing import Any


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
        from onefold.compute.expressions import canonical
        from onefold.errors import InvalidPlan

        try:
            return ("expression", canonical(value))
        except InvalidPlan:
            return None
    if isinstance(value, polars.DataFrame):
        return ("frame", [_polars(column) for column in value.get_columns()])
    if isinstance(value, polars.Series):
        return ("series", value.name, repr(value.dtype), value.to_list())
    if isinstance(value, polars.DataType):
        return ("type", repr(value))
    if isinstance(value, type):
        return ("type", value.__name__)
    return None
