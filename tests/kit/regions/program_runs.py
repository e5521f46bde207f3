"""Whole runs of programs in simulated regions, and what must hold when they are over."""

from __future__ import annotations

import traceback

from kit.regions.programs import STOCK_KEYS, Programs
from kit.regions.region import Violation
from kit.regions.replays import replays
from onefold.testing.sim import Faults, Simulation
from onefold.testing.sim.scheduler import Stalled

NAMES = ("eu", "us", "asia")


def run(
    seed: int,
    *,
    faults: str | Faults | None = "all",
    operations: int = 120,
    count: int = 0,
    shards: int = 0,
    seconds: float = 15.0,
) -> Programs:
    """A run from a seed; raises Violation. ``count`` of regions and ``shards`` follow from the seed by default."""
    names = NAMES[: count or 2 + seed % 2]
    rerun = f"kit.regions.program_runs.run({seed})"
    with Simulation(seed, shards=shards or 1 + (seed % 5 == 4), regions=names, rerun=rerun) as simulation:
        programs = Programs(simulation, operations)
        try:
            simulation.setup(programs.setup)
            programs.start()
            simulation.run(faults, seconds)
            _check_ends(simulation, programs)
        except (Violation, Stalled):
            raise
        except AssertionError as error:
            raise Violation(f"{error}\n{traceback.format_exc()}") from error
        return programs


def _check_ends(simulation: Simulation, programs: Programs) -> None:
    found = replays(simulation)
    requests = {name: count for replay in found for name, count in replay.requests.items()}
    for name, status in programs.record.items():
        count = requests.get(name, 0)
        if count > 1 or (status == "fail" and count) or (status == "ok" and not count):
            raise Violation(f"request {name}: {status}, and it was done {count} times")
    shown = {}
    for region in simulation.regions:
        with simulation.healed(region=region.name) as db:
            own, stock = db.map("own", mode="available"), db.counters("stock", floor=0)
            values = dict(own.items())
            for writer, acked in programs.acked.items():
                if values[writer]["n"] < max(n for _, n in acked):
                    raise Violation(f"region {region.name} has lost a number of {writer}")
            if missing := programs.tags - db.sets("tags").get("all"):
                raise Violation(f"region {region.name} has lost {missing}")
            left = {key: stock.get(key) for key in STOCK_KEYS}
            totals = {
                key: sum(replay.model.total("b0/stock", _key(key)) for replay in found) for key in STOCK_KEYS
            }
            if left != totals:
                raise Violation(f"region {region.name} has {left} in stock, where {totals} is left")
            shown[region.name] = values, left, db.sets("tags").get("a"), db.sets("tags").get("b")
    if len({repr(sorted(map(repr, one))) for one in shown.values()}) > 1:
        raise Violation(f"regions show different values: {shown}")


def _key(key: str) -> bytes:
    from onefold.state.encoding.keys import encode_key

    return encode_key(key)
