"""What ``onefold doctor`` looks at in shared state: what is unfinished, and what dead processes hold."""

from __future__ import annotations

from collections.abc import Iterator

from onefold.doctor.embedded import Check, readable
from onefold.shard.api import View
from onefold.state.core.client import StateClient
from onefold.state.fold.shards import fold as shard_fold
from onefold.state.kinds import KINDS


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
            f"{held} leases of locks, messages and live jobs are held, {dead} of them by processes that are dead ({example}): "
            "the next taker gets them at once",
        )
    return Check("leases", "ok", f"{held} leases of locks, messages and live jobs are held")


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
    for kind in KINDS:
        if kind.holders is not None:
            yield from kind.holders(view)


def _dead_letters(client: StateClient) -> Check:
    found: dict[str, int] = {}
    for shard in client.shards:
        with shard.view() as view:
            for kind in KINDS:
                if kind.given_up is not None:
                    found.update(kind.given_up(view))
    if not found:
        return Check("dead letters", "ok", "no queue keeps dead letters")
    shown = ", ".join(f"{count} in {name!r}" for name, count in sorted(found.items())[:5])
    return Check("dead letters", "warn", shown, "Look at `db.queue(NAME).dead()`: retry them, or drop them")
