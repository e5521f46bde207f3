"""Collections for every region next to consistent ones: ratios of two things that are measured in one run.

Run: ``python benches/regions.py [--only reads,wire] [--cut 10] [--keys 20000] [--rounds 5]``. Parts in a folder, of this process:

- *reads* and *puts* of an available map next to those of a consistent one: session reads of 1,000 keys again and again, of the
  value and of the whole item, and synced puts one by one;
- *wire*: the answer to another region's question, before compression, next to the operations that it tells of; and what rows
  take in addition to their keys and values;
- *cut*: a link is cut for ``--cut`` seconds while one region writes ``--keys`` effects, and healed. How soon the first one
  is over, and how fast all are, next to a consistent log of the same keys that a replica catches up with; then both directions.

Parts on a cluster of this machine (``regions_cluster.py``; seven servers, in two regions and a witness): *links* (puts with and
without a delay between sites) and *idle* (what ten nodes take that nobody uses). They are left out unless they are named.

Prints a table of ratios with targets, and the load of the machine before and after. Ends with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import onefold as of
import regions_fold
from common import data_dir
from onefold.available import exchange, ops
from onefold.available.kinds.cells import Cells
from onefold.available.kinds.row import encode
from onefold.available.ops import available_op
from onefold.available.regions import read_self
from onefold.available.rows import all_places, table_of
from onefold.state.encoding.keys import encode_key
from onefold.state.fold.machine import StateFold
from onefold.testing import links

VALUE = "x" * 60
PER_RECORD = 500
WAIT_S = 300.0


class Measured(NamedTuple):
    """A line of the table. ``at_least``: whether the target is the least that is wanted, else the most."""

    what: str
    found: float
    target: float | None
    at_least: bool = False
    told: str = ""

    def met(self) -> bool:
        if self.target is None:
            return True
        return self.found >= self.target if self.at_least else self.found <= self.target


def show(lines: Sequence[Measured]) -> bool:
    """Print the table. Whether all targets are met."""
    for line in lines:
        wanted = ""
        if line.target is not None:
            sign = "≥" if line.at_least else "≤"
            wanted = f"target {sign} {line.target:g}: {'met' if line.met() else 'missed'}"
        print(f"{line.what:58} {line.found:8.2f}   {wanted:24} {line.told}", flush=True)
    return all(line.met() for line in lines)


def ratio_line(
    what: str, ours: Sequence[float], theirs: Sequence[float], target: float | None, *, unit: str = "us"
) -> Measured:
    """The median of the ratios of rounds that were measured in turn."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    told = f"{statistics.median(ours):.2f} and {statistics.median(theirs):.2f} {unit}, {min(ratios):.2f}-{max(ratios):.2f} x"
    return Measured(what, statistics.median(ratios), target, told=told)


