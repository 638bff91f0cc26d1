"""Answers the requests that a node receives for channels. Channels of this node are served from `ChannelQueues`,
messages for other channels are forwarded over a link."""

from collections.abc import Callable, Hashable
from typing import Any, Protocol

from ...core.membership.membership import Membership
from ...core.rendezvous_hashing import Rendezvous
from ...wire import messages as wire
from ...wire.framing import MAX_REQUEST
from .queues import ChannelQueues

# Takes the payload of a message to a group, and the boot ID of the node that sent it over its own connection.
Listener = Callable[[bytes, bytes], None]


class Requester(Hashable, Protocol):
    """A connection. `peer` is the boot ID of the node that it belongs to; empty for any other requester."""

    peer: bytes

    def push(self, reply: wire.Reply) -> None:
        """Takes a reply that wasn't due at once."""

    def abort(self) -> None:
        """Closes the connection."""


class ChannelLinks(Protocol):
    """The methods of `Links` that `ChannelRequests` uses."""

    def fan_out(self, message: wire.Deliver) -> None: ...
    def forward(self, tag: str, message: wire.Forward) -> None: ...


class ChannelRequests:
    """Answers the requests for channels. `listeners` are the node's own, by group; a flush doesn't remove them."""

    def __init__(
        self, queues: ChannelQueues, membership: Membership, clock: Callable[[], float], links: ChannelLinks
    ) -> None:
        self.owners = Rendezvous({})  # of the present view
        self.listeners: dict[str, Listener] = {}
        self._queues = queues
        self._membership = membership
        self._clock = clock
        self._links = links
        self._tag = wire.channel_tag(membership.me.name)
        self.methods: dict[type, Callable[[Any], wire.Reply | None]] = {
            wire.Send: self.send,
            wire.Forward: self._take_forwarded,
            wire.GroupAdd: self._group_add,
            wire.GroupDiscard: self._group_discard,
            wire.Flush: self._flush,
        }
        self.methods_with_requester: dict[type, Callable[[Any, Requester], wire.Reply | None]] = {
            wire.Receive: self._receive,
            wire.GroupSend: self.group_send,
            wire.Deliver: self._deliver,
        }

    def send(self, request: wire.Send) -> wire.Reply:
        # A channel without a tag isn't a process's own: its sender has chosen this node as its owner.
        tag = wire.tag_of(request.channel)
        if tag and tag != self._tag:
            forwarded = wire.Forward(request.channel, request.payload, request.expiry, request.capacity)
            self._links.forward(tag, forwarded)
        elif not self._put(request):
            return wire.FailedReply(self._membership.view.epoch, wire.CHANNEL_FULL)
        return wire.DoneReply(self._membership.view.epoch)

    def _take_forwarded(self, request: wire.Forward) -> None:
        self._put(request)

    def _put(self, message: wire.Send | wire.Forward) -> bool:
        return self._queues.send(message.channel, message.payload, message.expiry, message.capacity, self._clock())

    def _receive(self, request: wire.Receive, requester: Requester) -> None:
        def deliver(channel: str, payload: bytes | None) -> None:
            more = []
            if payload is not None and request.limit > 1:
                room = MAX_REQUEST - len(payload)
                more = self._queues.take(request.queue, request.limit - 1, room, self._clock())
            requester.push(wire.ReceiveReply(self._membership.view.epoch, channel, payload, more))

        self._queues.receive(requester, request.queue, deliver, request.timeout, self._clock())

    def _group_add(self, request: wire.GroupAdd) -> wire.Reply:
        self._queues.group_add(request.group, request.channel, request.expiry, self._clock())
        return wire.DoneReply(self._membership.view.epoch)

    def _group_discard(self, request: wire.GroupDiscard) -> wire.Reply:
        self._queues.groups.discard(request.group, request.channel)
        return wire.DoneReply(self._membership.view.epoch)

    def group_send(self, request: wire.GroupSend, requester: Requester) -> wire.Reply:
        message = wire.Deliver(request.group, request.payload, request.expiry, request.capacity)
        self._deliver(message, requester)
        self._links.fan_out(message)
        return wire.DoneReply(self._membership.view.epoch)

    def _deliver(self, request: wire.Deliver, requester: Requester) -> None:
        if listener := self.listeners.get(request.group):
            listener(request.payload, requester.peer)
        now = self._clock()
        for channel in self._queues.groups.channels(request.group, now):
            if self._lives_here(channel):  # otherwise it has moved, and has a place in the group at its new owner
                self._queues.send(channel, request.payload, request.expiry, request.capacity, now)

    def _lives_here(self, channel: str) -> bool:
        """Whether its tag names this node; of a channel without one, whether this node owns it."""
        tag = wire.tag_of(channel)
        if tag or "!" in channel:  # the channel of a process, which without a tag lives where it is requested
            return tag in ("", self._tag)
        return self.owners.owner(channel.encode()) in (None, self._membership.me.name)

    def _flush(self, request: wire.Flush) -> wire.Reply:
        self._queues.flush()
        return wire.DoneReply(self._membership.view.epoch)
