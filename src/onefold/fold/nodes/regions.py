"""What is decided on regions, once for all of them: a list in the log of shard 0, which only grows.

The log of every region gets all decisions in this order (``onefold.regions``). A region has a name for people and folders, and a
number in the logs: one that was evicted and comes again has another number under its name.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from onefold.fold.api import Store, StoreView
from onefold.fold.nodes import rows
from onefold.fold.nodes.ops import AddRegion, EvictRegion, Refused, RegionIs, RegionOperation, RegionOutcome
from onefold.ids import REGIONS_MAX, is_region

NUMBER_MAX: Final = (1 << 16) - 1
"""The highest number of a region."""
_KEY: Final = struct.Struct(">I")


class Admit(msgspec.Struct, frozen=True, array_like=True, tag="adm"):
    """There is a region."""

    number: int
    name: str
    founder: bool = False
    """Begun together with all other founders, before anything was written in any."""


class Evict(msgspec.Struct, frozen=True, array_like=True, tag="evi"):
    """A region is gone."""

    number: int
    round: int
    """Evictions are counted from 1."""


class Reclaim(msgspec.Struct, frozen=True, array_like=True, tag="rec"):
    """Rights of a region that is gone belong to another one."""

    number: int
    heir: int


Decision = Admit | Evict | Reclaim
_decoder: msgspec.msgpack.Decoder[Decision] = msgspec.msgpack.Decoder(Decision)
_encode = msgspec.msgpack.Encoder().encode


class Region(NamedTuple):
    """A region as it was decided."""

    number: int
    name: str
    evicted: bool


def read_decisions(view: StoreView) -> list[Decision]:
    """All decisions, in order."""
    return [_decoder.decode(data) for _, data in view.scan(rows.REGION)]


def regions_of(decisions: Sequence[Decision]) -> dict[str, Region]:
    """The regions by name, each with the number that it got last."""
    found: dict[str, Region] = {}
    for decision in decisions:
        if isinstance(decision, Admit):
            found[decision.name] = Region(decision.number, decision.name, False)
        elif isinstance(decision, Evict):
            for name, region in found.items():
                if region.number == decision.number:
                    found[name] = region._replace(evicted=True)
    return found


def living(decisions: Sequence[Decision]) -> list[Region]:
    """Those that are not evicted, in the order of their numbers."""
    return sorted(region for region in regions_of(decisions).values() if not region.evicted)


def malformed(op: RegionOperation) -> str:
    """Why an operation makes no sense, whatever the state; empty when it does."""
    names = [op.name, op.heir] if isinstance(op, EvictRegion) and op.heir else [op.name]
    if not all(is_region(name) for name in names):
        return "a region's name has 1 to 32 letters, digits, _ and -, and is not 'witness'"
    if len(set(names)) < len(names):
        return "the heir of a region is another one"
    return ""


def decide(store: Store, op: RegionOperation) -> RegionOutcome:
    """Decide, or refuse and write nothing."""
    decisions = read_decisions(store)
    region = regions_of(decisions).get(op.name)
    if isinstance(op, EvictRegion):
        return _evict(store, decisions, region, op)
    if isinstance(op, AddRegion):
        if region is not None and not region.evicted:
            return RegionIs(region.number)
        if region is not None:
            return Refused("conflict", f"region {op.name} was evicted. It can rejoin")
    else:
        if region is None:
            return _unknown(decisions, op.name)
        if not region.evicted:
            return Refused("conflict", f"region {op.name} was not evicted, so it need not rejoin")
    return _admit(store, decisions, op.name, founder=isinstance(op, AddRegion) and op.founder)


def _admit(store: Store, decisions: list[Decision], name: str, *, founder: bool) -> RegionOutcome:
    present = living(decisions)
    number = max((one.number for one in decisions if isinstance(one, Admit)), default=0) + 1
    others = set(regions_of(decisions)) - {name}  # those that are gone still have a folder
    alike = next((other for other in sorted(others) if other.lower() == name.lower()), None)
    if alike is not None:
        return Refused("conflict", f"there is a region {alike}, which is the same apart from case")
    if len(present) >= REGIONS_MAX or number > NUMBER_MAX:
        return Refused("too_many", f"a space has {REGIONS_MAX} regions at most, and this one has that many")
    begun = not all(isinstance(one, Admit) and one.founder for one in decisions)
    if founder and begun:
        return Refused("conflict", f"region {name} cannot be a founder: others came after the founders")
    _append(store, decisions, Admit(number, name, founder or not decisions))
    return RegionIs(number)


def _evict(store: Store, decisions: list[Decision], region: Region | None, op: EvictRegion) -> RegionOutcome:
    if region is None:
        return _unknown(decisions, op.name)
    if region.evicted:
        return Refused("conflict", f"region {op.name} was evicted before")
    present = living(decisions)
    if len(present) < 2:
        return Refused("conflict", f"region {op.name} is the last one, which cannot be evicted")
    heir = next((other for other in present if other.name == op.heir), None)
    if op.heir and heir is None:
        return _unknown(decisions, op.heir)
    rounds = sum(isinstance(one, Evict) for one in decisions)
    _append(store, decisions, Evict(region.number, rounds + 1))
    if heir is not None:
        _append(store, decisions, Reclaim(region.number, heir.number))
    return RegionIs(region.number)


def _unknown(decisions: list[Decision], name: str) -> Refused:
    names = ", ".join(region.name for region in living(decisions)) or "none"
    return Refused("unknown", f"there is no region {name}. The space has: {names}")


def _append(store: Store, decisions: list[Decision], decision: Decision) -> None:
    store.put(rows.REGION, _KEY.pack(len(decisions)), _encode(decision))
    decisions.append(decision)
