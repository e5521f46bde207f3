"""Ends all programs that tests have started when the process of the tests ends, however it ends.

A process that is killed cleans nothing up: what it had started would keep running, some of it forever. So each process of the
tests has a *guardian*, which waits for its end and kills what is left then. Programs that were started are known by a variable
of their environment, which all descendants inherit, daemons too; forked children by a pipe that they have open.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VARIABLE = "TESTS_GUARDED_BY"
_PROGRAM = r"""
import os, select, signal, sys

watched, mark, pipe = int(sys.argv[1]), sys.argv[2].encode(), sys.argv[3]
try:
    held = os.pidfd_open(watched)
    os.write(1, b"!")
    os.close(1)
    select.select([held], [], [])
except ProcessLookupError:
    pass

def left():
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                mine = mark in file.read().split(b"\0")
            mine = mine or any(os.readlink(f"/proc/{name}/fd/{fd}") == pipe for fd in os.listdir(f"/proc/{name}/fd"))
        except OSError:  # gone, a zombie, or another user's
            continue
        if mine:
            yield int(name)

clear = 0
while clear < 20:  # looked again: some start others meanwhile, and one that is just being started shows no environment yet
    found = list(left())
    clear = 0 if found else clear + 1
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    select.select([], [], [], 0.05)
"""


def watch() -> None:
    """Guard what this process starts from now on; a second call does nothing. Only where there is ``/proc``."""
    if not possible() or guarded():
        return
    mark = f"{VARIABLE}={os.getpid()}-{secrets.token_hex(8)}"
    pipe, _ = os.pipe()  # inherited by what is forked, and closed in what is started
    environment = {key: text for key, text in os.environ.items() if key != VARIABLE}  # nobody's but its own
    guardian = subprocess.Popen(
        [
            sys.executable,
            "-S",
            "-E",
            "-c",
            _PROGRAM,
            str(os.getpid()),
            mark,
            str(Path(f"/proc/self/fd/{pipe}").readlink()),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    assert guardian.stdout is not None
    assert guardian.stdout.read() == b"!"
    guardian.stdout.close()
    guardian.returncode = 0  # it outlives this process, and nobody waits for it
    os.environ[VARIABLE] = mark.partition("=")[2]
    subprocess.Popen.__init__ = _marked(subprocess.Popen.__init__)  # type: ignore[method-assign]


def possible() -> bool:
    """Whether processes can be watched here."""
    return hasattr(os, "pidfd_open") and Path("/proc/self/environ").exists()


def guarded() -> bool:
    """Whether this process, and no parent of it, has a guardian."""
    return os.environ.get(VARIABLE, "").startswith(f"{os.getpid()}-")


def _marked(start: Any) -> Any:
    """Programs that get an environment of their own get the mark with it."""

    def start_marked(self: Any, args: Any, *more: Any, **options: Any) -> None:
        environment: Mapping[Any, Any] | None = options.get("env")
        if environment is not None:
            options["env"] = {**environment, VARIABLE: os.environ[VARIABLE]}
        start(self, args, *more, **options)

    return start_marked
