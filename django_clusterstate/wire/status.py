"""What nodes and requesters count, and tell of themselves and of one another."""

from typing import Annotated

import msgspec
from msgspec import Meta

from ..core.messages import Identity, State

Count = Annotated[int, Meta(ge=0, le=2**53)]


class Tally(msgspec.Struct, array_like=True):
    """What requesters count of what no node sees. They tell the node that they ask for the view, which adds it up."""

    remembered: Count = 0  #: hits denied from a requester's memory of an earlier denial
    fallback_node: Count = 0  #: hits counted at another node in the owner's place
    fallback_process: Count = 0  #: hits counted in a process, since no node answered
    fallback_allow: Count = 0  #: hits allowed by policy, uncounted
    fallback_deny: Count = 0  #: hits denied by policy, uncounted

    events_dropped: Count = 0  #: events lost, or perhaps counted: no room in the process, or no owner in time

    def plus(self, other: "Tally") -> "Tally":
        fields = Tally.__struct_fields__
        return Tally(*(getattr(self, name) + getattr(other, name) for name in fields))


class MemberStatus(msgspec.Struct, frozen=True, array_like=True):
    """One member as the answering node sees it; seconds since it was last heard, and in this state."""

    identity: Identity
    state: State
    incarnation: int
    heard_ago: float
    state_for: float
    epoch: int
    unreachable: bool = False  #: others hear it, and this node doesn't any more


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
    channel_dropped: int = 0  #: channel messages dropped: channel full, link gone or too slow
    heartbeats_heard: int = 0  #: heartbeats of peers taken in
    heartbeats_dropped: int = 0  #: heartbeats not signed with our secret, repeated, or of a retired start
    dry_denied: int = 0  #: limit decisions of a dry run that denied, so the request passed nevertheless
    refunds: int = 0  #: hits taken back
    tally: Tally = msgspec.field(default_factory=Tally)  #: what the requesters that ask this node for the view counted
    events: int = 0  #: events counted
    event_evictions: int = 0  #: names of events dropped for room, with all that was counted of them
