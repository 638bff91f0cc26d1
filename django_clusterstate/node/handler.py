"""Answers all requests to a node. Without sockets: it takes a request and its requester, and returns the reply."""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from .. import __version__
from ..core.cache.quotas import CacheStores
from ..core.cache.store import CacheStore
from ..core.event_counts import EventCounts
from ..core.limits.store import LimitStore
from ..core.membership.membership import Membership
from ..core.rendezvous_hashing import OwnershipHistory
from ..wire import messages as wire
from ..wire.framing import MAX_REQUEST
from ..wire.status import MemberStatus, Stats, fit_members
from .cache_requests import CacheRequests
from .channels.queues import ChannelQueues
from .channels.requests import ChannelLinks, ChannelRequests, Requester
from .config import NodeConfig
from .limit_requests import LimitRequests
from .problems import Misdirected, problems
from .recent_activity import History

_PAGE = os.sysconf("SC_PAGE_SIZE")
# Bytes of members in one reply. The rest of a `ReportReply` takes 110 KiB at most, with the longest names and keys.
MAX_MEMBERS_BYTES = MAX_REQUEST - 128 * 1024

RECLAIM = 300  # expired entries freed at once: half a millisecond for those of the cache, and as much for limits


def resident_bytes() -> int:
    """Memory of this process that is in RAM, from the kernel."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * _PAGE


class Peers(ChannelLinks, Protocol):
    """The methods of `Links` that a `Handler` uses."""

    def redial(self, name: str) -> None: ...
    @property
    def misdirected(self) -> Mapping[str, Misdirected]: ...


class Handler:
    """Answers requests from this node's memory."""

    def __init__(self, config: NodeConfig, membership: Membership, clock: Callable[[], float], peers: Peers) -> None:
        self._clock = clock
        self._peers = peers
        self.membership = membership
        self.stats = Stats(cache_max_bytes=config.cache_max_bytes, limit_max_bytes=config.limits_max_bytes)
        self.history = History(clock())
        self._ownership = OwnershipHistory(config.name)
        self.cache = _make_cache(config, self._ownership)
        self.limits = LimitStore(config.limits_max_bytes)
        self.events = EventCounts()
        self.channels = ChannelQueues()
        self.channel_requests = ChannelRequests(self.channels, membership, clock, peers)
        # Requests of users. The cluster's own are many more, and aren't counted.
        self._counted_methods: dict[type, Callable[[Any], wire.Reply]] = {
            **CacheRequests(self.cache, membership, self.stats, clock).methods,
            **LimitRequests(self.limits, self.history, membership, self.stats, clock).methods,
        }
        self._methods: dict[type, Callable[[Any], wire.Reply | None]] = {
            **self.channel_requests.methods,
            wire.Track: self._track,
            wire.GetEvents: self._get_events,
            wire.GetView: self._get_view,
            wire.Ping: self._ping,
            wire.GetStatus: lambda _: self.status(),
            wire.GetReport: self._get_report,
        }
        self._methods_with_requester = self.channel_requests.methods_with_requester

    @property
    def epoch(self) -> int:
        return self.membership.view.epoch

    def handle(self, request: wire.Request, requester: Requester) -> wire.Reply | None:
        """The reply; None if it is pushed later, or if the request has none."""
        kind = type(request)
        if kind in self._counted_methods:
            self.stats.requests += 1
            return self._counted_methods[kind](request)
        if kind in self._methods_with_requester:
            return self._methods_with_requester[kind](request, requester)
        return self._methods[kind](request)

    def close(self, requester: Requester) -> None:
        """Notes that a connection is closed: nothing waits for messages on its behalf any longer."""
        self.channels.forget(requester)

    def undelivered(self, reply: wire.Reply) -> None:
        """Counts the messages of a pushed reply whose connection was closed."""
        if isinstance(reply, wire.ReceiveReply) and reply.payload is not None:
            self.channels.unreceived += 1 + len(reply.more)

    def reclaim(self) -> bool:
        """Frees expired entries for a millisecond or two. Returns whether there may be more."""
        now = self._clock()
        freed = [store.expire(now, RECLAIM) for store in (self.cache, self.limits, self.channels)]
        return RECLAIM in freed

    def tick(self) -> None:
        """Notes the counters and the busiest keys of the last minutes. The caller calls it about once a second."""
        self.history.tick(self.stats, self._clock())

    def clear_cache(self) -> None:
        """Drops all entries because other nodes have owned their keys meanwhile."""
        self.cache.clear_all(self._clock())

    def view_changed(self) -> None:
        """Updates the keys that this node owns. Entries of keys that it has lost aren't served again: other nodes may
        have written to these keys."""
        view = self.membership.view
        self.channel_requests.owners = self._ownership.change({member.name: member.weight for member in view.members})
        self.cache.generation = self._ownership.generation

    # -- events ---------------------------------------------------------------------------------------------

    def _track(self, request: wire.Track) -> wire.Reply:
        self.stats.events += self.events.track(request.batch, request.entries, self._clock())
        return wire.DoneReply(self.epoch)

    def _get_events(self, request: wire.GetEvents) -> wire.Reply:
        now = self._clock()
        if request.name:
            return wire.EventReply(self.epoch, self.events.account(request.name, now))
        return wire.EventNamesReply(self.epoch, self.events.names(request.after, now))

    # -- the cluster ----------------------------------------------------------------------------------------

    def _get_view(self, request: wire.GetView) -> wire.Reply:
        for name in request.failing:
            self._peers.redial(name)
        if request.stats is not None:
            self.stats.tally = self.stats.tally.plus(request.stats)
        view = self.membership.view
        return wire.ViewReply(view.epoch, view.members, self.membership.me.name)

    def _ping(self, request: wire.Ping) -> wire.Reply:
        return wire.PongReply(self.epoch, self.membership.me)

    def _get_report(self, request: wire.GetReport) -> wire.Reply:
        history, now = self.history, self._clock()
        return wire.ReportReply(
            self.epoch, self.status(), history.timeline.events(now), history.rates.all(), *history.top_keys()
        )

    def status(self) -> wire.StatusReply:
        """The state of this node, its members and its counters."""
        now, membership, stats = self._clock(), self.membership, self.stats
        stats.cache_entries, stats.cache_bytes = self.cache.entries, self.cache.bytes
        stats.cache_evictions = self.cache.evictions
        stats.limit_entries, stats.limit_bytes = self.limits.entries, self.limits.bytes
        stats.limit_evictions = self.limits.evictions
        stats.event_evictions = self.events.evictions
        stats.channel_messages = self.channels.taken
        members = [
            MemberStatus(m.identity, m.state, m.incarnation, now - m.heard, now - m.since, m.epoch, m.unreachable)
            for m in membership.members.values()
        ]
        reported = fit_members(members, MAX_MEMBERS_BYTES)
        return wire.StatusReply(
            self.epoch, membership.me, membership.state, now - membership.started, membership.isolated,
            __version__, resident_bytes(), tuple(reported), stats, len(members) - len(reported),
            tuple(problems(membership, self._peers.misdirected, now)),
        )  # fmt: skip


def _make_cache(config: NodeConfig, ownership: OwnershipHistory) -> CacheStores:
    def store(max_bytes: int) -> CacheStore[wire.Value]:
        return CacheStore(max_bytes, size_of=sys.getsizeof, is_valid=ownership.owned_since)

    own = {namespace: store(size) for namespace, size in config.cache_own_bytes.items()}
    shared = store(config.cache_max_bytes - sum(config.cache_own_bytes.values()))
    return CacheStores(shared, own)
