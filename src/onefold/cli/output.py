"""What commands print: grids for people, JSON with stable keys for programs."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from rich.console import Console

    from onefold.compute.runs import Run

_GAP: Final = 2
"""Between the columns of a grid."""
PIPE_WIDTH: Final = 240
"""Columns of what goes into a pipe: enough that nothing is cut, and not folded at 80."""


def emit(item: Any, *, indent: int | None = 2) -> None:
    """Print one JSON document. NaN and infinities become null, bytes base64, times ISO 8601, durations
    seconds."""
    json.dump(plain(item), sys.stdout, indent=indent, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def plain(item: Any) -> Any:
    """The same with nothing in it that JSON has no word for."""
    match item:
        case None | bool() | int() | str():
            return item
        case float():
            return item if math.isfinite(item) else None
        case bytes():
            return base64.b64encode(item).decode()
        case datetime() | date() | time():
            return item.isoformat()
        case timedelta():
            return item.total_seconds()
        case dict():
            return {str(key): plain(part) for key, part in item.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(part) for part in item]
        case _:
            return str(item)


def console() -> Console:
    """Where people read: as wide as the terminal, or wide enough for a pipe."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH, color_system=None)


def grid(heads: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under heads; a head is (text, whether its column is of numbers). The last column alone gives way: on a terminal
    that is too narrow for the others a line is as long as they are."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    where = console()
    widths = [
        max(cell_len(one) for one in column)
        for column in zip([text for text, _ in heads], *rows, strict=True)
    ]
    others = sum(widths[:-1]) + _GAP * len(widths)
    last = min(widths[-1], max(where.width - others, cell_len(heads[-1][0])))
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for (text, numbers), width in zip(heads, [*widths[:-1], last], strict=True):
        justify: Literal["left", "right"] = "right" if numbers else "left"
        table.add_column(text, justify=justify, no_wrap=True, overflow="ellipsis", width=width)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    where.print(table, width=max(where.width, others + last), crop=False, soft_wrap=False)


def say(text: str) -> None:
    """A sentence for people, on stderr: stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def local_time(ms: int) -> str:
    """Milliseconds since 1970 as a local date and time."""
    return datetime.fromtimestamp(ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def run_object(run: Run, *, errors: bool = False) -> dict[str, Any]:
    """A run for ``--json``: ``id, table, state, created, progress`` and, when asked for, ``errors`` and ``refusals``."""
    from onefold.errors import InvalidValue

    progress: dict[str, Any] | None = None
    with contextlib.suppress(InvalidValue):  # a live job whose functions cannot be loaded here
        progress = asdict(run.progress())
    found: dict[str, Any] = {
        "id": run.id,
        "table": run.table_name,
        "state": run.state,
        "created": datetime.fromtimestamp(run.created_ms / 1000, UTC).isoformat(),
        "progress": progress,
    }
    if errors and progress is not None:
        kept = run.errors()
        found["errors"] = [asdict(error) for error in kept]
        found["errors_complete"] = kept.complete
        found["refusals"] = [asdict(refusal) for refusal in run.refusals()]
    return found
