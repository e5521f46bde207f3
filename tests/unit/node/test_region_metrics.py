"""What a node's metrics say of other regions: the same numbers as ``db.regions()``, by shard."""

from __future__ import annotations

from typing import Any

from prometheus_client.core import Metric
from tests.support.memory_regions import MemoryRegions

from onefold.node.regions.metrics import lags


def values(found: list[Metric]) -> dict[tuple[str, ...], float]:
    return {(one.name, *one.labels.values()): one.value for metric in found for one in metric.samples}


def test_metrics_of_other_regions_are_what_regions_says() -> None:
    regions = MemoryRegions("eu", "us")
    eu, us = regions.database("eu"), regions.database("us")
    replicas: Any = dict(enumerate(eu._available.shards))
    eu.map("carts", mode="available")["k"] = 1
    us.map("carts", mode="available")["k"] = 2
    found = values(list(lags(replicas, lambda: {(2, "us", 0): (700, 3)})))
    assert found["onefold_region_lag_writes", "us", "0"] == eu.regions()[1].behind_writes == 1
    assert found["onefold_region_lag_seconds", "us", "0"] >= 0
    assert found["onefold_region_held_seconds", "us", "0"] == 0
    assert found["onefold_region_exchange_bytes_total", "us", "0"] == 700
    assert found["onefold_region_imports_total", "us", "0"] == 3
    regions.exchange()
    us.map("carts", mode="available")["says what it knows"] = 1
    regions.exchange()
    del eu.map("carts", mode="available")["k"]
    found = values(list(lags(replicas, None)))
    assert found["onefold_region_conflicts_total", "0"] == 1
    assert found["onefold_region_gone_bytes", "0"] == eu.regions()[0].gone_bytes > 0
    assert ("onefold_region_lag_writes", "eu", "0") not in found
