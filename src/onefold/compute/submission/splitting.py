"""Packing units of input into splits, and the order in which splits are dispatched. Pure and deterministic.

What goes *into* a split is scattered (units are shuffled before they are packed) so that a split is a fair cluster of the
whole input; inside a split units stand in file order, so that reading is sequential. The shuffle uses a counter-mode BLAKE2b
stream, never ``random``: the same seed gives the same splits on every version of Python.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Sequence

from onefold import config
from onefold.compute.plan.stages import Split, Unit


class SeededStream:
    """Uniform integers from BLAKE2b in counter mode, keyed by (purpose, seed)."""

    def __init__(self, purpose: str, seed: int) -> None:
        self._key = hashlib.blake2b(f"{purpose}:{seed}".encode(), digest_size=32).digest()
        self._counter = 0
        self._words: list[int] = []

    def _word(self) -> int:
        if not self._words:
            block = hashlib.blake2b(self._counter.to_bytes(8, "big"), key=self._key, digest_size=64).digest()
            self._counter += 1
            self._words = [int.from_bytes(block[i : i + 8], "big") for i in range(0, 64, 8)]
        return self._words.pop()

    def below(self, bound: int) -> int:
        """A uniform integer in ``[0, bound)``; rejection sampling, so without modulo bias."""
        limit = (1 << 64) - (1 << 64) % bound
        while (word := self._word()) >= limit:
            pass
        return word % bound

    def permutation(self, count: int) -> list[int]:
        """A uniform permutation of ``range(count)`` (Fisher-Yates)."""
        order = list(range(count))
        for i in range(count - 1, 0, -1):
            j = self.below(i + 1)
            order[i], order[j] = order[j], order[i]
        return order


def default_target(total_cost: int, units: int, least: int = config.SPLITS_DEFAULT_MIN) -> int:
    """How many splits an input of ``total_cost`` bytes in ``units`` units is cut into; 0 for no units."""
    wanted = max(least, -(-total_cost // config.SPLIT_BYTES_TARGET))
    return min(wanted, units, config.TASKS_PER_JOB_MAX)


def pack(units: Iterable[Unit], *, target_splits: int, seed: int) -> list[Split]:
    """Pack units into at most ``target_splits`` splits of about equal cost; no split is empty.

    Units are first put into (path, start) order, so the result depends on the set of units only, then shuffled by ``seed`` and
    given one by one to the split that is cheapest so far (after the units that are larger than a fair share, which are
    spread first). Inside a split, units are in (path, start) order.
    """
    ordered = sorted(units)
    if not ordered:
        return []
    count = max(1, min(target_splits, len(ordered)))
    shuffled = [ordered[i] for i in SeededStream("pack", seed).permutation(len(ordered))]
    # A unit above the fair share fills a split on its own: placed first, the rest levels the others out.
    share = sum(unit.cost for unit in ordered) / count
    shuffled = [u for u in shuffled if u.cost > share] + [u for u in shuffled if u.cost <= share]
    # The number of units breaks ties, so units without cost (empty files) are spread as well.
    heap = [(0, 0, index) for index in range(count)]
    splits: list[list[Unit]] = [[] for _ in range(count)]
    for unit in shuffled:
        cost, held, index = heap[0]
        splits[index].append(unit)
        heapq.heapreplace(heap, (cost + unit.cost, held + 1, index))
    return [tuple(sorted(split)) for split in splits if split]


def repack(
    previous: Sequence[Split], units: Iterable[Unit], *, target_splits: int, seed: int
) -> tuple[list[Split], list[Split]]:
    """``(kept, new)`` splits of a re-run.

    A previous split is kept, as it was and in its order, iff every unit of it still exists unchanged. All other units,
    those of retired splits included, are packed into new splits; the kept ones count towards ``target_splits`` only by
    setting the size: new splits are about as large as the ``target_splits``-th part of the whole input.
    """
    available = set(units)
    total = sum(unit.cost for unit in available)
    kept: list[Split] = []
    for split in previous:
        # Taking the units out keeps one that stands in two old splits from being read twice.
        if split and len(set(split)) == len(split) and available.issuperset(split):
            kept.append(tuple(split))
            available.difference_update(split)
    if not available:
        return kept, []
    fresh = sum(unit.cost for unit in available)
    wanted = -(-target_splits * fresh // total) if total else target_splits
    return kept, pack(available, target_splits=max(1, wanted), seed=seed)


def dispatch_order(count: int, seed: int) -> list[int]:
    """The seeded random order in which ``count`` splits are handed out: a permutation of their indexes."""
    return SeededStream("dispatch", seed).permutation(count)
