"""Files of the library that a test traces.

One that was moved, or that the test does not come by, would be traced without effect, and without a word of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onefold

LIBRARY = Path(onefold.__file__).parent


def library_files(*names: str) -> frozenset[str]:
    """Their paths, or those of folders, as ``co_filename`` has them. ``names``: from the package on, with ``/``."""
    paths = frozenset(str(LIBRARY / name) for name in names)
    missing = [path for path in paths if not Path(path).exists()]
    assert not missing, f"there is nothing to trace: {missing}"
    return paths


def check_met(wanted: Iterable[str], met: Iterable[str]) -> None:
    """Each of the wanted parts of paths is in one that was met."""
    paths = frozenset(met)
    unmet = [part for part in wanted if not any(part in path for path in paths)]
    assert not unmet, f"nothing was traced in {unmet}"
