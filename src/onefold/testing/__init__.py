"""The test kit: conformance suites, the simulator and the checkers. Product code does not import it.

To test a program that uses Onefold, start with ``Simulation`` and the fixtures of ``onefold.testing.plugin``.

May import everything but ``cli``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onefold.testing.clock import FakeClock
    from onefold.testing.fold_suite import check_fold
    from onefold.testing.history import History, Operation, Verdict
    from onefold.testing.linearizability import check_linearizable
    from onefold.testing.list_append import check_list_append
    from onefold.testing.log_suite import check_log
    from onefold.testing.scripted import ScriptedSource
    from onefold.testing.session_checks import check_prefix, check_session
    from onefold.testing.sim import Faults, Simulation
    from onefold.testing.workload_checks import check_bank, check_counter, check_queue, check_set

# Imported when first used: the pytest plugin lives in this package, and is loaded by every run of pytest.
_LAZY = {
    "FakeClock": "onefold.testing.clock",
    "Faults": "onefold.testing.sim",
    "History": "onefold.testing.history",
    "Operation": "onefold.testing.history",
    "ScriptedSource": "onefold.testing.scripted",
    "Simulation": "onefold.testing.sim",
    "Verdict": "onefold.testing.history",
    "check_bank": "onefold.testing.workload_checks",
    "check_counter": "onefold.testing.workload_checks",
    "check_fold": "onefold.testing.fold_suite",
    "check_linearizable": "onefold.testing.linearizability",
    "check_list_append": "onefold.testing.list_append",
    "check_log": "onefold.testing.log_suite",
    "check_prefix": "onefold.testing.session_checks",
    "check_queue": "onefold.testing.workload_checks",
    "check_session": "onefold.testing.session_checks",
    "check_set": "onefold.testing.workload_checks",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _LAZY:
        raise AttributeError(f"module 'onefold.testing' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "FakeClock",
    "Faults",
    "History",
    "Operation",
    "ScriptedSource",
    "Simulation",
    "Verdict",
    "check_bank",
    "check_counter",
    "check_fold",
    "check_linearizable",
    "check_list_append",
    "check_log",
    "check_prefix",
    "check_queue",
    "check_session",
    "check_set",
]
