"""For all tests on real clusters."""

import pytest

from onefold import config

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What succeeds in the end may take longer than a program would wait for it: a node that was just started is not there yet,
    and on a busy machine its start takes many seconds. Tests of limits give their own."""
    monkeypatch.setattr(config, "READ_TIMEOUT_S", PATIENCE_S)
    monkeypatch.setattr(config, "LIVE_VERSION_WAIT_S", 2 * PATIENCE_S)
