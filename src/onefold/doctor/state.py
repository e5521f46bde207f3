"""What ``onefold doctor`` looks at in shared state: what is unfinished, and what dead processes hold."""

from __future__ import annotations

from collections.abc import Iterator

from onefold.doctor.embedded import Check, readable
from onefold.shard.api import View
from onefold.state import catalog
from onefold.state.core.client import StateClient
from onefold.state.fold.locks import fold as lock_fold
from onefold.state.fold.queues import rows as q
from onefold.state.fold.shards import fold as shard_fold

_FLIGHTS_LOOKED_AT = 10_000


def check_state(client: StateClient) -> Iterator[Check]:
    """Transactions over several shards, locks, and messages that somebody has. Changes nothing."""
    if client.shard_count > 1:
        yield readable("transactions", lambda: _transactions(client))
    yield readable("leases", lambda: _leases(client))
    yield readable("dead letters", lambda: _dead_letters(client))


def _leases(client: StateClient) -> Check:
    held = dead = 0
    example = ""
    for shard in client.shards:
        with shard.view() as view:
            for what, member in _holders(view):
                held += 1
                if shard.member_alive(member) is False:
                    dead += 1
                    example = example or what
    if dead:
        return Check(
            "leases",
            "ok",
            f"{held} locks and messages are held, {dead} of them by processes that are dead ({example}): the next taker gets "
            "them at once",
        )
    return Check("leases", "ok", f"{held} locks and messages are held")


def _transactions(client: StateClient) -> Check:
    open_, orphaned = 0, 0
    for shard in client.shards:
        with shard.view() as view:
            for _, prepared in shard_fold.prepared_in(view):
                open_ += 1
                orphaned += client.shards[0].member_alive(prepared.member) is False
    if not orphaned:
        return Check("transactions", "ok", f"{open_} parts of transactions over several shards are under way")
    return Check(
        "transactions",
        "warn",
        f"{orphaned} parts of transactions over several shards were left unfinished by dead processes",
        "Nothing needs to be done: anyone who meets them next finishes or takes them back",
    )


def _holders(view: View) -> Iterator[tuple[str, str]]:
    for key, _ in view.scan(lock_fold.LOCKS):
        row = lock_fold.read_row(view, key.decode())
        if row is not None:
            yield f"the lock {key.decode()!r}", row.by.member
    for name in catalog.queue_names([view]):
        for number, flight in q.flights(view, q.queue_table(name), _FLIGHTS_LOOKED_AT):
            yield f"message {number} of queue {name!r}", flight.member


def _dead_letters(client: StateClient) -> Check:
    found = {}
    for shard in client.shards:
        with shard.view() as view:
            for name in catalog.queue_names([view]):
                counts = q.read_counts(view, q.queue_table(name))
                if counts.dead:
                    found[name] = counts.dead
    if not found:
        return Check("dead letters", "ok", "no queue keeps dead letters")
    shown = ", ".join(f"{count} in {name!r}" for name, count in sorted(found.items())[:5])
    return Check("dead letters", "warn", shown, "Look at `db.queue(NAME).dead()`: retry them, or drop them")
