"""What a node does with each request. No sockets: a request and where later answers go in, a reply out."""

import os
import sys
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol

from .. import __version__
from ..core.cache.store import CacheStore
from ..core.event_counts import EventCounts
from ..core.hrw import OwnershipHistory, Rendezvous
from ..core.limits import algorithms
from ..core.limits.store import LimitStore
from ..core.membership.transitions import Membership
from ..wire import messages as wire
from ..wire.framing import MAX_REQUEST
from ..wire.status import MemberStatus, Stats, fitting
from .cache_requests import CacheRequests
from .channels.queues import ChannelQueues
from .config import NodeConfig
from .history import History
from .problems import Misdirected, problems
from .quotas import QuotaStore

_PAGE = os.sysconf("SC_PAGE_SIZE")
# Bytes of members in one reply. The rest of a `Report` takes 110 KiB at most, with names and keys at their longest.
MAX_MEMBERS_BYTES = MAX_REQUEST - 128 * 1024

RECLAIM = 300  # expired entries freed at once: half a millisecond for those of the cache, and as much for limits

# What a user asks for; the cluster's own messages would drown it.
_COUNTED = frozenset((
    wire.Get, wire.GetWithTtl, wire.Set, wire.Touch, wire.Delete, wire.Incr, wire.Clear, wire.GetEntry, wire.Scan,
    wire.Hit, wire.Peek, wire.Reset, wire.Refund, wire.FindLimits,
))  # fmt: skip


def resident_bytes() -> int:
    """Memory of this process that is in RAM, from the kernel."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * _PAGE


class Peers(Protocol):
    """What a handler needs of the links."""

    def fan_out(self, message: wire.Deliver) -> None: ...
    def forward(self, tag: str, message: wire.Forward) -> None: ...
    def doubt(self, name: str) -> None: ...
    @property
    def misdirected(self) -> Mapping[str, Misdirected]: ...


class Requester(Hashable, Protocol):
    """Who asks. `peer` is the boot id of the node that the connection belongs to; empty for any other requester."""

    peer: bytes

    def push(self, reply: wire.Reply) -> None:
        """Takes a reply that wasn't due at once."""


# Takes the payload of a message to a group, and the boot id of the node that sent it over its own connection.
Listener = Callable[[bytes, bytes], None]


