"""What a shard offers whose state is in this process or in a file of this machine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import apsw

from onefold.errors import LogCorrupt
from onefold.log.api import Log
from onefold.shard.requirements import ReadRequirement
from onefold.store import exactly_once
from onefold.store.replica import agrees
from onefold.store.snapshot import state_digest
from onefold.store.tables import PastView, PresentView, read_head

T = TypeVar("T")


class StateHere(ABC):
    """A part of ``onefold.shard.api.Shard``: its reads, and looking at the state as a whole."""

    @property
    def reads_here(self) -> bool:
        return True

    @property
    @abstractmethod
    def url(self) -> str:
        """See ``Shard.url``."""

    @property
    @abstractmethod
    def log(self) -> Log:
        """The log itself, for reading."""

    @property
    @abstractmethod
    def history(self) -> frozenset[str]:
        """Names of the tables whose history counts as state; see ``state_digest``."""

    @abstractmethod
    def check_usable(self) -> None:
        """See ``Shard.check_usable``."""

    @abstractmethod
    def meet(self, need: ReadRequirement) -> None:
        """Wait until what is applied here meets the requirement. Raises as ``Shard.view``."""

    @abstractmethod
    def _viewing(
        self, at: int | None, seen: Callable[[int], None] | None
    ) -> AbstractContextManager[PresentView | PastView]:
        """A view of what is applied here. ``seen``: called with the offset of the present."""

    @abstractmethod
    def _in_snapshot(self, read: Callable[[apsw.Connection], T]) -> T:
        """What ``read`` makes of the whole state, as of one offset."""

    def view(
        self, at: int | None = None, need: ReadRequirement | None = None
    ) -> AbstractContextManager[PresentView | PastView]:
        """See ``Shard.view``."""
        if need is None:
            return self._viewing(at, None)
        self.meet(need)
        return self._viewing(at, need.seen)

    def peek(
        self, table: str, key: bytes, need: ReadRequirement | None = None, at: int | None = None
    ) -> tuple[bytes | None, int]:
        """See ``Shard.peek``."""
        with self.view(at, need) as view:
            return view.get(table, key), view.offset

    def outcome(self, request_id: str, need: ReadRequirement | None = None) -> bytes | None:
        """See ``Shard.outcome``."""
        if need is not None:
            self.meet(need)
        return self._in_snapshot(lambda con: exactly_once.requested(con, request_id, read_head(con).now_ms))

    def state_digest(self) -> str:
        """A hash of the whole state: equal for all replicas that have applied the same offsets. Reads everything."""
        return self._in_snapshot(lambda con: state_digest(con, self.history))

    def verify(self) -> None:
        """Read the log again and compare it with what was applied. Raises LogCorrupt when they disagree."""
        self.check_usable()
        if not self._in_snapshot(lambda con: agrees(con, self.log)):
            raise LogCorrupt(f"the log of {self.url} is not the log that was applied. {self.mending}")

    mending = "Restore it from a snapshot"
    """What to do when log and state disagree."""
