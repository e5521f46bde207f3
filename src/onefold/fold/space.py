"""The space contract: what compute and state stand on.

A ``Space`` is one open database of one process: it appends operations with exactly-once numbers (group commit over
threads), applies them, and gives consistent views of the folded state. ``open_space`` chooses the engine by URL.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from onefold.codec import Op
from onefold.fold.api import StoreView


class View(StoreView, Protocol):
    """The state as of one offset. Valid inside its ``with`` block only; used by one thread."""

    @property
    def offset(self) -> int:
        """The offset that this view shows."""
        ...


class Space(Protocol):
    """An open space (one shard in this version)."""

    @property
    def url(self) -> str:
        """As it can be opened again."""
        ...

    @property
    def directory(self) -> Path | None:
        """Where its files are; None for ``memory://``."""
        ...

    @property
    def incarnation(self) -> str:
        """See ``Log.incarnation``."""
        ...

    @property
    def applied(self) -> int:
        """The last offset applied here."""
        ...

    @property
    def member(self) -> str:
        """This process's id in the space: other processes can ask ``member_alive`` about it."""
        ...

    def submit(self, ops: Sequence[Op]) -> list[bytes]:
        """Append the operations in one record (perhaps beside other threads' operations), apply it, and return their
        outcomes in order. They commit together.

        Raises TooLarge, Unavailable, Timeout, SpaceError (definite), AppendUnknown (indefinite; only after it was retried
        under the same number), LogCorrupt.
        """
        ...

    def view(self) -> AbstractContextManager[View]:
        """A consistent view of the present state. Everything acknowledged before the call, by any process, is in it."""
        ...

    def wait(self, after: int, timeout: float | None) -> int:
        """Wait until something beyond offset ``after`` is applied, or the timeout; return the applied offset.

        Notices other processes' records within milliseconds, without busy polling.
        """
        ...

    def member_alive(self, member: str) -> bool | None:
        """True or False when that can be known for certain (a process of this machine), None when it cannot."""
        ...

    def close(self) -> None:
        """Release everything. Using the space afterwards raises SpaceError."""
        ...
