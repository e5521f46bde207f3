"""The command line: a package for each noun (jobs, collections, space, cluster), a file for each group of commands. ``main`` is
the entry point.

Nothing heavy is imported before a command needs it, so that ``--help`` and ``--version`` answer at once.

May import everything but ``testing``.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> None:
    """Run a command and end the process: 0 done, 1 the operation failed, 2 wrong usage, 130 interrupted."""
    from onefold.cli.app import app
    from onefold.errors import OnefoldError

    if sys.stdout is None:  # closed by who started this
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
    try:
        try:
            app(args=args, prog_name="onefold")
        finally:
            sys.stdout.flush()  # here, where a failure can still be reported
    except OnefoldError as error:
        print(f"onefold: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno not in _OUTPUT_FAILED or error.filename is not None:
            raise
        if error.errno != errno.EPIPE:  # nobody reads any more
            print(
                f"onefold: the output cannot be written: {error.strerror}. Write it elsewhere",
                file=sys.stderr,
            )
        # What Python flushes at its end must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


_OUTPUT_FAILED = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

__all__ = ["main"]
