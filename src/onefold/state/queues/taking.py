"""A wait for a queue's next message: looks, each of which takes the message if there is one, and what to wait for in between."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any

from onefold import config
from onefold.backoff import Backoff, Deadline
from onefold.shard.api import View
from onefold.shard.waiters import NOTHING, Notice
from onefold.state.core.cancelling import Gate
from onefold.state.core.client import StateClient
from onefold.state.core.consistency import STRONG
from onefold.state.core.handover import Handover, carried_out
from onefold.state.core.time_limits import limited
from onefold.state.core.waiting import Awaited, Pause
from onefold.state.fold.queues import rows as q
from onefold.state.queues.messages import Message, received
from onefold.state.queues.watcher import QueueWatcher, Seen

if TYPE_CHECKING:
    from onefold.state.queues.queue import Queue

_PAUSE_S = (0.002, 0.1)


class Taking:
    """One wait. Looks are made one after the other, by any thread."""

    def __init__(
        self, queue: Queue[Any], watcher: QueueWatcher, timeout: float | None, gate: Gate | None
    ) -> None:
        """``timeout``: seconds. ``gate``: by which the wait can be given up from elsewhere."""
        self._queue = queue
        self._client: StateClient = queue.client
        self._watcher = watcher
        self._gate = gate
        self._interest: QueueNews | None = None
        self._deadline = Deadline.after(timeout, self._client.env)
        self._settles = True
        # Where a view may lag behind, the first look is the take itself: it stands in the log.
        self._must_ask = not self._client.always_strong
        self._looked = False
        self._backoff: Backoff | None = None
        self._seen_at = 0
        self._due = False
        """Whether a message is due by this clock and not by the log's."""

    @property
    def left_s(self) -> float | None:
        """How many seconds the wait may still take."""
        return self._deadline.left_s

    def look(self, handover: Handover[Message[Any]]) -> Pause | None:
        """Take a message if there is one, and put it into the handover. None: the wait is over."""
        client, deadline = self._client, self._deadline
        # The last look is at what is here by then; the limit is no reason to wait for the others again.
        late = self._looked and deadline.passed
        self._looked = True
        while True:
            # Every look, with the take that it leads to, is a call of its own: what comes at the end of the wait is taken with
            # the same time as what comes at its beginning.
            with limited(client):
                # What a transaction over several shards has put is there once it is decided.
                seen = self._watcher.look(STRONG if client.shard_count > 1 and not late else None)
                if self._settles and self._watcher.settle(seen, deadline.at_s):
                    self._settles = not deadline.passed
                    continue
                due = seen.next_due_ms is not None and seen.next_due_ms <= client.env.wall_ms()
                if self._gate is not None and self._gate.given_up():
                    return None
                if seen.counts.ready or due or self._must_ask:
                    carried_out(client, self._queue.shard, partial(self._take, handover))
                    if handover.result is not None:
                        return None
                self._must_ask = False
                break
        if deadline.passed:
            return None
        return self._pause(seen, due=due)

    def _take(self, handover: Handover[Message[Any]], _by: object) -> None:
        """Take one now, if there is one."""
        gate = self._gate
        if handover.unwanted or (gate is not None and not gate.enter()):
            return
        message = None
        try:
            taken = self._queue.take_one(handover)
            message = None if taken is None else received(taken)
        finally:
            if message is None and gate is not None:
                gate.leave()
        if message is not None:
            handover.keep(message)

    def _pause(self, seen: Seen, *, due: bool) -> Pause:
        self._seen_at = seen.offset
        self._due = due and not seen.counts.ready
        if self._interest is None or self._backoff is None:  # most takes never come here
            self._interest, self._backoff = QueueNews(self._queue), Backoff(*_PAUSE_S)
        # What is due by this clock alone is asked for again, ever more slowly.
        look_s = self._backoff.pause_s() if self._due else self._quiet_s(seen)
        return Pause((Awaited(self._queue.shard, self._interest, seen.offset),), one_in_s=look_s)

    def _quiet_s(self, seen: Seen) -> float:
        """How long nothing can happen without a record."""
        quiet_s = math.inf
        if seen.next_due_ms is not None:
            quiet_s = max(0.001, (seen.next_due_ms - self._client.env.wall_ms()) / 1000)
        if seen.counts.flight or self._client.shard_count > 1:
            quiet_s = min(quiet_s, config.LEASE_LOOK_S)
        return quiet_s

    def wait(self, pause: Pause) -> None:
        """Wait in this thread until it is time for the next look."""
        shard, wait_s = self._client.shards[self._queue.shard], self._deadline.within(pause.one_in_s)
        if self._due:
            shard.pause(wait_s)
            return
        shard.wait(self._seen_at, None if wait_s == math.inf else wait_s)


class QueueNews:
    """What wakes those who wait for a message of a queue: one for each message that is ready."""

    def __init__(self, queue: Queue[Any]) -> None:
        self._env = queue.client.env
        self._table = q.queue_table(queue.name)
        self._row: bytes | None = b""

    @property
    def key(self) -> Hashable:
        return self._table

    @property
    def members(self) -> Collection[str]:
        return ()

    def check(self, view: View, after: int) -> Notice:  # noqa: ARG002
        row = view.get(self._table, q.HEAD)
        counts = q.Counts(row)
        if row == self._row and not counts.ready:
            return NOTHING  # what is ready again may have been away meanwhile, when one of the group looked
        self._row = row
        look_s = 0.0 if counts.outbox else config.LEASE_LOOK_S if counts.flight else math.inf
        if counts.delayed:
            due = next(view.scan(q.QUEUE_DUE, limit=1), None)
            if due is not None:
                look_s = min(look_s, max(0.0, (q.read_due_key(due[0])[0] - self._env.wall_ms()) / 1000))
        return Notice(counts.ready, None if look_s == math.inf else look_s)
