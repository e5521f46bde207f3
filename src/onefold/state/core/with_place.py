"""Whether a ``with`` statement of the main thread is still inside its block.

A signal handler can raise at the entry of ``__exit__``: the block is over then, and nothing was called that could note it. So
where it matters, the frame of the statement is asked. In other threads no handler runs, and ``__exit__`` is always called.
"""

from __future__ import annotations

import dis
import inspect
import sys
from types import CodeType, FrameType
from typing import Any, NamedTuple

from onefold.machine import undisturbed

_SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_handlers: Any = getattr(dis, "_parse_exception_table", None)


class WithPlace(NamedTuple):
    """A ``with`` statement that was entered."""

    frame: FrameType
    at: int
    """The instruction that was calling ``__enter__``."""

    def is_over(self) -> bool:
        """Whether its block has certainly been left."""
        code = self.frame.f_code
        if _handlers is None or dis.opname[code.co_code[self.at]] != "BEFORE_WITH":
            return False  # somebody called ``__enter__``
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        if frame is None:
            return not code.co_flags & _SUSPENDABLE
        handlers = _reached(code, self.at + 2)
        return bool(handlers) and handlers[0] not in _reached(code, frame.f_lasti)


def with_place(depth: int) -> WithPlace | None:
    """The ``with`` statement whose ``__enter__`` is running ``depth`` frames above the caller. None in other threads than the
    main one."""
    if not undisturbed.in_main_thread():
        return None
    frame = sys._getframe(depth + 1)
    return WithPlace(frame, frame.f_lasti)


def _reached(code: CodeType, at: int) -> list[int]:
    """Where an exception that is raised there goes to, and one that is raised by that handler, and so on."""
    entries, found = _handlers(code), list[int]()
    while True:
        at = next((entry.target for entry in entries if entry.start <= at < entry.end), -1)
        if at < 0 or at in found:
            return found
        found.append(at)
