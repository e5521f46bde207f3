"""The metrics of a region's logs that are about other regions: what is not exchanged, held, deleted and kept, and in conflict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from onefold.available import reading
from onefold.errors import OnefoldError
from onefold.state.available.lag import Lag

if TYPE_CHECKING:
    from onefold.node.hosting import Replica
    from onefold.node.regions.exchange import Pull

_OF_REGION = ["region", "shard"]


def lags(
    replicas: Mapping[int, Replica], pulled: Callable[[], Mapping[Pull, tuple[int, int]]] | None
) -> Iterator[Metric]:
    """``replicas``: the region's shards that answer here. ``pulled``: see ``Exchange.pulled``."""
    gauges = {
        name: GaugeMetricFamily(f"onefold_region_{name}", text, labels=_OF_REGION)
        for name, text in (
            ("lag_writes", "Writes that are here and that another region is not known to have."),
            ("lag_seconds", "How long ago the first of them was made."),
            ("held_seconds", "How far the clock of a region is ahead whose writes wait here; else 0."),
        )
    }
    gone = GaugeMetricFamily(
        "onefold_region_gone_bytes", "What is deleted and still kept for other regions.", labels=["shard"]
    )
    conflicts = CounterMetricFamily(
        "onefold_region_conflicts", "Writes of two regions that did not know of each other.", labels=["shard"]
    )
    for shard, replica in replicas.items():
        try:
            with replica.view() as view:
                now_ms = replica.env.wall_ms()
                status = reading.status(view, now_ms)
                for region in status.regions:
                    if region.number == status.number or region.state not in ("live", "held"):
                        continue
                    lag, labels = Lag(), [region.name, str(shard)]
                    lag.note_state(region)
                    lag.note_view(view, region.number)
                    gauges["lag_writes"].add_metric(labels, lag.writes)
                    gauges["lag_seconds"].add_metric(labels, lag.behind_s(now_ms))
                    gauges["held_seconds"].add_metric(labels, lag.ahead_ms / 1000)
        except OnefoldError:
            continue  # it has just halted or was dropped
        gone.add_metric([str(shard)], status.gone_bytes)
        conflicts.add_metric([str(shard)], status.conflicts)
    yield from (*gauges.values(), gone, conflicts)
    if pulled is not None:
        counted = CounterMetricFamily(
            "onefold_region_exchange_bytes", "Bytes of answers from another region.", labels=_OF_REGION
        )
        imports = CounterMetricFamily(
            "onefold_region_imports", "Records appended of what another region did.", labels=_OF_REGION
        )
        for (_, region_name, shard), (size, count) in pulled().items():
            counted.add_metric([region_name, str(shard)], size)
            imports.add_metric([region_name, str(shard)], count)
        yield from (counted, imports)
