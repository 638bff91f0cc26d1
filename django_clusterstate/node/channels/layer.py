"""The embedded channel layer as the node itself uses it, for its heartbeats: the same memory and links that serve other
processes, without a socket in between. A hundred members send two hundred heartbeats a second."""

import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from ...wire import messages as wire
from ..handler import Handler
from .queues import queue_name

EXPIRY = 60.0  # seconds, of a message
CAPACITY = 4096  # messages: after a stall a whole large cluster's come at once
MAX_MESSAGE = 16 * 1024  # bytes; a heartbeat has 4 KiB at most. So what waits takes 64 MiB at most
WAIT = 3600.0  # seconds until the node is asked again for the next message


class SessionMessage(dict[str, Any]):
    """A message, and whose connection it came over: `session` is the boot id of that node, empty for a requester's, and
    None where the layer doesn't know."""

    def __init__(self, message: dict[str, Any], session: bytes | None) -> None:
        super().__init__(message)
        self.session = session


class OwnLayer:
    """As `django_clusterstate.layers.ClusterChannelLayer`, and at most once as well.

    What is for its channel or its groups waits in one queue, since a node has one channel.
    """

    def __init__(self, handler: Handler, clock: Callable[[], float]) -> None:
        self.peer = handler.membership.me.boot
        self._handler = handler
        self._clock = clock
        self._arrived: deque[tuple[bytes, bytes | None]] = deque(maxlen=CAPACITY)
        self._some = asyncio.Event()

    async def new_channel(self, prefix: str = "specific.") -> str:
        tag = wire.channel_tag(self._handler.membership.me.name)
        channel = f"{prefix}{tag}.{secrets.token_hex(6)}!{secrets.token_hex(6)}"
        self._listen(queue_name(channel))
        return channel

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        self._ask(wire.Send(channel, msgspec.msgpack.encode(message), EXPIRY, CAPACITY))

    async def receive(self, channel: str) -> dict[str, Any]:
        while True:
            while not self._arrived:
                self._some.clear()
                await self._some.wait()
            payload, session = self._arrived.popleft()
            try:
                message = msgspec.msgpack.decode(payload)
            except wire.DECODE_ERRORS:
                message = None
            if isinstance(message, dict):
                return SessionMessage(message, session)
            self._handler.channels.dropped += 1

    async def group_add(self, group: str, channel: str) -> None:
        self._handler.listeners[group] = self._take

    async def group_discard(self, group: str, channel: str) -> None:
        self._handler.listeners.pop(group, None)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        self._ask(wire.GroupSend(group, msgspec.msgpack.encode(message), EXPIRY, CAPACITY))

    def _listen(self, queue: str) -> None:
        def deliver(_: str, payload: bytes | None) -> None:
            self._listen(queue)
            if payload is not None:
                self._take(payload, None)

        self._handler.channels.receive(self, queue, deliver, WAIT, self._clock())

    def _take(self, payload: bytes, session: bytes | None) -> None:
        if len(payload) > MAX_MESSAGE:
            self._handler.channels.dropped += 1
            return
        self._handler.channels.dropped += len(self._arrived) == CAPACITY  # the oldest makes room
        self._arrived.append((payload, session))
        self._some.set()

    def _ask(self, request: wire.Request) -> None:
        self._handler.handle(request, self)

    def push(self, reply: wire.Reply) -> None:
        """Nothing: no request of ours is answered later."""
