"""The metrics of a node, for Prometheus. They are read when they are scraped: a node that nobody scrapes counts nothing extra.

==========================================  ================================================================================
onefold_node_info                           1, with name, region, zone, version, space
onefold_node_ready, onefold_node_live       1 or 0, as ``/ready`` and ``/live`` report
onefold_node_heartbeats_total               heartbeats of this process that came through the log
onefold_nodes{state}                        nodes of the space, by state
onefold_shard_ready{shard}                  1: this node answers for the shard
onefold_shard_halted{shard}                 1: its copy of the shard has halted and serves nothing
onefold_shard_applied_offset{shard}         the last offset applied here
onefold_shard_lag_offsets{shard}            records delivered here and not applied yet
onefold_shard_log_first_offset{shard}       the oldest record that is kept
onefold_shard_refused_records{shard}        records that could not be decoded, so far
onefold_shard_untrusted_operations{shard}   refused operations, so far: only nodes may append them, and another client did
onefold_divergences                         places at which nodes report different logs or states: alarm above 0
onefold_state_hashes_total, onefold_state_hashes_failed_total, onefold_state_hashes_missed_total, onefold_snapshots_total,
onefold_snapshot_bytes_total, onefold_log_trims_total, onefold_log_archives_total, onefold_blobs_swept_total: work of this node
onefold_tasks_running                       tasks that this node is running now
onefold_live_running{job}                   1: the live job runs; 0: it was stopped, or failed
onefold_live_readable{job}                  0: this node cannot load its functions, and says nothing more of it
onefold_live_lag_records{job}               records of its inputs that are not committed
onefold_live_lag_seconds{job}               for how long the oldest of them has waited
onefold_live_watermark_seconds{job}         event time up to which its windows are closed, in seconds since 1970
onefold_live_held{job}                      1: something holds its watermark back; ``onefold live`` says what
onefold_live_events_total{job}, onefold_live_late_total{job}, onefold_live_dead_total{job}, onefold_live_ahead_total{job},
onefold_live_commits_total{job}: what it has done. onefold_live_workers{job}, onefold_live_state_bytes{job}
process_*                                   memory, processor time, open files
==========================================  ================================================================================

Every node reports the live jobs as far as it has seen the log: take the maximum over nodes, not the sum.

In a space of several regions, a node hosts its region's logs too. What it does there has the same names, with ``onefold_region_``
in place of ``onefold_``: ``onefold_region_node_ready``, ``onefold_region_shard_applied_offset{shard}`` and so on. Nothing about
jobs is among them. These are about other regions:

==========================================  ================================================================================
onefold_region_link_silent_seconds{region, shard}, onefold_region_link_alarm{region, shard}: of what this node pulls, for how long
it got no answer, and 1 where the two have diverged
onefold_region_exchange_bytes_total{region, shard}, onefold_region_imports_total{region, shard}: what came from there to this node
onefold_region_lag_writes{region, shard}    writes that are here, and that the other region is not known to have
onefold_region_lag_seconds{region, shard}   how long ago the first of them was made
onefold_region_held_seconds{region, shard}  how far its clock is ahead, while its writes wait here; else 0
onefold_region_gone_bytes{shard}            what is deleted and still kept
onefold_region_conflicts_total{shard}       writes of two regions that did not know of each other
==========================================  ================================================================================

Every node of a region reports its lag: take the maximum over nodes.

A metric that was renamed is exported under its former name as well, until 1.0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from onefold._version import __version__
from onefold.errors import OnefoldError
from onefold.fold import authority
from onefold.node.regions import metrics as region_metrics
from onefold.node.regions.exchange import ALARMS
from onefold.state.fold.live.rows import ACTIVE

if TYPE_CHECKING:
    from onefold.compute.live.job.status import LiveStatus
    from onefold.node.divergence import DivergenceCheck
    from onefold.node.process import Node
    from onefold.node.snapshots.snapshots import Snapshots
    from onefold.node.snapshots.trimming import Trimming

SPACE_PREFIX: Final = "onefold_"
REGION_PREFIX: Final = "onefold_region_"
"""Of the same metrics about the logs of a region."""
_STATES = ("live", "draining", "left", "expired")
_FORMER_NAMES = {
    "onefold_divergences": "onefold_nodes_differ",
    "onefold_node_heartbeats": "onefold_node_beats",
    "onefold_shard_lag_offsets": "onefold_shard_behind_offsets",
    "onefold_tasks_running": "onefold_tasks_busy",
}


def registry_of(*collectors: NodeMetrics) -> CollectorRegistry:
    """A registry with these and the process's own numbers."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    ProcessCollector(registry=registry)
    return registry


