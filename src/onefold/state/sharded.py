"""Transactions and reads over several shards, for handles. One try of a transaction is in ``coordinator``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Final, TypeVar

from onefold.errors import Conflict, Unavailable
from onefold.state import recovery
from onefold.state.client import StateClient, rejection
from onefold.state.consistency import STRONG
from onefold.state.coordinator import Coordinator, Lost, ShardPart, earlier
from onefold.state.keys import encode_key
from onefold.state.ops import UNREAD, Committed, Read, Span, decode_outcome
from onefold.state.time_limits import Call
from onefold.state.validation import validate

__all__ = ["ShardPart", "commit_over_shards", "snapshot_read", "validate_cut"]

T = TypeVar("T")
_PAUSE_S: Final = 0.002
_PAUSE_S_MAX: Final = 0.2
_TRIES: Final = 3
"""Of a transaction that has read something, when it meets locks: then it is likely that what it read is being changed."""
_CUT_TRIES: Final = 3
_LOCKED_TRIES: Final = 20


def commit_over_shards(
    client: StateClient,
    parts: Mapping[int, ShardPart],
    request_id: str | None = None,
    last_try: bool = True,
) -> dict[int, Committed]:
    """Commit all parts or none; by shard, what was committed there, with one result for each write.

    Serializable with everything else in the space, and durable in all shards when it returns. Blind writes are tried again
    until they get by other transactions' locks. ``request_id``: it happens once under this name; a rejection is kept too if
    this is the ``last_try``. If it was committed before, the answer is that of then: of the shards that still remember it,
    and of the shard of the request id at least.

    Raises Conflict (definite) when what was read has changed or is being changed, and what ``client.rejection`` makes of other
    refusals; Unavailable (definite) when a shard cannot be reached or locks stand in the way for too long; AppendUnknown
    (indefinite) only when the decision itself was sent and cannot be read.
    """
    if not parts and request_id is None:
        return {}
    home = min(parts) if request_id is None else client.shard_of(encode_key(request_id))
    everything = dict(parts) if home in parts else {**parts, home: ShardPart()}
    if len(everything) == 1:
        part = everything[home]
        return {home: client.commit(home, part.writes, part.reads, part.spans, request_id, last_try=last_try)}
    with Call(client):
        return _commit_everything(client, home, everything, request_id, last_try)


def _commit_everything(
    client: StateClient,
    home: int,
    everything: Mapping[int, ShardPart],
    request_id: str | None,
    last_try: bool,
) -> dict[int, Committed]:
    blind = not any(part.reads or part.spans for part in everything.values())
    deadline = client.deadline()
    pauses, tries = _pauses(client, home), 0
    while True:
        pause_s = next(pauses)
        tries += 1
        if request_id is not None and (kept := client.spaces[home].outcome(request_id)) is not None:
            return earlier(client, home, decode_outcome(kept))
        try:
            return Coordinator(client, home, everything, request_id, last_try).run()
        except Lost as lost:
            if not blind and tries == _TRIES:
                raise Conflict(
                    f"another transaction over several shards is in the way ({lost.reason}); nothing was written. "
                    "Read again and retry"
                ) from None
            if blind and client.env.boot_s() + pause_s > deadline:
                raise Unavailable(
                    f"transactions over several shards stand in the way for too long ({lost.reason}); nothing was written. "
                    "Try again"
                ) from None


def validate_cut(client: StateClient, parts: Mapping[int, ShardPart]) -> None:
    """Whether everything that was read, in several shards, was there at one moment: then the reads are a snapshot, and a
    strict one, as that moment lies between the last read and now. Appends nothing but barriers. Raises Conflict (definite),
    and Unavailable.

    Each shard is viewed once more, strongly. What is unchanged was there at every moment between. A transaction that was
    committed by then and is not done in one of the shards is found prepared there and is resolved, so it changes what was
    read.
    """
    for shard in sorted(parts):
        part = parts[shard]
        with client.view(shard, STRONG) as view:
            refused = validate(view, part.reads, part.spans)
        if refused is not None:
            raise rejection(refused)


def snapshot_read(client: StateClient, read: Callable[[], tuple[T, Mapping[int, ShardPart]]]) -> T:
    """Strongly read what is in several shards, all as of one moment.

    ``read``: does the reads (with ``client.view(shard, STRONG)``) and returns its result, and for each shard what it read: the
    version of every key (offset 0: not there) and every range with its view's offset. It is called again when what it read
    was not there at one moment; after a few tries the shards are locked for reading meanwhile. Raises Conflict (definite)
    when even that does not succeed, and what ``read`` raises.
    """
    found, parts = read()
    if len(parts) <= 1:
        return found
    for _, _ in zip(range(_CUT_TRIES), _pauses(client, min(parts)), strict=False):
        with suppress(Conflict):
            validate_cut(client, parts)
            return found
        found, parts = read()
    for _, _ in zip(range(_LOCKED_TRIES), _pauses(client, min(parts)), strict=False):
        under_locks = _read_locked(client, parts, read)
        if under_locks is not None:
            found, again = under_locks
            if _covers(parts, again):
                return found
            parts = again  # what was read depends on what was read
    raise Conflict(
        "what is read changes faster than it can be read at one moment. Read less at once, or try again"
    )


def _read_locked(
    client: StateClient,
    parts: Mapping[int, ShardPart],
    read: Callable[[], tuple[T, Mapping[int, ShardPart]]],
) -> tuple[T, Mapping[int, ShardPart]] | None:
    """What is read while all of the parts is locked for reading; None when it could not be locked, or not all the time."""
    locks = {
        shard: ShardPart(
            tuple(Read(one.map, one.key, UNREAD, 0) for one in part.reads),
            tuple(Span(one.map, one.start, one.stop, UNREAD) for one in part.spans),
        )
        for shard, part in parts.items()
    }
    holder = Coordinator(client, min(parts), locks, None, last_try=False)
    refused = holder.prepare()
    if refused is not None:
        holder.give_up()
        shard, vote = refused
        recovery.unblock(client, shard, vote.blockers)
        return None
    held = False
    try:
        found = read()
    finally:
        held = holder.give_up()
    return found if held else None


def _covers(locked: Mapping[int, ShardPart], parts: Mapping[int, ShardPart]) -> bool:
    """Whether every key and range of ``parts`` is one of ``locked``."""
    for shard, part in parts.items():
        of_shard = locked.get(shard, ShardPart())
        keys = {(one.map, one.key) for one in of_shard.reads}
        ranges = {(one.map, one.start, one.stop) for one in of_shard.spans}
        if any((one.map, one.key) not in keys for one in part.reads):
            return False
        if any((one.map, one.start, one.stop) not in ranges for one in part.spans):
            return False
    return True


def _pauses(client: StateClient, shard: int) -> Iterator[float]:
    """For a loop over tries: waits between them, longer and longer, with jitter. Gives the length of the next wait, in
    seconds."""
    pause_s = _PAUSE_S
    while True:
        yield pause_s
        client.spaces[shard].pause(pause_s * (0.5 + client.env.token(1)[0] / 256))
        pause_s = min(2 * pause_s, _PAUSE_S_MAX)
