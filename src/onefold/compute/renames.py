"""Module names in pickles of earlier releases, and what they are called now.

Stored jobs name the classes of plans, stages and aggregates by their module. Whoever moves such a module adds its former
name here, and removes none: a space is read by all later releases.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, Final

MODULES: Final[dict[str, str]] = {}
"""Former module name -> present module name."""


def present(module: str) -> str:
    """What the module is called now. Moves add up: a former name may lead to another former one."""
    seen = {module}
    while module in MODULES and MODULES[module] not in seen:
        module = MODULES[module]
        seen.add(module)
    return module


class Unpickler(pickle.Unpickler):
    """Finds classes under the present names of their modules."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or function that the pickle names."""
        return super().find_class(present(module), name)


def loads(data: bytes) -> Any:
    """``pickle.loads`` with the present names of modules."""
    return Unpickler(io.BytesIO(data)).load()


def loads_value(data: bytes) -> Any:
    """The same for values of users' programs: fast, since they seldom name a module of Onefold."""
    try:
        return pickle.loads(data)
    except (ImportError, AttributeError):
        if not MODULES:
            raise
        return loads(data)
