"""Is a history of operations linearizable? (Herlihy & Wing 1990.)

A depth-first search for an order of the operations that keeps real time and that the sequential model would answer
alike (Wing & Gong, "Testing and verifying concurrent objects", 1993). It never visits the same pair of (operations
done, state) twice (Lowe, "Testing for linearizability", 2017). It looks at one key at a time, because a history is
linearizable iff its part on each object is (Horn & Kroening, "Faster linearizability checking via
P-compositionality", 2015). This is how the checker Porcupine works. The problem is NP-complete, so the search has a
budget; what it cannot finish is UNKNOWN.

Operations of unknown outcome never end: they may take effect at any time after their invocation, or not at all.
Failed ones had no effect and are left out, their answers too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from onefold.arguments import check_whole
from onefold.testing.history import VALID, Operation, Verdict, indented, invalid, unknown, worst
from onefold.testing.models import Model, freeze

BUDGET_STEPS = 1_000_000

_PREFIX_SHOWN_MAX = 10


def check_linearizable(
    operations: Iterable[Operation], model: Model, *, budget_steps: int = BUDGET_STEPS
) -> Verdict:
    """Whether the operations of every key could have happened one at a time, each between its invocation and its end.

    ``budget_steps`` bounds the steps of the model per key, and with them the memory. A history without an ok operation
    is UNKNOWN: it shows nothing. The explanation of an INVALID verdict shows the longest part that can be explained
    and the operations that cannot come next.
    """
    check_whole("budget_steps", budget_steps, least=0)
    by_key: dict[Hashable, list[Operation]] = defaultdict(list)
    for op in operations:
        if op.status != "fail":
            by_key[freeze(op.key)].append(op)
    if not any(op.status == "ok" for part in by_key.values() for op in part):
        return unknown("there is no ok operation to check")
    return worst(_Search(part, model, budget_steps).run() for part in by_key.values())


@dataclass(frozen=True, slots=True)
class _At:
    """Where the search is: the ok operations done (all before ``base``, then the bits of ``window``), the operations
    of unknown outcome that have taken effect (the bits of ``taken``), and the state they lead to."""

    base: int
    window: int
    taken: int
    state: Any

    def ok_done(self) -> int:
        return self.base + self.window.bit_count()


class _OutOfBudget(Exception):
    """The search has used up its steps."""


class _Search:
    """The search for one key."""

    def __init__(self, operations: Sequence[Operation], model: Model, budget_steps: int) -> None:
        self._model = model
        self._steps_left = budget_steps
        by_invocation = sorted(operations, key=lambda op: op.invoked)
        helpful: Sequence[Operation] = by_invocation
        self._legal = model.step
        if model.specialise is not None:
            helpful, self._legal = model.specialise(by_invocation)
        self._ok = [op for op in by_invocation if op.status == "ok"]
        self._info = [op for op in helpful if op.status == "info" and op.kind not in model.reads]
        self._twin = _twins(self._info)
        self._reached: dict[_At, tuple[_At, tuple[Operation, ...]] | None] = {}
        self._visits: dict[tuple[int, int, Hashable], list[int]] = {}

    def run(self) -> Verdict:
        if not self._ok:
            return VALID
        start = _At(0, 0, 0, self._model.initial)
        self._reached[start] = None
        self._visits[0, 0, start.state] = [0]
        best = start
        path = [self._moves(start)]
        try:
            while path:
                after = next(path[-1], None)
                if after is None:
                    path.pop()
                    continue
                if after.base == len(self._ok):
                    return VALID
                if after.ok_done() > best.ok_done():
                    best = after
                path.append(self._moves(after))
        except _OutOfBudget:
            return unknown(f"the search of {self._where()} ran out of its budget of steps")
        return invalid([("nonlinearizable", self._explain(best))])

    def _moves(self, at: _At) -> Iterator[_At]:
        """Every new place one move away: what may come next is what was invoked before all open operations end."""
        open_ops, horizon = self._open(at)
        # Reads that are right now change nothing, so taking all of them at once closes no way.
        reads = [
            i for i in open_ops if self._ok[i].kind in self._model.reads and self._step(at, self._ok[i])[0]
        ]
        if reads:
            yield from self._go(at, at.state, at.taken, reads)
            return
        for i in open_ops:
            if self._ok[i].kind not in self._model.reads:
                legal, state = self._step(at, self._ok[i])
                if legal:
                    yield from self._go(at, state, at.taken, [i])
        # Last, because most operations of unknown outcome are not needed to explain the others.
        for i, op in enumerate(self._info):
            if op.invoked > horizon:
                break
            twin = self._twin[i]
            if at.taken >> i & 1 or (twin is not None and not at.taken >> twin & 1):
                continue
            legal, state = self._step(at, op)
            if legal and state != at.state:
                yield from self._go(at, state, at.taken | 1 << i, [], op)

    def _open(self, at: _At) -> tuple[list[int], float]:
        """The ok operations that may come next, soonest end first, and the first time at which one of them ends."""
        horizon = math.inf
        found: list[int] = []
        for i in range(at.base, len(self._ok)):
            op = self._ok[i]
            if op.invoked > horizon:
                break
            if not at.window >> (i - at.base) & 1:
                found.append(i)
                horizon = min(horizon, op.end)
        return sorted(found, key=lambda i: self._ok[i].end), horizon

    def _step(self, at: _At, op: Operation) -> tuple[bool, Hashable]:
        if self._steps_left <= 0:
            raise _OutOfBudget
        self._steps_left -= 1
        return self._legal(at.state, op)

    def _go(self, at: _At, state: Hashable, taken: int, done: list[int], *info: Operation) -> Iterator[_At]:
        """The place after these operations, if it is new."""
        base, window = at.base, at.window
        for i in done:
            window |= 1 << (i - base)
        while window & 1:
            window >>= 1
            base += 1
        after = _At(base, window, taken, state)
        # A place with the same operations done and the same state, but fewer of unknown outcome used up, can go
        # wherever this one can: then this one is not worth a visit.
        visits = self._visits.setdefault((base, window, state), [])
        if all(earlier & ~taken for earlier in visits):
            visits[:] = [earlier for earlier in visits if taken & ~earlier]
            visits.append(taken)
            self._reached[after] = (at, (*(self._ok[i] for i in done), *info))
            yield after

    # -- words -------------------------------------------------------------------------------------------------

    def _where(self) -> str:
        key = self._ok[0].key
        return f"a {self._model.name}" + ("" if key is None else f" at key {key!r}")

    def _explain(self, best: _At) -> str:
        order: list[Operation] = []
        at = best
        while (before := self._reached[at]) is not None:
            at, done = before
            order[:0] = done
        left_out = len(order) - _PREFIX_SHOWN_MAX
        dots = [f"... {left_out} operations"] if left_out > 0 else []
        stuck = [self._ok[i] for i in self._open(best)[0]]
        return (
            f"no order of the {len(self._ok)} ok operations of {self._where()} explains their results."
            f"\n  The longest part that can be explained is:{indented([*dots, *order[-_PREFIX_SHOWN_MAX:]]) or ' nothing'}"
            f"\n  It leads to the state {best.state!r}. One of these would have to come next, and none leads on:"
            f"{indented(stuck)}"
        )


def _twins(info: Sequence[Operation]) -> list[int | None]:
    """For each operation the one before it that asks the same. Only the earlier may be taken first: this loses nothing,
    because whatever the later could do, the earlier could do at the same time."""
    last: dict[Hashable, int] = {}
    twins: list[int | None] = []
    for i, op in enumerate(info):
        same = (op.process, op.kind, freeze(op.value), freeze(op.result))
        twins.append(last.get(same))
        last[same] = i
    return twins
