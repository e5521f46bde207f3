"""Cuts: what all shards of a space held at one instant, though each has a log of its own.

A pin holds what a shard shows while the others are pinned too. Where reading shows everything that was written (one machine),
pins are taken until no shard has moved since the first of them (double collect: Afek et al., "Atomic Snapshots of Shared Memory",
JACM 40(4), 1993), and when writers are too many for that, while their locks are held.

Replicas hear of records late, each shard as late as it happens to be: that none has moved here says nothing of what was written
first. There every shard appends a barrier once all are pinned. Where each barrier is the record right after what is pinned,
nothing had been written between, so at the moment of the last pin all logs ended just there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Final, TypeVar

from onefold.errors import Timeout
from onefold.fold.space import Space

P = TypeVar("P")
_LOOKS: Final = 20
_TRIES: Final = 200
_PAUSE_S: Final = 0.01
_AT_ONCE_MAX: Final = 16


@contextmanager
def cut(
    spaces: Sequence[Space],
    pin: Callable[[Space], AbstractContextManager[P]],
    offset_of: Callable[[P], int],
    *,
    retry: Callable[[Sequence[P]], Callable[[], object] | None] = lambda _: None,
) -> Iterator[list[P]]:
    """A pin of every shard, in order, all of one instant; everything acknowledged before the call is in them.

    ``pin``: makes one; it shows the same until it is left. ``retry``: given the pins of an instant, None when they will do; else
    what to call before the next try, once they are left.

    Raises Timeout (definite) when no instant came, and as ``Space.barrier``.
    """
    if not all(space.strong_reads for space in spaces):
        _barriers(spaces)
    for attempt in range(_TRIES):
        before_next: Callable[[], object] | None = None
        with ExitStack() as stack:
            pins = _pinned(spaces, pin, offset_of, stack, locked=attempt >= _LOOKS)
            if pins is not None:
                before_next = retry(pins)
                if before_next is None:
                    yield pins
                    return
        if before_next is not None:
            before_next()
        spaces[0].pause(_PAUSE_S)
    raise Timeout("no quiet moment of all shards came; nothing was read. Try again", definite=True)


def _pinned(
    spaces: Sequence[Space],
    pin: Callable[[Space], AbstractContextManager[P]],
    offset_of: Callable[[P], int],
    stack: ExitStack,
    *,
    locked: bool,
) -> list[P] | None:
    with ExitStack() as locks:
        if locked and len(spaces) > 1:
            for space in spaces:
                file = getattr(getattr(space, "log", None), "file", None)
                if file is not None:
                    locks.enter_context(file.maintaining())
        pins = [stack.enter_context(pin(space)) for space in spaces]
        if len(spaces) == 1:
            return pins
        # All of them first: it may be only now that a view is pinned.
        offsets = [offset_of(one) for one in pins]
        if any(space.applied != offset for space, offset in zip(spaces, offsets, strict=True)):
            return None
    if all(space.strong_reads for space in spaces):
        return pins
    after = _barriers(spaces)
    return pins if all(now == offset + 1 for now, offset in zip(after, offsets, strict=True)) else None


def _barriers(spaces: Sequence[Space]) -> list[int]:
    """Where each shard stands after a barrier of its own, all begun at once."""
    if len(spaces) == 1:
        return [spaces[0].barrier()]
    with ThreadPoolExecutor(min(len(spaces), _AT_ONCE_MAX), "onefold-cut") as pool:
        return list(pool.map(lambda space: space.barrier(), spaces))
