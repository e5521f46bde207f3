"""The fixed merge tree: partials merge along a binary tree over dispatch index.

Float sums depend on the order of additions, so the order is fixed: node (j, i) covers the dispatch indexes
[i * 2**j, (i + 1) * 2**j) and its value is ``merge_pair(left half, right half)``, or the only half that has a
leaf. A node's value depends on the leaves in its range and on nothing else: not on the order in which tasks
finished, nor on what was read before. So any intermediate node may be kept, and reading a table again after
one more task costs one merge per level and not one per task.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

    MergePair = Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame]

CACHE_BYTES_MAX = 256 * 1024 * 1024
"""Memory that a MergeCache takes for merged frames."""
FORK_LEAVES_MIN = 4
"""Two halves with at least this many leaves each are merged in two threads."""
FORKS = 1
"""How many levels of the tree fork. Most of a merge is Polars and numpy at work on one column without the GIL."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A task's partial: its content name (equal names have equal frames), and how to get the frame when it is
    needed.
    """

    name: str
    load: Callable[[], pl.DataFrame]


class MergeCache:
    """Merged nodes by the content of their leaves, least recently used first out. Thread-safe.

    One cache serves one table with one set of aggregates.
    """

    def __init__(self, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._frames: OrderedDict[bytes, tuple[pl.DataFrame, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.merges = 0
        """How many pairs were merged through this cache, for tests and diagnostics."""

    def get(self, key: bytes) -> pl.DataFrame | None:
        """The node of these leaves, if it is kept."""
        with self._lock:
            found = self._frames.get(key)
            if found is None:
                return None
            self._frames.move_to_end(key)
            return found[0]

    def put(self, key: bytes, frame: pl.DataFrame) -> None:
        """Keeps a merged node, unless it alone is larger than the cache."""
        size = int(frame.estimated_size())
        with self._lock:
            self.merges += 1
            if size > self._bytes_max or key in self._frames:
                return
            self._frames[key] = (frame, size)
            self._bytes += size
            while self._bytes > self._bytes_max:
                _, (_, dropped) = self._frames.popitem(last=False)
                self._bytes -= dropped

    def clear(self) -> None:
        """Forgets all nodes."""
        with self._lock:
            self._frames.clear()
            self._bytes = 0

    def __len__(self) -> int:
        with self._lock:
            return len(self._frames)

    @property
    def bytes(self) -> int:
        """Estimated size of the frames that are kept."""
        with self._lock:
            return self._bytes


def merge_tree(
    leaves: Mapping[int, Leaf], merge_pair: MergePair, cache: MergeCache | None = None
) -> pl.DataFrame | None:
    """The merge of all leaves (dispatch index -> leaf) along the fixed tree; None without leaves.

    Leaves are loaded when a node that needs them is not in the cache, each once. Bit for bit the same for the
    same leaves, whatever the cache holds.
    """
    if not leaves:
        return None
    indexes = sorted(leaves)
    digests: dict[tuple[int, int], bytes] = {}

    def digest(low: int, high: int, first: int, last: int) -> bytes:
        """Names the leaves at positions [first, last), which are those in the index range [low, high)."""
        if last - first == 1:
            return b"leaf:" + leaves[indexes[first]].name.encode()
        known = digests.get((first, last))
        if known is None:
            middle = (low + high) // 2
            cut = bisect_left(indexes, middle, first, last)
            if cut in (first, last):
                return digest(middle, high, first, last) if cut == first else digest(low, middle, first, last)
            left, right = digest(low, middle, first, cut), digest(middle, high, cut, last)
            known = blake2b(len(left).to_bytes(4, "big") + left + right, digest_size=20).digest()
            digests[first, last] = known
        return known

    def node(low: int, high: int, first: int, last: int, forks: int) -> pl.DataFrame:
        if last - first == 1:
            return leaves[indexes[first]].load()
        middle = (low + high) // 2
        cut = bisect_left(indexes, middle, first, last)
        if cut == first:
            return node(middle, high, first, last, forks)
        if cut == last:
            return node(low, middle, first, last, forks)
        key = digest(low, high, first, last) if cache is not None else b""
        if cache is not None and (kept := cache.get(key)) is not None:
            return kept
        if forks and min(cut - first, last - cut) >= FORK_LEAVES_MIN:
            with ThreadPoolExecutor(1) as pool:
                pending = pool.submit(node, low, middle, first, cut, forks - 1)
                right = node(middle, high, cut, last, forks - 1)
                left = pending.result()
        else:
            left = node(low, middle, first, cut, forks)
            right = node(middle, high, cut, last, forks)
        merged = merge_pair(left, right)
        if cache is not None:
            cache.put(key, merged)
        return merged

    size = 1 << indexes[-1].bit_length()
    return node(0, size, 0, len(indexes), FORKS)
