"""Planted bugs: mistakes that somebody could make in the product, each of which the workloads must notice.

``planted(name)`` patches the product inside a ``with`` block; for tests of the tests only, one at a time in a process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import msgspec

from kit.remote_bugs import REMOTE_BUGS
from onefold.codec import Op
from onefold.shard.freshness import Freshness
from onefold.shard.memory import MemoryShard
from onefold.shard.requirements import ReadRequirement
from onefold.shard.writer import LogWriter
from onefold.state.core import leases, recovery
from onefold.state.core.client import StateClient
from onefold.state.core.consistency import STRONG
from onefold.state.core.tokens import encode_token
from onefold.state.fold import machine as state_fold
from onefold.state.fold.ops import Commit
from onefold.state.fold.queues import fold as queue_fold
from onefold.state.fold.queues import rows as q
from onefold.state.fold.queues.ops import ExpireLease
from onefold.state.fold.shards import fold as shard_fold
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.maps import map as maps
from onefold.state.maps import watch
from onefold.state.streams.consumer import Consumer
from onefold.state.transactions import moments
from onefold.store import exactly_once

Patch = Callable[[ExitStack], None]


@contextmanager
def planted(name: str | None) -> Iterator[dict[str, Any]]:
    """The bug is there inside the block. Gives options of the simulation that belong to it. Raises KeyError for a bug that is not
    in ``BUGS`` or ``REMOTE_BUGS``."""
    with ExitStack() as stack:
        if name is not None and name != "acknowledged_before_sync":
            (BUGS | REMOTE_BUGS)[name](stack)
        yield {"syncs": False} if name == "acknowledged_before_sync" else {}


def _shared_stale_barrier(stack: ExitStack) -> None:
    """A read joins a barrier whose append began before the read arrived."""
    original = MemoryShard.barrier

    def barrier(self: MemoryShard, timeout: float | None = None) -> int:
        joined = getattr(self, "_in_flight", None)
        if joined is not None:
            turn = self._appender._turns()
            joined.append(turn)
            if turn.wait(timeout):
                return self._replica.head.applied
            return original(self, timeout)
        waiting: list[Any] = []
        self._in_flight = waiting  # type: ignore[attr-defined]
        try:
            return original(self, timeout)
        finally:
            self._in_flight = None  # type: ignore[attr-defined]
            for turn in waiting:
                turn.end()

    stack.enter_context(patch.object(MemoryShard, "barrier", barrier))


def _no_barrier(stack: ExitStack) -> None:
    """A strong read shows what is here."""
    stack.enter_context(patch.object(MemoryShard, "barrier", lambda self, *_: self.applied))


def _no_dedupe(stack: ExitStack) -> None:
    """The numbers of clients are ignored: every copy of a record counts."""

    stack.enter_context(patch.object(exactly_once, "judge", lambda *_, **__: exactly_once.Verdict.APPLY))


def _ignored_token(stack: ExitStack) -> None:
    """A session reads without waiting for what it has seen."""
    original = StateClient._requirement

    def requirement(self: StateClient, *args: Any) -> ReadRequirement:
        return original(self, *args)._replace(after=0)

    stack.enter_context(patch.object(StateClient, "_requirement", requirement))
    stack.enter_context(patch.object(StateClient, "_reach", lambda *_: None))


def _write_only_validation(stack: ExitStack) -> None:
    """Of what a transaction read, only what it also writes is validated."""
    original = state_fold.StateFold._commit

    def commit(self: Any, store: Any, context: Any, op: Commit) -> Any:
        written = {
            (write.map, key)
            for write in op.writes
            if hasattr(write, "map")
            for key in [*(key for key, _ in getattr(write, "items", ())), *getattr(write, "keys", ())]
        }
        reads = tuple(read for read in op.reads if (read.map, read.key) in written)
        return original(self, store, context, msgspec.structs.replace(op, reads=reads))

    stack.enter_context(patch.object(state_fold.StateFold, "_commit", commit))


def _ranges_not_validated(stack: ExitStack) -> None:
    """Ranges that a transaction read may have changed."""
    original = state_fold.StateFold._commit

    def commit(self: Any, store: Any, context: Any, op: Commit) -> Any:
        return original(self, store, context, msgspec.structs.replace(op, spans=()))

    stack.enter_context(patch.object(state_fold.StateFold, "_commit", commit))


def _prepare_without_locks(stack: ExitStack) -> None:
    """A prepared transaction keeps nobody from changing what it has read and will write."""
    stack.enter_context(patch.object(shard_fold, "blockers", lambda *_: ()))
    stack.enter_context(patch.object(shard_fold, "_met", lambda *_: ()))


def _unresolved_reads(stack: ExitStack) -> None:
    """A read does not look whether what is prepared in its shard has been decided elsewhere."""
    stack.enter_context(patch.object(recovery, "_decided_in", lambda *_: ()))


def _moment_without_locks(stack: ExitStack) -> None:
    """A read-only transaction over several shards pins each of them though nothing is locked."""
    stack.enter_context(patch.object(moments._Hold, "_take", _only_noted))
    stack.enter_context(patch.object(moments._Hold, "release", lambda _: True))


def _only_noted(hold: Any, shard: int, claim: Any) -> bool:
    client = hold._client
    hold._offsets[shard] = client.shards[shard].barrier()
    with client.shards[shard].view() as view:
        hold._maps[shard] = moments._maps(view)
    return True


def _moment_after_release(stack: ExitStack) -> None:
    """The shards are pinned when the locks have been released."""
    original = moments._Hold.pin

    def pin(self: Any) -> Any:
        self._released = self.release()
        return original(self)

    stack.enter_context(patch.object(moments._Hold, "pin", pin))
    release = moments._Hold.release
    stack.enter_context(
        patch.object(
            moments._Hold,
            "release",
            lambda self: self._released if hasattr(self, "_released") else release(self),
        )
    )


def _lease_by_log_time(stack: ExitStack) -> None:
    """Who observes a lease measures it by the stamps of records instead of its own clock."""
    original = leases.Observer.look

    class LogTime:
        def __init__(self, now_ms: int) -> None:
            self._now_ms = now_ms

        def boot_s(self) -> float:
            return self._now_ms / 1000

    def look(self: Any, space: Any, subject: Any, seen: Any) -> Any:
        with space.view() as view:
            env, self._env = self._env, LogTime(view.head().now_ms)
        try:
            return original(self, space, subject, seen)
        finally:
            self._env = env

    stack.enter_context(patch.object(leases.Observer, "look", look))


def _old_epochs_expire(stack: ExitStack) -> None:
    """An observer's word that a lease is over counts although the lease has been renewed, or is another taker's by now."""
    original = queue_fold.KIND.apply_op

    def apply_op(store: Any, context: Any, op: Any, fold_version: int) -> Any:
        if isinstance(op, ExpireLease):
            flight = q.read_flight(store, q.queue_table(op.queue), op.number)
            if flight is not None:
                op = msgspec.structs.replace(op, epoch=flight.epoch)
        return original(store, context, op, fold_version)

    stack.enter_context(patch.object(queue_fold.KIND, "apply_op", apply_op))


def _fresh_by_the_answer(stack: ExitStack) -> None:
    """A replica counts as fresh from the moment when its own record was answered, not from when it was sent."""
    original = Freshness.prove
    append = LogWriter._append

    def _append(self: LogWriter, *args: Any) -> Any:
        outcomes = append(self, *args)
        original(self._shard.freshness, self._env.boot_s())
        return outcomes

    stack.enter_context(patch.object(LogWriter, "_append", _append))


def _impatient_observer(stack: ExitStack) -> None:
    """A lease counts as over after a tenth of its length."""
    original = leases.Observer.look

    def look(self: Any, space: Any, subject: Any, seen: Any) -> Any:
        return original(self, space, subject, [lease._replace(lease_s=lease.lease_s / 10) for lease in seen])

    stack.enter_context(patch.object(leases.Observer, "look", look))


def _reads_in_parts(stack: ExitStack) -> None:
    """A read of many keys is a read of one after the other."""

    def get_many(self: Any, keys: Any, *, consistency: Any = None) -> Any:
        found = {key: self.get(key, consistency=consistency) for key in keys}
        return {key: value for key, value in found.items() if value is not None}

    stack.enter_context(patch.object(maps.Map, "get_many", get_many))


def _watch_token_without_place(stack: ExitStack) -> None:
    """The token of a change in the midst of a record says only which record it was."""

    def encode_place(token: Any) -> str:
        return encode_token(msgspec.structs.replace(token, within={}))

    stack.enter_context(patch.object(watch, "encode_token", encode_place))


def _offsets_prove_commits(stack: ExitStack) -> None:
    """A consumer takes its transaction for committed when the group's offsets are as it would have made them, no matter who
    did."""

    def is_confirmed(self: Any) -> bool:
        layout, group, pending = self._layout, self._group, self._pending
        if pending is None:
            return False
        keys = {partition: stream_rows.offset_key(layout.name, group, partition) for partition in pending}
        with self._client.view(layout.home, STRONG) as view:
            found = view.get_many(stream_rows.OFFSETS, keys.values())
        return all(stream_rows.read_offset(found.get(keys[p])) == to for p, to in pending.items())

    stack.enter_context(patch.object(Consumer, "_is_confirmed", is_confirmed))


def _lost_batch(stack: ExitStack) -> None:
    """The leader of a batch forgets the operations of the others now and then, and answers for them."""
    original = LogWriter.commit

    def commit(self: LogWriter, ops: Sequence[Op], deadline: float) -> Any:
        outcomes = original(self, ops[:1], deadline)
        return [outcomes[-1]] * len(ops)

    stack.enter_context(patch.object(LogWriter, "commit", commit))


BUGS: dict[str, Patch] = {
    "shared_stale_barrier": _shared_stale_barrier,
    "no_barrier": _no_barrier,
    "no_dedupe": _no_dedupe,
    "ignored_token": _ignored_token,
    "write_only_validation": _write_only_validation,
    "ranges_not_validated": _ranges_not_validated,
    "prepare_without_locks": _prepare_without_locks,
    "unresolved_reads": _unresolved_reads,
    "moment_without_locks": _moment_without_locks,
    "moment_after_release": _moment_after_release,
    "lease_by_log_time": _lease_by_log_time,
    "old_epochs_expire": _old_epochs_expire,
    "fresh_by_the_answer": _fresh_by_the_answer,
    "impatient_observer": _impatient_observer,
    "reads_in_parts": _reads_in_parts,
    "watch_token_without_place": _watch_token_without_place,
    "offsets_prove_commits": _offsets_prove_commits,
    "lost_batch": _lost_batch,
}
"""By name. Besides these: ``acknowledged_before_sync``, which is a property of the simulated logs."""
