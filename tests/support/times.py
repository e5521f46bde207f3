"""The one variable that all leases, heartbeats and pauses of tests are scaled by.

``ONEFOLD_TEST_TIME_SCALE=3 pytest`` on a machine so slow that a process which works may be silent for seconds: it keeps its lease
then. Bounds of waits for a state are not scaled: they are generous, and only a failure takes that long.
"""

from __future__ import annotations

import os

SCALE = float(os.environ.get("ONEFOLD_TEST_TIME_SCALE", "1"))


def scaled(seconds: float) -> float:
    """A lease, a heartbeat or a pause, as long as this machine needs it."""
    return seconds * SCALE
