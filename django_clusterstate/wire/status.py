"""What nodes and requesters count, and tell of themselves and of one another."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ..core.membership.messages import GONE, Identity, MemberState

_encode = msgspec.msgpack.Encoder().encode

MOST = 2**53  # what is counted on counts no further, or else nobody could read it
Count = Annotated[int, Meta(ge=0, le=MOST)]

# Seconds that exchanges are sorted by, each up to its bound; longer ones come last. A part of the protocol: requesters
# and nodes must have the same.
LATENCY_BOUNDS = (
    *(0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
)
Latencies = Annotated[list[Count], Meta(min_length=len(LATENCY_BOUNDS) + 1, max_length=len(LATENCY_BOUNDS) + 1)]


def no_latencies() -> list[int]:
    return [0] * (len(LATENCY_BOUNDS) + 1)


class RequesterStats(msgspec.Struct, array_like=True):
    """What requesters count of what no node sees. They tell the node that they ask for the view, which adds it up."""

    remembered: Count = 0  #: hits denied from a requester's memory of an earlier denial
    fallback_node: Count = 0  #: hits counted at another node in the owner's place
    fallback_process: Count = 0  #: hits counted in a process, since no node answered
    fallback_allow: Count = 0  #: hits allowed by policy, uncounted
    fallback_deny: Count = 0  #: hits denied by policy, uncounted
    events_dropped: Count = 0  #: events lost, or perhaps counted: no room in the process, or no owner in time
    latencies: Latencies = msgspec.field(default_factory=no_latencies)  #: exchanges with nodes, by how long they took
    latency_sum: Annotated[float, Meta(ge=0, le=MOST)] = 0.0  #: seconds that all of them took
    failures: Count = 0  #: exchanges without an answer in time, or with one that made no sense
    too_big: Count = 0  #: values for the cache that weren't stored, being too big
    process_evictions: Count = 0  #: live limits dropped for room by a process that counts by itself: each is a bypass
    channel_dropped: Count = 0  #: channel messages that a process had fetched and lost for want of room

    def took(self, waits: Sequence[float]) -> None:
        """Counts exchanges, by the seconds that each took."""
        for bucket, count in Counter(map(partial(bisect_left, LATENCY_BOUNDS), waits)).items():
            self.latencies[bucket] += count
        self.latency_sum += sum(waits)

    def plus(self, other: "RequesterStats") -> "RequesterStats":
        ours, theirs = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return RequesterStats(*(_sum(one, another) for one, another in zip(ours, theirs, strict=True)))


def _sum(one: Any, another: Any) -> Any:
    if isinstance(one, list):
        return [_sum(*pair) for pair in zip(one, another, strict=True)]
    return min(one + another, MOST)


class Changes(msgspec.Struct, array_like=True):
    """What became of the members, this node among them, as this node sees it."""

    joined: int = 0  #: a member owns keys from then on: a new one, or one that was down
    suspected: int = 0  #: one fell silent
    down: int = 0  #: one is gone without a word
    left: int = 0  #: one said that it leaves
    isolated: int = 0  #: most peers fell silent at once
    restarted: int = 0  #: a known name was heard from a new start


class MemberStatus(msgspec.Struct, frozen=True, array_like=True):
    """One member as the answering node sees it; seconds since it was last heard, and in this state."""

    identity: Identity
    state: MemberState
    incarnation: int
    heard_ago: float
    state_for: float
    epoch: int
    unreachable: bool = False  #: others hear it, and this node doesn't any more


def fitting(members: list[MemberStatus], room: int) -> list[MemberStatus]:
    """The members that fit in so many bytes. Of too many, those that have been gone for longest are left out."""
    sizes = [len(_encode(member)) for member in members]
    if sum(sizes) <= room:
        return members
    ranked = sorted(zip(members, sizes, strict=True), key=lambda one: (one[0].state in GONE, one[0].state_for))
    ends = accumulate(size for _, size in ranked)
    return [member for (member, _), end in zip(ranked, ends, strict=True) if end <= room]


class Stats(msgspec.Struct, array_like=True):
    """What one node counts. Numbers since its start, unless they say otherwise."""

    requests: int = 0  #: cache and limit requests answered
    failures: int = 0  #: additions to a value that is no integer
    connections: int = 0  #: connections open now
    refused: int = 0  #: connections closed for a failed handshake, a wrong user, a bad frame or a full table
    hits: int = 0  #: cache keys asked for and found
    misses: int = 0  #: cache keys asked for and not found
    allowed: int = 0  #: limit decisions that allowed
    denied: int = 0  #: limit decisions that denied
    cache_entries: int = 0  #: cache entries held now
    cache_bytes: int = 0  #: memory held by them, about
    cache_evictions: int = 0  #: live cache entries dropped for room
    limit_entries: int = 0  #: limit keys held now
    limit_bytes: int = 0  #: memory held by them, about
    limit_evictions: int = 0  #: live limits dropped for room: each is a bypass, so raise LIMITS_MAX_BYTES
    channel_messages: int = 0  #: channel messages taken in
    channel_dropped: int = 0  #: channel messages lost for want of room: channel full, link too slow
    heartbeats_heard: int = 0  #: heartbeats of peers taken in
    heartbeats_dropped: int = 0  #: heartbeats not signed with our secret, or not understood
    dry_denied: int = 0  #: limit decisions of a dry run that denied, so the request passed nevertheless
    refunds: int = 0  #: hits taken back
    tally: RequesterStats = msgspec.field(
        default_factory=RequesterStats
    )  #: what the requesters that ask this node for the view counted
    events: int = 0  #: events counted
    event_evictions: int = 0  #: names of events dropped for room, with all that was counted of them
    changes: Changes = msgspec.field(default_factory=Changes)  #: what became of the members
    cache_max_bytes: int = 0  #: the bound of cache_bytes
    limit_max_bytes: int = 0  #: the bound of limit_bytes
    heartbeats_ignored: int = 0  #: heartbeats repeated, overtaken, or of a start that is over; normal in a restart
    channel_unreceived: int = 0  #: channel messages that nobody received in time; normal where a process has ended
    connections_evicted: int = 0  #: connections closed for others, since all places were taken
    channel_unreachable: int = 0  #: channel messages for a peer whose link was down; normal while it restarts
