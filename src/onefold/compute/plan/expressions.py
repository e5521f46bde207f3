"""Row-local expressions: which are taken, and a canonical form of them.

A plan must not mean something else when its input is split, so ``select``, ``with_columns`` and ``filter``
take only expressions that give each row a value made of that row. Polars' own ``is_row_separable`` says yes
to ``x > x.mean()``; here the serialised tree is walked against an allow-list (``row_local.py``), and what is
unknown is refused.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from onefold.compute.frames import values as frames
from onefold.compute.plan import row_local
from onefold.errors import InvalidPlan
from onefold.machine.undisturbed import is_interrupt

if TYPE_CHECKING:
    import polars as pl

_IPC_MARK = [255, 255, 255, 255]
_FRAME, _ELEMENT, _STRUCT = "frame", "element", "struct"


def tree(expr: pl.Expr) -> Any:
    """Polars' serialised tree of the expression, as JSON objects. Raises InvalidPlan when Polars cannot write
    it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return json.loads(expr.meta.serialize(format="json"))
        except RecursionError as error:
            raise InvalidPlan(
                "an expression is nested too deeply to be checked; make it in several steps, "
                "or use pl.sum_horizontal, pl.all_horizontal, pl.any_horizontal or pl.concat_str for long "
                "chains"
            ) from error
        except Exception as error:
            if is_interrupt(error):
                raise
            raise InvalidPlan(
                f"the expression {expr} cannot be stored ({error}); Python functions belong into .map(fn) or "
                f".map_batches(fn)"
            ) from error


def check_row_local(expr: pl.Expr | str, where: str) -> None:
    """Take an expression that means the same on every split of the rows; a str is the column of that name.

    ``where`` names the step in messages (``"filter"``). Raises InvalidPlan that names the node and says what
    to do instead.
    """
    if isinstance(expr, str):
        return
    pending: list[tuple[Any, str]] = [(tree(expr), _FRAME)]
    while pending:
        node, scope = pending.pop()
        pending.extend(_inputs(node, scope, where))


def names_columns(expr: pl.Expr) -> bool:
    """Whether the expression looks at any column; one that does not is a constant."""
    pending = [tree(expr)]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            if "Column" in node or "Selector" in node:
                return True
            if "Literal" not in node:
                pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(item for item in node if isinstance(item, dict | list))
    return False


def _inputs(node: Any, scope: str, where: str) -> Iterator[tuple[Any, str]]:
    """The nodes below an accepted one, each with the scope that it stands in; refuses the others."""
    kind, body = _head(node)
    inside = scope == _ELEMENT
    match kind:
        case "Column" | "Selector":
            if inside and body != "":
                raise InvalidPlan(
                    f"{where}: inside list.eval and the like only pl.element() can be used, not columns"
                )
        case "Literal":
            _check_literal(body, where)
        case "Element":
            if not inside:
                raise InvalidPlan(f"{where}: pl.element() has a meaning only inside list.eval and the like")
        case "Field":
            if scope != _STRUCT:
                raise InvalidPlan(
                    f"{where}: pl.field() has a meaning only inside struct.with_fields and struct.eval"
                )
        case "Alias":
            yield body[0], scope
        case "KeepName":
            yield body, scope
        case "RenameAlias":
            if _head(body["function"])[0] == "Map":
                raise InvalidPlan(
                    f"{where}: name.map, name.strip_prefix and name.strip_suffix call a Python function; "
                    f"use .alias(...)"
                )
            yield body["expr"], scope
        case "Cast":
            if _head(body["dtype"])[0] != "Literal":
                raise InvalidPlan(
                    f"{where}: a cast to a data type that is itself an expression is not known to be "
                    "row-local; name the type"
                )
            yield body["expr"], scope
        case "BinaryExpr":
            yield body["left"], scope
            yield body["right"], scope
        case "Ternary":
            yield from ((body[part], scope) for part in ("predicate", "truthy", "falsy"))
        case "Function":
            yield from _function(body, scope, where)
        case "Eval":
            variant = _head(body["variant"])[0]
            if variant not in ("List", "ListAgg", "Array", "ArrayAgg") and not (
                inside and variant == "Cumulative"
            ):
                _refuse("cumulative_eval" if variant == "Cumulative" else variant, row_local.MOVING, where)
            yield body["expr"], scope
            yield body["evaluation"], _ELEMENT
        case "StructEval":
            yield body["expr"], scope
            yield from ((item, _ELEMENT if inside else _STRUCT) for item in body["evaluation"])
        case _ if inside:
            yield from _inside_lists(kind, body, where)
        case _:
            _refuse(kind, row_local.REFUSED.get(kind), where, _detail(kind, body))


