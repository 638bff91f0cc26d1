"""The embedded channel layer: channel messages over the cluster's own nodes, with nothing else to run.

A process's channels (`specific.…!…`) and its places in groups live on this host's node; any other channel lives on the
node that owns its name. A message to a group goes to every node once, over their links. At most once, as the
channel-layer specification allows: a node that is killed loses the messages that wait on it.
"""

import asyncio
import re
import secrets
from collections import deque
from typing import Any

import msgspec
from channels.exceptions import ChannelFull
from channels.layers import BaseChannelLayer

from . import conf
from .client.routing import Target
from .exceptions import ClusterStateError, Unavailable
from .wire import messages as wire
from .wire.aio import AsyncConnection, connect
from .wire.framing import frame

WAIT = 2.0  # seconds that the node holds one request to receive; then the layer asks again
RETRY_AFTER = (0.05, 1.0)  # seconds between attempts to reach a node that is gone, from the first to the last
MAX_BUFFERS = 10_000  # channels of a process with messages that nobody has taken yet


class ClusterChannelLayer(BaseChannelLayer):
    """`CHANNEL_LAYERS = {"default": {"BACKEND": "django_clusterstate.layers.ClusterChannelLayer"}}`

    `expiry` and `group_expiry` are seconds, `capacity` is messages; `channel_capacity` maps name patterns to such.
    """

    extensions = ("groups", "flush")

    def __init__(
        self,
        expiry: int = 60,
        capacity: int = 100,
        channel_capacity: dict[re.Pattern[str] | str, int] | None = None,
        group_expiry: float = 86400,
    ) -> None:
        super().__init__(expiry, capacity)
        self.channel_capacity: Any = self.compile_capacities(channel_capacity or {})  # a list, despite its stub
        self.group_expiry = group_expiry
        self._inboxes: dict[asyncio.AbstractEventLoop, Inbox] = {}

    # -- the channel-layer API ------------------------------------------------------------------------------

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Raises `ChannelFull`, and `Unavailable` when this host's node (or the channel's) doesn't answer."""
        self.require_valid_channel_name(channel)
        capacity = self.get_capacity(channel)
        data = _request(wire.Send(channel, _encode(message), self.expiry, capacity))
        client = conf.get_async_client()
        if "!" in channel:
            reply = await client.call_node(client.routing.local, data)
        else:
            reply = await client.call(channel.encode(), data)
        if isinstance(reply, wire.Failed):
            raise ChannelFull

    async def receive(self, channel: str) -> dict[str, Any]:
        """Waits for the channel's next message, however long; a node that is gone is waited for as well."""
        self.require_valid_channel_name(channel)
        return _decode(await self._inbox().take(channel))

    async def new_channel(self, prefix: str = "specific.") -> str:
        return f"{await self._inbox().prefix(prefix)}{secrets.token_hex(6)}"

    async def group_add(self, group: str, channel: str) -> None:
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        self._inbox().groups.add((group, channel))
        await self._ask_local(wire.GroupAdd(group, channel, self.group_expiry))

    async def group_discard(self, group: str, channel: str) -> None:
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        self._inbox().groups.discard((group, channel))
        await self._ask_local(wire.GroupDiscard(group, channel))

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Channels that are full miss it."""
        self.require_valid_group_name(group)
        await self._ask_local(wire.GroupSend(group, _encode(message), self.expiry, self.capacity))

    async def flush(self) -> None:
        """Drops every channel and group, on every node."""
        client = conf.get_async_client()
        table = await client.table()
        data = _request(wire.Flush())
        await client.call_each([(target, data) for target in table.targets.values()])

    async def close(self) -> None:
        """Ends this event loop's receiving."""
        inbox = self._inboxes.pop(asyncio.get_running_loop(), None)
        if inbox is not None:
            await inbox.close()

    async def close_pools(self) -> None:
        """The name under which Channels' tests and users of other layers know `close`."""
        await self.close()

    # -- inside ---------------------------------------------------------------------------------------------

    async def _ask_local(self, request: wire.Request) -> wire.Reply:
        client = conf.get_async_client()
        return await client.call_node(client.routing.local, _request(request))

    def _inbox(self) -> "Inbox":
        loop = asyncio.get_running_loop()
        inbox = self._inboxes.get(loop)
        if inbox is None:
            for other in [other for other in self._inboxes if other.is_closed()]:
                del self._inboxes[other]
            inbox = self._inboxes[loop] = Inbox(self)
        return inbox


