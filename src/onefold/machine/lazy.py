"""Heavy modules that are imported when they are first used.

``import numpy`` costs as much as the rest of a re-run that finds nothing to do, and is needed only once frames are merged. Two
threads may need it first at the same moment: it is imported under ``first_use``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from onefold.machine.first_use import first_use


class LazyModule:
    """Stands for a module until something of it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        with first_use:
            module = import_module(self._name)
        value = getattr(module, attribute)
        setattr(self, attribute, value)
        return value