def _function(body: dict[str, Any], scope: str, where: str) -> Iterator[tuple[Any, str]]:
    name, options = _function_name(body["function"])
    arguments: Sequence[Any] = body["input"]
    family, _, member = name.partition(".")
    allowed = (
        member in row_local.FAMILIES.get(family, ()) if member else name in row_local.FUNCTIONS
    ) or _fixed_bins(name, options)
    if not allowed and scope == _ELEMENT:
        allowed = name in row_local.INSIDE_LISTS or (
            family in row_local.INSIDE_LISTS and family in row_local.ONE_NAME_FAMILIES
        )
        if allowed and name == "Rank" and options["options"]["method"] == "Random":
            _refuse("rank(method='random')", row_local.RANDOM, where)
        if allowed and '"Map"' in json.dumps(options):
            _refuse("rolling_map", row_local.PYTHON, where)
    if not allowed:
        _refuse(name, row_local.REFUSED.get(name, row_local.REFUSED.get(family)), where)
    if name == "StringExpr.Strptime" and options[1].get("format") is None:
        raise InvalidPlan(
            f"{where}: str.to_date, str.to_datetime, str.to_time and str.strptime without a format guess it "
            f"from the values "
            f"that they see, so parts of the input may be read differently; say format="
        )
    if name in row_local.LITERAL_ARGUMENTS and any(_head(item)[0] != "Literal" for item in arguments[1:3]):
        raise InvalidPlan(
            f"{where}: {_spoken(name)} with columns as its table of values would take the values of all "
            f"rows; "
            f"write the values out, or use .join(...)"
        )
    for position, argument in enumerate(arguments):
        if position and name in row_local.SERIES_ARGUMENTS and _is_series(argument):
            continue
        yield argument, scope


def _inside_lists(kind: str, body: Any, where: str) -> Iterator[tuple[Any, str]]:
    """Nodes over many values, where the many are the elements of one row."""
    match kind:
        case "Len":
            pass
        case "Agg":
            name, operand = _head(body)
            if name not in row_local.AGGREGATES_INSIDE_LISTS:
                _refuse(f"the aggregate {name}", None, where)
            if isinstance(operand, dict) and "input" in operand:
                operand = operand["input"]
            elif isinstance(operand, list):
                operand = operand[0]
            yield operand, _ELEMENT
        case "Sort":
            yield body["expr"], _ELEMENT
        case "SortBy":
            yield body["expr"], _ELEMENT
            yield from ((item, _ELEMENT) for item in body["by"])
        case "Slice":
            yield from ((body[part], _ELEMENT) for part in ("input", "offset", "length"))
        case "Gather":
            yield body["expr"], _ELEMENT
            yield body["idx"], _ELEMENT
        case "Filter":
            yield body["input"], _ELEMENT
            yield body["by"], _ELEMENT
        case _:
            _refuse(kind, row_local.REFUSED.get(kind), where)


def _check_literal(body: Any, where: str) -> None:
    if isinstance(body, dict) and "Series" in body:
        raise InvalidPlan(
            f"{where}: a literal Series is laid next to the rows, whatever rows a task sees; "
            f"use a list (pl.lit([...])), is_in, replace_strict or .join(...)"
        )


def _is_series(node: Any) -> bool:
    kind, body = _head(node)
    return kind == "Literal" and isinstance(body, dict) and "Series" in body


def _fixed_bins(name: str, options: Any) -> bool:
    """``bin_intervals`` with given breaks; a number of bins would be laid over the values at hand."""
    if name != "Bin":
        return False
    method, detail = _head(options["method"])
    return method == "Intervals" and _head(detail["spec"])[0] == "Breaks"


def _head(node: Any) -> tuple[str, Any]:
    """The name and body of a node: ``"Len"`` or ``{"Agg": ...}``."""
    if isinstance(node, str):
        return node, None
    if isinstance(node, dict) and len(node) == 1:
        return next(iter(node.items()))
    raise InvalidPlan(f"Polars wrote an expression in a form that is not known here: {str(node)[:200]}")


