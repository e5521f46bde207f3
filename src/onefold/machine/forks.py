"""What a fork must not take along: locks, pipes and database connections belong to the process that opened them.

A forked child would otherwise keep its parent's locks alive after the parent's death, and closing an inherited SQLite
connection could damage the file. So the child drops its copies at once, and using what was opened before the fork
raises SpaceError there.

Before a fork, what is tracked is brought to rest, so that the child inherits nothing that is in the middle of something; for at
most ``config.FORK_WAIT_S``.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import Protocol

from onefold import config
from onefold.errors import SpaceError


class Inherited(Protocol):
    """Something opened by this process that a forked child must drop."""

    def drop_after_fork(self) -> None:
        """Close file descriptors and forget connections without closing them. Takes no locks: their holders are gone."""
        ...


class Resting(Inherited, Protocol):
    """One that has to be at rest when the process is forked."""

    def rest_before_fork(self, deadline: float) -> None:
        """Come to rest, until ``deadline`` (of ``time.monotonic``) at the latest. Never raises."""
        ...

    def go_on_after_fork(self) -> None:
        """The fork is over; this is the parent."""
        ...


process = os.getpid()
"""This process's id. Kept here because asking the system costs as much as a read of a key, and every use of a handle asks."""
main_thread = threading.main_thread().ident
"""The thread in which signals are delivered."""
_open: weakref.WeakSet[Inherited] = weakref.WeakSet()
_resting: weakref.WeakSet[Resting] = weakref.WeakSet()
_rests: list[Resting] = []
_forking = threading.Lock()


def opened_before(what: str, again: str = "it") -> SpaceError:
    """The error for the use of something in a process that was forked after it was opened. ``again``: what to open there."""
    return SpaceError(f"{what} was opened before this process was forked. Open {again} again in the child")


def track(resource: Inherited) -> None:
    """Have ``resource.drop_after_fork()`` called in every forked child."""
    _open.add(resource)


def track_resting(resource: Resting) -> None:
    """The same, and have it at rest during every fork."""
    _open.add(resource)
    _resting.add(resource)


def _before() -> None:
    _forking.acquire()
    deadline = time.monotonic() + config.FORK_WAIT_S
    for resource in list(_resting):
        _rests.append(resource)
        resource.rest_before_fork(deadline)


def _in_parent() -> None:
    while _rests:
        _rests.pop().go_on_after_fork()
    _forking.release()


def _in_child() -> None:
    global process, main_thread
    process, main_thread = os.getpid(), threading.get_ident()  # the thread that forked is the only one
    _rests.clear()
    for resource in list(_open):
        resource.drop_after_fork()
    _open.clear()
    _resting.clear()
    _forking.release()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
