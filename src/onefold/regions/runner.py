"""The exchange of one shard with one other region, step by step: ask, append what came, say when to look again.

No thread and no sleep: its driver has those. So the same steps run between the regions of a folder, between nodes and in
a simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final, Protocol

from onefold.available import exchange
from onefold.available.exchange import Ask, Reply
from onefold.available.ops import Answer, AvailableOp, Beat, Outcome, available_op, decode_outcome
from onefold.available.regions import read_self
from onefold.env import Env
from onefold.ids import new_id
from onefold.regions.pulling import Beats, Pull, says_lost
from onefold.shard.api import Shard

APPEND_S: Final = 2.0
"""An append of the exchange is given up after so long, and tried again later: programs go first."""


class Transport(Protocol):
    """The way to one other region. Whatever it raises as an OnefoldError means that the region was not reached."""

    def ask(self, shard: int, asked: Ask, bytes_max: int) -> Reply:
        """Its answer to this. It may wait for something to answer, as long as it likes to."""
        ...

    def sync(self, shard: int, id: str) -> AbstractContextManager[Iterator[AvailableOp]]:
        """Its rows, as ``exchange.sync_ops`` gives them."""
        ...


class Runner:
    """Pulls one shard of a region from one other region. For one thread at a time."""

    def __init__(
        self,
        shard: Shard,
        index: int,
        number: int,
        transport: Transport,
        *,
        stops: Callable[[], bool] = lambda: False,
    ) -> None:
        """``shard``: this region's log, ``index`` which one of the space; ``number``: the other region's. ``stops``: whether a
        full sync that is under way is to be given up."""
        self.pull = Pull(number)
        self.heard_s: float | None = None
        """When it has answered last, in seconds of the boot clock."""
        self.imports = 0
        """How many records of what the other region did were appended."""
        self._shard = shard
        self._index = index
        self._transport = transport
        self._stops = stops

    def step(self) -> float | None:
        """Ask once, and append what came of it. When to do so again, in seconds of the boot clock (now: there is more); None:
        when something has changed there.

        Raises as ``Shard.view`` and ``Shard.submit``, and what the transport raises; then it is to be tried again at
        ``pull.again_s``.
        """
        env, pull = self._shard.env, self.pull
        try:
            with self._shard.view() as view:
                me, asked = read_self(view), exchange.ask(view)
                now_ms = max(view.head().now_ms, env.wall_ms())
            if not pull.may_ask(me):
                pull.again_s = None
                return None
            reply = self._transport.ask(self._index, asked, pull.bytes_max)
            now_s = self.heard_s = env.boot_s()
            cap = pull.cap(me, reply, now_ms)
            if cap is not None:
                self._append(cap)
            if reply.state == "sync" and self._has_moved_on(asked, reply):
                pull.again_s = now_s
                return now_s
            lost = says_lost(me, reply) and self._has_lost(reply)
            found = pull.heard(me, reply, now_s, now_ms, lost=lost)
            if found is not None:
                began_s = env.boot_s()
                outcome = self._append(found)
                self.imports += 1
                pull.imported(outcome, env.boot_s(), env.boot_s() - began_s)
            elif pull.state == "behind" and self._sync():
                pull.again_s = env.boot_s()
            elif pull.state == "behind":
                pull.failed(env.boot_s())
        except BaseException:
            pull.failed(env.boot_s())
            raise
        return pull.again_s

    def _has_lost(self, reply: Reply) -> bool:
        """Whether that is so now, with all that was acknowledged here. A replica that may be behind its log cannot know: there
        the other region finds that out, when it asks."""
        if not self._shard.strong_reads:
            return False
        with self._shard.view() as view:
            return says_lost(read_self(view), reply)

    def _has_moved_on(self, asked: Ask, reply: Reply) -> bool:
        """Whether this region knows more by now of what is not kept there any more. It asked with a replica that was behind its
        log, and others have brought that over meanwhile: what all are known to know is dropped."""
        self._shard.barrier(APPEND_S)
        with self._shard.view() as view:
            known = read_self(view).have()
        return known.get(reply.origin, 0) > asked.have.get(reply.origin, 0)

    def _sync(self) -> bool:
        """Take the other region's rows; whether they are here."""
        with self._transport.sync(self._index, new_id("sync", self._shard.env)) as found:
            for op in found:
                outcome = self._append(op)
                while exchange.continues(op, outcome) and not self._stops():
                    outcome = self._append(op)
                if self._stops() or not isinstance(outcome, Answer) or not outcome.value:
                    return False
        return True

    def _append(self, op: AvailableOp) -> Outcome:
        return append(self._shard, op)


class Beating:
    """Has one shard of a region make effects without writes, where others wait for one."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._beats = Beats()

    def step(self) -> float | None:
        """Make one if it is due. When one will be, in seconds of the boot clock; None: nothing waits for one, as things are.

        Raises as ``Shard.view`` and ``Shard.submit``.
        """
        env = self._shard.env
        with self._shard.view() as view:
            due_s = self._beats.due_s(read_self(view), env.boot_s())
        if due_s is None or due_s > env.boot_s():
            return due_s
        append(self._shard, Beat())
        self._beats.made(env.boot_s())
        return None


def append(shard: Shard, op: AvailableOp) -> Outcome:
    """Append an operation of the exchange; its outcome. Raises as ``Shard.submit``."""
    deadline = _deadline(shard.env)
    return decode_outcome(shard.submit([available_op(op)], deadline)[0])


def _deadline(env: Env) -> float:
    return env.boot_s() + APPEND_S
