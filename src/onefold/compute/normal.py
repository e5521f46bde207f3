"""Normalised digests of Python values and functions: equal for equal meaning, in every process.

What counts: a function's instructions, constants, defaults, closure and every global that it uses, through
the functions and classes of the program that it calls. What does not: file names, line numbers, comments,
docstrings, annotations, the function's own name and module, the order of sets and the hash seed. Libraries
count by name only.

A value that has no canonical form (an open file, an object that cannot be reduced) gets a random digest:
unknown means that the task is run again. The reason is kept in ``unstable``.
"""

from __future__ import annotations

import datetime
import dis
import enum
import functools
import hashlib
import re
import secrets
import struct
import sys
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from onefold.compute.user_code import is_user_module

_SIZE = 16
_VALUES_MAX = 2_000_000
_SKIPPED_ATTRIBUTES = frozenset(
    [
        "__module__",
        "__dict__",
        "__weakref__",
        "__doc__",
        "__qualname__",
        "__firstlineno__",
        "__static_attributes__",
        "_abc_impl",
        "__abstractmethods__",
        "__annotations__",
        "__annotate__",
        "__annotate_func__",
        "__annotations_cache__",
        "__dataclass_fields__",
        "__dataclass_params__",
        "__match_args__",
        "__parameters__",
        "__orig_bases__",
        "_member_map_",
        "_value2member_map_",
        "_member_names_",
        "__new_member__",
        "_generate_next_value_",
        "__struct_config__",
        "__slotnames__",
        "__hash__",
        "__type_params__",
    ]
)
"""Attributes of classes that are names, documentation, or made from others that count."""


@dataclass
class Definition:
    """A function or class of the program that a digest rests on."""

    name: str
    """As the program calls it."""
    digest: bytes = b""
    """Of its own code and values, other definitions by number."""


