"""The status of a node as metrics for Prometheus. Needs the extra `prometheus`.

`docs/metrics.md` describes each metric. Nothing is kept between two scrapes, and importing this module registers
nothing.
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
from .core.membership.heartbeat import GONE, MemberState
from .wire.messages import StatusReply
from .wire.status import LATENCY_BOUNDS, CopiesStatus, RequesterStats, Stats


class ClusterCollector:
    """For a registry of your own: `REGISTRY.register(ClusterCollector())`. Queries this host's node at each scrape.

    `ask` returns the status of a node, or None if it doesn't answer.
    """

    def __init__(self, ask: Callable[[], StatusReply | None] = cluster.local_status) -> None:
        self._ask = ask

    def describe(self) -> list[Metric]:
        """An empty list, so that a registry doesn't query the node when the collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield from families(self._ask())


def render(status: StatusReply | None, accept: str) -> tuple[bytes, str]:
    """The body and content type for a scraper that sent this `Accept` header: OpenMetrics, or the older text format."""
    encode, content_type = choose_encoder(accept)
    return encode(ClusterCollector(lambda: status)), content_type


def families(status: StatusReply | None) -> Iterator[Metric]:
    """All metrics of a node, or only `clusterstate_up` if it doesn't answer."""
    yield _gauge("up", "1 if the node answered, else 0 and no other metric.", status is not None)
    if status is not None:
        yield from _node(status)
        yield from _membership(status)
        yield from _copies(status.copies)
        yield from _cache(status.stats)
        yield from _limits(status.stats)
        yield from _traffic(status.stats)
        yield from _requesters(status.stats.tally)


def _node(status: StatusReply) -> Iterator[Metric]:
    labels = {"node": status.identity.name, "version": status.version}
    yield InfoMetricFamily("clusterstate_node", "Name of the node and version of the package.", labels)
    yield _gauge("uptime_seconds", "Time since the start of the node.", status.uptime, "seconds")
    yield _gauge("resident_memory_bytes", "Resident memory of the node's process.", status.memory, "bytes")


def _membership(status: StatusReply) -> Iterator[Metric]:
    states = Counter((status.state, *(member.state for member in status.members)))
    counts = {str(state): states[state] for state in MemberState}
    yield _gauges("members", "Members by state as this node sees them, including itself.", "state", counts)
    unreachable = len([member for member in status.members if member.unreachable])
    yield _gauge("members_unreachable", "Members whose heartbeats reach others, not this node.", unreachable)
    epochs = {member.epoch for member in status.members if member.state not in GONE}
    yield _gauge("views_agree", "1 if all members have the same view as this node.", epochs <= {status.epoch})
    yield _gauge("isolated", "1 while the node receives no heartbeats from most peers.", status.isolated)
    changes = status.stats.changes
    kinds = {name: getattr(changes, name) for name in changes.__struct_fields__}
    yield _counters("member_changes", "Changes of members, including this node.", "change", kinds)


def _copies(copies: CopiesStatus) -> Iterator[Metric]:
    yield _gauge("synced", "1 if the node serves and all keys have a complete backup.", copies.synced)
    yield _gauge("slots_missing", "Slots that the node has to hold and lacks entries of.", copies.missing)
    yield _gauge("slots_unfilled", "Slots that other nodes have to get from this node.", copies.unfilled)
    yield _gauge("replication_lag_changes", "Changes that other nodes have not acknowledged.", copies.lag)
    yield _gauge("replication_lag_seconds", "Age of the oldest of these changes.", copies.lag_seconds, "seconds")
    yield _counter("replication_behind", "Times that changes were dropped for a node that was too slow.", copies.behind)
    yield _counter("requests_forwarded", "Requests forwarded to the owner of their keys.", copies.forwarded)
    yield _gauge("backups", "The setting BACKUPS, the same on all nodes.", copies.backups)


def _cache(stats: Stats) -> Iterator[Metric]:
    outcomes = {"hit": stats.hits, "miss": stats.misses}
    yield _counters("cache_lookups", "Cache keys looked up.", "outcome", outcomes)
    yield _counter(
        "cache_failures",
        "incr() or decr() on a value that is not an integer, or that would overflow 64 bits.",
        stats.failures,
    )
    yield _counter(
        "cache_evictions", "Cache entries evicted by their owner before they expired.", stats.cache_evictions
    )
    yield _counter("cache_copies_evicted", "Copies of unexpired cache entries evicted.", stats.cache_copies_evicted)
    yield _gauge("cache_entries", "Cache entries held, copies included.", stats.cache_entries)
    yield _gauge("cache_entries_owned", "Cache entries held by their owner.", stats.cache_owned)
    yield from _memory("cache", stats.cache_bytes, stats.cache_max_bytes)


