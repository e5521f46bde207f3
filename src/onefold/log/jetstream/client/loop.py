"""The event loop on which this process's NATS connections live: one daemon thread, started when first needed.

A forked child has no such thread; it starts its own when it opens something itself.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
import weakref
from typing import Protocol

from onefold.machine import forks, undisturbed

_STOP_WAIT_S = 1.0


class Closing(Protocol):
    """Something on the loop that must be closed before it ends."""

    def close(self) -> None:
        """Called on the loop's thread. May be called again."""
        ...


class _Current:
    """The running loop of this process."""

    def __init__(self) -> None:
        self.closing: weakref.WeakSet[Closing] = weakref.WeakSet()
        self.lock = threading.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread: threading.Thread | None = None
        self.inherited: list[asyncio.AbstractEventLoop] = []

    def drop_after_fork(self) -> None:
        if self.loop is not None:
            self.inherited.append(self.loop)  # kept: its collection would close what the parent's loop uses
        self.lock = threading.Lock()
        self.closing = weakref.WeakSet()
        self.loop = self.thread = None


_current = _Current()


def loop() -> asyncio.AbstractEventLoop:
    """The loop; started now if it does not run."""
    with _current.lock:
        if _current.loop is None:
            _current.loop = asyncio.new_event_loop()
            _current.thread = threading.Thread(
                target=_run, args=(_current.loop,), name="onefold-nats", daemon=True
            )
            _current.thread.start()
            forks.track(_current)
        return _current.loop


def on_loop() -> bool:
    """Whether the caller is the loop's thread, which must never wait for itself."""
    return threading.current_thread() is _current.thread


def close_at_end(what: Closing) -> None:
    """Have it closed when the process ends, if it is still there."""
    _current.closing.add(what)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    for each in list(_current.closing):
        each.close()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    with contextlib.suppress(RuntimeError):
        loop.run_until_complete(asyncio.sleep(0.01))  # a few turns, in which transports close
    loop.close()


def _at_exit() -> None:
    running, thread = _current.loop, _current.thread
    if running is None or thread is None:
        return
    undisturbed.wait_until_mended()  # which may need it
    with contextlib.suppress(RuntimeError):
        running.call_soon_threadsafe(running.stop)
    thread.join(_STOP_WAIT_S)


atexit.register(_at_exit)
