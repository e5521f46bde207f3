"""The environment of programs that tests start and that import what the tests share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

TESTS = Path(__file__).parents[1]


def with_tests(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """This environment, in which a Python also finds ``kit`` and ``support``."""
    paths = (str(TESTS), environment.get("PYTHONPATH", ""))
    return {**environment, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
