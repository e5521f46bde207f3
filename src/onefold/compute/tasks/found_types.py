"""Notes of a task on what it found in values: the types that its own later steps depend on, and numbers in keys.

A note stands among the names of a result's columns, in a form that no column can have, since Polars takes it for a pattern.
It holds no value of the data: tasks whose values have the same types leave the same notes, so there are few in a run.
``compute.execution.result_types`` compares the notes of all tasks of a stage.
"""

from __future__ import annotations

import decimal
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from onefold.compute.code.canonical.reduce_keys import WHOLE_FLOATS_MAX, Columns, no_float_holds
from onefold.compute.frames import data_types
from onefold.compute.frames.value_types import DECIMAL_DIGITS_MAX, decimal_digits, too_many_digits
from onefold.compute.plan.explain import function_name
from onefold.compute.plan.type_sensitive import EXACT, FLOAT, LEAF, NULLS, NUMBER, Needs
from onefold.compute.tasks.python_steps import Values
from onefold.errors import InvalidValue

if TYPE_CHECKING:
    import polars as pl

    from onefold.compute.plan.stages import Stage

Note = tuple[int, int, str, str, Any]
"""(branch, step, column or place, kind, what). Kind: a mode of ``type_sensitive``, ``shape``, ``key``, ``form`` or ``digits``."""

_BEGIN: Final = "^found "
_END: Final = "$"
_SHAPE, _KEY = "shape", "key"
_FORM, _DIGITS = "form", "digits"
"""Notes that every function leaves: whether it gave dicts or bare values, and of decimals how many digits before and after
the point. They must fit together whatever follows.
"""
_NOT_HELD: Final = "not held"
"""Instead of a type: whole numbers, some of which no float holds."""
_KEY_FLOAT: Final = ["float"]
_KEY_NOT_HELD: Final = ["whole"]
"""Of a place in keys: there are floats; there are whole numbers that no float holds."""
_CHARS_MAX: Final = 2_000
"""Longer types, and lists of columns, are noted by their digest."""
_WHOLE: Final = frozenset(
    {"Int8", "Int16", "Int32", "Int64", "Int128", "UInt8", "UInt16", "UInt32", "UInt64", "UInt128"}
)
_FLOATS: Final = frozenset({"Float16", "Float32", "Float64"})


Place = tuple[int, int, str, str]
Digits = tuple[int, int]
"""Of decimals: how many digits there are before and after the point, at most."""


class Found:
    """The notes of one task. A chunk's are held until it is through, so that one that is run again counts once."""

    def __init__(self, branch: int, needs: Mapping[int, Needs]) -> None:
        self._branch = branch
        self._needs = needs
        self._notes: set[str] = set()
        self._held: set[str] = set()
        self._forms: dict[int, tuple[str, str]] = {}
        self._forms_held: dict[int, tuple[str, str]] = {}
        self._digits: dict[tuple[int, str], Digits] = {}
        self._digits_held: dict[tuple[int, str], Digits] = {}

    def needs(self, step: int) -> bool:
        """Whether types of what this step gives matter."""
        return step in self._needs

    def take(
        self, step: int, rows: pl.DataFrame | Values, *, stays_bare: bool = False
    ) -> pl.DataFrame | Values:
        """Note what a step gave. ``stays_bare``: the function that comes next is handed bare values as they are."""
        needs = self._needs.get(step)
        if needs is None:
            return rows
        if isinstance(rows, Values):
            if stays_bare:
                self._held.add(_written((self._branch, step, "", _SHAPE, "bare values")))
                return rows
            rows = rows.to_frame()
        if not rows.height:
            return rows
        schema = rows.schema
        for column, dtype in schema.items():
            mode = needs.mode(column)
            if mode is not None:
                what = _numbers(rows[column]) if mode == NUMBER else _type_data(dtype)
                self._held.add(_written((self._branch, step, column, mode, what)))
        if needs.all_columns:
            self._held.add(_written((self._branch, step, "", _SHAPE, _short(", ".join(schema)))))
        return rows

    def form(self, step: int, form: str, function: str) -> None:
        """Note in which form a function gave rows: ``dicts`` or ``bare values``."""
        if form:
            self._forms_held[step] = form, function

    def decimals(self, step: int, rows: pl.DataFrame) -> None:
        """Note how many digits the decimals have, since the type says only how many come after the point."""
        for column, dtype in rows.schema.items():
            for name, series in _decimals(column, rows[column]) if has_decimals(dtype) else ():
                digits = _digits_before(series), getattr(series.dtype, "scale", 0)
                self._digits_held[step, name] = _most(digits, self._digits_held.get((step, name)))

    def through(self) -> None:
        """The chunk is done: its notes count. Raises InvalidValue where it does not fit to the chunks before."""
        for step, (form, function) in self._forms_held.items():
            if self._forms.get(step, (form, function))[0] != form:
                raise InvalidValue(f"{function} gave both dicts and bare values; give one of the two")
        digits = {place: _most(held, self._digits.get(place)) for place, held in self._digits_held.items()}
        for (_, name), most in digits.items():
            if sum(most) > DECIMAL_DIGITS_MAX:
                raise too_many_digits(name, *most)
        self._digits |= digits
        self._forms |= self._forms_held
        self._notes |= self._held
        self.again()

    def again(self) -> None:
        """The chunk is run in another way: forget what it has noted."""
        self._held, self._digits_held, self._forms_held = set(), {}, {}

    def keys(self, columns: Columns) -> None:
        """Note what numbers the keys of ``map_reduce`` hold."""
        for place in columns.floats:
            self._notes.add(_written((self._branch, LEAF, _place(place), _KEY, _KEY_FLOAT)))
        for place in columns.whole:
            self._notes.add(_written((self._branch, LEAF, _place(place), _KEY, _KEY_NOT_HELD)))

    def names(self) -> list[str]:
        """The notes, in order."""
        digits = {
            _written((self._branch, step, name, _DIGITS, list(most)))
            for (step, name), most in self._digits.items()
        }
        forms = {_written((self._branch, step, "", _FORM, form)) for step, (form, _) in self._forms.items()}
        return sorted(self._notes | digits | forms)