class Inbox:
    """What one event loop receives: a stream for each queue that somebody waits on."""

    def __init__(self, layer: ClusterChannelLayer) -> None:
        self.layer = layer
        self.groups: set[tuple[str, str]] = set()
        self._buffers: dict[str, deque[bytes]] = {}
        self._waiting: dict[str, deque[asyncio.Future[bytes]]] = {}
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._id = secrets.token_hex(6)

    async def prefix(self, prefix: str) -> str:
        client = conf.get_async_client()
        table = await client.table()
        if not table.local_name:
            raise Unavailable(f"this host's node doesn't answer at {client.routing.local.address}")
        return f"{prefix}{wire.channel_tag(table.local_name)}.{self._id}!"

    async def take(self, channel: str) -> bytes:
        buffer = self._buffers.get(channel)
        if buffer:
            payload = buffer.popleft()
            if not buffer:
                del self._buffers[channel]
            return payload
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(channel, deque()).append(future)
        queue = self.layer.non_local_name(channel)
        if queue not in self._streams or self._streams[queue].done():
            self._streams[queue] = asyncio.create_task(self._stream(queue), name=f"receiving {queue}")
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._put(channel, future.result(), first=True)  # it came at the same moment: the next one gets it
            raise
        finally:
            self._stop_waiting(channel, future)

    async def close(self) -> None:
        tasks = list(self._streams.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _stop_waiting(self, channel: str, future: "asyncio.Future[bytes]") -> None:
        waiting = self._waiting.get(channel)
        if waiting is not None:
            if future in waiting:
                waiting.remove(future)
            if not waiting:
                del self._waiting[channel]

    def _wanted(self, queue: str) -> bool:
        return any(channel == queue or channel.startswith(queue) for channel in self._waiting)

    async def _stream(self, queue: str) -> None:
        """Fetches the queue's messages one after another, as long as somebody waits for any."""
        connection: AsyncConnection | None = None
        pause = RETRY_AFTER[0]
        try:
            while self._wanted(queue):
                try:
                    if connection is None or connection.closed:
                        connection = await self._connect(queue)
                    reply = await connection.request(_request(wire.Receive(queue, WAIT)))
                    pause = RETRY_AFTER[0]
                except ClusterStateError:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, RETRY_AFTER[1])
                    continue
                if isinstance(reply, wire.Received) and reply.payload is not None:
                    self._put(reply.channel, reply.payload)
        finally:
            if connection is not None:
                connection.close()

    async def _connect(self, queue: str) -> AsyncConnection:
        """To the node that holds the queue. Our places in groups are taken anew: the node may have been restarted."""
        target = await self._home(queue)
        connection = await connect(target.address, conf.get_settings().link_keys, 2 * WAIT)
        for group, channel in list(self.groups):
            if channel.startswith(queue):
                await connection.request(_request(wire.GroupAdd(group, channel, self.layer.group_expiry)))
        return connection

    async def _home(self, queue: str) -> Target:
        client = conf.get_async_client()
        await client.table()
        return client.routing.local if queue.endswith("!") else client.routing.owner(queue.encode())

    def _put(self, channel: str, payload: bytes, *, first: bool = False) -> None:
        waiting = self._waiting.get(channel)
        while waiting:
            future = waiting.popleft()
            if not future.done():
                future.set_result(payload)
                return
        buffer = self._buffers.setdefault(channel, deque(maxlen=self.layer.get_capacity(channel)))
        buffer.appendleft(payload) if first else buffer.append(payload)
        if len(self._buffers) > MAX_BUFFERS:
            del self._buffers[next(iter(self._buffers))]


def _request(request: wire.Request) -> bytes:
    return frame(wire.encode(request))


def _encode(message: dict[str, Any]) -> bytes:
    if not isinstance(message, dict):
        raise TypeError(f"a channel message is a dict, not {type(message).__name__}")
    return msgspec.msgpack.encode(message)


def _decode(payload: bytes) -> dict[str, Any]:
    message: dict[str, Any] = msgspec.msgpack.decode(payload)
    return message
