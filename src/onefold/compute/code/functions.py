"""How jobs travel: cloudpickle, with everything of the submitting program by value.

A worker, or another machine, has the installed libraries but not the program that submitted the job. So
functions and classes of the program's own modules are written into the pickle, whatever module they come
from, as cloudpickle does by itself only for ``__main__``. What functions import while they run is packed
next to them.
"""

from __future__ import annotations

import importlib
import pickle
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Literal, TypeAlias

from onefold.compute import renames
from onefold.compute.code import pickling
from onefold.compute.code.canonical.code import codes, imports, mentioned
from onefold.compute.code.user_code import is_user_module, user_modules
from onefold.errors import InvalidArgument, InvalidValue, OnefoldError
from onefold.machine.undisturbed import is_interrupt

Code: TypeAlias = Literal["pickle", "reference"]
"""Which functions a process runs: those that a job carries, or only those of packages that are installed here."""
_MAGIC = b"1FP"
_FORMAT = 1
_NOTE = pickle.PROTO + b"\x05" + pickle.SHORT_BINUNICODE
_registry = threading.Lock()


def dump(obj: object, note: str = "") -> bytes:
    """The object as bytes for ``load`` in another process of the same Python minor version.

    ``note``: ASCII text that the bytes begin with, for ``note_of``.

    Raises InvalidArgument that names the function and the variable that cannot travel, and says what to do.
    """
    header = _MAGIC + bytes((_FORMAT, sys.version_info.major, sys.version_info.minor)) + _noted(note)
    modules = _imported_inside(obj)
    with _by_value():
        try:
            return header + pickling.pickle((modules, obj))
        except Exception as error:
            if is_interrupt(error):
                raise
            narrowed = _narrowed(obj, modules)
            if narrowed is not None:
                return header + narrowed
            raise InvalidArgument(_why_not(obj, error)) from error


def _noted(note: str) -> bytes:
    """A pickle may begin with a value that it drops: every release loads what follows."""
    text = note.encode("ascii")
    return _NOTE + bytes((len(text),)) + text + pickle.POP if text else b""


def note_of(data: bytes) -> str:
    """What was noted with the object whose bytes begin with these; empty: nothing, or they are no such bytes."""
    start = len(_MAGIC) + 3
    if data[: len(_MAGIC)] != _MAGIC or data[start : start + len(_NOTE)] != _NOTE:
        return ""
    start += len(_NOTE)
    length = int.from_bytes(data[start : start + 1], "big")
    text = data[start + 1 : start + 1 + length]
    is_whole = data[start + 1 + length : start + 2 + length] == pickle.POP
    return text.decode("ascii", "replace") if is_whole else ""


def stored_by(data: bytes) -> tuple[str, bytes]:
    """(the Python that ``dump`` ran under, the pickle and what stands behind it). Raises InvalidValue for other bytes."""
    if data[: len(_MAGIC)] != _MAGIC or len(data) < len(_MAGIC) + 3:
        raise InvalidValue("these bytes are not a stored job")
    written, major, minor = data[len(_MAGIC) : len(_MAGIC) + 3]
    if written != _FORMAT:
        raise InvalidValue(
            f"this job is stored in format {written}, which a newer Onefold writes; update this one"
        )
    return f"{major}.{minor}", data[len(_MAGIC) + 3 :]


def load(data: bytes, *, code: Code = "pickle") -> Any:
    """What ``dump`` wrote. Raises InvalidValue for bytes of another Python version, or that are broken.

    ``code="reference"``: run no code that the bytes carry, and look functions up in installed packages instead; raises
    ``references.CodeRefused`` (an InvalidValue) where that does not do.
    """
    python, pickled = stored_by(data)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if python != here:
        raise InvalidValue(
            f"this job was submitted by Python {python}, but this process runs {here}; functions travel only within one minor "
            f"version. Run the workers with Python {python}, or submit the job again from here"
        )
    # Classes of a program that a spawned child ran say that they are of this module, which is not imported here.
    sys.modules.setdefault("__mp_main__", sys.modules["__main__"])
    try:
        if code == "reference":
            from onefold.compute.code import references

            modules, obj = references.load(pickled)
        else:
            modules, obj = renames.loads(pickled)
    except (ImportError, AttributeError) as error:
        raise InvalidValue(
            f"a stored job needs something that is not installed here: {error}. Install the libraries that "
            f"it imports"
        ) from error
    except OnefoldError:
        raise
    except Exception as error:  # unpickling runs code of users
        if is_interrupt(error):
            raise
        raise InvalidValue(
            f"a stored job cannot be loaded here: {type(error).__name__}: {error}. Submit the job again"
        ) from error
    for name, module in modules.items():
        sys.modules.setdefault(name, module)
    return obj


@contextmanager
def _by_value() -> Iterator[None]:
    """Let cloudpickle write the modules of the program by value, one thread at a time."""
    import cloudpickle

    with _registry:
        before = set(cloudpickle.list_registry_pickle_by_value())
        added = [module for module in user_modules() if module.__name__ not in before]
        for module in added:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in added:
                cloudpickle.unregister_pickle_by_value(module)


