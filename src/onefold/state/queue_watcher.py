"""What every process that takes from a queue does for the others: it ends leases that are over and forwards dead letters."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from onefold import config
from onefold.errors import OnefoldError
from onefold.state import queue_ops
from onefold.state import queue_rows as q
from onefold.state.client import StateClient
from onefold.state.keys import encode_key
from onefold.state.leases import Lease, keeper

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

    def look(self) -> Seen:
        """The queue as it is here now; with its leases when it is time to look at them."""
        observer = keeper(self._client).observer
        with self._client.spaces[self._shard].view() as view:
            counts = q.read_counts(view, self._table)
            due = next(view.scan(q.QUEUE_DUE, limit=1), None) if counts.delayed else None
            flights = outbox = None
            if counts.flight and observer.due(self._subject):
                flights = q.flights(view, self._table, config.LEASES_LOOKED_AT_MAX)
            if counts.outbox:
                outbox = q.letters(view, self._table, q.OUTBOX, _FORWARD_AT_ONCE)
            next_due_ms = None if due is None else q.read_due_key(due[0])[0]
            return Seen(view.offset, counts, next_due_ms, flights, outbox or [])

    def settle(self, seen: Seen) -> bool:
        """End the leases that are over and forward dead letters; whether something was done."""
        forwarded = False
        for number, letter in seen.outbox:
            with contextlib.suppress(OnefoldError):  # the other shard cannot be reached: another time
                self._forward(number, letter)
                forwarded = True
        if seen.flights is None:
            return forwarded
        leases = [
            Lease(number, flight.epoch, flight.lease_ms / 1000, flight.member)
            for number, flight in seen.flights
        ]
        space = self._client.spaces[self._shard]
        ended = keeper(self._client).observer.look(space, self._subject, leases)
        for lease, died in ended:
            # Refused when it was extended, acknowledged or given up meanwhile.
            op = queue_ops.ExpireLease(self._name, lease.what, lease.epoch, died)
            self._client.submit(self._shard, op)
        return bool(ended or forwarded)

    def _forward(self, number: int, letter: q.Letter) -> None:
        """Move a dead letter to its queue in another shard: twice when two do it at once, but its request id lets one count."""
        if letter.forward_to is None:
            return
        client = self._client
        message = queue_ops.Message(
            letter.value, letter.key, 0, (self._name, number, letter.tries.attempts), letter.tries.errors
        )
        write = queue_ops.Enqueue(letter.forward_to, (message,))
        shard = client.shard_of(encode_key(letter.forward_to))
        client.commit(shard, (write,), request_id=f"dead letter {number} of queue {self._name}")
        client.submit(self._shard, queue_ops.Forwarded(self._name, number))
