"""The embedded channel layer as the node itself uses it, for its heartbeats: the same memory and links that serve other
processes, without a socket in between. A hundred members send two hundred heartbeats a second."""

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import msgspec

from ..wire import messages as wire
from .channels import queue_name
from .handler import Handler

EXPIRY = 60.0  # seconds, of a message
GROUP_EXPIRY = 86400.0
CAPACITY = 10_000  # messages: after a stall a whole large cluster's come at once
WAIT = 3600.0  # seconds until the node is asked again for the next message


class OwnLayer:
    """As `django_clusterstate.layers.ClusterChannelLayer`, and at most once as well."""

    def __init__(self, handler: Handler, clock: Callable[[], float]) -> None:
        self._handler = handler
        self._clock = clock

    async def new_channel(self, prefix: str = "specific.") -> str:
        tag = wire.channel_tag(self._handler.membership.me.name)
        return f"{prefix}{tag}.{secrets.token_hex(6)}!{secrets.token_hex(6)}"

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        self._ask(wire.Send(channel, msgspec.msgpack.encode(message), EXPIRY, CAPACITY))

    async def receive(self, channel: str) -> dict[str, Any]:
        payload: bytes | None = None
        while payload is None:
            payload = await self._next(queue_name(channel))
        message: dict[str, Any] = msgspec.msgpack.decode(payload)
        return message

    async def group_add(self, group: str, channel: str) -> None:
        self._ask(wire.GroupAdd(group, channel, GROUP_EXPIRY))

    async def group_discard(self, group: str, channel: str) -> None:
        self._ask(wire.GroupDiscard(group, channel))

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        self._ask(wire.GroupSend(group, msgspec.msgpack.encode(message), EXPIRY, CAPACITY))

    async def _next(self, queue: str) -> bytes | None:
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

        def deliver(_: str, payload: bytes | None) -> None:
            if not future.done():
                future.set_result(payload)

        self._handler.channels.receive(self, queue, deliver, WAIT, self._clock())
        try:
            return await future
        finally:
            if future.cancelled():
                self._handler.channels.forget(self)

    def _ask(self, request: wire.Request) -> None:
        self._handler.handle(request, self, _ignore)


def _ignore(reply: wire.Reply) -> None:
    """No request of ours is answered later."""
