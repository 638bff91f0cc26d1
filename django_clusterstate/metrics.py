"""A node's account of itself as metrics for Prometheus. Needs the extra `prometheus`.

`docs/metrics.md` says what each tells. Nothing is kept between two scrapes, and no registry is filled by an import.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from . import cluster
from .core.membership.messages import GONE, MemberState
from .wire.messages import StatusReply
from .wire.status import LATENCY_BOUNDS, RequesterStats, Stats


class ClusterCollector:
    """For a registry of your own: `REGISTRY.register(ClusterCollector())`. Asks this host's node at each scrape.

    `ask` returns a node's account of itself, or None when it gives none.
    """

    def __init__(self, ask: Callable[[], StatusReply | None] = cluster.local_status) -> None:
        self._ask = ask

    def describe(self) -> list[Metric]:
        """Nothing: else a registry would ask the node when the collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield from families(self._ask())


def render(status: StatusReply | None, accept: str) -> tuple[bytes, str]:
    """(body, content type) of an answer to a scraper that sent this `Accept` header: OpenMetrics, or the older text."""
    encode, content_type = choose_encoder(accept)
    return encode(ClusterCollector(lambda: status)), content_type


def families(status: StatusReply | None) -> Iterator[Metric]:
    """All metrics of a node, or that it doesn't answer."""
    yield _gauge("up", "1 if the node answered, else 0, and then there is nothing else.", status is not None)
    if status is not None:
        yield from _node(status)
        yield from _membership(status)
        yield from _cache(status.stats)
        yield from _limits(status.stats)
        yield from _traffic(status.stats)
        yield from _requesters(status.stats.tally)


def _node(status: StatusReply) -> Iterator[Metric]:
    labels = {"node": status.identity.name, "version": status.version}
    yield InfoMetricFamily("clusterstate_node", "The node's name, and the version of the package.", labels)
    yield _gauge("uptime_seconds", "Since the node's start.", status.uptime, "seconds")
    yield _gauge("resident_memory_bytes", "Memory of the node's process.", status.memory, "bytes")


def _membership(status: StatusReply) -> Iterator[Metric]:
    states = Counter((status.state, *(member.state for member in status.members)))
    counts = {str(state): states[state] for state in MemberState}
    yield _gauges("members", "Members by state as this node sees them, itself among them.", "state", counts)
    unreachable = sum(member.unreachable for member in status.members)
    yield _gauge("members_unreachable", "Members that others hear and this node doesn't.", unreachable)
    told = {member.epoch for member in status.members if member.state not in GONE}
    yield _gauge("views_agree", "1 if all members announce the view that this node has.", told <= {status.epoch})
    yield _gauge("isolated", "1 while most peers are silent at once.", status.isolated)
    changes = status.stats.changes
    kinds = {name: getattr(changes, name) for name in changes.__struct_fields__}
    yield _counters("member_changes", "What became of members.", "change", kinds)


def _cache(stats: Stats) -> Iterator[Metric]:
    outcomes = {"hit": stats.hits, "miss": stats.misses}
    yield _counters("cache_lookups", "Cache keys asked for.", "outcome", outcomes)
    yield _counter("cache_failures", "Additions to a value that is no integer.", stats.failures)
    yield _counter("cache_evictions", "Live cache entries dropped for room.", stats.cache_evictions)
    yield _gauge("cache_entries", "Cache entries held.", stats.cache_entries)
    yield _gauge("cache_bytes", "Memory that they take, about.", stats.cache_bytes, "bytes")
    yield _gauge("cache_max_bytes", "Memory that they may take.", stats.cache_max_bytes, "bytes")


def _limits(stats: Stats) -> Iterator[Metric]:
    refused = stats.denied - stats.dry_denied
    outcomes = {"allowed": stats.allowed, "denied": refused, "dry_denied": stats.dry_denied}
    yield _counters("limit_decisions", "Hits on limits that this node decided.", "outcome", outcomes)
    yield _counter("limit_refunds", "Hits taken back.", stats.refunds)
    yield _counter("limit_evictions", "Live limits dropped for room: each is a bypass.", stats.limit_evictions)
    yield _gauge("limit_entries", "Limits held, one for each rate of a key.", stats.limit_entries)
    yield _gauge("limit_bytes", "Memory that they take, about.", stats.limit_bytes, "bytes")
    yield _gauge("limit_max_bytes", "Memory that they may take.", stats.limit_max_bytes, "bytes")


def _traffic(stats: Stats) -> Iterator[Metric]:
    yield _counter("requests", "Cache and limit requests answered.", stats.requests)
    yield _gauge("connections", "Connections open.", stats.connections)
    yield _counter("connections_refused", "Connections closed for cause, as without the secret.", stats.refused)
    yield _counter("connections_evicted", "Connections closed for others in a full table.", stats.connections_evicted)
    yield _counter("channel_messages", "Channel messages taken in.", stats.channel_messages)
    dropped = {"node": stats.channel_dropped, "process": stats.tally.channel_dropped}
    yield _counters("channel_messages_dropped", "Channel messages lost for want of room.", "by", dropped)
    missed = {"unreceived": stats.channel_unreceived, "unreachable": stats.channel_unreachable}
    yield _counters("channel_messages_missed", "Channel messages that reached nobody.", "reason", missed)
    outcomes = {
        "heard": stats.heartbeats_heard,
        "ignored": stats.heartbeats_ignored,
        "dropped": stats.heartbeats_dropped,
    }
    yield _counters("heartbeats", "Heartbeats of peers.", "outcome", outcomes)


def _requesters(tally: RequesterStats) -> Iterator[Metric]:
    policies = {
        "node": tally.fallback_node,
        "process": tally.fallback_process,
        "allow": tally.fallback_allow,
        "deny": tally.fallback_deny,
    }
    yield _counters("limit_fallbacks", "Hits that their owner didn't decide.", "policy", policies)
    yield _counter(
        "limit_fallback_evictions",
        "Live limits dropped for room by processes that count by themselves: each is a bypass.",
        tally.process_evictions,
    )
    yield _counter("limit_denials_remembered", "Hits denied from a requester's memory.", tally.remembered)
    yield _counter("cache_values_too_big", "Values not stored, since they are too big.", tally.too_big)
    bounds = (*map(str, LATENCY_BOUNDS), "+Inf")
    yield HistogramMetricFamily(
        "clusterstate_request_duration_seconds",
        "Exchanges of this host's requesters with nodes.",
        buckets=list(zip(bounds, accumulate(tally.latencies), strict=True)),
        sum_value=tally.latency_sum,
        unit="seconds",
    )
    yield _counter("request_failures", "Those of them without an answer in time, or a wrong one.", tally.failures)


def _gauge(name: str, text: str, value: float, unit: str = "") -> Metric:
    return GaugeMetricFamily(f"clusterstate_{name}", text, float(value), unit=unit)


def _gauges(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(f"clusterstate_{name}", text, labels=[label])
    for of, value in values.items():
        family.add_metric([of], value)
    return family


def _counter(name: str, text: str, value: int) -> Metric:
    return CounterMetricFamily(f"clusterstate_{name}", text, value)


def _counters(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"clusterstate_{name}", text, labels=[label])
    for of, value in values.items():
        family.add_metric([of], value)
    return family
