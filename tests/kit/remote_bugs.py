"""Planted bugs of what answers programs without a replica, and of those; see ``bugs``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import msgspec

from onefold.shard.remote.server import Server
from onefold.shard.remote.shard import RemoteShard
from onefold.shard.requirements import ReadRequirement
from onefold.shard.writer import LogWriter


def _ignored_after(stack: ExitStack) -> None:
    """A node answers from what it has, however much the asker has seen."""
    original = Server.parse

    def parse(self: Server, request: bytes) -> Any:
        return msgspec.structs.replace(original(self, request), after=0)

    stack.enter_context(patch.object(Server, "parse", parse))


def _ignored_barrier(stack: ExitStack) -> None:
    """A node answers strong reads from what it has."""
    stack.enter_context(patch.object(Server, "unmet", lambda *_: False))


def _outcome_of_another_number(stack: ExitStack) -> None:
    """A writer takes what is known of its last record for the outcome of this one."""

    def outcomes(self: LogWriter, client: str, number: int) -> Any:
        known = self._shard.known(client)
        if known is None:
            return None
        self._number = number
        return known.outcomes

    stack.enter_context(patch.object(LogWriter, "_outcomes", outcomes))


def _unpinned_view(stack: ExitStack) -> None:
    """Each read of a view, or of a moment, shows what is newest then."""

    original = RemoteShard.ask

    def ask(self: RemoteShard, what: Any, need: ReadRequirement | None, at: int | None = None) -> Any:
        return original(self, what, need)

    stack.enter_context(patch.object(RemoteShard, "ask", ask))


def _no_floor(stack: ExitStack) -> None:
    """What one replica has shown is forgotten when another one is asked."""
    original = RemoteShard.ask

    def ask(self: RemoteShard, what: Any, need: ReadRequirement | None, at: int | None = None) -> Any:
        return original(self, what, (need or ReadRequirement())._replace(shown=False), at)

    stack.enter_context(patch.object(RemoteShard, "ask", ask))


def _fresh_when_answered(stack: ExitStack) -> None:
    """What was asked counts as fresh from the moment when the answer came, not from when it was asked for."""
    original = RemoteShard.ask

    def ask(self: RemoteShard, what: Any, need: ReadRequirement | None, at: int | None = None) -> Any:
        answer = original(self, what, need, at)
        self.freshness.prove(self.env.boot_s())
        return answer

    stack.enter_context(patch.object(RemoteShard, "ask", ask))


REMOTE_BUGS: dict[str, Callable[[ExitStack], None]] = {
    "ignored_after": _ignored_after,
    "ignored_barrier": _ignored_barrier,
    "outcome_of_another_number": _outcome_of_another_number,
    "unpinned_view": _unpinned_view,
    "no_floor": _no_floor,
    "fresh_when_answered": _fresh_when_answered,
}
"""By name."""