def _limits(stats: Stats) -> Iterator[Metric]:
    refused = stats.denied - stats.dry_denied
    outcomes = {"allowed": stats.allowed, "denied": refused, "dry_denied": stats.dry_denied}
    yield _counters("limit_decisions", "Hits decided by this node.", "outcome", outcomes)
    yield _counter("limit_refunds", "Hits refunded.", stats.refunds)
    yield _counter(
        "limit_evictions", "Unexpired limits evicted by their owner; each one resets a count.", stats.limit_evictions
    )
    yield _counter("limit_copies_evicted", "Copies of unexpired limits evicted.", stats.limit_copies_evicted)
    yield _gauge("limit_entries", "Limits held, one for each rate of a key, copies included.", stats.limit_entries)
    yield _gauge("limit_entries_owned", "Limits held by their owner.", stats.limit_owned)
    yield from _memory("limit", stats.limit_bytes, stats.limit_max_bytes)


def _memory(kind: str, used: int, maximum: int) -> Iterator[Metric]:
    yield _gauge(f"{kind}_bytes", "Approximate memory of these entries.", used, "bytes")
    yield _gauge(f"{kind}_max_bytes", "Maximum memory of these entries.", maximum, "bytes")


def _traffic(stats: Stats) -> Iterator[Metric]:
    yield _counter("requests", "Cache and limit requests answered.", stats.requests)
    yield _gauge("connections", "Connections open.", stats.connections)
    yield _counter("connections_refused", "Connections refused, such as those without the secret.", stats.refused)
    yield _counter(
        "connections_evicted", "Connections closed for new ones because all were in use.", stats.connections_evicted
    )
    yield _counter("channel_messages", "Channel messages received from senders.", stats.channel_messages)
    dropped = {"node": stats.channel_dropped, "process": stats.tally.channel_dropped}
    yield _counters("channel_messages_dropped", "Channel messages dropped at the limits of memory.", "by", dropped)
    missed = {"unreceived": stats.channel_unreceived, "unreachable": stats.channel_unreachable}
    yield _counters("channel_messages_missed", "Channel messages without a receiver.", "reason", missed)
    outcomes = {
        "heard": stats.heartbeats_heard,
        "ignored": stats.heartbeats_ignored,
        "dropped": stats.heartbeats_dropped,
    }
    yield _counters("heartbeats", "Heartbeats received from peers.", "outcome", outcomes)


def _requesters(tally: RequesterStats) -> Iterator[Metric]:
    policies = {
        "node": tally.fallback_node,
        "process": tally.fallback_process,
        "allow": tally.fallback_allow,
        "deny": tally.fallback_deny,
    }
    yield _counters("limit_fallbacks", "Hits not decided by their owner.", "policy", policies)
    yield _counter(
        "limit_fallback_evictions",
        "Unexpired limits evicted by processes that count on their own; each one resets a count.",
        tally.process_evictions,
    )
    yield _counter("limit_denials_remembered", "Hits denied by a requester that remembered a denial.", tally.remembered)
    yield _counter("cache_values_too_big", "Values too big to be stored.", tally.too_big)
    bounds = (*map(str, LATENCY_BOUNDS), "+Inf")
    yield HistogramMetricFamily(
        "clusterstate_request_duration_seconds",
        "Requests from this host's processes to nodes.",
        buckets=list(zip(bounds, accumulate(tally.latencies), strict=True)),
        sum_value=tally.latency_sum,
        unit="seconds",
    )
    yield _counter("request_failures", "Failed requests from this host's processes to nodes.", tally.failures)


def _gauge(name: str, text: str, value: float, unit: str = "") -> Metric:
    return GaugeMetricFamily(f"clusterstate_{name}", text, float(value), unit=unit)


def _gauges(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    return _labeled(GaugeMetricFamily(f"clusterstate_{name}", text, labels=[label]), values)


def _counter(name: str, text: str, value: int) -> Metric:
    return CounterMetricFamily(f"clusterstate_{name}", text, value)


def _counters(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    return _labeled(CounterMetricFamily(f"clusterstate_{name}", text, labels=[label]), values)


def _labeled(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, int]) -> Metric:
    for label, value in values.items():
        family.add_metric([label], value)
    return family
