"""Importing everything that computes before threads of this process need it at the same time.

See ``machine.first_use``: what each thread imports by itself may reach it half made. A program imports little by little, since
most need only a part; a node has threads for batch jobs and for live ones, and needs nearly everything.
"""

from __future__ import annotations

import contextlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from importlib import import_module

import onefold.compute
from onefold.machine.first_use import first_use


@cache
def load_everything() -> None:
    """Import Polars, NumPy and every module of this package. Those whose extra is not installed are left out. A node does it
    when it sees its first job."""
    with first_use:
        _import(("polars", "numpy"))
        _import(one.name for one in pkgutil.walk_packages(onefold.compute.__path__, "onefold.compute."))


def load_for_tasks() -> None:
    """Import what every task needs, before several threads run tasks."""
    with first_use:
        _import(("polars", "onefold.compute.aggregates", "onefold.compute.tasks.executor"))


def load_numpy() -> None:
    """Import NumPy, which merging needs."""
    with first_use:
        _import(("numpy",))


def _import(names: Iterable[str]) -> None:
    for name in names:
        with contextlib.suppress(ImportError):
            import_module(name)
