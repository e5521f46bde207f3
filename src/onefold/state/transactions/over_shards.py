"""Transactions and reads over several shards, for handles. One try of a transaction is in ``coordinator``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from onefold.backoff import Backoff
from onefold.errors import Conflict, Unavailable
from onefold.machine.undisturbed import let_pass
from onefold.state.core.client import StateClient, rejection
from onefold.state.core.consistency import STRONG
from onefold.state.core.time_limits import limited
from onefold.state.encoding.keys import encode_key
from onefold.state.fold.outcomes import Committed, decode_outcome
from onefold.state.fold.validation import validate
from onefold.state.transactions.coordinator import Coordinator, Lost, ShardPart, earlier
from onefold.state.transactions.moments import moment

__all__ = ["ShardPart", "commit_over_shards", "snapshot_read", "validate_cut"]

T = TypeVar("T")
_PAUSE_S: Final = 0.002
_PAUSE_S_MAX: Final = 0.2
_TRIES: Final = 3
"""Of a transaction that has read something, when it meets locks: then it is likely that what it read is being changed."""
_CUT_TRIES: Final = 2


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
    with limited(client):
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
    backoff = Backoff(_PAUSE_S, _PAUSE_S_MAX, client.env)
    tries = 0
    while True:
        tries += 1
        if request_id is not None and (kept := client.shards[home].outcome(request_id)) is not None:
            return earlier(client, home, decode_outcome(kept))
        try:
            return Coordinator(client, home, everything, request_id, last_try).run()
        except Lost as lost:
            if not blind and tries == _TRIES:
                raise Conflict(
                    f"another transaction over several shards is in the way ({lost.reason}); nothing was written. "
                    "Read again and retry"
                ) from None
            if blind and client.env.boot_s() + backoff.next_s > deadline:
                raise Unavailable(
                    f"transactions over several shards stand in the way for too long ({lost.reason}); nothing was written. "
                    "Try again"
                ) from None
        client.shards[home].pause(backoff.pause_s())


def validate_cut(client: StateClient, parts: Mapping[int, ShardPart]) -> None:
    """Whether everything that was read, in several shards, was there at one moment: then the reads are a snapshot, and a
    strict one, as that moment lies between the last read and now. Appends nothing but barriers. Raises Conflict (definite),
    and Unavailable.

    Each shard is viewed again, strongly. What is unchanged was there at every moment between. A transaction that was
    committed by then and is not done in one of the shards is found prepared there and is resolved, so it changes what was
    read.
    """
    for shard in sorted(parts):
        part = parts[shard]
        with client.view(shard, STRONG) as view:
            refused = validate(view, part.reads, part.spans)
        if refused is not None:
            raise rejection(refused)


def snapshot_read(
    client: StateClient,
    read: Callable[[], tuple[T, Mapping[int, ShardPart]]],
    read_at: Callable[[Mapping[int, int]], T],
) -> T:
    """Strongly read what is in several shards, all as of one moment; never refused, whatever others write.

    ``read``: does the reads (with ``client.view(shard, STRONG)``) and returns its result, and for each shard what it read: the
    version of every key (offset 0: not there) and every range with its view's offset. On a cluster it is called first, since
    it locks nothing; when what it read was not there at one moment, ``read_at`` reads at the offsets of a moment. Raises
    Unavailable (definite), and what these raise.
    """
    if not client.always_strong:
        for _ in range(_CUT_TRIES):
            found, parts = read()
            try:
                validate_cut(client, parts)
            except Conflict as error:
                let_pass(error)
            else:
                return found
    return read_at(moment(client))
