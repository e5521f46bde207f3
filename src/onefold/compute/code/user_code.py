"""What belongs to the submitting program: modules that are neither the standard library, nor installed, nor
Onefold.
"""

from __future__ import annotations

import site
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import ModuleType

_INSTALLED_FOLDERS = ("site-packages", "dist-packages")
_SOURCE_SUFFIXES = (".py", ".pyc", ".ipynb")


def is_user_module(name: str | None) -> bool:
    """Whether the imported module of this name is part of the submitting program (``__main__`` and notebooks
    are).

    A module without a source file (built in, an extension, a namespace package) is not: it cannot travel by
    value.
    """
    if not name:
        return False
    if name in ("__main__", "__mp_main__"):
        return True
    if name.partition(".")[0] in sys.stdlib_module_names or name.partition(".")[0] == "onefold":
        return False
    module = sys.modules.get(name)
    return module is not None and _is_user_file(getattr(module, "__file__", None))


def user_modules() -> list[ModuleType]:
    """All modules of the submitting program that are imported now, except ``__main__``.

    In a child that ``multiprocessing`` has spawned, the program's main module is ``__mp_main__``.
    """
    return [
        module
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType) and name != "__main__" and is_user_module(name)
    ]


@lru_cache(maxsize=4096)
def _is_user_file(file: str | None) -> bool:
    if not file or not file.endswith(_SOURCE_SUFFIXES):
        return False
    path = Path(file).absolute()
    if any(part in _INSTALLED_FOLDERS for part in path.parts):
        return False
    return not any(path.is_relative_to(folder) for folder in _library_folders())


@lru_cache(maxsize=1)
def _library_folders() -> tuple[Path, ...]:
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders.update(site.getsitepackages())
    folders.add(site.getusersitepackages())
    return tuple(Path(folder).absolute() for folder in folders if folder)