_FAMILY_NAMES = frozenset(row_local.FAMILIES) | {"Extension"}


def _function_name(function: Any) -> tuple[str, Any]:
    """``("StringExpr.Contains", options)``."""
    name, options = _head(function)
    if name in _FAMILY_NAMES and options is not None:
        member, options = _head(options)
        return f"{name}.{member}", options
    return name, options


def _detail(kind: str, body: Any) -> str:
    return f" ({_snake(_head(body)[0])})" if kind == "Agg" else ""


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _spoken(name: str) -> str:
    if name in row_local.PUBLIC_NAMES:
        return row_local.PUBLIC_NAMES[name]
    family, _, member = name.partition(".")
    spaces = {
        "StringExpr": "str.",
        "TemporalExpr": "dt.",
        "ListExpr": "list.",
        "ArrayExpr": "arr.",
        "StructExpr": "struct.",
        "BinaryExpr": "bin.",
        "Categorical": "cat.",
        "Extension": "ext.",
    }
    if family == "FillNullWithStrategy":
        return f"fill_null(strategy='{member.lower()}')" if member else "fill_null with a strategy"
    return spaces.get(family, "") + _snake(member or family)


def _refuse(name: str, reason: int | None, where: str, detail: str = "") -> None:
    if reason is None:
        raise InvalidPlan(
            f"{where}: Polars' {name} is not known to work on each row by itself; use .map_batches(fn) if "
            f"it does, "
            f"or .group_by(...).agg(...) if it does not"
        )
    raise InvalidPlan(f"{where}: {_spoken(name)}{detail} {row_local.REASONS[reason]}")


# -- canonical form ------------------------------------------------------------------------------------------


def canonical(expr: pl.Expr) -> object:
    """A JSON-able tree that is the same in every process for the same expression.

    Literal Series and lists are written as data type and values (Polars serialises them as Arrow bytes with
    padding and flags), and the table of ``is_in`` is sorted, since it is a set. Raises InvalidPlan for
    expressions that call Python.
    """
    result = _canonical(tree(expr))
    text = json.dumps(result)
    # JSON has no NaN and no infinity: Polars writes all three as null, and only the text tells them apart.
    return [result, str(expr)] if '{"Float": null}' in text else result


def _canonical(node: Any) -> Any:
    if isinstance(node, dict):
        if node.keys() == {"input", "function"} and _function_name(node["function"])[0] == "Boolean.IsIn":
            operand, table = (_canonical(item) for item in node["input"])
            return {"function": _canonical(node["function"]), "input": [operand, _as_set(table)]}
        if "AnonymousFunction" in node or "PipeWithDtype" in node or "callback" in node:
            raise InvalidPlan("an expression calls a Python function; use .map(fn) or .map_batches(fn)")
        return {key: value if key == "Binary" else _canonical(value) for key, value in node.items()}
    if isinstance(node, list):
        if node[:4] == _IPC_MARK:
            return _values(bytes(node))
        return [_canonical(item) for item in node]
    return node


def _values(data: bytes) -> Any:
    """The series that Polars wrote as an Arrow IPC stream: its type, and its values as text that is exact."""
    import polars as pl

    series = pl.read_ipc_stream(io.BytesIO(data)).to_series(0)
    return {"dtype": str(series.dtype), "values": [_exact(value) for value in frames.exact_values(series)]}


def _exact(value: Any) -> Any:
    if isinstance(value, list):
        return [_exact(item) for item in value]
    if isinstance(value, dict):
        return {key: _exact(item) for key, item in value.items()}
    return value if value is None or isinstance(value, bool | int | str) else repr(value)


def _as_set(table: Any) -> Any:
    """The same tree with the values of a literal list sorted and without doubles."""
    if isinstance(table, dict):
        if table.keys() == {"dtype", "values"}:
            values = table["values"]
            if len(values) == 1 and isinstance(values[0], list):
                values = values[0]
            texts = {json.dumps(value, sort_keys=True) for value in values}
            return {"dtype": table["dtype"], "set": sorted(texts)}
        return {key: _as_set(value) for key, value in table.items()}
    return table
