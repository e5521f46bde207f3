"""What a read must show, as one value: for spaces that are asked over a network, so that waiting and reading are one question.

A space with its state in this process needs none of it: there ``barrier``, ``fresh`` and ``reach`` come first and the view
second, at no cost. A space that ``takes_needs`` can be given both at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, TypeGuard

from onefold.errors import Unavailable
from onefold.shard.api import Shard, View


class ReadRequirement(NamedTuple):
    """What a view must show at least. One that names nothing is met by any replica."""

    after: int = 0
    """Everything up to this offset."""
    shown: bool = False
    """Everything that was shown here before, in whatever view."""
    barrier: bool = False
    """Everything acknowledged before it was asked for."""
    fresh_s: float | None = None
    """Everything acknowledged so many seconds before it was asked for."""
    timeout: float | None = None
    """Seconds that it may take; None: ``config.READ_TIMEOUT_S``."""
    seen: Callable[[int], None] | None = None
    """Called with the view's offset, once that is known."""


class Behind(Unavailable):
    """No replica that was asked has applied what the read must show, in the time that it had."""

    def __init__(self, message: str, applied: int = 0, *, definite: bool | None = None) -> None:
        super().__init__(message, definite=definite)
        self.applied = applied
        """As far as is known."""


class AskedShard(Shard, Protocol):
    """A space whose reads others answer, each by a question."""

    takes_needs: bool

    def view(
        self, at: int | None = None, need: ReadRequirement | None = None
    ) -> AbstractContextManager[View]:
        """As ``Shard.view``; with ``need`` a view that meets it. It is pinned by its first read (or by ``offset``), so
        errors come there. Raises Behind, Unavailable and TooStale, all definite."""
        ...

    def peek(self, table: str, key: bytes, need: ReadRequirement | None = None) -> tuple[bytes | None, int]:
        """As ``Shard.peek``; with ``need`` in a state that meets it."""
        ...


def takes_needs(shard: Shard) -> TypeGuard[AskedShard]:
    """Whether reads of the space are questions to others."""
    return getattr(shard, "takes_needs", False) is True
