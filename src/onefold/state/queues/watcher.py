"""What every process that takes from a queue does for the others: it ends leases that are over and forwards dead letters."""

from __future__ import annotations

from typing import NamedTuple

from onefold import config
from onefold.codec import Op
from onefold.machine.undisturbed import if_possible
from onefold.state.core.client import StateClient
from onefold.state.core.consistency import Level
from onefold.state.core.leases import Lease, keeper
from onefold.state.encoding.keys import encode_key
from onefold.state.fold.ops import Commit, state_op
from onefold.state.fold.outcomes import Committed, Outcome
from onefold.state.fold.queues import ops as queue_ops
from onefold.state.fold.queues import rows as q

_FORWARD_AT_ONCE = 100


class Seen(NamedTuple):
    """A queue as it was at one offset."""

    offset: int
    counts: q.Counts
    next_due_ms: int | None
    flights: list[tuple[int, q.Flight]] | None
    """None: not looked at."""
    outbox: list[tuple[int, q.Letter]]


class QueueWatcher:
    """Looks at one queue. Thread-safe; what was seen of leases is kept for all handles of the client together."""

    def __init__(self, client: StateClient, name: str, shard: int) -> None:
        self._client = client
        self._name = name
        self._shard = shard
        self._table = q.queue_table(name)
        self._subject = ("queue", shard, name)

    def look(self, level: Level | None = None) -> Seen:
        """The queue as it is here now, or at the level; with its leases when it is time to look at them."""
        client, shard = self._client, self._shard
        observer = keeper(client).observer
        with client.shards[shard].view() if level is None else client.view(shard, level) as view:
            counts = q.read_counts(view, self._table)
            due = next(view.scan(q.QUEUE_DUE, limit=1), None) if counts.delayed else None
            flights = outbox = None
            if counts.flight and observer.due(self._subject):
                flights = q.flights(view, self._table, config.LEASES_LOOKED_AT_MAX)
            if counts.outbox:
                outbox = q.letters(view, self._table, q.OUTBOX, _FORWARD_AT_ONCE)
            next_due_ms = None if due is None else q.read_due_key(due[0])[0]
            return Seen(view.offset, counts, next_due_ms, flights, outbox or [])

    def settle(self, seen: Seen, deadline: float | None = None) -> bool:
        """End the leases that are over and forward dead letters, many in one record; whether something was done. ``deadline``
        (boot clock): what is left then is left to the next look; the first record of each kind is always appended."""
        forwarded = False
        if seen.outbox:
            forwarded = self._forward(seen.outbox)
        if seen.flights is None:
            return forwarded
        leases = [
            Lease(number, flight.epoch, flight.lease_ms / 1000, flight.member)
            for number, flight in seen.flights
        ]
        client = self._client
        ended = keeper(client).observer.look(client.shards[self._shard], self._subject, leases)
        for start in range(0, len(ended), config.LEASES_ENDED_PER_RECORD_MAX):
            if start and deadline is not None and client.env.boot_s() >= deadline:
                break
            some = ended[start : start + config.LEASES_ENDED_PER_RECORD_MAX]
            # Refused when it was extended, acknowledged or given up meanwhile.
            client.submit_together(
                self._shard,
                [
                    state_op(queue_ops.ExpireLease(self._name, lease.what, lease.epoch, died))
                    for lease, died in some
                ],
            )
        return bool(ended or forwarded)

    def _forward(self, letters: list[tuple[int, q.Letter]]) -> bool:
        """Move dead letters to their queues in other shards. Two may do it at once: by its request id each counts once."""
        client = self._client
        by_shard: dict[int, list[tuple[int, Op]]] = {}
        for number, letter in letters:
            if letter.forward_to is None:
                continue
            message = queue_ops.Message(
                letter.value, letter.key, 0, (self._name, number, letter.tries.attempts), letter.tries.errors
            )
            write = queue_ops.Enqueue(letter.forward_to, (message,))
            op = state_op(Commit((), (), (write,)), f"dead letter {number} of queue {self._name}")
            by_shard.setdefault(client.shard_of(encode_key(letter.forward_to)), []).append((number, op))
        moved: list[int] = []
        for shard, some in by_shard.items():
            outcomes: list[Outcome] = []
            with if_possible:  # the other shard cannot be reached: another time
                outcomes = client.submit_together(shard, [op for _, op in some])
            moved += [
                number
                for (number, _), outcome in zip(some, outcomes, strict=False)
                if isinstance(outcome, Committed)
            ]
        with if_possible:
            done = [state_op(queue_ops.Forwarded(self._name, number)) for number in moved]
            client.submit_together(self._shard, done)
            return bool(moved)
        return False
