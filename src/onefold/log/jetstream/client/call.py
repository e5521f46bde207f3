"""A coroutine on the loop that a thread waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any


class Call:
    """A coroutine that one thread waits for. Not a future: an interrupt could leave its lock held, and the loop takes it."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._work = work
        self._task: asyncio.Task[Any] | None = None
        self.turn = threading.Lock()
        self.turn.acquire()
        self.ended = False

    def begin(self) -> None:
        """On the loop's thread, as the following."""
        self._task = asyncio.get_running_loop().create_task(self._work())
        self._task.add_done_callback(self._end)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _end(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            task.exception()  # or asyncio logs that nobody looked, when the thread has stopped waiting
        self.ended = True
        self.turn.release()

    def result(self) -> object:
        """What it returned, or raises. After ``turn``."""
        return None if self._task is None else self._task.result()
