"""Answers all requests to a node. Without sockets: it takes a request and its requester, and returns the reply."""

import asyncio
import os
import sys
from array import array
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from .. import __version__
from ..core.cache.copies import CacheCopies
from ..core.cache.entry_keys import slot_of_entry
from ..core.cache.quotas import CacheStores
from ..core.cache.store import CacheStore
from ..core.event_counts import EventCounts
from ..core.limits.algorithms import slot_of_state
from ..core.limits.copies import LimitCopies
from ..core.limits.store import LimitStore
from ..core.membership.members import Effects
from ..core.membership.membership import Membership
from ..core.rendezvous_hashing import SLOTS, Rendezvous
from ..exceptions import ProtocolError
from ..wire import messages as wire
from ..wire.framing import MAX_REQUEST
from ..wire.status import MemberStatus, Stats, fit_members
from .cache_requests import CacheRequests
from .channels.queues import ChannelQueues
from .channels.requests import ChannelLinks, ChannelRequests, Requester
from .config import NodeConfig
from .copies import Copies, CopyLinks
from .key_owners import SLOTS_OF, KeyOwners
from .limit_requests import LimitRequests
from .problems import Misdirected, problems
from .recent_activity import History

_PAGE = os.sysconf("SC_PAGE_SIZE")
# Bytes of members in one reply. The rest of a `ReportReply` takes 110 KiB at most, with the longest names and keys.
MAX_MEMBERS_BYTES = MAX_REQUEST - 128 * 1024

CACHE, LIMITS = 0, 1  # kinds of records: the places of their stores

RECLAIM = 300  # expired entries freed at once: half a millisecond for those of the cache, and as much for limits


def resident_bytes() -> int:
    """Memory of this process that is in RAM, from the kernel."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * _PAGE


class Peers(ChannelLinks, CopyLinks, Protocol):
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
        self.cache = self._make_cache(config)
        self.limits = LimitStore(
            config.limits_max_bytes,
            is_valid=self._is_limit_valid,
            owns=self._owns_limit,
            on_write=self._limit_written,
        )
        stores = CacheCopies(CACHE, self.cache), LimitCopies(LIMITS, self.limits)
        self.copies = Copies(membership, stores, config, peers, clock)
        self._key_owners = KeyOwners(self.copies, lambda request: self._counted_methods[type(request)](request))
        self.events = EventCounts()
        self.channels = ChannelQueues()
        self.channel_requests = ChannelRequests(self.channels, membership, clock, peers)
        # Requests of users. The cluster's own are many more, and aren't counted.
        self._counted_methods: dict[type, Callable[[Any], wire.Reply]] = {
            **CacheRequests(self.cache, self.copies.replication, membership, self.stats, clock).methods,
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
        self._methods_with_requester: dict[
            type, Callable[[Any, Requester], wire.Reply | asyncio.Future[wire.Reply] | None]
        ] = {
            **self.channel_requests.methods_with_requester,
            wire.Replicate: self.copies.receive,
        }

    @property
    def epoch(self) -> int:
        return self.membership.view.epoch

    def handle(self, request: wire.Request, requester: Requester) -> "wire.Reply | asyncio.Future[wire.Reply] | None":
        """The reply; a future for that of another node; None if it is pushed later, or if the request has none."""
        kind = type(request)
        if kind in self._counted_methods:
            self.stats.requests += 1
            if kind in SLOTS_OF and (self._clock() >= self.copies.good_until or not self._key_owners.owns(request)):
                return self._execute_at_owner(request)
            return self._counted_methods[kind](request)
        if isinstance(request, wire.Execute):
            return self._execute(request)
        if kind in self._methods_with_requester:
            return self._methods_with_requester[kind](request, requester)
        return self._methods[kind](request)

    def _execute_at_owner(self, request: wire.Request, hops: int = 0) -> "wire.Reply | asyncio.Future[wire.Reply]":
        """The reply to a request of which this node may not own all keys, which was forwarded `hops` times; or which
        comes after it has stood still."""
        if self._clock() >= self.copies.good_until:
            return wire.UnavailableReply(self.epoch, sent=False)
        return self._key_owners.execute(request, hops)

    def _execute(self, request: wire.Execute) -> "wire.Reply | asyncio.Future[wire.Reply]":
        """The reply to a request that another node has forwarded."""
        inner = wire.decode_request(request.request)
        if type(inner) not in SLOTS_OF:
            raise ProtocolError(f"a node forwarded {type(inner).__name__}, which is not about keys")
        if (size := len(request.request)) > MAX_REQUEST:
            raise ProtocolError(f"a node forwarded a request of {size:,} bytes; at most {MAX_REQUEST:,} are allowed")
        return self._execute_at_owner(inner, request.hops)

    def close(self, requester: Requester) -> None:
        """Notes that a connection is closed: nothing waits for messages on its behalf any longer."""
        self.channels.forget(requester)
        self.copies.disconnected(requester)

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

    def take_effects(self, effects: Effects) -> None:
        """Updates the keys that this node owns or has to hold."""
        if effects.changes:
            members = self.membership.view.members
            self.channel_requests.owners = Rendezvous({member.name: member.weight for member in members})
        self.copies.take_effects(effects)

    # -- the stores -----------------------------------------------------------------------------------------

    def _make_cache(self, config: NodeConfig) -> CacheStores:
        by_slot = array("I", [0]) * SLOTS

        def store(max_bytes: int) -> CacheStore[wire.Value]:
            return CacheStore(
                max_bytes,
                size_of=sys.getsizeof,
                is_valid=self._is_entry_valid,
                owns=self._owns_entry,
                on_write=self._entry_written,
                by_slot=by_slot,
            )

        own = {namespace: store(size) for namespace, size in config.cache_own_bytes.items()}
        shared = store(config.cache_max_bytes - sum(config.cache_own_bytes.values()))
        return CacheStores(shared, own)

    def _entry_written(self, key: bytes, now: float) -> int:
        return self.copies.write(CACHE, key, now)

    def _limit_written(self, key: bytes, now: float) -> int:
        return self.copies.write(LIMITS, key, now)

    def _is_entry_valid(self, key: bytes, generation: int) -> bool:
        return generation >= self.copies.replication.valid_since[slot_of_entry(key)]

    def _is_limit_valid(self, key: bytes, generation: int) -> bool:
        return generation >= self.copies.replication.valid_since[slot_of_state(key)]

    def _owns_entry(self, key: bytes) -> bool:
        return bool(self.copies.replication.placement.owns[slot_of_entry(key)])

    def _owns_limit(self, key: bytes) -> bool:
        return bool(self.copies.replication.placement.owns[slot_of_state(key)])

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
        stats.cache_evictions, stats.cache_copies_evicted = self.cache.evictions, self.cache.copies_evicted
        stats.limit_entries, stats.limit_bytes = self.limits.entries, self.limits.bytes
        stats.limit_evictions, stats.limit_copies_evicted = self.limits.evictions, self.limits.copies_evicted
        owns = self.copies.replication.placement.owns
        stats.cache_owned, stats.limit_owned = self.cache.owned(owns), self.limits.owned(owns)
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
            tuple(problems(membership, self._peers.misdirected, now)), self.copies.status(),
        )  # fmt: skip
