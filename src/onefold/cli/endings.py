"""How commands end that would never end by themselves: SIGINT, SIGTERM, or nobody reads what they print any more."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def ended_from_outside(close: Callable[[], None]) -> Iterator[None]:
    """While the block runs, SIGINT, SIGTERM and a reader of stdout that goes away call ``close``."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda *_: close())
    with contextlib.suppress(OSError, ValueError):  # stdout is not a file
        threading.Thread(target=_await_hangup, args=(sys.stdout.fileno(), close), daemon=True).start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def until_nobody_reads() -> Iterator[None]:
    """A block that prints: it ends without an error where nobody reads any more."""
    try:
        yield
    except BrokenPipeError:
        # What Python flushes at its end must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _await_hangup(fd: int, close: Callable[[], None]) -> None:
    poll = select.poll()
    poll.register(fd, 0)
    for _, event in poll.poll():
        if event & (select.POLLERR | select.POLLHUP):
            close()