class Notes:
    """Notes of several tasks. Each is compared once with those before it, so many tasks with the same notes cost little."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._by_place: dict[Place, list[Note]] = {}

    def __contains__(self, name: str) -> bool:
        """Whether a note says nothing that these do not say."""
        if name in self._names:
            return True
        note = read(name)
        held = self._by_place.get(note[:4]) if note is not None else None
        return (
            held is not None and note is not None and note[4] in [_together(note, other)[4] for other in held]
        )

    def add(self, names: Iterable[str]) -> list[tuple[Note, Note]]:
        """Take notes in; the pairs that do not fit together. Types come before shapes: a column's type says more."""
        wrong: list[tuple[Note, Note]] = []
        for name in sorted(set(names) - self._names):
            self._names.add(name)
            note = read(name)
            if note is None:
                continue
            held = self._by_place.setdefault(note[:4], [])
            if note in held:
                continue
            wrong += [(other, note) for other in held if not _fit(note[3], other[4], note[4])]
            if note[3] == _DIGITS and held:
                held[0] = _together(note, held[0])
            else:
                held.append(note)
        return sorted(wrong, key=lambda pair: pair[0][3] == _SHAPE)


def is_note(name: str) -> bool:
    """Whether this is a note, not a column's name."""
    return read(name) is not None


def read(name: str) -> Note | None:
    """The note that a name is; None for a column's name."""
    if not (name.startswith(_BEGIN) and name.endswith(_END)):
        return None
    try:
        branch, step, column, kind, what = json.loads(name[len(_BEGIN) : -len(_END)])
    except ValueError:
        return None
    if isinstance(what, list) and what and what[:1] in ([_NOT_HELD], _KEY_NOT_HELD):
        what = what[:1]  # earlier releases noted such a number, too
    return branch, step, column, kind, what


def explained(one: Note, other: Note, stage: Stage) -> InvalidValue:
    """The error for two notes that do not fit together."""
    branch, step, column, kind, _ = one
    if kind == _KEY:
        return no_float_holds()
    function = _function(stage, branch, step)
    if kind == _FORM:
        forms = " and ".join(sorted((str(one[4]), str(other[4])), reverse=True))
        return InvalidValue(f"{function} gave both {forms}; give one of the two")
    if kind == _DIGITS:
        return _too_many_digits(one, other)
    if kind == _SHAPE:
        return InvalidValue(
            f"{function} gives {_shown(one)} in one task and {_shown(other)} in another, and the steps after it see "
            f"the difference: the result would depend on how the input is split. Give schema= to the function"
        )
    return InvalidValue(
        f"column {column!r}, which {function} gives, is {_shown(one)} in one task and {_shown(other)} in another, and "
        f"the steps after it depend on its type: the result would depend on how the input is split. "
        f"Give schema= to the function"
    )


def _too_many_digits(one: Note, other: Note) -> InvalidValue:
    return too_many_digits(one[2], *map(max, one[4], other[4]))


def _most(digits: Digits, before: Digits | None) -> Digits:
    return digits if before is None else (max(digits[0], before[0]), max(digits[1], before[1]))


def _together(note: Note, other: Note) -> Note:
    """Of two notes on the digits of decimals, one that says both; of others, the second one."""
    return (*note[:4], list(map(max, note[4], other[4]))) if note[3] == _DIGITS else other


