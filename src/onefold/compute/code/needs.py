"""What a stored job needs of the process that runs it: the Python and the versions of packages that it was submitted with.

Functions travel as bytecode and expressions in Polars' own form, so a node with others might fail in the middle of the work, or
worse, give other results. The requirements stand behind the pickled job, where they are read without loading any of it.
"""

from __future__ import annotations

import platform
import sys
from functools import lru_cache
from types import ModuleType
from typing import Final

import msgspec

from onefold.compute.code import trailers
from onefold.compute.code.canonical.code import imports
from onefold.compute.code.user_code import is_user_module

_MAGIC: Final = b"1FR"
_ALWAYS: Final = ("onefold", "polars", "cloudpickle")


class Requirements(msgspec.Struct, frozen=True, array_like=True):
    """Versions on the submitting side."""

    python: str
    """Such as ``3.11.7``; the first two numbers have to agree."""
    packages: tuple[tuple[str, str], ...]
    """(module, version of its package), sorted; these have to be the same."""


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Requirements)


def of_job(job: object) -> Requirements:
    """What this process has of all that the job's functions use, and of what always matters."""
    found = {name: _version(name) for name in (*_ALWAYS, *_used(job))}
    packages = tuple(sorted((name, version) for name, version in found.items() if version is not None))
    return Requirements(platform.python_version(), packages)


def seal(pickled: bytes, requirements: Requirements) -> bytes:
    """The bytes of a stored job with its requirements behind them; ``functions.load`` does not mind."""
    return trailers.appended(pickled, _encode(requirements), _MAGIC)


def sealed(data: bytes) -> Requirements | None:
    """The requirements behind a stored job; None where there are none (an earlier release wrote it)."""
    section = trailers.last(data, _MAGIC)
    try:
        return _decoder.decode(section[0]) if section is not None else None
    except msgspec.MsgspecError:
        return None


def without(data: bytes) -> bytes:
    """The bytes of a stored job without its requirements."""
    section = trailers.last(data, _MAGIC)
    return section[1] if section is not None else data


def mismatch(needed: Requirements) -> str | None:
    """How this process differs from what a job needs, naming both versions; None when it does not."""
    differences = []
    here = platform.python_version()
    if needed.python.split(".")[:2] != here.split(".")[:2]:
        differences.append(f"Python {needed.python} (here {here})")
    for name, version in needed.packages:
        mine = _version(name)
        if mine != version:
            differences.append(f"{name} {version} (here {mine or 'not installed'})")
    return ", ".join(differences) or None


def _used(job: object) -> set[str]:
    """Top-level names of the installed modules that the job's functions come from, name, or import."""
    from onefold.compute.code.functions import reachable

    names: set[str] = set()
    for fn, outside in reachable(job):
        names.add(fn.__module__ or "")
        names.update(imports(fn))
        for value in outside.values():
            if isinstance(value, ModuleType):
                names.add(value.__name__)
            else:
                names.add(getattr(value, "__module__", None) or type(value).__module__)
    tops = {name.partition(".")[0] for name in names if isinstance(name, str) and name}
    return {top for top in tops if top not in sys.stdlib_module_names and not is_user_module(top)}


@lru_cache(maxsize=4096)
def _version(module: str) -> str | None:
    """The version of the package that a top-level module belongs to; None when it is not installed."""
    from importlib import metadata

    if module == "onefold":
        from onefold._version import __version__

        return __version__
    try:
        return metadata.version(module)
    except metadata.PackageNotFoundError:
        pass
    for package in _packages().get(module, ()):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


@lru_cache(maxsize=1)
def _packages() -> dict[str, list[str]]:
    from importlib import metadata

    return dict(metadata.packages_distributions())