class Handler:
    """Answers requests from this node's memory."""

    def __init__(
        self,
        config: NodeConfig,
        membership: Membership,
        clock: Callable[[], float],
        peers: Peers,
    ) -> None:
        self._config = config
        self._clock = clock
        self.stats = Stats(cache_max_bytes=config.cache_max_bytes, limit_max_bytes=config.limits_max_bytes)
        self.membership = membership
        self.channels = ChannelQueues()
        self._tenure = OwnershipHistory(config.name)
        self.cache = self._make_cache()
        self.limits = LimitStore(config.limits_max_bytes)
        self._rules = algorithms.RecentRules()
        self.events = EventCounts()
        self.history = History(clock())
        self._peers = peers
        self._tag = wire.channel_tag(config.name)
        self._placed = Rendezvous({})
        self.listeners: dict[str, Listener] = {}  # the node's own, by group; a flush leaves them alone
        self._methods: dict[type, Callable[[Any], wire.Reply | None]] = {
            **CacheRequests(self.cache, membership, self.stats, clock).methods,
            wire.Hit: self._hit,
            wire.Peek: self._peek,
            wire.Reset: self._reset,
            wire.Refund: self._refund,
            wire.FindLimits: self._find_limits,
            wire.Track: self._track,
            wire.GetEvents: self._get_events,
            wire.GetView: self._get_view,
            wire.Ping: self._ping,
            wire.GetStatus: self._get_status,
            wire.GetReport: self._get_report,
            wire.Send: self._send,
            wire.GroupAdd: self._group_add,
            wire.GroupDiscard: self._group_discard,
            wire.Forward: self._forwarded,
            wire.Flush: self._flush,
        }
        self._methods_with_requester: dict[type, Callable[[Any, Requester], wire.Reply | None]] = {
            wire.Receive: self._receive,
            wire.GroupSend: self._group_send,
            wire.Deliver: self._deliver,
        }

    @property
    def epoch(self) -> int:
        return self.membership.view.epoch

    def handle(self, request: wire.Request, requester: Requester) -> wire.Reply | None:
        """The reply, or None where none is due now: it is pushed later, or there is none."""
        kind = type(request)
        if kind in _COUNTED:
            self.stats.requests += 1
        elif kind in self._methods_with_requester:
            return self._methods_with_requester[kind](request, requester)
        return self._methods[kind](request)

    def close(self, requester: Requester) -> None:
        """It is gone, and so is what waits for its sake."""
        self.channels.forget(requester)

    def reclaim(self) -> bool:
        """Frees some of what has expired, a millisecond's worth or two. Whether there is more to do."""
        now = self._clock()
        stores = (self.cache, self.limits, self.channels)
        return RECLAIM in [store.expire(now, RECLAIM) for store in stores]

    def tick(self) -> None:
        """What is due about once a second."""
        self.history.tick(self.stats, self._clock())

    def forget_cache(self) -> None:
        """Others have served our keys meanwhile: what we hold is old."""
        self.cache.clear_all(self._clock())

    def _make_cache(self) -> CacheStore[wire.Value] | QuotaStore:
        def store(max_bytes: int) -> CacheStore[wire.Value]:
            return CacheStore(max_bytes, size_of=sys.getsizeof, still_good=self._tenure.unbroken)

        own = {namespace: store(size) for namespace, size in self._config.cache_own_bytes.items()}
        shared = store(self._config.cache_max_bytes - sum(self._config.cache_own_bytes.values()))
        return QuotaStore(shared, own) if own else shared

    def view_changed(self) -> None:
        """Other nodes may own our keys now, and write to them, until we own them again."""
        view = self.membership.view
        self._placed = self._tenure.change({member.name: member.weight for member in view.members})
        self.cache.stamp = self._tenure.serial

    # -- limits ---------------------------------------------------------------------------------------------

    def _hit(self, request: wire.Hit) -> wire.Reply:
        limits, history = self.limits, self.history
        made = limits.made
        decisions, allowed = algorithms.hit(limits, request.key, request.rules, request.cost, self._clock())
        if limits.made != made:
            self._rules.note(request.rules)
        history.busiest.add(request.key, 1 + request.denied_locally)
        if allowed:
            self.stats.allowed += 1
        else:
            self.stats.denied += 1
            self.stats.dry_denied += request.dry
        if denied := request.denied_locally + (not allowed):
            history.denied.add(request.key, denied)
        return wire.DecisionsReply(self.epoch, decisions)

    def _peek(self, request: wire.Peek) -> wire.Reply:
        decisions = algorithms.peek(self.limits, request.key, request.rules, request.cost, self._clock())
        return wire.DecisionsReply(self.epoch, decisions)

    def _reset(self, request: wire.Reset) -> wire.Reply:
        return wire.FlagsReply(self.epoch, algorithms.reset(self.limits, request.key, request.rules, self._clock()))

    def _refund(self, request: wire.Refund) -> wire.Reply:
        now = self._clock()
        algorithms.refund(self.limits, request.key, request.rules, request.cost, now - request.ago, now)
        self.stats.refunds += 1
        return wire.DoneReply(self.epoch)

    def _find_limits(self, request: wire.FindLimits) -> wire.Reply:
        return wire.LimitsReply(self.epoch, algorithms.find(self.limits, request.key, self._rules, self._clock()))

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
            self._peers.doubt(name)
        if request.stats is not None:
            self.stats.tally = self.stats.tally.plus(request.stats)
        view = self.membership.view
        return wire.ViewReply(view.epoch, view.members, self.membership.me.name)

    def _ping(self, request: wire.Ping) -> wire.Reply:
        return wire.PongReply(self.epoch, self.membership.me)

    def _get_status(self, request: wire.GetStatus) -> wire.Reply:
        return self.status()

    def _get_report(self, request: wire.GetReport) -> wire.Reply:
        history, now = self.history, self._clock()
        return wire.ReportReply(
            self.epoch, self.status(), history.timeline.moments(now), history.rates.all(), *history.most()
        )

    def status(self) -> wire.StatusReply:
        """This node's account of itself."""
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
        told = fitting(members, MAX_MEMBERS_BYTES)
        return wire.StatusReply(
            self.epoch, membership.me, membership.state, now - membership.started, membership.isolated,
            __version__, resident_bytes(), tuple(told), stats, len(members) - len(told),
            tuple(problems(membership, self._peers.misdirected, now)),
        )  # fmt: skip

    # -- channels -------------------------------------------------------------------------------------------

    def _send(self, request: wire.Send) -> wire.Reply:
        # Who sends to a channel that isn't a process's own has chosen this node by its name.
        here = not wire.tag_of(request.channel)
        if self._put(request, here=here):
            return wire.DoneReply(self.epoch)
        return wire.FailedReply(self.epoch, wire.CHANNEL_FULL)

    def _forwarded(self, request: wire.Forward) -> None:
        self._put(request, here=True)

    def _put(self, message: wire.Send | wire.Forward, *, here: bool) -> bool:
        """Puts the message where its channel lives. False when that is here and full."""
        home = "" if here else self._home(message.channel)
        if home:
            self._peers.forward(home, wire.Forward(message.channel, message.payload, message.expiry, message.capacity))
            return True
        return self.channels.send(message.channel, message.payload, message.expiry, message.capacity, self._clock())

    def _home(self, channel: str) -> str:
        """The tag of the node where a channel lives; empty when it is here."""
        tag = wire.tag_of(channel)
        if not tag and "!" not in channel:
            owner = self._placed.owner(channel.encode())
            tag = wire.channel_tag(owner) if owner is not None else ""
        return "" if tag == self._tag else tag  # a process's channel that names no node is where it is asked for

    def _receive(self, request: wire.Receive, requester: Requester) -> None:
        def deliver(channel: str, payload: bytes | None) -> None:
            more = []
            if payload is not None and request.limit > 1:
                room = MAX_REQUEST - len(payload)
                more = self.channels.take(request.queue, request.limit - 1, room, self._clock())
            requester.push(wire.ReceiveReply(self.epoch, channel, payload, more))

        self.channels.receive(requester, request.queue, deliver, request.timeout, self._clock())

    def undelivered(self, reply: wire.Reply) -> None:
        """A reply that was pushed has found no requester any more."""
        if isinstance(reply, wire.ReceiveReply) and reply.payload is not None:
            self.channels.unreceived += 1 + len(reply.more)

    def _group_add(self, request: wire.GroupAdd) -> wire.Reply:
        self.channels.group_add(request.group, request.channel, request.expiry, self._clock())
        return wire.DoneReply(self.epoch)

    def _group_discard(self, request: wire.GroupDiscard) -> wire.Reply:
        self.channels.group_discard(request.group, request.channel)
        return wire.DoneReply(self.epoch)

    def _group_send(self, request: wire.GroupSend, requester: Requester) -> wire.Reply:
        message = wire.Deliver(request.group, request.payload, request.expiry, request.capacity)
        self._deliver(message, requester)
        self._peers.fan_out(message)
        return wire.DoneReply(self.epoch)

    def _deliver(self, request: wire.Deliver, requester: Requester) -> None:
        if listener := self.listeners.get(request.group):
            listener(request.payload, requester.peer)
        now = self._clock()
        for channel in self.channels.group(request.group, now):
            if not self._home(channel):  # else its place in the group is from before it moved, and it has another there
                self.channels.send(channel, request.payload, request.expiry, request.capacity, now)

    def _flush(self, request: wire.Flush) -> wire.Reply:
        self.channels.flush()
        return wire.DoneReply(self.epoch)
