"""How the log of a region begins: with all that was decided before there was this region, and with its own number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from onefold.available import ops
from onefold.codec import Op
from onefold.fold import system
from onefold.fold.api import NEWEST_VERSION
from onefold.fold.authority import AVAILABLE_FOLD
from onefold.fold.nodes.ops import NODES_FOLD
from onefold.fold.nodes.regions import Admit, Decision, Evict, Reclaim
from onefold.invariants import invariant

LOCAL: Final = "local"
"""The region of a space in memory or in a folder that has none, when no name is given."""


def founders(names: Sequence[str]) -> list[Decision]:
    """The decisions of a space that is made with these regions: all of them are founders, and have numbers from 1 on."""
    return [Admit(number, name, founder=True) for number, name in enumerate(names, 1)]


def first_ops(decisions: Sequence[Decision], here: int, shard: int) -> list[Op]:
    """The first operations of a log of the region with the number ``here``, in one or more trusted records.

    ``decisions``: those of the space; what was decided after this region came is not needed. ``shard``: whose log it is.
    """
    folds = (AVAILABLE_FOLD, NODES_FOLD) if shard == 0 else (AVAILABLE_FOLD,)
    first = [
        system.system_op(system.RaiseFoldVersion(NEWEST_VERSION)),
        system.system_op(system.Register(folds)),
    ]
    return first + [ops.available_op(op) for op in _first_decisions(decisions, here)]


def _first_decisions(decisions: Sequence[Decision], here: int) -> list[ops.AvailableOp]:
    """A founder comes with all the others, so that they are known before anything else."""
    found: list[ops.AvailableOp] = []
    began = founder = False
    for decision in decisions:
        match decision:
            case Admit(number, name, is_founder):
                if began and not (founder and is_founder):
                    break
                found.append(ops.Admit(number, name, here=number == here, founder=is_founder))
                if number == here:
                    began, founder = True, is_founder
            case _ if began:
                break
            case Evict(number, round):
                found.append(ops.Evict(number, round))
            case Reclaim(number, heir):
                found.append(ops.Reclaim(number, heir))
    invariant(began, "a log begins for a region that was decided", number=here, decisions=decisions)
    return found
