"""The embedded channel layer as the node itself uses it, for its heartbeats: the same memory and links that serve other
processes, without a socket in between. A hundred members send two hundred heartbeats a second."""

import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from ...core.membership.heartbeat import Identity
from ...wire import messages as wire
from .queues import ChannelQueues, queue_name
from .requests import ChannelRequests

EXPIRY = 60.0  # seconds, of a message
CAPACITY = 4096  # messages: after a stall a whole large cluster's come at once
MAX_MESSAGE = 16 * 1024  # bytes; a heartbeat has 4 KiB at most. So the queue takes 64 MiB at most
WAIT = 3600.0  # seconds until the node requests the next message again


class SessionMessage(dict[str, Any]):
    """A message with the connection that it came over: `session` is the boot ID of that node, empty for a requester's,
    and None where the layer doesn't know."""

    def __init__(self, message: dict[str, Any], session: bytes | None) -> None:
        super().__init__(message)
        self.session = session


class InProcessLayer:
    """A channel layer for the node itself, with at-most-once delivery as `ClusterChannelLayer` has it.

    Messages for its channel and for its groups share one queue, since a node has one channel.
    """

    def __init__(
        self, requests: ChannelRequests, queues: ChannelQueues, me: Identity, clock: Callable[[], float]
    ) -> None:
        self.peer = me.boot
        self._name = me.name
        self._requests = requests
        self._queues = queues
        self._clock = clock
        self._arrived: deque[tuple[bytes, bytes | None]] = deque(maxlen=CAPACITY)
        self._not_empty = asyncio.Event()

    async def new_channel(self, prefix: str = "specific.") -> str:
        channel = f"{prefix}{wire.channel_tag(self._name)}.{secrets.token_hex(6)}!{secrets.token_hex(6)}"
        self._listen(queue_name(channel))
        return channel

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        self._requests.send(wire.Send(channel, msgspec.msgpack.encode(message), EXPIRY, CAPACITY))

    async def receive(self, channel: str) -> dict[str, Any]:
        while True:
            while not self._arrived:
                self._not_empty.clear()
                await self._not_empty.wait()
            payload, session = self._arrived.popleft()
            try:
                message = msgspec.msgpack.decode(payload)
            except wire.DECODE_ERRORS:
                message = None
            if isinstance(message, dict):
                return SessionMessage(message, session)
            self._queues.dropped += 1

    async def group_add(self, group: str, channel: str) -> None:
        self._requests.listeners[group] = self._take

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        self._requests.group_send(wire.GroupSend(group, msgspec.msgpack.encode(message), EXPIRY, CAPACITY), self)

    def push(self, reply: wire.Reply) -> None:
        """Ignores the reply: no request of the node itself is answered later."""

    def abort(self) -> None:
        """Does nothing: it has no connection."""

    def _listen(self, queue: str) -> None:
        def deliver(_: str, payload: bytes | None) -> None:
            self._listen(queue)
            if payload is not None:
                self._take(payload, None)

        self._queues.receive(self, queue, deliver, WAIT, self._clock())

    def _take(self, payload: bytes, session: bytes | None) -> None:
        if len(payload) > MAX_MESSAGE:
            self._queues.dropped += 1
            return
        if len(self._arrived) == CAPACITY:  # the oldest makes room
            self._queues.dropped += 1
        self._arrived.append((payload, session))
        self._not_empty.set()
