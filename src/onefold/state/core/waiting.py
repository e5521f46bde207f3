"""What a look that found nothing says of the wait that follows, for callers that wait without a thread (``onefold.aio``); and the
wait of a thread for several shards."""

from __future__ import annotations

import math
import weakref
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from onefold.env import SystemEnv
from onefold.machine import undisturbed
from onefold.shard.api import View
from onefold.shard.waiters import ALL, Group, Interest, Notice, Waiters

if TYPE_CHECKING:
    from onefold.state.core.shards_client import ShardsClient


class Awaited(NamedTuple):
    """What ends a wait, in one shard."""

    shard: int
    interest: Interest
    offset: int
    """How far the look saw the shard."""
    place: int = 0
    """In the line, if those who wait for this stand in one."""


class Pause(NamedTuple):
    """Until when there is nothing to be found."""

    awaited: tuple[Awaited, ...]
    """Any of it may bring something to be found."""
    one_in_s: float = math.inf
    """After so many seconds one of those who await the first of it has to look, though nothing is written."""
    in_s: float = math.inf
    """After so many seconds this one has to."""


class Looking:
    """An iterator that waits by looks. These are for one that can do without some of them."""

    def handed(self, interests: Sequence[Interest]) -> bool:  # noqa: ARG002
        """Find the next of what it gives in what was read for all who wait for the same. Waits for nothing and reads nothing."""
        return False

    def quiet(self) -> Pause | None:
        """What a look would say now, when the one before has found all there was. None: look."""
        return None


def wait_any(client: ShardsClient, seen: Mapping[int, int], timeout: float | None) -> None:
    """Wait until something beyond what was seen is applied in any of the shards, or the timeout (seconds)."""
    if len(seen) == 1:
        ((shard, offset),) = seen.items()
        client.shards[shard].wait(offset, timeout)
    elif isinstance(client.env, SystemEnv):
        _wait_for_news(client, seen, timeout)
    else:
        _wait_in_turns(client, seen, timeout)


class _News:
    """What a thread waits for."""

    def __init__(self) -> None:
        self.have_come = False
        self.waiting = undisturbed.Waiters()


class Anything:
    """Any record is news."""

    key: Hashable = "anything"
    members: Collection[str] = ()

    def check(self, view: View, after: int) -> Notice:  # noqa: ARG002
        return ALL


class _OneThread(Group):
    """One thread, in one of the shards that it waits for."""

    def __init__(self, news: _News, offset: int) -> None:
        super().__init__(Anything(), offset)
        self._news = weakref.ref(news)
        """An interrupted wait may leave the group behind; its thread finds that nobody waits."""

    def notify(self, notice: Notice) -> bool:  # noqa: ARG002
        news = self._news()
        if news is not None:
            news.have_come = True
            news.waiting.notify()
        return news is not None

    def tend(self) -> None:
        """There is nothing to be done."""


def _wait_for_news(client: ShardsClient, seen: Mapping[int, int], timeout: float | None) -> None:
    """One thread can wait for one shard only: so others do, one for each shard, for all that wait in this way."""
    shared: dict[int, Waiters] = client.shared.setdefault("waiters", {})
    news, groups = _News(), []
    try:
        for shard, offset in seen.items():
            looking = shared.get(shard) or shared.setdefault(shard, Waiters(client.shards[shard]))
            group = _OneThread(news, offset)
            groups.append((looking, group))
            looking.add(group)
            news.have_come = news.have_come or max(looking.seen, group.checked) > offset
        news.waiting.wait_for(lambda: news.have_come, timeout)
    finally:
        for looking, group in groups:
            looking.remove(group)


def _wait_in_turns(client: ShardsClient, seen: Mapping[int, int], timeout: float | None) -> None:
    """Under a simulator, which has no threads."""
    deadline = None if timeout is None else client.env.boot_s() + timeout
    slice_s = max(0.002, 0.05 / len(seen))
    while True:
        for shard, offset in seen.items():
            if client.shards[shard].wait(offset, 0) > offset:
                return
        for shard, offset in seen.items():
            left = slice_s if deadline is None else min(slice_s, deadline - client.env.boot_s())
            if left <= 0:
                return
            if client.shards[shard].wait(offset, left) > offset:
                return
