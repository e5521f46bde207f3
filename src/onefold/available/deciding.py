"""What is decided on regions: who is admitted, evicted, held, and who inherits. Only nodes may append these operations.

The decisions are made elsewhere, in a log that is the same for all, so that every region has them in the same order. Here is
what they change.
"""

from __future__ import annotations

from typing import Final

from onefold.available.effects import Admitted, Votes
from onefold.available.ops import Accept, Admit, Answer, Beat, Cap, Evict, Reclaim, Rejected, Retire
from onefold.available.out import emit
from onefold.available.regions import Region
from onefold.available.rows import Working

NAME_CHARS_MAX: Final = 32
"""The longest name of a region."""


def admit(work: Working, op: Admit) -> Answer | Rejected:
    """A region becomes known. One that comes again counts from here on, and writes when all have said that it does."""
    me = work.me
    if not op.name or len(op.name) > NAME_CHARS_MAX or "/" in op.name:
        return Rejected("malformed", op.name[:100])
    if op.here and me.number and op.number <= max(me.regions):
        return Answer(False)
    if op.here and me.retired:
        return Rejected("evicted")  # it has effects that do not count: the region begins again with a new log
    if op.here and not op.founder and not me.regions:
        return Rejected("unknown_region", op.name)  # it could not know who has to admit it
    known = op.number in me.regions
    if not known:
        me.regions[op.number] = Region(op.name, op.founder)
    if op.here:
        # In a log that was restored, the earlier number becomes a region like others, whose later effects others may have.
        me.number, me.writing = op.number, False
        me.origin(op.number)
        if not op.founder:
            for region in me.regions.values():
                region.founder = False
            if me.round:
                emit(work, (Votes(me.round, {gone: me.origin(gone).seq for gone, _ in me.evicted()}),))
    elif not known and me.number and not op.founder and op.number > me.number and not me.retired:
        emit(work, (Admitted(op.number),))
    return Answer(not known)


def evict(work: Working, op: Evict) -> Answer | Rejected:
    """Vote, and take nothing from it any more."""
    me = work.me
    region = me.regions.get(op.number)
    if region is None or op.number == me.number:
        return Rejected("unknown_region", here=op.number)
    if region.round or len(me.voters()) < 2:
        return Answer(False)
    if op.round <= me.round:
        return Rejected("malformed", "round")  # an earlier eviction was left out
    region.round = op.round
    if me.sync is not None and me.sync.source == op.number:
        me.drop_sync()
    me.round = max(me.round, op.round)
    votes = {number: me.origin(number).seq for number, _ in me.evicted()}
    if me.number and not me.retired:
        emit(work, (Votes(me.round, votes),))
    return Answer(True)


def retire(work: Working, op: Retire) -> Answer | Rejected:
    """This region was evicted. It still takes what others did, and writes nothing."""
    me = work.me
    if not me.number:
        return Rejected("no_region")
    me.retired = True
    return Answer(max(0, me.origin(me.number).seq - op.final))


def reclaim(work: Working, op: Reclaim) -> Answer | Rejected:
    """The heir has the rights once all know the evicted region's last effect that counts."""
    me = work.me
    region = me.regions.get(op.number)
    if region is None or op.heir not in me.regions or op.heir == op.number:
        return Rejected("unknown_region", here=op.number)
    if not region.round or (region.heir and region.heir != op.heir):
        return Answer(False)
    region.heir = op.heir
    return Answer(True)


def accept(work: Working, op: Accept) -> Answer | Rejected:
    """Effects of a region that is ahead are taken up to this clock."""
    region = work.me.regions.get(op.number)
    if region is None:
        return Rejected("unknown_region", here=op.number)
    region.accepted = max(region.accepted, op.hlc)
    return Answer(None)


def cap(work: Working, op: Cap) -> Answer:
    """The own clock is ahead of all others: for a while it counts only up to this."""
    work.me.cap_ms, work.me.cap_until_ms = op.limit_ms, op.until_ms
    return Answer(None)


def beat(work: Working, op: Beat) -> Answer:  # noqa: ARG001 - as the others
    """Say what is known here, if others wait for that."""
    owed = work.me.owes_beat()
    if owed:
        emit(work, ())
    return Answer(owed)
