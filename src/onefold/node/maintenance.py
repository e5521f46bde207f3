"""What a node does for the space in addition to answering, in a thread of its own: it may take long, and nothing waits for it.

Snapshots, archives, trimming, and looking again where nodes say different things. Each part is tried again at the next look.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from onefold import config
from onefold.env import Env
from onefold.errors import OnefoldError
from onefold.fold.nodes.state import Node
from onefold.node.hosting import Hosting, Replica
from onefold.node.members.membership import Membership
from onefold.node.members.placement import Placement
from onefold.node.telemetry.logging import JsonLog
from onefold.shard.api import View


@dataclass(frozen=True)
class Round:
    """What there is at one look."""

    membership: Membership
    nodes: Sequence[Node]
    placement: Placement
    hosted: Mapping[int, Replica]
    """The replicas that answer."""
    now_s: float
    view: Callable[[], AbstractContextManager[View]]
    """A view of shard 0."""


class Part(Protocol):
    """One of the duties."""

    def look(self, now: Round) -> None:
        """Do what is due. Raises OnefoldError when it could not be done."""
        ...


class Duty(Protocol):
    """As ``process.Duties``."""

    def look(self, membership: Membership, nodes: Sequence[Node], placement: Placement) -> None:
        """Who is there, as of now. Must not block."""
        ...

    def close(self) -> None:
        """End."""
        ...


class SeveralDuties:
    """Duties with threads of their own, as one. See ``process.Duties``."""

    def __init__(self, *duties: Duty) -> None:
        self._duties = duties

    def look(self, membership: Membership, nodes: Sequence[Node], placement: Placement) -> None:
        """All of them look."""
        for duty in self._duties:
            duty.look(membership, nodes, placement)

    def close(self) -> None:
        """End them all."""
        for duty in self._duties:
            duty.close()


class Maintenance:
    """Runs the parts. See ``process.Duties``."""

    def __init__(
        self, hosting: Callable[[], Hosting], parts: Mapping[str, Part], log: JsonLog, env: Env
    ) -> None:
        """``parts``: by name."""
        self._hosting = hosting
        self._parts = dict(parts)
        self._log = log
        self._env = env
        self._latest: tuple[Membership, Sequence[Node], Placement] | None = None
        self._due = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="onefold-maintenance", daemon=True)
        self._thread.start()

    def look(self, membership: Membership, nodes: Sequence[Node], placement: Placement) -> None:
        """Who is there, as of now."""
        first = self._latest is None
        self._latest = (membership, nodes, placement)
        if first:
            self._due.set()

    def kick(self) -> None:
        """Look soon: a boundary was reached."""
        self._due.set()

    def close(self) -> None:
        """End after what is being done."""
        self._ending.set()
        self._due.set()
        self._thread.join(config.APPEND_RETRY_S)

    def _run(self) -> None:
        while not self._ending.is_set():
            self._due.wait(config.UPKEEP_LOOK_S)
            self._due.clear()
            if self._ending.is_set():
                return
            self._round()

    def _round(self) -> None:
        hosted = self._hosting().ready()
        if self._latest is None or 0 not in hosted or not self._latest[0].epoch:
            return
        now = Round(*self._latest, hosted, self._env.boot_s(), hosted[0].view)
        for name, part in self._parts.items():
            if self._ending.is_set():
                return
            try:
                part.look(now)
            except OnefoldError as error:
                self._log.begins(f"{name}_stalled", f"{type(error).__name__}: {error}")
            except OSError as error:
                self._log.begins(f"{name}_stalled", f"{error.strerror} ({error.filename})", level="error")
            else:
                self._log.ends(f"{name}_stalled")
