"""Regions go and come again: what an operator decides, and what is waited for then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from onefold.available import ops
from onefold.available.ops import available_op
from onefold.available.regions import Known, read_self
from onefold.available.stamps import ms_of
from onefold.backoff import Deadline
from onefold.errors import InvalidArgument, Timeout, Unavailable
from onefold.fold.nodes.ops import (
    EvictRegion,
    RegionIs,
    RegionOperation,
    RejoinRegion,
    decode_region_outcome,
    nodes_op,
)
from onefold.fold.nodes.regions import read_decisions
from onefold.regions.decisions import apply_decisions
from onefold.regions.peers import Peers
from onefold.shard.api import Shard

_LOOK_S: Final = 0.5


class Agreed(NamedTuple):
    """How far the effects of an evicted region count."""

    final: tuple[int | None, ...]
    """By shard, the last effect of it that counts; None: that is not agreed yet."""
    missing: tuple[str, ...]
    """The regions that have not voted yet, as far as that is known here."""


def evict(first: Shard, shards: Sequence[Shard], mine: str, name: str, heir: str, timeout_s: float) -> int:
    """Decide that a region is gone, and say so in the logs of one that is left. The evicted number.

    ``first``: shard 0 of the space; ``shards``: those of the region ``mine``. ``heir``: who gets its rights in counters with a
    floor; empty: nobody. Raises InvalidArgument (definite), Unavailable, and as ``Shard.submit``.
    """
    if name == mine:
        raise InvalidArgument(
            f"region {name} is the one that this is done in, and a region is evicted by another one: give that with --region"
        )
    number = _decide(first, EvictRegion(name, heir), f"region {name} is not evicted", timeout_s)
    with first.view() as view:
        decisions = read_decisions(view)
    for shard in shards:
        apply_decisions(shard, decisions)
    return number


def rejoin(first: Shard, name: str, timeout_s: float) -> int:
    """Decide that an evicted region comes again; its new number. Raises as ``evict``."""
    return _decide(first, RejoinRegion(name), f"region {name} does not come again", timeout_s)


def await_final(shards: Sequence[Shard], number: int, timeout_s: float) -> Agreed:
    """Wait until the remaining regions have agreed on the last effect of an evicted one, in these logs of one of them; for so
    long at most. Raises as ``Shard.view``."""
    deadline = Deadline.after(timeout_s, shards[0].env)
    final: list[int | None] = []
    missing: set[str] = set()
    for shard in shards:
        while True:
            with shard.view() as view:
                me, offset = read_self(view), view.offset
            region = me.regions.get(number)
            agreed = region is not None and region.final
            if agreed or deadline.passed:
                break
            shard.wait(offset, deadline.within(_LOOK_S))
        final.append(region.limit if region is not None and agreed else None)
        if not agreed:
            missing.update(_silent(me))
    return Agreed(tuple(final), tuple(sorted(missing)))


def accept(shards: Sequence[Shard], peers: Peers | None, name: str) -> float:
    """Take effects of a region whose clock is ahead, up to the last one that it has made. How far that is ahead, in seconds.

    ``shards``: of the region that takes them. Raises InvalidArgument (none waits), and as ``Shard.submit``.
    """
    waiting: list[tuple[int, Shard, int, int]] = []
    for index, shard in enumerate(shards):
        with shard.view() as view:
            me, now_ms = read_self(view), max(view.head().now_ms, shard.env.wall_ms())
        found = [number for number, region in me.regions.items() if region.name == name]
        if not found or max(found) == me.number:
            names = ", ".join(region.name for number, region in me.regions.items() if number != me.number)
            raise InvalidArgument(f"there is no other region {name} here. There are: {names or 'none'}")
        region = me.regions[max(found)]
        if region.held and not region.round:
            waiting.append((index, shard, max(found), region.held))
    if not waiting:
        raise InvalidArgument(
            f"nothing of region {name} waits here because its clock is ahead: see `onefold region list`"
        )
    ahead_ms = 0
    for index, shard, number, held in waiting:
        last = 0 if peers is None else peers.clocks(number).get(index, 0)
        hlc = max(held, last)
        shard.submit([available_op(ops.Accept(number, hlc))])
        ahead_ms = max(ahead_ms, ms_of(hlc) - now_ms)
    return max(0, ahead_ms) / 1000


def _silent(me: Known) -> list[str]:
    """Of which regions no vote of the latest round is known."""
    return [me.regions[number].name for number in me.voters() if me.origin(number).round != me.round]


def _decide(first: Shard, op: RegionOperation, undone: str, timeout_s: float) -> int:
    try:
        outcome = decode_region_outcome(first.submit([nodes_op(op)], first.env.boot_s() + timeout_s)[0])
    except (Unavailable, Timeout) as error:
        raise Unavailable(
            f"{undone}: that is decided in the consistent log of the space, which needs a majority of its servers ({error}). "
            "Start those servers. If they never come back, no region can be evicted: the regions that are left continue, and "
            "keep what the others may lack. Then make another cluster, restore the consistent collections there "
            "from a backup, and copy the available ones",
            definite=error.definite,
        ) from error
    if not isinstance(outcome, RegionIs):
        raise InvalidArgument(f"{undone}: {outcome.message}")
    return outcome.number
