"""The arguments of all functions and classes that a program can have: the package's names, and what these return."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import onefold as of
import onefold.testing

NOT_PUBLIC = {"contents", "ends", "frame_of", "look", "__init__"}
"""Methods of handles that only Onefold calls, and objects that only Onefold makes."""
INTERNAL = {
    *("Env", "Known", "Layout", "Log", "MemoryShard", "PastView", "Peers", "PresentView", "RegionClient"),
    *("Shard", "ShardsClient", "StateClient", "View"),
}
"""Classes that only handles of Onefold's own give."""
MADE_BY_PROGRAMS = {"Simulation", "ScriptedSource", "FakeClock"}
"""Classes that a program calls itself."""

Argument = tuple[str, str, str]
"""Class (or module), function, argument."""


def functions_of(owner: type) -> Iterator[FunctionType]:
    for name in dir(owner):
        found = inspect.getattr_static(owner, name)
        found = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
        if inspect.isfunction(found) and (
            not name.startswith("_") or name in ("__init__", "__enter__", "__aenter__")
        ):
            yield found


def public_arguments(wanted: Callable[[str], bool]) -> dict[Argument, str]:
    """Those whose annotation is wanted, with it."""
    for module in pkgutil.walk_packages(of.__path__, "onefold."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    classes: dict[str, set[type]] = defaultdict(set)
    for name, loaded in list(sys.modules.items()):
        if name.startswith("onefold."):
            for one in vars(loaded).values():
                if inspect.isclass(one) and one.__module__.startswith("onefold."):
                    classes[one.__name__].add(one)
    entries = (of, of.aio, of.agg, of.window, onefold.testing)
    todo: list[Any] = [getattr(module, name) for module in entries for name in module.__all__]
    seen: set[int] = set()
    found: dict[Argument, str] = {}
    while todo:
        one = todo.pop()
        is_error = inspect.isclass(one) and issubclass(one, BaseException)
        if id(one) in seen or is_error or not getattr(one, "__module__", "").startswith("onefold"):
            continue
        seen.add(id(one))
        is_entry = inspect.isclass(one) and any(
            one is getattr(module, one.__name__, None) for module in entries
        )
        for function in (
            functions_of(one) if inspect.isclass(one) else (one,) if inspect.isfunction(one) else ()
        ):
            signature = inspect.signature(function)
            for word in re.findall(r"\w+", str(signature.return_annotation)):
                todo += classes.get(word, ())
            owner = one.__name__ if inspect.isclass(one) else one.__module__
            is_own = function.__name__ in NOT_PUBLIC or owner in INTERNAL
            if is_own and not (is_entry and owner in MADE_BY_PROGRAMS):
                continue
            for parameter in signature.parameters.values():
                if wanted(str(parameter.annotation)):
                    found[owner, function.__name__, parameter.name] = str(parameter.annotation)
    return found
