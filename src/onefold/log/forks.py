"""What a fork must not take along: locks, pipes and database connections belong to the process that opened them.

A forked child would otherwise keep its parent's locks alive after the parent's death, and closing an inherited SQLite
connection could damage the file. So the child drops its copies at once, and using what was opened before the fork
raises SpaceError there.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Inherited(Protocol):
    """Something opened by this process that a forked child must drop."""

    def drop_after_fork(self) -> None:
        """Close file descriptors and forget connections without closing them. Takes no locks: their holders are gone."""
        ...


_open: weakref.WeakSet[Inherited] = weakref.WeakSet()


def track(resource: Inherited) -> None:
    """Have ``resource.drop_after_fork()`` called in every forked child."""
    _open.add(resource)


def _in_child() -> None:
    for resource in list(_open):
        resource.drop_after_fork()
    _open.clear()


os.register_at_fork(after_in_child=_in_child)
