"""The command line: one file a group of commands. ``main`` is the entry point.

Nothing heavy is imported before a command needs it, so that ``--help`` and ``--version`` answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> None:
    """Run a command and end the process: 0 done, 1 the operation failed, 2 wrong usage, 130 interrupted."""
    from onefold.cli.app import app
    from onefold.errors import OnefoldError

    try:
        app(args=args, prog_name="onefold")
    except OnefoldError as error:
        print(f"onefold: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


__all__ = ["main"]