class NodeMetrics:
    """Collects from a node and its duties."""

    def __init__(
        self,
        node: Node,
        space: str,
        *,
        snapshots: Snapshots | None = None,
        trimming: Trimming | None = None,
        divergence_check: DivergenceCheck | None = None,
        prefix: str = SPACE_PREFIX,
    ) -> None:
        """``prefix``: what the names begin with."""
        self.links: Callable[[], Mapping[tuple[int, str, int], tuple[str, float]]] | None = None
        """See ``regions.exchange.Exchange.states``."""
        self.pulled: Callable[[], Mapping[tuple[int, str, int], tuple[int, int]]] | None = None
        """See ``regions.exchange.Exchange.pulled``."""
        self._prefix = prefix
        self._node = node
        self._space = space
        self._snapshots = snapshots
        self._trimming = trimming
        self._divergence_check = divergence_check

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance, so that registering asks nothing."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics, as of now; renamed ones under both names."""
        for part in (
            self._about_node(),
            self._about_shards(),
            self._about_duties(),
            self._about_live_jobs(),
            self._about_links(),
            self._about_lags(),
        ):
            for metric in part:
                if not metric.name.startswith(self._prefix):
                    yield _renamed(metric, self._prefix + metric.name.removeprefix(SPACE_PREFIX))
                    continue
                yield metric
                if metric.name in _FORMER_NAMES:
                    yield _under_former_name(metric)

    def _about_node(self) -> Iterator[Metric]:
        node, me = self._node, self._node.identity
        labels = ["name", "region", "zone", "version", "space"]
        info = GaugeMetricFamily("onefold_node_info", "What this node is.", labels=labels)
        info.add_metric([me.name, me.region, me.zone, __version__, self._space], 1)
        yield info
        yield GaugeMetricFamily(
            "onefold_node_ready", "As /ready reports.", value=int(bool(node.ready()["ok"]))
        )
        yield GaugeMetricFamily("onefold_node_live", "As /live reports.", value=int(bool(node.live()["ok"])))
        yield CounterMetricFamily(
            "onefold_node_heartbeats", "Heartbeats that came through the log.", value=node.beats
        )
        states = Counter(row.state.state for row in node.nodes)
        nodes = GaugeMetricFamily("onefold_nodes", "Nodes of the space.", labels=["state"])
        for state in _STATES:
            nodes.add_metric([state], states.get(state, 0))
        yield nodes
        if self._prefix != SPACE_PREFIX:
            return
        busy = 0 if node.workers is None else node.workers.busy
        yield GaugeMetricFamily("onefold_tasks_running", "Tasks that are running now.", value=busy)

    def _about_shards(self) -> Iterator[Metric]:
        found = {
            name: GaugeMetricFamily(f"onefold_shard_{name}", text, labels=["shard"])
            for name, text in (
                ("ready", "1: this node answers for the shard."),
                ("halted", "1: its copy here has halted."),
                ("applied_offset", "The last offset applied here."),
                ("lag_offsets", "Records delivered and not applied yet."),
                ("log_first_offset", "The oldest record that is kept."),
                ("refused_records", "Records that could not be decoded."),
                ("untrusted_operations", "Operations refused because only nodes may append them."),
            )
        }
        for shard, phase in self._node.hosting.phases().items():
            found["ready"].add_metric([str(shard)], int(phase == "ready"))
            found["halted"].add_metric([str(shard)], int(phase == "halted"))
        for shard, replica in self._node.hosting.ready().items():
            try:
                applied, last, first = replica.applied, replica.log.last, replica.log.first
                with replica.view() as view:
                    refused, untrusted = view.head().refused, authority.refused_ops(view).total
            except OnefoldError:
                continue  # it has just halted or was dropped
            numbers = (
                ("applied_offset", applied),
                ("lag_offsets", max(0, last - applied)),
                ("log_first_offset", first),
                ("refused_records", refused),
                ("untrusted_operations", untrusted),
            )
            for name, number in numbers:
                found[name].add_metric([str(shard)], number)
        yield from found.values()

    def _about_links(self) -> Iterator[Metric]:
        if self.links is None:
            return
        labels = ["region", "shard"]
        silent = GaugeMetricFamily(
            "onefold_region_link_silent_seconds",
            "For how long another region has not answered.",
            labels=labels,
        )
        alarm = GaugeMetricFamily(
            "onefold_region_link_alarm", "1: it has diverged from this region.", labels=labels
        )
        for (_, region, shard), (state, silent_s) in self.links().items():
            silent.add_metric([region, str(shard)], silent_s)
            alarm.add_metric([region, str(shard)], int(state in ALARMS))
        yield from (silent, alarm)

    def _about_lags(self) -> Iterator[Metric]:
        if self._prefix == REGION_PREFIX:
            yield from region_metrics.lags(self._node.hosting.ready(), self.pulled)

    def _about_live_jobs(self) -> Iterator[Metric]:
        if self._prefix != SPACE_PREFIX:
            return
        gauges = {
            name: GaugeMetricFamily(f"onefold_live_{name}", text, labels=["job"])
            for name, text in (
                ("running", "1: the live job runs; 0: it was stopped, or failed."),
                ("readable", "0: this node cannot load its functions."),
                ("lag_records", "Records of its inputs that are not committed."),
                ("lag_seconds", "For how long the oldest of them has waited."),
                ("watermark_seconds", "Event time up to which windows are closed, since 1970."),
                ("held", "1: something holds its watermark back."),
                ("workers", "Workers, in all processes."),
                ("state_bytes", "Its state, as it is stored."),
            )
        }
        counters = {
            name: CounterMetricFamily(f"onefold_live_{name}", text, labels=["job"])
            for name, text in (
                ("events", "Events that are counted."),
                ("late", "Events that came when every window of theirs was closed."),
                ("dead", "Records that were set aside."),
                ("ahead", "Events too far ahead of their append to move the watermark."),
                ("commits", "Commits."),
            )
        }
        workers = self._node.workers
        for job, state, status in () if workers is None else workers.live_jobs():
            gauges["running"].add_metric([job], int(state in ACTIVE))
            gauges["readable"].add_metric([job], int(status is not None))
            if status is None:
                continue
            for name, value in _live_gauges(status):
                gauges[name].add_metric([job], value)
            for name, count in _live_counts(status):
                counters[name].add_metric([job], count)
        yield from gauges.values()
        yield from counters.values()

    def _about_duties(self) -> Iterator[Metric]:
        if self._divergence_check is not None:
            text = "Places at which nodes report different logs or states."
            yield GaugeMetricFamily("onefold_divergences", text, value=len(self._divergence_check.open))
        counts: list[tuple[str, str, int]] = []
        if self._snapshots is not None:
            made = self._snapshots.counts
            counts += [
                ("onefold_state_hashes", "States hashed.", made.hashed),
                ("onefold_state_hashes_failed", "States that could not be read.", made.failed),
                (
                    "onefold_state_hashes_missed",
                    "States that were passed before they could be hashed.",
                    made.missed,
                ),
                ("onefold_snapshots", "Snapshots stored.", made.stored),
                ("onefold_snapshot_bytes", "Bytes of the snapshots stored.", made.stored_bytes),
            ]
        if self._trimming is not None:
            done = self._trimming.counts
            counts += [
                ("onefold_log_trims", "Times that a log was trimmed.", done.trimmed),
                ("onefold_log_archives", "Ranges of logs archived.", done.archived),
                ("onefold_blobs_swept", "Snapshots deleted.", done.swept),
            ]
        for name, text, number in counts:
            yield CounterMetricFamily(name, text, value=number)


def _live_gauges(status: LiveStatus) -> Iterator[tuple[str, float]]:
    yield "lag_records", status.lag
    yield "lag_seconds", status.lag_s
    if status.watermark is not None:
        yield "watermark_seconds", status.watermark.timestamp()
    yield "held", int(bool(status.held_by))
    yield "workers", status.workers
    yield "state_bytes", status.state_bytes


def _live_counts(status: LiveStatus) -> Iterator[tuple[str, int]]:
    yield "events", status.rows
    yield "late", status.late
    yield "dead", status.dead
    yield "ahead", status.ahead
    yield "commits", status.commits


def _under_former_name(metric: Metric) -> Metric:
    copy = _renamed(metric, _FORMER_NAMES[metric.name])
    copy.documentation = f"Deprecated: use {metric.name}."
    return copy


def _renamed(metric: Metric, name: str) -> Metric:
    copy = Metric(name, metric.documentation, metric.type)
    copy.samples = [
        sample._replace(name=name + sample.name.removeprefix(metric.name)) for sample in metric.samples
    ]
    return copy
