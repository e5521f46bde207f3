"""Regions in memory, closed at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.memory_regions import MemoryRegions


@pytest.fixture
def regions() -> Iterator[MemoryRegions]:
    made = MemoryRegions("eu", "us")
    yield made
    made.close()


@pytest.fixture
def shards() -> Iterator[MemoryRegions]:
    """Of several shards."""
    made = MemoryRegions("eu", "us", shards=3)
    yield made
    made.close()
