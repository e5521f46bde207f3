"""The logs of simulated regions, folded once more: each effect for the model, and what must hold behind every record."""

from __future__ import annotations

from typing import Any

from kit.regions.model import Did, Model
from kit.regions.region import SimRegion as Shower
from kit.regions.region import Violation
from onefold.available import reading
from onefold.available.fold import AvailableFold
from onefold.available.kinds.places import BOUNDED, split_place
from onefold.available.ops import Committed, Do, decode_op, decode_outcome
from onefold.available.regions import read_self
from onefold.available.stamps import covers
from onefold.fold.api import Context, Store
from onefold.folds import region_folds
from onefold.shard.memory import MemoryShard
from onefold.testing.sim import Simulation
from onefold.testing.sim.env import SimMachine
from onefold.testing.sim.network import Endpoint
from onefold.testing.sim.regions import SimRegion

EVERY = 40
"""So often a region's rows are compared with the model's: behind each record that would take long."""


class Replay:
    """All that regions did in one shard. Raises Violation."""

    def __init__(self, simulation: Simulation, shard: int) -> None:
        self.simulation = simulation
        self.shard = shard
        self.model = Model()
        self.requests: dict[str, int] = {}
        """By request id, how often it was done."""
        for region in simulation.regions:
            self._fold(region, _Making(self))
        for region in simulation.regions:
            self._fold(region, _Looking(self, region.name))

    def _fold(self, region: SimRegion, fold: AvailableFold) -> None:
        machine = SimMachine(self.simulation.scheduler, f"replays {region.name}", self.simulation.seed)
        server = region.servers[self.shard]
        others = region_folds(self.shard, len(region.servers))[1:]
        shard = MemoryShard(
            Endpoint(server, machine), [fold, *others], machine, pause=machine.pause, replica=True
        )
        try:
            if not shard.reach(server.end, 60.0):
                raise Violation(f"the log of region {region.name} was not delivered")
            if isinstance(fold, _Looking):
                with shard.view() as view:
                    fold.look(view)
        finally:
            shard.close()


class _Making(AvailableFold):
    """Notes what was done."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay

    def apply(self, store: Store, context: Context, body: bytes, fold_version: int) -> bytes:
        before = read_self(store)
        data = super().apply(store, context, body, fold_version)
        op = decode_op(body)
        outcome = decode_outcome(data)
        if not isinstance(op, Do) or not isinstance(outcome, Committed):
            return data
        if outcome.seq <= before.origin(before.number).seq:
            return data  # it was done before, under its request id
        past = {**before.have(), before.number: outcome.seq}
        replay, name = self._replay, context.request_id
        replay.model.add(Did(before.number, outcome.seq, past, outcome.hlc, context.now_ms, op.requests))
        if name is not None:
            replay.requests[name] = replay.requests.get(name, 0) + 1
        return data


class _Looking(AvailableFold):
    """Compares what is shown with the model, and looks at floors."""

    def __init__(self, replay: Replay, name: str) -> None:
        self._replay = replay
        self._name = name
        self._applied = 0
        self._have: dict[int, int] = {}

    def apply(self, store: Store, context: Context, body: bytes, fold_version: int) -> bytes:
        data = super().apply(store, context, body, fold_version)
        self._applied += 1
        me = read_self(store)
        have = me.have()
        for number, seq in have.items():
            for at in range(self._have.get(number, 0) + 1, seq + 1):
                did = self._replay.model.did.get((number, at))
                if did is not None and not covers(have, did.past):
                    raise Violation(f"region {self._name} knows {number}:{at} and not what it was made from")
        self._have = have
        self._check_floors(store)
        if self._applied % EVERY == 0:
            self.look(store)
        return data

    def look(self, view: Any) -> None:
        """The rows are those of the model."""
        shower = Shower(0, self._name, store=view)
        shown = shower.shown()
        wanted = self._replay.model.state(read_self(view).have(), 0)
        if shown != wanted:
            differ = sorted(
                (key, shown.get(key), wanted.get(key))
                for key in {*shown, *wanted}
                if shown.get(key) != wanted.get(key)
            )
            raise Violation(f"region {self._name} shows {differ[:3]} (shown, wanted)")

    def _check_floors(self, store: Store) -> None:
        for name, places in reading.names(store):
            for place in places:
                if place[0] != BOUNDED:
                    continue
                floor = split_place(place)[2]
                assert floor is not None
                for key, value in reading.items(store, place):
                    assert isinstance(value, int)
                    if value < floor or reading.here(store, name, floor, key) < 0:
                        raise Violation(f"region {self._name} has {name} at {value}, below {floor}")


def replays(simulation: Simulation) -> list[Replay]:
    """Of each shard. Raises Violation."""
    return [Replay(simulation, shard) for shard in range(len(simulation.servers))]
