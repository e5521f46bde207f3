"""Cuts: what all shards of a space held at one instant, though each has a log of its own.

A pin holds what a shard shows while the others are pinned too. Where reading shows everything that was written (one machine),
pins are taken until no shard has moved since the first of them (double collect: Afek et al., "Atomic Snapshots of Shared Memory",
JACM 40(4), 1993), and when writers are too many for that, while their locks are held.

Replicas hear of records late, each shard as late as it happens to be: that none has moved here says nothing of what was written
first. There every shard gets a record more, a mark, once all are pinned. Where each mark is the record right after what is
pinned, nothing had been written between, so at the moment of the last pin all logs ended just there. Marks need no answer but
their place in the log, so the moment that has to be quiet is as short as the way of a record to its leader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Final, Self, TypeVar

from onefold.backoff import Deadline
from onefold.codec import Record, encode_record
from onefold.errors import AppendUnknown, Timeout, Unavailable
from onefold.fold import system
from onefold.ids import client_id
from onefold.log.api import Log
from onefold.shard.api import Shard

P = TypeVar("P")
_LOOKS: Final = 20
"""So often nothing is locked."""
CUT_TIMEOUT_S: Final = 30.0
"""How long a moment is looked for in which nobody writes."""
_TRIES_MAX: Final = 100_000
_PAUSE_S: Final = 0.01
_AT_ONCE_MAX: Final = 16


@contextmanager
def cut(
    shards: Sequence[Shard],
    pin: Callable[[Shard], AbstractContextManager[P]],
    offset_of: Callable[[P], int],
    *,
    retry: Callable[[Sequence[P]], Callable[[], object] | None] = lambda _: None,
) -> Iterator[list[P]]:
    """A pin of every shard, in order, all of one instant; everything acknowledged before the call is in them.

    ``pin``: makes one; it shows the same until it is left. ``retry``: given the pins of an instant, None when they will do; else
    what to call before the next try, once they are left.

    Raises Timeout (definite) when no instant came, and as ``Shard.barrier``.
    """
    env = shards[0].env
    deadline = Deadline.after(CUT_TIMEOUT_S, env)
    strong = all(shard.strong_reads for shard in shards)
    with _Marks(shards) as marks:
        for attempt in range(_TRIES_MAX):
            before_next: Callable[[], object] | None = None
            if not strong:
                marks.barriers()
            with ExitStack() as stack:
                if strong:
                    pins = unmoved(shards, pin, offset_of, stack, locked=attempt >= _LOOKS)
                else:
                    pins = _at_the_ends(shards, pin, offset_of, stack, marks)
                if pins is not None:
                    before_next = retry(pins)
                    if before_next is None:
                        yield pins
                        return
            if before_next is not None:
                before_next()
            if deadline.passed:
                break
            shards[0].pause(_PAUSE_S)
    raise Timeout(
        f"for {CUT_TIMEOUT_S:g} s there was no moment in which nobody wrote to any shard; nothing was read. Try again when "
        "less is written",
        definite=True,
    )


def unmoved(
    shards: Sequence[Shard],
    pin: Callable[[Shard], AbstractContextManager[P]],
    offset_of: Callable[[P], int],
    stack: ExitStack,
    *,
    locked: bool,
    until_s: float | None = None,
) -> list[P] | None:
    """Where views show everything: pins, or None when a shard has moved meanwhile. ``stack``: holds the pins. ``locked``: nobody
    writes meanwhile, where the shards are files; until that moment of the boot clock it waits for their locks, and raises Timeout
    (definite) then."""
    env = shards[0].env
    with ExitStack() as locks:
        if locked and len(shards) > 1:
            for shard in shards:
                file = getattr(getattr(shard, "log", None), "file", None)
                if file is not None:
                    left_s = None if until_s is None else max(0.0, until_s - env.boot_s())
                    locks.enter_context(file.maintaining(left_s))
        pins = [stack.enter_context(pin(shard)) for shard in shards]
        if len(shards) == 1:
            return pins
        # All of them first: it may be only now that a view is pinned.
        offsets = [offset_of(one) for one in pins]
        moved = any(shard.applied != offset for shard, offset in zip(shards, offsets, strict=True))
    return None if moved else pins


def _at_the_ends(
    shards: Sequence[Shard],
    pin: Callable[[Shard], AbstractContextManager[P]],
    offset_of: Callable[[P], int],
    stack: ExitStack,
    marks: _Marks,
) -> list[P] | None:
    """Of replicas: pins, unless something was written after one of them and before its mark."""
    pins = [stack.enter_context(pin(shard)) for shard in shards]
    if len(shards) == 1:
        return pins
    offsets = [offset_of(one) for one in pins]
    after = marks.append()
    return pins if all(now == offset + 1 for now, offset in zip(after, offsets, strict=True)) else None


class _Marks:
    """What is done in all shards at once. Threads start when they are needed first."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._pool = ThreadPoolExecutor(min(len(shards), _AT_ONCE_MAX), "onefold-cut")
        self._clients: dict[int, tuple[str, int]] = {}
        """By shard: who appends its marks, and how many it has appended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def barriers(self) -> None:
        """See that everything is here that was acknowledged before."""
        list(self._pool.map(lambda shard: shard.barrier(), self._shards))

    def append(self) -> list[int]:
        """A mark in every shard: their offsets, 0 where that is not known."""
        return list(self._pool.map(self._append, range(len(self._shards))))

    def _append(self, shard_id: int) -> int:
        shard = self._shards[shard_id]
        log: Log = shard.log  # type: ignore[attr-defined]  # every space whose reads are not strong has one
        client, number = self._clients.get(shard_id) or (client_id(shard.applied, shard.env), 0)
        tick = system.system_op(system.Tick())
        try:
            at = log.append(encode_record(Record(client, number + 1, shard.env.wall_ms(), (tick,))))
        except (AppendUnknown, Unavailable, Timeout):
            self._clients.pop(shard_id, None)  # its number must not be given again
            return 0
        self._clients[shard_id] = client, number + 1
        return at