@dataclass
class Normaliser:
    """Digests of values that share functions and classes: each definition is visited once and referred to by
    number.

    Numbers are given in the order of the first visit, which depends only on what is visited.
    """

    definitions: list[Definition] = field(default_factory=list)
    unstable: list[str] = field(default_factory=list)
    """Why a digest is random, one sentence per value."""
    _numbers: dict[int, int] = field(default_factory=dict)
    _keep: list[object] = field(default_factory=list)
    _open: dict[int, int] = field(default_factory=dict)
    _cache: dict[int, bytes] = field(default_factory=dict)
    _lowest: int = 1 << 62
    _visited: int = 0

    def digest(self, value: object) -> bytes:
        """The digest of a value together with all definitions that it leads to."""
        root = self.value(value, "value")
        return _hash("root", root, *(definition.digest for definition in self.definitions))

    def value(self, value: object, name: str) -> bytes:
        """The digest of a value; ``name`` says where it stands, for messages."""
        self._visited += 1
        if self._visited > _VALUES_MAX:
            return self._unknown(name, value, "it holds too many values")
        simple = _simple(value)
        if simple is not None:
            return simple
        key = id(value)
        if key in self._numbers:
            return _hash("definition", self._numbers[key])
        if key in self._open:
            depth = self._open[key]
            self._lowest = min(self._lowest, depth)
            return _hash("cycle", len(self._open) - depth)
        known = self._cache.get(key)
        if known is not None:
            return known
        return self._closed(value, name)

    def _closed(self, value: object, name: str) -> bytes:
        """Visit a value that may lead back to itself; only one that does not lead out above itself is
        remembered.
        """
        key, depth, outer = id(value), len(self._open), self._lowest
        self._keep.append(value)
        self._open[key] = depth
        self._lowest = 1 << 62
        try:
            result = self._compound(value, name)
        except RecursionError:
            result = self._unknown(name, value, "it is nested too deeply")
        finally:
            del self._open[key]
        if self._lowest >= depth:
            self._cache[key] = result
            self._lowest = outer
        else:
            self._lowest = min(self._lowest, outer)
        return result

    def _compound(self, value: Any, name: str) -> bytes:
        match value:
            case tuple() if type(value) is tuple:
                return _hash("tuple", *(self.value(item, name) for item in value))
            case list() if type(value) is list:
                return _hash("list", *(self.value(item, name) for item in value))
            case dict() if type(value) is dict:
                return _hash("dict", *self._pairs(value.items(), name))
            case set() | frozenset() if type(value) in (set, frozenset):
                return _hash("set", *self._sorted(value, name))
            case types.MappingProxyType():
                return _hash("mapping", *self._pairs(value.items(), name))
            case types.FunctionType():
                return self._function(value)
            case types.MethodType():
                return _hash("method", self.value(value.__func__, name), self.value(value.__self__, name))
            case functools.partial():
                parts = (value.func, value.args, tuple(value.keywords.items()))
                return _hash("partial", *(self.value(part, name) for part in parts))
            case types.BuiltinFunctionType() | types.MethodWrapperType():
                return self._builtin(value, name)
            case types.ModuleType():
                return _hash("module", value.__name__)
            case types.CodeType():
                return self.code(value)
            case staticmethod() | classmethod():
                return _hash(type(value).__name__, self.value(value.__func__, name))
            case property():
                return _hash(
                    "property", *(self.value(part, name) for part in (value.fget, value.fset, value.fdel))
                )
            case re.Pattern():
                return _hash("pattern", self.value(value.pattern, name), value.flags)
            case enum.Enum():
                return _hash(
                    "enum", self.value(type(value), name), value.name or "", self.value(value.value, name)
                )
            case type():
                return self._class(value)
            case types.GenericAlias() | types.UnionType():
                return _hash("alias", repr(value))
            case types.CellType():
                return _hash("cell", self.value(value.cell_contents, name))
            case _:
                return self._object(value, name)

    def _pairs(self, items: Iterable[tuple[Any, Any]], name: str) -> list[bytes]:
        return [
            _hash(
                self.value(key, name),
                self.value(item, f"{name}[{key!r:.40}]" if isinstance(key, str) else name),
            )
            for key, item in items
        ]

    def _sorted(self, items: Iterable[Any], name: str) -> list[bytes]:
        """The elements' digests in an order that does not depend on hashes: that of their digests taken
        alone.
        """
        alone = []
        for item in items:
            simple = _simple(item)
            alone.append((simple if simple is not None else Normaliser().digest(item), item))
        alone.sort(key=lambda pair: pair[0])
        return [self.value(item, name) for _, item in alone]

    # -- functions -------------------------------------------------------------------------------------------

    def _function(self, fn: types.FunctionType) -> bytes:
        if not is_user_module(fn.__module__) and _found(fn.__module__, fn.__qualname__) is fn:
            return _hash("library", fn.__module__, fn.__qualname__)
        number, definition = self._define(fn, fn.__qualname__)
        defaults = [self.value(item, f"a default of {fn.__qualname__}") for item in fn.__defaults__ or ()]
        keywords = self._pairs((fn.__kwdefaults__ or {}).items(), f"a default of {fn.__qualname__}")
        closure = []
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            try:
                closure.append(_hash(name, self.value(cell.cell_contents, f"{name} of {fn.__qualname__}")))
            except ValueError:
                closure.append(_hash(name, "empty"))
        attributes = {name: item for name, item in vars(fn).items() if name != "__wrapped__"}
        definition.digest = _hash(
            "function",
            self.code(fn.__code__),
            _hash(*defaults),
            _hash(*keywords),
            _hash(*closure),
            _hash(*self._globals(fn)),
            self.value(attributes, fn.__qualname__),
        )
        return _hash("definition", number)

    def _define(self, obj: object, name: str) -> tuple[int, Definition]:
        definition = Definition(name.rpartition("<locals>.")[2])
        number = self._numbers[id(obj)] = len(self.definitions)
        self.definitions.append(definition)
        self._keep.append(obj)
        return number, definition

    def _globals(self, fn: types.FunctionType) -> list[bytes]:
        """What the function and those inside it take from its module and from modules of the program."""
        used: dict[str, None] = {}
        texts: set[str] = set()
        for code in _codes(fn.__code__):
            used.update(dict.fromkeys(code.co_names))
            texts.update(item for item in code.co_consts if isinstance(item, str))
        loaded = {
            op.argval
            for code in _codes(fn.__code__)
            for op in dis.get_instructions(code)
            if op.opname in ("LOAD_GLOBAL", "LOAD_NAME")
        }
        result = []
        for name in sorted(loaded):
            if name in fn.__globals__:
                value = fn.__globals__[name]
                label = f"{name} of {fn.__qualname__}"
                result.append(_hash(name, self._module_or_value(value, {*used, *texts}, label)))
            else:
                result.append(_hash(name, "builtin"))
        from onefold.compute.functions import imports

        for name in sorted(set(imports(fn))):
            module = sys.modules.get(name)
            if module is not None and is_user_module(name):
                result.append(_hash("import", name, self._module(module, {*used, *texts}, name)))
        return result

    def _module_or_value(self, value: object, used: set[str], label: str) -> bytes:
        if isinstance(value, types.ModuleType) and is_user_module(value.__name__):
            return self._module(value, used, label)
        return self.value(value, label)

    def _module(self, module: types.ModuleType, used: set[str], label: str) -> bytes:
        """A module of the program by those of its names that the code mentions."""
        if id(module) in self._open:
            return _hash("module above")
        self._open[id(module)] = len(self._open)
        try:
            return _hash(
                "module",
                *(
                    _hash(name, self._module_or_value(vars(module)[name], used, f"{label}.{name}"))
                    for name in sorted(used & vars(module).keys())
                    if not name.startswith("__")
                ),
            )
        finally:
            del self._open[id(module)]

    def code(self, code: types.CodeType) -> bytes:
        """Instructions with their arguments by value and jumps by position, without lines, names of files or
        docstrings.
        """
        ops = [op for op in dis.get_instructions(code) if op.opname not in ("EXTENDED_ARG", "CACHE", "NOP")]
        offsets = [op.offset for op in ops]
        parts: list[bytes] = []
        for op in ops:
            if op.opcode in dis.hasconst:
                argument = self.value(op.argval, code.co_name)
            elif op.opcode in dis.hasjrel or op.opcode in dis.hasjabs:
                argument = _hash(_position(offsets, op.argval))
            elif op.arg is None:
                argument = b""
            elif isinstance(op.argval, str | int):
                argument = _hash(op.argval, op.argrepr if op.opcode in dis.hascompare else "")
            else:
                argument = _hash(op.arg)
            parts.append(_hash(op.opname, argument))
        handlers = [
            _hash(
                _position(offsets, e.start),
                _position(offsets, e.end),
                _position(offsets, e.target),
                e.depth,
                e.lasti,
            )
            for e in getattr(dis.Bytecode(code), "exception_entries", ())
        ]
        shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        return _hash("code", *shape, *arguments, _hash(*parts), _hash(*handlers))

    # -- classes and objects ---------------------------------------------------------------------------------

    def _class(self, cls: type) -> bytes:
        if not is_user_module(cls.__module__):
            return _hash("library", cls.__module__, cls.__qualname__)
        number, definition = self._define(cls, cls.__qualname__)
        members = [
            _hash(name, self._member(member, f"{cls.__qualname__}.{name}"))
            for name, member in vars(cls).items()
            if name not in _SKIPPED_ATTRIBUTES
        ]
        annotations = [
            _hash(name, _type_name(kind)) for name, kind in vars(cls).get("__annotations__", {}).items()
        ]
        enumerated = [
            _hash(name, self.value(member.value, f"{cls.__qualname__}.{name}"))
            for name, member in getattr(cls, "__members__", {}).items()
            if issubclass(cls, enum.Enum)
        ]
        definition.digest = _hash(
            "class",
            *(self.value(base, cls.__qualname__) for base in cls.__bases__),
            _hash(*sorted(members)),
            _hash(*annotations),
            _hash(*enumerated),
        )
        return _hash("definition", number)

    def _member(self, member: object, name: str) -> bytes:
        if isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType):
            return _hash("slot")
        if isinstance(member, enum.Enum):
            return _hash("member", member.name)
        return self.value(member, name)

    def _builtin(self, fn: Any, name: str) -> bytes:
        owner = getattr(fn, "__self__", None)
        if owner is None or isinstance(owner, types.ModuleType):
            return _hash("builtin", fn.__module__ or "", fn.__qualname__)
        return _hash("bound", self.value(owner, name), fn.__name__)

    def _object(self, value: Any, name: str) -> bytes:
        from onefold.compute.normal_data import data_form

        if hasattr(value, "cache_parameters") and hasattr(value, "__wrapped__"):
            return _hash(
                "cached", self.value(value.__wrapped__, name), self.value(value.cache_parameters(), name)
            )
        form = data_form(value)
        if form is not None:
            return _hash("data", self.value(form, name))
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:
            return self._unknown(name, value, str(error))
        if isinstance(reduced, str):
            return _hash("global", type(value).__module__, reduced)
        made, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        return _hash(
            "object",
            self.value(made, name),
            *(self.value(item, name) for item in arguments),
            self.value(state, name),
            *(self.value(item, name) for item in (() if items is None else items)),
            *self._pairs(() if pairs is None else pairs, name),
        )

    def _unknown(self, name: str, value: object, why: str) -> bytes:
        self.unstable.append(f"{name} is a {type(value).__qualname__} without a canonical form ({why:.200})")
        return secrets.token_bytes(_SIZE)