def in_turn(rounds: int, steps: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Measure each of them in every round, after one round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for at in range(rounds + 1):
        for name, step in steps.items():
            value = step()
            if at:
                found[name].append(value)
    return found


# -- reads and puts


def processor_us(step: Callable[[int], object], number: int) -> float:
    """Processor time of this thread for each call."""
    began = time.thread_time()
    for at in range(number):
        step(at)
    return 1e6 * (time.thread_time() - began) / number


def p50_ms(step: Callable[[int], object], number: int) -> float:
    times = []
    for at in range(number):
        began = time.perf_counter()
        step(at)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def maps(db: of.Database) -> tuple[Any, Any]:
    """A consistent map and an available one with the same items."""
    items = {f"k{at}": VALUE for at in range(1000)}
    consistent, available = db.map("consistent"), db.map("available", mode="available")
    for each in (consistent, available):
        each.put_many(items, atomic=False)
    return consistent, available


def reads(url: str, rounds: int, where: str) -> list[Measured]:
    """Processor time, since all of it is this thread's."""
    with of.connect(url, region="dc1") as db:
        consistent, available = maps(db)
        first = available.get("k0")
        assert first == VALUE
        lines = []
        for what, number, call in (
            ("get, session", 20_000, lambda m, key: m.get(key, consistency="session")),
            ("get, prefix", 5_000, lambda m, key: m.get(key, consistency="prefix")),
            ("get_item, session", 10_000, lambda m, key: m.get_item(key, consistency="session")),
        ):
            steps = {
                name: (
                    lambda m=m, call=call, number=number: processor_us(
                        lambda at: call(m, f"k{at % 1000}"), number
                    )
                )
                for name, m in (("available", available), ("consistent", consistent))
            }
            found = in_turn(rounds, steps)
            target = 1.2 if what == "get, session" else None
            lines.append(
                ratio_line(
                    f"{where}: {what}, available / consistent",
                    found["available"],
                    found["consistent"],
                    target,
                )
            )
    return lines


def puts(url: str, rounds: int, number: int) -> list[Measured]:
    with of.connect(url, region="dc1") as db:
        consistent, available = maps(db)

        def put(m: Any) -> Callable[[], float]:
            return lambda: p50_ms(lambda at: m.put(f"k{at % 1000}", VALUE), number)

        found = in_turn(rounds, {"available": put(available), "consistent": put(consistent)})
        processor = in_turn(
            rounds,
            {
                name: (lambda m=m: processor_us(lambda at: m.put(f"k{at % 1000}", VALUE), number))
                for name, m in (("available", available), ("consistent", consistent))
            },
        )
    return [
        ratio_line(
            "folder: put p50, available / consistent",
            found["available"],
            found["consistent"],
            None,
            unit="ms",
        ),
        ratio_line(
            "folder: processor time of a put, the same", processor["available"], processor["consistent"], None
        ),
    ]


# -- exchange


def write(db: of.Database, keys: Sequence[bytes], request: Callable[[bytes], ops.AnyRequest]) -> int:
    """An effect for each key, several in a record as group commit makes of many writers. The number of the last one."""
    shard = db._available.shards[0]
    for at in range(0, len(keys), PER_RECORD):
        outcomes = shard.submit([available_op(ops.Do((request(key),))) for key in keys[at : at + PER_RECORD]])
        last = ops.decode_outcome(outcomes[-1])
        assert isinstance(last, ops.Committed), last
    return last.seq


def put_of(key: bytes) -> ops.AnyRequest:
    return ops.Put("r", "m", ((key, regions_fold.VALUE),))


def begin(key: bytes) -> ops.AnyRequest:
    """Of another collection than what is measured."""
    return ops.Put("r", "begin", ((key, b"1"),))


def knows(db: of.Database) -> dict[int, int]:
    with db._available.shards[0].view() as view:
        return read_self(view).have()


def knows_itself(db: of.Database) -> int:
    """The region's number."""
    return int(db._available.known(0).number)


def await_effects(db: of.Database, number: int, seq: int) -> int:
    """Wait until the region knows so many of another one's. How many it knows then."""
    end = time.perf_counter() + WAIT_S
    while (known := knows(db).get(number, 0)) < seq:
        if time.perf_counter() > end:
            raise SystemExit(f"effect {seq} of region {number} did not come in {WAIT_S:g} s")
        time.sleep(0.01)
    return known


class Sides(NamedTuple):
    """Two regions of a folder, open in this process, and their numbers."""

    url: str
    dbs: tuple[of.Database, of.Database]
    numbers: tuple[int, int]

    def apart(self, written: Sequence[Sequence[bytes]], seconds: float) -> tuple[float, float]:
        """Cut the link, write an effect for each key of each side, and heal. Seconds until the first one is over, and how many a
        second came behind the first ones that were seen."""
        links.cut(self.url, "dc1", "dc2")
        began = time.perf_counter()
        lasts = [write(db, keys, put_of) if keys else 0 for db, keys in zip(self.dbs, written, strict=True)]
        # Of (who waits, whose effects, the last one)
        ways = [
            (self.dbs[1 - at], self.numbers[at], last, knows(self.dbs[1 - at]).get(self.numbers[at], 0))
            for at, last in enumerate(lasts)
            if last
        ]
        time.sleep(max(0.0, began + seconds - time.perf_counter()))
        links.heal(self.url)
        healed = time.perf_counter()
        here = await_effects(*ways[0][:2], ways[0][3] + 1)
        first = time.perf_counter()
        left = ways[0][2] - here + sum(last - knows(db).get(number, 0) for db, number, last, _ in ways[1:])
        for db, number, last, _ in ways:
            await_effects(db, number, last)
        return first - healed, left / (time.perf_counter() - first)


def cut(folder: Path, seconds: float, number: int) -> list[Measured]:
    url = str(folder / "cut")
    keys = regions_fold.keys_in_random_order(4 * number)
    with of.connect(url, region="dc1") as one, of.connect(url, region="dc2") as other:
        sides = Sides(url, (one, other), (knows_itself(one), knows_itself(other)))
        await_effects(other, sides.numbers[0], write(one, [encode_key("begin")], begin))
        await_effects(one, sides.numbers[1], write(other, [encode_key("begin")], begin))
        first_s, single = sides.apart((keys[:number], ()), seconds)
        _, both = sides.apart((keys[number : 2 * number], keys[2 * number : 3 * number]), 0.0)
    log = regions_fold.puts(keys[3 * number :])
    catch_up = number / statistics.median(
        regions_fold.took(folder, StateFold(), log, number)[1] for _ in range(3)
    )
    return [
        Measured(f"folder: first effect after a cut of {seconds:g} s, in seconds", first_s, 2.0),
        Measured(
            "folder: effects brought over / catching up of puts",
            single / catch_up,
            0.5,
            True,
            f"{single:,.0f}/s and {catch_up:,.0f}/s, by wall time",
        ),
        Measured(
            "folder: both directions at once, in sum / one direction",
            both / single,
            0.8,
            True,
            f"{both:,.0f}/s",
        ),
    ]


# -- bytes

ROWS: dict[str, tuple[Callable[[bytes], ops.AnyRequest], int, float]] = {
    "register": (put_of, len(regions_fold.VALUE), 22),
    "field": (
        lambda key: ops.Patch("m", key, (("a", regions_fold.VALUE),)),
        len(regions_fold.VALUE) + len(encode(Cells())) + 2,
        20,
    ),
    "element of a set": (lambda key: ops.Include("m", b"k", (key,)), 1, 12),
    "counter": (lambda key: ops.Add("m", key, 1), 0, 16),
    "bounded counter": (lambda key: ops.Change("m", 0, key, 1), 0, 26),
}
"""What makes a row, the bytes of its value (of a field: also its name, and an empty row), and how many more it may take."""


def wire(folder: Path, number: int) -> list[Measured]:
    keys = [encode_key(("key", at)) for at in range(number)]
    lines = []
    for kind, (request, value, allowed) in ROWS.items():
        url = str(folder / kind.replace(" ", "-"))
        with of.connect(url, region="dc1") as db, of.connect(url, region="dc2") as other:
            await_effects(db, knows_itself(other), write(other, [encode_key("begin")], begin))
            links.cut(url, "dc1", "dc2")  # else effects are not kept
            shard = db._available.shards[0]
            write(db, keys, request)
            with shard.view() as view:
                me = read_self(view)
                known = me.have() | {me.number: me.have().get(me.number, 0) - number}
                reply = exchange.answer(view, exchange.Ask(knows_itself(other), known, {}, b""), 1 << 30)
                (place,) = [place for place in all_places(view) if place.endswith("/m")]
                rows = [len(data) for _, data in view.scan(table_of(view, place))]
        sent = len(encode(reply)) / len(reply.effects)
        asked_for = statistics.fmean(len(encode(available_op(ops.Do((request(key),))))) for key in keys)
        assert len(reply.effects) == len(rows) == number, (len(reply.effects), len(rows))
        lines.append(
            Measured(
                f"bytes on the wire, {kind}: effect / operation",
                sent / asked_for,
                1.3,
                told=f"{sent:.0f} and {asked_for:.0f} bytes",
            )
        )
        lines.append(
            Measured(f"bytes of a row without key and value, {kind}", statistics.fmean(rows) - value, allowed)
        )
    return lines


PARTS = ("reads", "puts", "wire", "cut")
CLUSTER_PARTS = ("links", "idle")


def load() -> str:
    return f"load {', '.join(f'{one:.1f}' for one in os.getloadavg())} on {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts: {', '.join(PARTS + CLUSTER_PARTS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keys", type=int, default=20_000, help="effects that are written during a cut")
    parser.add_argument("--cut", type=float, default=10.0, help="seconds")
    parser.add_argument("--puts", type=int, default=100, help="puts in each round")
    parser.add_argument("--nodes", type=int, default=10, help="of the cluster")
    parser.add_argument("--delay", type=float, default=100.0, help="ms between sites, there and back")
    asked = parser.parse_args()
    parts = asked.only.split(",")
    unknown = [part for part in parts if part not in PARTS + CLUSTER_PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS + CLUSTER_PARTS)}")
    print(load())
    met = True
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=data_dir())))
        os.environ["ONEFOLD_CACHE"] = str(folder / "cache")
        steps: dict[str, Callable[[], list[Measured]]] = {
            "reads": lambda: reads(str(folder / "reads"), asked.rounds, "folder"),
            "puts": lambda: puts(str(folder / "puts"), asked.rounds, asked.puts),
            "wire": lambda: wire(folder, 2000),
            "cut": lambda: cut(folder, asked.cut, asked.keys),
        }
        if set(parts) & set(CLUSTER_PARTS):
            import regions_cluster

            steps |= regions_cluster.steps(stack, folder, asked)
        for part in parts:
            met = show(steps[part]()) and met
    print(load())
    raise SystemExit(not met)


if __name__ == "__main__":
    main()
