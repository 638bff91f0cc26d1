"""The counters of nodes and requesters, and the status of members. Parts of messages, so their order is fixed."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ..core.membership.heartbeat import GONE, Identity, MemberState

_encode = msgspec.msgpack.Encoder().encode

MAX_COUNT = 2**53  # where counters of requesters stop, because decoding refuses greater ones
Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]

# Upper bounds of the latency histogram, in seconds; its last bucket has none. Part of the protocol: requesters and
# nodes must use the same bounds.
LATENCY_BOUNDS = (
    0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005,
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
)  # fmt: skip
_BUCKETS = len(LATENCY_BOUNDS) + 1
Latencies = Annotated[list[Count], Meta(min_length=_BUCKETS, max_length=_BUCKETS)]


class RequesterStats(msgspec.Struct, array_like=True):
    """Counters of events that no node sees. A requester sends them with `GetView` to a node, which adds them up."""

    remembered: Count = 0  #: hits that a requester denied from memory
    fallback_node: Count = 0  #: hits counted at a different node because the owner was unavailable
    fallback_process: Count = 0  #: hits counted in a process because no node was available
    fallback_allow: Count = 0  #: hits allowed by policy, and not counted
    fallback_deny: Count = 0  #: hits denied by policy, and not counted
    #: events dropped for lack of room, or perhaps counted by an owner that did not reply in time
    events_dropped: Count = 0
    #: requests to nodes, by latency bucket
    latencies: Latencies = msgspec.field(default_factory=lambda: [0] * _BUCKETS)
    latency_sum: Annotated[float, Meta(ge=0, le=MAX_COUNT)] = 0.0  #: the sum of their latencies in seconds
    failures: Count = 0  #: requests that timed out or got an invalid reply
    too_big: Count = 0  #: cache values not stored because they were too big
    process_evictions: Count = 0  #: unexpired limits evicted by a process that counts on its own; each resets a count
    channel_dropped: Count = 0  #: channel messages that a process had fetched and dropped for lack of room

    def add_latencies(self, seconds: Sequence[float]) -> None:
        """Counts requests, given the latency of each."""
        for bucket, count in Counter(map(partial(bisect_left, LATENCY_BOUNDS), seconds)).items():
            self.latencies[bucket] += count
        self.latency_sum += sum(seconds)

    def plus(self, other: "RequesterStats") -> "RequesterStats":
        """The sum of both, field by field."""
        ours, theirs = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return RequesterStats(*(_sum(one, another) for one, another in zip(ours, theirs, strict=True)))


def _sum(one: Any, another: Any) -> Any:
    if isinstance(one, list):
        return [_sum(*pair) for pair in zip(one, another, strict=True)]
    return min(one + another, MAX_COUNT)


class Changes(msgspec.Struct, array_like=True):
    """How often members changed their state, this node among them, as this node sees it."""

    joined: int = 0  #: a member began to own keys: a new one, or one that was down
    suspected: int = 0  #: a member was suspected
    down: int = 0  #: a member was declared down
    left: int = 0  #: a member left gracefully
    isolated: int = 0  #: this node was isolated: most peers fell silent at once
    restarted: int = 0  #: a heartbeat arrived with a new boot ID


class MemberStatus(msgspec.Struct, frozen=True, array_like=True):
    """One member as the answering node sees it. `heard_ago` and `state_for` are seconds."""

    identity: Identity
    state: MemberState
    incarnation: int
    heard_ago: float
    state_for: float
    epoch: int
    unreachable: bool = False  #: other nodes hear its heartbeats, this node doesn't


LATE = 1.0  # seconds; changes are sent within 10 ms, and acknowledged within a round trip


class CopiesStatus(msgspec.Struct, frozen=True, array_like=True):
    """The copies of keys, as a node sees them."""

    synced: bool = False  #: the node serves, and each key of the cluster has been sent to its backup
    missing: int = 0  #: slots that the node has to hold, and hasn't received completely
    lag: int = 0  #: changes that other nodes have to get, and haven't acknowledged
    behind: int = 0  #: how often changes were dropped for a node that was too slow; its slots were sent again
    forwarded: int = 0  #: requests that were forwarded to the owner of their keys
    unfilled: int = 0  #: slots that other nodes have to get from this node, and haven't received completely
    lag_seconds: float = 0.0  #: age of the oldest of the changes that `lag` counts
    backups: int = 1  #: the setting BACKUPS of the node

    @property
    def why_not_synced(self) -> str:
        """What is missing, as a sentence about the node; empty if it is synced."""
        if self.synced:
            return ""
        if self.missing:
            return f"it has not received {self.missing:,} of its slots"
        if self.unfilled:
            return f"other nodes have not received {self.unfilled:,} of its slots"
        return "not all keys have been sent to their backups yet"

    @property
    def is_late(self) -> bool:
        """Whether other nodes are late with acknowledging changes."""
        return self.lag_seconds >= LATE


def fit_members(members: list[MemberStatus], size: int) -> list[MemberStatus]:
    """The members whose encoding fits into `size` bytes. Those that have been gone for longest are left out first."""
    sizes = [len(_encode(member)) for member in members]
    if sum(sizes) <= size:
        return members
    ranked = sorted(zip(members, sizes, strict=True), key=lambda one: (one[0].state in GONE, one[0].state_for))
    ends = accumulate(encoded for _, encoded in ranked)
    return [member for (member, _), end in zip(ranked, ends, strict=True) if end <= size]


class Stats(msgspec.Struct, array_like=True):
    """The counters of a node, since its start unless they say otherwise."""

    requests: int = 0  #: cache and limit requests answered
    failures: int = 0  #: `incr()` on a value that isn't an integer, or that would overflow
    connections: int = 0  #: connections open now
    refused: int = 0  #: connections closed for a failed handshake, a different user, an invalid frame or lack of slots
    hits: int = 0  #: cache keys requested and found
    misses: int = 0  #: cache keys requested and not found
    allowed: int = 0  #: rate limit checks that allowed the request
    denied: int = 0  #: rate limit checks that denied the request
    cache_entries: int = 0  #: cache entries held now, copies included
    cache_bytes: int = 0  #: memory held by them, about
    cache_evictions: int = 0  #: unexpired cache entries evicted by their owner
    limit_entries: int = 0  #: limit keys held now, copies included
    limit_bytes: int = 0  #: memory held by them, about
    limit_evictions: int = 0  #: unexpired limits evicted by their owner; each resets a count, so raise LIMITS_MAX_BYTES
    channel_messages: int = 0  #: channel messages received
    channel_dropped: int = 0  #: channel messages dropped for lack of room: channel full, link too slow
    heartbeats_heard: int = 0  #: heartbeats received from peers
    heartbeats_dropped: int = 0  #: heartbeats that were invalid, or not signed with a secret of the node
    dry_denied: int = 0  #: denials that were dry runs, so the request passed
    refunds: int = 0  #: hits taken back
    #: the counters of requesters, sent with GetView
    tally: RequesterStats = msgspec.field(default_factory=RequesterStats)
    events: int = 0  #: events counted
    event_evictions: int = 0  #: names of events evicted, with all their counts
    changes: Changes = msgspec.field(default_factory=Changes)  #: state changes of members
    cache_max_bytes: int = 0  #: the limit of cache_bytes
    limit_max_bytes: int = 0  #: the limit of limit_bytes
    #: heartbeats that were repeated, late or from an earlier instance; normal during a restart
    heartbeats_ignored: int = 0
    channel_unreceived: int = 0  #: channel messages that expired unreceived; normal when a process has ended
    connections_evicted: int = 0  #: connections closed for new ones because all were in use
    channel_unreachable: int = 0  #: channel messages for a peer whose link was down; normal while it restarts
    cache_owned: int = 0  #: cache entries that the node owns now; the others that it holds are copies
    limit_owned: int = 0  #: limit keys that the node owns now
    cache_copies_evicted: int = 0  #: unexpired copies of cache entries evicted; a crash of their owner loses them
    limit_copies_evicted: int = 0  #: unexpired copies of limits evicted; a crash of their owner resets these counts