def _simple(value: object) -> bytes | None:
    """The digest of a value that holds no others, by type and content."""
    kind = type(value)
    if value is None or value is Ellipsis or value is NotImplemented or kind is bool:
        return _hash("constant", repr(value))
    if kind is int or kind is str or kind is bytes:
        return _hash("plain", value)  # type: ignore[arg-type]
    if kind is float:
        return _hash("float", struct.pack(">d", value))
    if kind is complex:
        return _hash("complex", struct.pack(">dd", value.real, value.imag))  # type: ignore[attr-defined]
    if kind is bytearray:
        return _hash("bytearray", bytes(value))  # type: ignore[call-overload]
    if kind is range or kind is slice:
        return _hash(kind.__name__, repr(value))
    if kind in (datetime.date, datetime.time, datetime.datetime) and getattr(value, "tzinfo", None) is None:
        return _hash(kind.__name__, value.isoformat(), str(getattr(value, "fold", 0)))  # type: ignore[attr-defined]
    return None


def _hash(*parts: bytes | str | int) -> bytes:
    """BLAKE2b of parts with their types and lengths, so that no two lists of parts run together."""
    state = hashlib.blake2b(digest_size=_SIZE)
    for part in parts:
        if isinstance(part, str):
            data, tag = part.encode("utf-8", "surrogatepass"), b"s"
        elif isinstance(part, int):
            data, tag = str(int(part)).encode(), b"i"
        else:
            data, tag = part, b"b"
        state.update(tag + len(data).to_bytes(8, "big"))
        state.update(data)
    return state.digest()


hash_parts: Callable[..., bytes] = _hash


def _codes(code: types.CodeType) -> Iterable[types.CodeType]:
    from onefold.compute.functions import codes

    return codes(code)


def _position(offsets: list[int], offset: int) -> int:
    """The number of the first instruction at or after an offset."""
    from bisect import bisect_left

    return bisect_left(offsets, offset)


def _found(module: str | None, qualname: str) -> object:
    found: Any = sys.modules.get(module or "")
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _type_name(kind: object) -> str:
    return kind if isinstance(kind, str) else kind.__qualname__ if isinstance(kind, type) else repr(kind)
