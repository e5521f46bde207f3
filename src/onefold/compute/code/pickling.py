"""Pickling the program's own objects by value, where cloudpickle alone does not: caches, structs, big modules."""

from __future__ import annotations

import functools
import io
import sys
import typing
from types import CodeType, GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any

from onefold.compute.code.user_code import is_user_module
from onefold.machine.undisturbed import is_interrupt


def pickle(obj: object, names: frozenset[str] | None = None) -> bytes:
    """The object by cloudpickle; with ``names``, modules of the program hold only those of their names."""
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, item: Any) -> Any:
            if isinstance(item, _LRU_CACHE) and is_user_module(item.__module__):
                parameters = item.cache_parameters()
                return _cached, (item.__wrapped__, parameters["maxsize"], parameters["typed"])
            if isinstance(item, type) and _is_struct(item) and is_user_module(item.__module__):
                return _reduced_struct(item)
            if names is not None and isinstance(item, ModuleType) and _travels(item):
                kept = {name: value for name, value in vars(item).items() if name in names}
                return cloudpickle.cloudpickle.dynamic_subimport, (item.__name__, kept)
            if isinstance(item, CodeType):
                return _reduced_code(item, cloudpickle.Pickler.dispatch_table[CodeType](item))
            return super().reducer_override(item)

    with io.BytesIO() as out:
        Pickler(out, protocol=5).dump(obj)
        return out.getvalue()


def _travels(module: ModuleType) -> bool:
    return module.__name__ not in ("__main__", "__mp_main__") and is_user_module(module.__name__)


# -- code: later cloudpickles (3.1.3) forget its file, and then a traceback cannot show the user's lines

_FORGOTTEN = "<dynamic-code>"


def _reduced_code(code: CodeType, reduced: tuple[Any, tuple[Any, ...]]) -> Any:
    make, parts = reduced
    return make, tuple(
        code.co_filename if type(part) is str and part == _FORGOTTEN else part for part in parts
    )


# -- functools.lru_cache: pickle writes it as the name of its function, which stays behind

_LRU_CACHE = type(functools.lru_cache(len))


def _cached(fn: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize=maxsize, typed=typed)(fn)


# -- msgspec.Struct: its fields live in C, so a class has to be defined again from them

_CONFIG = (
    "tag", "tag_field", "omit_defaults", "forbid_unknown_fields", "frozen", "eq", "order", "repr_omit_defaults",
    "array_like", "gc", "weakref", "dict", "cache_hash",
)  # fmt: skip


def _is_struct(cls: type) -> bool:
    msgspec = sys.modules.get("msgspec")
    return msgspec is not None and issubclass(cls, msgspec.Struct)


def _reduced_struct(cls: Any) -> Any:
    import msgspec

    own = vars(cls).get("__annotations__", {})
    try:
        infos = {info.name: info for info in msgspec.structs.fields(cls) if info.name in own}
    except Exception as error:
        if is_interrupt(error):
            raise
        infos = {}  # types that cannot be resolved, such as a class of a function: kept as they are written
    required = len(cls.__struct_fields__) - len(cls.__struct_defaults__)
    defaults = dict(zip(cls.__struct_fields__[required:], cls.__struct_defaults__, strict=True))
    encoded = dict(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))
    fields = []
    for name, written in own.items():
        if name not in encoded:
            continue  # A ClassVar.
        kind = infos[name].type if name in infos and not _leads_to(infos[name].type, cls, set()) else written
        fields.append((name, kind, _field(encoded[name], name, defaults.get(name, msgspec.NODEFAULT))))
    config = {
        name: getattr(cls.__struct_config__, name) for name in _CONFIG if hasattr(cls.__struct_config__, name)
    }
    members = {
        name: member
        for name, member in vars(cls).items()
        if not isinstance(member, MemberDescriptorType | GetSetDescriptorType) and name not in _MADE_ANEW
    }
    # The methods come after the class itself, since they may name it.
    early = {name: members.pop(name) for name in ("__post_init__",) if name in members}
    made = (cls.__name__, cls.__qualname__, cls.__module__, cls.__bases__, fields, early, config)
    return _make_struct, made, members, None, None, _set_members


_MADE_ANEW = frozenset(
    ["__annotations__", "__dict__", "__doc__", "__match_args__", "__module__", "__qualname__", "__slots__",
     "__struct_config__", "__struct_defaults__", "__struct_encode_fields__", "__struct_fields__", "__weakref__"]
)  # fmt: skip


def _leads_to(kind: Any, cls: type, seen: set[int]) -> bool:
    """Whether a type is made with this class, itself or through fields of other structs: then it must stay a text."""
    import msgspec

    if kind is cls:
        return True
    if id(kind) in seen:
        return False
    seen.add(id(kind))
    inner: list[Any] = list(typing.get_args(kind))
    if isinstance(kind, type) and _is_struct(kind):
        try:
            inner += [info.type for info in msgspec.structs.fields(kind)]
        except Exception as error:
            if is_interrupt(error):
                raise
            return False
    return any(_leads_to(item, cls, seen) for item in inner)


def _field(encoded: str, name: str, default: Any) -> tuple[str | None, bool, Any]:
    """(name in encoded form if it differs, whether the default is a factory, the default)."""
    factory = type(default).__name__ == "Factory"
    return (encoded if encoded != name else None, factory, default.factory if factory else default)


def _make_struct(
    name: str,
    qualname: str,
    module: str,
    bases: tuple[type, ...],
    fields: list[tuple[str, Any, tuple[str | None, bool, Any]]],
    namespace: dict[str, Any],
    config: dict[str, Any],
) -> type:
    import msgspec

    made = []
    for field, kind, (encoded, factory, default) in fields:
        given = {"default_factory": default} if factory else {"default": default}
        made.append((field, kind, msgspec.field(name=encoded, **given)))
    cls = msgspec.defstruct(name, made, bases=bases, namespace=namespace, module=module, **config)
    cls.__qualname__ = qualname
    return cls


def _set_members(cls: type, members: dict[str, Any]) -> None:
    for name, member in members.items():
        setattr(cls, name, member)
