"""Sets of lanes: a bit for each lane, as an integer in the fold and as bytes in rows and records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import gcd
from typing import Final

LANES_MAX: Final = 1024
"""Most lanes of a part."""

Lanes = int
"""Bit n is lane n."""


def all_lanes(count: int) -> Lanes:
    """Lanes 0 to ``count`` - 1."""
    return (1 << count) - 1


def lanes_of(numbers: Iterable[int]) -> Lanes:
    """The set of these lanes."""
    lanes = 0
    for number in numbers:
        lanes |= 1 << number
    return lanes


def numbers_of(lanes: Lanes) -> Iterator[int]:
    """The lanes of a set, in order."""
    while lanes:
        lowest = lanes & -lanes
        yield lowest.bit_length() - 1
        lanes ^= lowest


def of_partition(partition: int, lanes: int) -> int:
    """The lane of an input partition, where lanes are partitions.

    Workers own stretches of lanes, so neighbouring partitions are put far apart: two partitions are of two workers. Multiples of
    the golden ratio fill a circle evenly however many they are; the step has no divisor in common with the number of lanes, so
    as many partitions as lanes have a lane each (Knuth, The Art of Computer Programming 3, 6.4).
    """
    step = max(1, round(lanes * 0.6180339887))
    while gcd(step, lanes) != 1:
        step += 1
    return partition * step % lanes


def count(lanes: Lanes) -> int:
    """How many there are."""
    return lanes.bit_count()


def covers(lanes: Lanes, part: Lanes) -> bool:
    """Whether all lanes of ``part`` are in the set."""
    return part & ~lanes == 0


def first_of(lanes: Lanes, number: int) -> Lanes:
    """The lowest ``number`` lanes of the set (all, when it has fewer)."""
    found = 0
    for lane in numbers_of(lanes):
        if number <= 0:
            break
        found |= 1 << lane
        number -= 1
    return found


def last_of(lanes: Lanes, number: int) -> Lanes:
    """The highest ``number`` lanes of the set (all, when it has fewer)."""
    return lanes & ~first_of(lanes, max(0, count(lanes) - number))


def pack(lanes: Lanes) -> bytes:
    """The set as bytes, without leading zeros."""
    return lanes.to_bytes((lanes.bit_length() + 7) // 8, "big")


def unpack(data: bytes) -> Lanes:
    """The set in these bytes. Any bytes are a set."""
    return int.from_bytes(data, "big")