def _function(stage: Stage, branch: int, step: int) -> str:
    if step == LEAF:
        leaf = stage.branches[branch].leaf
        return f"the function {function_name(getattr(leaf, 'reduce', None))} of map_reduce's reduce"
    node = stage.branches[branch].steps[step]
    kind = {"Map": "map", "FlatMap": "flat_map", "MapBatches": "map_batches"}.get(type(node).__name__, "map")
    return f"the function {function_name(getattr(node, 'fn', None))} of {kind}"


def _shown(note: Note) -> str:
    *_, kind, what = note
    if kind == _SHAPE:
        return what if what == "bare values" else f"the columns {what}"
    if what[0] == _NOT_HELD:
        return "of whole numbers that no float holds"
    try:
        return str(data_types.from_data(what))
    except InvalidValue:
        return str(what[-1])


def _fit(kind: str, one: Any, other: Any) -> bool:
    """Whether what follows gives the same for both."""
    if one == other:
        return True
    if kind == _KEY:
        return bool(one[0] == other[0])
    if kind == _DIGITS:
        return bool(max(one[0], other[0]) + max(one[1], other[1]) <= DECIMAL_DIGITS_MAX)
    if kind in (EXACT, _SHAPE, _FORM):
        return False
    if one[0] == "Null" or other[0] == "Null":
        return True
    if kind == NULLS:
        return False
    if kind == NUMBER:
        return not (_NOT_HELD in (one[0], other[0]) and {one[0], other[0]} & _FLOATS)
    if kind == FLOAT:
        return {one[0], other[0]} <= _WHOLE | _FLOATS
    return _same_values(one, other)


def _same_values(one: Any, other: Any) -> bool:
    """Whether values of both types are the same in Python."""
    if one == other or one[0] == "Null" or other[0] == "Null":
        return True
    names = {one[0], other[0]}
    if names <= _WHOLE or names <= _FLOATS:
        return True
    if names == {"List"}:
        return _same_values(one[1], other[1])
    if names == {"Struct"}:
        (fields, others) = (one[1], other[1])
        return [name for name, _ in fields] == [name for name, _ in others] and all(
            _same_values(left, right) for (_, left), (_, right) in zip(fields, others, strict=True)
        )
    return False


def whatever_follows(note: Note) -> bool:
    """Whether such notes must fit together in any case: also those of one task."""
    return note[3] in (_FORM, _DIGITS)


def has_decimals(dtype: Any) -> bool:
    """Whether a column of this type holds decimals, also inside lists and structs."""
    import polars as pl

    if isinstance(dtype, pl.List | pl.Array):
        return has_decimals(dtype.inner)
    if isinstance(dtype, pl.Struct):
        return any(has_decimals(field.dtype) for field in dtype.fields)
    return isinstance(dtype, pl.Decimal)


def _decimals(name: str, series: pl.Series) -> Iterable[tuple[str, pl.Series]]:
    """The columns of decimals that a column is or holds."""
    import polars as pl

    dtype = series.dtype
    if isinstance(dtype, pl.Decimal):
        yield name, series
    elif isinstance(dtype, pl.List | pl.Array):
        if has_decimals(dtype):
            yield from _decimals(f"{name}[]", series.explode())
    elif isinstance(dtype, pl.Struct):
        for field in dtype.fields:
            if has_decimals(field.dtype):
                yield from _decimals(f"{name}.{field.name}", series.struct.field(field.name))


def _digits_before(series: pl.Series) -> int:
    extremes = [value for value in (series.min(), series.max()) if value is not None]
    assert all(isinstance(value, decimal.Decimal) for value in extremes)
    return decimal_digits(series.name, extremes)[0]  # type: ignore[arg-type]


def _written(note: Note) -> str:
    return f"{_BEGIN}{json.dumps(note, separators=(',', ':'))}{_END}"


def _place(place: tuple[int, ...]) -> str:
    return ".".join(map(str, place))


def _numbers(series: pl.Series) -> Any:
    """The column's type, but of whole numbers only whether there are some that no float holds."""
    if not series.dtype.is_integer():
        return _type_data(series.dtype)
    import polars as pl

    low, high = series.min(), series.max()
    assert isinstance(low, int | None)
    assert isinstance(high, int | None)
    if max(-(low or 0), high or 0) > WHOLE_FLOATS_MAX:
        wide = pl.UInt128 if series.dtype == pl.UInt128 else pl.Int128
        # What is too large for the way back becomes null, and is not among the floats either.
        back = series.cast(pl.Float64).cast(wide, strict=False)
        if series.cast(wide).ne_missing(back).any():
            return [_NOT_HELD]
    return ["Null"]


def _type_data(dtype: Any) -> Any:
    try:
        data = data_types.to_data(dtype)
    except InvalidValue:
        data = ["other", str(dtype)]
    text = json.dumps(data)
    return data if len(text) <= _CHARS_MAX else ["long", _short(text)]


def _short(text: str) -> str:
    if len(text) <= _CHARS_MAX:
        return text
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return f"{text[:200]}... ({len(text)} characters, {digest})"
