"""Normalised digests of Python values and functions: equal for equal meaning, in every process.

What counts: a function's instructions, constants, defaults, closure and every global that it uses, through
the functions and classes of the program that it calls. What does not: file names, line numbers, comments,
docstrings, annotations, the function's own name and module, the order of sets and the hash seed. Libraries
count by name only.

A value that has no canonical form (an open file, an object that cannot be reduced) gets a random digest:
unknown means that the task is run again. The reason is kept in ``unstable``.
"""

from __future__ import annotations

import enum
import functools
import logging
import re
import secrets
import sys
import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from onefold.compute.code.canonical.code import (
    DIGEST_BYTES,
    code_digest,
    hash_parts,
    imports,
    loaded_globals,
    mentioned,
)
from onefold.compute.code.canonical.data import bulk_digest, data_form, plain_digest
from onefold.compute.code.user_code import is_user_module
from onefold.machine.undisturbed import is_interrupt

_VALUES_MAX = 2_000_000
"""More values than this below one function are not looked through: its digest is random."""
_ABOUT_THE_FILE = frozenset(
    {"__file__", "__name__", "__doc__", "__spec__", "__package__", "__loader__", "__builtins__"}
)
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
        "__type_params__",
    ]
)
"""Attributes of classes that are names, documentation, or made from others that count."""


