"""Lines of a file to which another process still writes.

The kernel shows a long write page by page, and a buffer may end in the middle of a line. So a reader may find half a line, or
half a character, at the end of the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def whole_lines(path: Path, skip: int = 0) -> list[str]:
    """The lines of a file behind its first ``skip`` bytes, without a last one that has no end yet. None: there is no file yet."""
    try:
        written = path.read_bytes()[skip:]
    except FileNotFoundError:
        return []
    return written[: written.rfind(b"\n") + 1].decode("utf-8", "replace").split("\n")[:-1]


def json_lines(path: Path, skip: int = 0) -> list[dict[str, Any]]:
    """Those of them that are JSON objects: a node's events, among what else it says."""
    return [json.loads(line) for line in whole_lines(path, skip) if line.startswith("{")]
