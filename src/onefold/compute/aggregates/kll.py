"""A deterministic quantile sketch over numpy arrays.

Karnin, Lang and Liberty, "Optimal quantile approximation in streams" (2016): levels of values, where a value
of level h stands for 2**h values; a level that is too large is sorted and every second of its values moves
up. Which half moves is a coin there. The sketches of Apache DataSketches draw it from a generator that Python
cannot seed, so a task that is run again would leave another result; here it is a hash of the level's own
values, and the sketch is a function of its input.
"""

from __future__ import annotations

import hashlib
import math
import struct
from typing import TYPE_CHECKING, Any

from onefold.machine.lazy import LazyModule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Levels = list[NDArray[Any]]
else:
    np = LazyModule("numpy")

K = 512
"""Capacity of the top level. Exact up to this many values; beyond, the rank error is below 1 % with 99 %
confidence.
"""
EXACT_VALUES_MAX = K
"""Groups of up to this many values are kept whole."""
RANK_ERROR = 0.01
"""Of larger ones, as a share of all values, with 99 % confidence."""
_LEVEL_MIN = 8
_SHRINK = 2 / 3


def compressed(levels: Levels, k: int = K) -> Levels:
    """The same sketch within its capacity. Every level is sorted, before and after."""
    levels = list(levels)
    while True:
        height = len(levels)
        room = [max(_LEVEL_MIN, math.ceil(k * _SHRINK ** (height - 1 - h))) for h in range(height)]
        if sum(len(level) for level in levels) <= sum(room):
            return levels
        full = next(h for h in range(height) if len(levels[h]) > room[h])
        stay, up = _halved(levels[full], full)
        levels[full] = stay
        if full + 1 == height:
            levels.append(up)
        else:
            levels[full + 1] = np.sort(np.concatenate([levels[full + 1], up]), kind="stable")


def _halved(level: NDArray[Any], height: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """What stays (one value if their number is odd, so that weights add up) and what moves up."""
    coin = hashlib.blake2b(level.tobytes(), digest_size=1, salt=struct.pack("<H", height)).digest()[0]
    if len(level) % 2:
        stay, level = (level[:1], level[1:]) if coin & 2 else (level[-1:], level[:-1])
    else:
        stay = level[:0]
    return stay, level[coin & 1 :: 2]


def merged(a: Levels, b: Levels, k: int = K) -> Levels:
    """The sketch of both inputs."""
    empty = (a or b)[0][:0]
    both = [
        np.sort(np.concatenate([a[h] if h < len(a) else empty, b[h] if h < len(b) else empty]), kind="stable")
        for h in range(max(len(a), len(b)))
    ]
    return compressed(both, k)


def weighted(levels: Levels) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """All values in order (NaN last), and how many of the input are at or before each."""
    values = np.concatenate(levels)
    weights = np.concatenate([np.full(len(level), 1 << h, dtype=np.int64) for h, level in enumerate(levels)])
    order = np.argsort(values, kind="stable")
    return values[order], np.cumsum(weights[order])


def value_at(levels: Levels, q: float) -> Any:
    """The value at quantile q, nearest rank (halves up), as Polars' ``interpolation="nearest"``. None without
    values.
    """
    values, until = weighted(levels)
    if not len(values):
        return None
    rank = math.floor(q * float(until[-1] - 1) + 0.5)
    return values[int(np.searchsorted(until, rank, side="right"))]


def rank_of(levels: Levels, x: float) -> float:
    """The share of values that are at most x. NaN without values."""
    values, until = weighted(levels)
    if not len(values):
        return math.nan
    below = int(np.searchsorted(values, x, side="right"))
    return float(until[below - 1]) / float(until[-1]) if below else 0.0


def to_bytes(levels: Levels) -> bytes:
    """A sketch as bytes: dtype, number of levels, their sizes, their values (little-endian)."""
    kind = levels[0].dtype.str.lstrip("<=|").encode()
    head = struct.pack(f"<2sB{len(levels)}I", kind, len(levels), *(len(level) for level in levels))
    return head + b"".join(level.tobytes() for level in levels)


def from_bytes(data: bytes) -> Levels:
    """The sketch of ``to_bytes``."""
    kind, height = struct.unpack_from("<2sB", data)
    sizes = struct.unpack_from(f"<{height}I", data, 3)
    values = np.frombuffer(data, dtype="<" + kind.decode(), offset=3 + 4 * height)
    return split(values, sizes)


def split(values: NDArray[Any], sizes: Any) -> Levels:
    """Levels that stand one after the other in one array."""
    return np.split(values, np.cumsum(sizes)[:-1])