@dataclass
class Definition:
    """A function or class of the program that a digest rests on."""

    name: str
    """As the program calls it."""
    own: bytes = b""
    """Of its code and defaults, without the variables that it takes from outside."""
    digest: bytes = b""
    """Of all that it is made of, other definitions by number."""
    uses: dict[str, bytes] = field(default_factory=dict)
    """Variables from outside that are not definitions themselves: name -> digest."""


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
        return hash_parts("root", root, *(definition.digest for definition in self.definitions))

    def value(self, value: object, name: str) -> bytes:
        """The digest of a value; ``name`` says where it stands, for messages."""
        bulk = bulk_digest(value)
        if bulk is not None:
            return bulk
        self._visited += 1
        if self._visited > _VALUES_MAX:
            return self._unknown(name, value, "it holds too many values")
        simple = plain_digest(value)
        if simple is not None:
            return simple
        key = id(value)
        if key in self._numbers:
            return hash_parts("definition", self._numbers[key])
        if key in self._open:
            depth = self._open[key]
            self._lowest = min(self._lowest, depth)
            return hash_parts("cycle", len(self._open) - depth)
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
                return hash_parts("tuple", *(self.value(item, name) for item in value))
            case list() if type(value) is list:
                return hash_parts("list", *(self.value(item, name) for item in value))
            case dict() if type(value) is dict:
                return hash_parts("dict", *self._pairs(value.items(), name))
            case set() | frozenset() if type(value) in (set, frozenset):
                return hash_parts("set", *self._sorted(value, name))
            case types.MappingProxyType():
                return hash_parts("mapping", *self._pairs(value.items(), name))
            case types.FunctionType():
                return self._function(value)
            case types.MethodType():
                return hash_parts(
                    "method", self.value(value.__func__, name), self.value(value.__self__, name)
                )
            case functools.partial():
                parts = (value.func, value.args, tuple(value.keywords.items()))
                return hash_parts("partial", *(self.value(part, name) for part in parts))
            case types.BuiltinFunctionType() | types.MethodWrapperType():
                return self._builtin(value, name)
            case types.ModuleType():
                return hash_parts("module", value.__name__)
            case types.CodeType():
                return code_digest(value, self.value)
            case staticmethod() | classmethod():
                return hash_parts(type(value).__name__, self.value(value.__func__, name))
            case property():
                return hash_parts(
                    "property", *(self.value(part, name) for part in (value.fget, value.fset, value.fdel))
                )
            case set() | frozenset():
                return hash_parts("set", self.value(type(value), name), *self._sorted(value, name))
            case functools.cached_property():
                return hash_parts("cached property", self.value(value.func, name))
            case logging.Logger():
                return hash_parts("logger")  # Named after the module as a rule, and changes no result.
            case re.Pattern():
                return hash_parts("pattern", self.value(value.pattern, name), value.flags)
            case enum.Enum():
                return hash_parts(
                    "enum", self.value(type(value), name), value.name or "", self.value(value.value, name)
                )
            case type():
                return self._class(value)
            case types.GenericAlias() | types.UnionType():
                return hash_parts("alias", repr(value))
            case types.CellType():
                return hash_parts("cell", self.value(value.cell_contents, name))
            case _:
                return self._object(value, name)

    def _pairs(self, items: Iterable[tuple[Any, Any]], name: str) -> list[bytes]:
        return [
            hash_parts(
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
            simple = plain_digest(item)
            alone.append((simple if simple is not None else Normaliser().digest(item), item))
        alone.sort(key=lambda pair: pair[0])
        return [self.value(item, name) for _, item in alone]

    # -- functions

    def _function(self, fn: types.FunctionType) -> bytes:
        if not is_user_module(fn.__module__) and _found(fn.__module__, fn.__qualname__) is fn:
            return hash_parts("library", fn.__module__, fn.__qualname__)
        number, definition = self._define(fn, fn.__qualname__)
        if hasattr(fn, "registry") and hasattr(fn, "dispatch"):  # Made by functools.singledispatch.
            cases = (hash_parts(self.value(kind, ""), self.value(to, "")) for kind, to in fn.registry.items())
            definition.own = definition.digest = hash_parts("dispatch", *sorted(cases))
            return hash_parts("definition", number)
        label = f"a default of {fn.__qualname__}"
        defaults = [self.value(item, label) for item in fn.__defaults__ or ()]
        keywords = self._pairs((fn.__kwdefaults__ or {}).items(), label)
        attributes = {name: item for name, item in vars(fn).items() if name != "__wrapped__"}
        definition.own = hash_parts(
            "function",
            code_digest(fn.__code__, self.value),
            hash_parts(*defaults),
            hash_parts(*keywords),
            self.value(attributes, fn.__qualname__),
        )
        outside = {**self._closure(fn), **self._globals(fn)}
        for name, (value, digest) in outside.items():
            if id(value) not in self._numbers:
                definition.uses[name] = digest
        taken = (hash_parts(name, digest) for name, (_, digest) in outside.items())
        definition.digest = hash_parts("function", definition.own, *taken)
        return hash_parts("definition", number)

    def _define(self, obj: object, name: str) -> tuple[int, Definition]:
        definition = Definition(name.rpartition("<locals>.")[2])
        number = self._numbers[id(obj)] = len(self.definitions)
        self.definitions.append(definition)
        self._keep.append(obj)
        return number, definition

    def _closure(self, fn: types.FunctionType) -> dict[str, tuple[object, bytes]]:
        found: dict[str, tuple[object, bytes]] = {}
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:
                found[name] = (None, hash_parts("a variable that is not set"))
            else:
                found[name] = (value, self.value(value, f"{name} of {fn.__qualname__}"))
        return found

    def _globals(self, fn: types.FunctionType) -> dict[str, tuple[object, bytes]]:
        """What the function and those inside it take from its module and from modules of the program."""
        if not is_user_module(fn.__globals__.get("__name__")):
            return {}  # Made by a decorator of a library: its own globals are the library's.
        used = mentioned(fn)
        found: dict[str, tuple[object, bytes]] = {}
        for name in loaded_globals(fn):
            if name in _ABOUT_THE_FILE or name not in fn.__globals__:
                continue
            value = fn.__globals__[name]
            found[name] = (value, hash_parts("builtin"))
            self._from_outside(found, name, value, used, f"{name} of {fn.__qualname__}")
        for name in imports(fn):
            if is_user_module(name):
                self._from_outside(found, f"import {name}", sys.modules[name], used, name)
        return found

    def _from_outside(
        self,
        found: dict[str, tuple[object, bytes]],
        name: str,
        value: object,
        used: frozenset[str],
        label: str,
    ) -> None:
        """Add a variable; of a module of the program, those of its names that the code mentions."""
        if not isinstance(value, types.ModuleType) or not is_user_module(value.__name__):
            found[name] = (value, self.value(value, label))
            return
        found[name] = (value, hash_parts("module"))
        if id(value) in self._open:
            return
        self._open[id(value)] = len(self._open)
        try:
            for inner in sorted(used & vars(value).keys() - _ABOUT_THE_FILE):
                self._from_outside(found, f"{name}.{inner}", vars(value)[inner], used, f"{label}.{inner}")
        finally:
            del self._open[id(value)]

    # -- classes and objects ---------------------------------------------------------------------------------

    def _class(self, cls: type) -> bytes:
        if not is_user_module(cls.__module__):
            return hash_parts("library", cls.__module__, cls.__qualname__)
        number, definition = self._define(cls, cls.__qualname__)
        members = [
            hash_parts(name, self._member(member, f"{cls.__qualname__}.{name}"))
            for name, member in vars(cls).items()
            if name not in _SKIPPED_ATTRIBUTES
        ]
        annotations = [
            hash_parts(name, _type_name(kind)) for name, kind in vars(cls).get("__annotations__", {}).items()
        ]
        enumerated = [
            hash_parts(name, self.value(member.value, f"{cls.__qualname__}.{name}"))
            for name, member in getattr(cls, "__members__", {}).items()
            if issubclass(cls, enum.Enum)
        ]
        definition.own = definition.digest = hash_parts(
            "class",
            self.value(_struct_form(cls), cls.__qualname__),
            self.value(type(cls), cls.__qualname__),
            *(self.value(base, cls.__qualname__) for base in cls.__bases__),
            hash_parts(*sorted(members)),
            hash_parts(*annotations),
            hash_parts(*enumerated),
        )
        return hash_parts("definition", number)

    def _member(self, member: object, name: str) -> bytes:
        if isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType):
            return hash_parts("slot")
        if isinstance(member, enum.Enum):
            return hash_parts("member", member.name)
        return self.value(member, name)

    def _builtin(self, fn: Any, name: str) -> bytes:
        owner = getattr(fn, "__self__", None)
        if owner is None or isinstance(owner, types.ModuleType):
            return hash_parts("builtin", fn.__module__ or "", fn.__qualname__)
        return hash_parts("bound", self.value(owner, name), fn.__name__)

    def _object(self, value: Any, name: str) -> bytes:
        if hasattr(value, "cache_parameters") and hasattr(value, "__wrapped__"):
            return hash_parts(
                "cached", self.value(value.__wrapped__, name), self.value(value.cache_parameters(), name)
            )
        form = data_form(value)
        if form is not None:
            return hash_parts("data", self.value(form, name))
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:
            if is_interrupt(error):
                raise
            return self._unknown(name, value, str(error))
        if isinstance(reduced, str):
            return hash_parts("global", self.value(type(value), name), reduced)
        made, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        return hash_parts(
            "object",
            self.value(made, name),
            *(self.value(item, name) for item in arguments),
            self.value(state, name),
            *(self.value(item, name) for item in (() if items is None else items)),
            *self._pairs(() if pairs is None else pairs, name),
        )

    def _unknown(self, name: str, value: object, why: str) -> bytes:
        self.unstable.append(f"{name} is a {type(value).__qualname__} without a canonical form ({why:.200})")
        return secrets.token_bytes(DIGEST_BYTES)


def _found(module: str | None, qualname: str) -> object:
    found: Any = sys.modules.get(module or "")
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _type_name(kind: object) -> str:
    """An annotation as it would be written, whether or not it is kept as text."""
    if isinstance(kind, str):
        return kind
    return kind.__qualname__ if isinstance(kind, type) else re.sub(r" at 0x[0-9a-f]+", "", repr(kind))


def _struct_form(cls: Any) -> object:
    """Fields and options of a msgspec.Struct, which keeps them out of its own attributes."""
    if not hasattr(cls, "__struct_config__"):
        return None
    defaults = [getattr(item, "factory", item) for item in cls.__struct_defaults__]
    config = cls.__struct_config__
    options = {name: getattr(config, name) for name in dir(config) if not name.startswith("_")}
    return (cls.__struct_fields__, cls.__struct_encode_fields__, defaults, options)