# -- what functions use --------------------------------------------------------------------------------------


def reachable(obj: object) -> Iterator[tuple[FunctionType, dict[str, Any]]]:
    """Functions of the program that the object leads to, each with its variables from outside, by name."""
    seen: set[int] = set()
    keep: list[object] = []
    pending: list[object] = [obj]
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        keep.append(item)
        if isinstance(item, FunctionType):
            outside = variables(item)
            yield item, outside
            pending.extend(outside.values())
        elif isinstance(item, ModuleType):
            continue
        else:
            pending.extend(_parts(item))


def _parts(item: object) -> list[object]:
    if isinstance(item, MethodType):
        return [item.__func__, item.__self__]
    if isinstance(item, dict):
        return list(item.values())
    if isinstance(item, list | tuple | set | frozenset):
        return list(item)
    if isinstance(item, type):
        if not is_user_module(item.__module__):
            return []
        members = [
            getattr(member, "__func__", getattr(member, "fget", member)) for member in vars(item).values()
        ]
        return [*members, *item.__bases__]
    if is_dataclass(item):
        return [getattr(item, part.name, None) for part in fields(item)]
    if hasattr(item, "func") and hasattr(item, "args"):
        return [item.func, item.args, getattr(item, "keywords", None)]
    if hasattr(item, "__wrapped__"):
        return [item.__wrapped__]
    if is_user_module(type(item).__module__):
        return [type(item), *getattr(item, "__dict__", {}).values()]
    return []


def variables(fn: FunctionType) -> dict[str, Any]:
    """What a function takes from outside, by name: defaults, closure, globals, and attributes of the
    program's modules.
    """
    found: dict[str, Any] = {}
    defaults = fn.__defaults__ or ()
    positional = fn.__code__.co_varnames[: fn.__code__.co_argcount]
    found.update(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
    found.update(fn.__kwdefaults__ or {})
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # An empty cell: a variable that is not set yet.
            continue
    if not is_user_module(fn.__module__) and not is_user_module(fn.__globals__.get("__name__")):
        return found
    for code in codes(fn.__code__):
        for name in code.co_names:
            if name in fn.__globals__ and name not in found:
                found[name] = fn.__globals__[name]
                for label, value in _module_attributes(name, found[name], code):
                    found.setdefault(label, value)
    return found


def _module_attributes(
    label: str, module: object, code: CodeType, depth: int = 3
) -> Iterator[tuple[str, Any]]:
    if not isinstance(module, ModuleType) or not is_user_module(module.__name__) or depth == 0:
        return
    for name in code.co_names:
        if name in vars(module):
            value = vars(module)[name]
            yield f"{label}.{name}", value
            yield from _module_attributes(f"{label}.{name}", value, code, depth - 1)


def _imported_inside(obj: object) -> dict[str, ModuleType]:
    """The program's modules that its functions import while they run, and their parents, to be packed too."""
    found: dict[str, ModuleType] = {}
    pending: list[object] = [obj]
    while pending:
        for fn, _ in reachable(pending.pop()):
            for name in imports(fn):
                for module_name in _with_parents(name):
                    module = _imported(module_name)
                    if module is not None and is_user_module(module_name) and module_name not in found:
                        found[module_name] = module
                        pending.extend(vars(module).values())
    return found


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _imported(name: str) -> ModuleType | None:
    if name not in sys.modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            if is_interrupt(error):
                raise
            return None  # not a module, or an import that is optional: the function will see for itself
    return sys.modules.get(name)


# -- what cannot travel --------------------------------------------------------------------------------------


def _narrowed(obj: object, modules: dict[str, ModuleType]) -> bytes | None:
    """Write modules of the program with only the names that reachable code mentions.

    ``import helpers`` makes cloudpickle write the whole module, though a function uses two names of it, and
    an open connection next to them would be in the way.
    """
    names: set[str] = set()
    for fn, _ in reachable((obj, [vars(module) for module in modules.values()])):
        names.update(mentioned(fn))
    try:
        return pickling.pickle((modules, obj), frozenset(names))
    except Exception as error:
        if is_interrupt(error):
            raise
        return None


def _why_not(obj: object, error: Exception) -> str:
    for fn, outside in reachable(obj):
        for name, value in outside.items():
            culprit = _cannot(value)
            if culprit is not None and not isinstance(value, FunctionType | type):
                return (
                    f"function {fn.__qualname__!r} ({fn.__code__.co_filename}:{fn.__code__.co_firstlineno}) "
                    f"uses {name!r}, "
                    f"a {type(value).__module__}.{type(value).__qualname__}, which cannot be sent to worker "
                    f"processes: "
                    f"{culprit}. Make it inside the function instead (open the file or connection there), "
                    f"or pass plain values"
                )
    return (
        f"the job cannot be sent to worker processes: {type(error).__name__}: {error}. Functions must use "
        f"only values "
        f"that can be pickled; make files, locks and connections inside the function"
    )


def _cannot(value: object) -> Exception | None:
    try:
        pickling.pickle(value)
    except Exception as error:
        if is_interrupt(error):
            raise
        return error
    return None
