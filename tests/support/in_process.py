"""Jobs whose Python functions run in the tests' own process: small ones take no time to start workers."""

from __future__ import annotations

import pytest

from onefold.compute.execution import result_types
from onefold.compute.tasks import executor, kernels, worker
from onefold.compute.tasks import spec as tasks

_ASK_FOR_THEMSELVES = (executor, kernels, result_types, worker)
"""Imported before anything is replaced: these hold the question itself, which decides what a partial says of its rows."""


@pytest.fixture
def functions_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions run where expressions do; which process calls them changes no result."""
    monkeypatch.setattr(tasks, "has_python", lambda _stage: False)
