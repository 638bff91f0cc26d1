"""The embedded channel layer: channel messages over the cluster's own nodes, with nothing else to run.

A process's channels (`specific.…!…`) and its places in groups live on this host's node; any other channel lives on the
node that owns its name. A message to a group goes to every node once, over their links. At most once, as the
channel-layer specification allows: a node that is killed loses the messages that wait on it.
"""

import asyncio
import re
import secrets
from collections import deque
from functools import partial
from os import getpid
from typing import Any

import msgspec
from channels.exceptions import ChannelFull
from channels.layers import BaseChannelLayer

from . import conf
from .client.aio import AsyncClient
from .client.forks import disown
from .client.loops import left_behind, silence_at_end
from .client.routing import Target, no_owner
from .core.expiry import Expiry
from .encoding import to_msgpack
from .exceptions import ClusterStateError, Unavailable
from .wire import messages as wire
from .wire.aio import AsyncConnection, connect
from .wire.framing import frame

WAIT = 2.0  # seconds that the node holds one request to receive; then the layer looks around, and asks again
AT_ONCE = 50  # messages fetched together
RETRY_AFTER = (0.05, 1.0)  # seconds between attempts to reach a node that is gone, from the first to the last
MAX_BUFFERS = 10_000  # channels of a process with messages that nobody has taken yet
MAX_PLACES = 100_000  # in groups, that a process remembers: as many as a node has
NEGLECTED = 5.0  # seconds that a channel's first message waits, after which nobody seems to receive from it
SWEEP = 1000  # of what has expired, freed at once: half a millisecond
SWEEP_EVERY, SWEEP_ON = 1.0, 0.01  # seconds until the next look, and until the next portion


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
        client = self.client()
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
        self._inbox().join(group, channel)
        await self._ask(await self.home(channel), wire.GroupAdd(group, channel, self.group_expiry))

    async def group_discard(self, group: str, channel: str) -> None:
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        self._inbox().leave(group, channel)
        await self._ask(await self.home(channel), wire.GroupDiscard(group, channel))

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Channels that are full miss it."""
        self.require_valid_group_name(group)
        local = self.client().routing.local
        await self._ask(local, wire.GroupSend(group, _encode(message), self.expiry, self.capacity))

    async def flush(self) -> None:
        """Drops every channel and group, on every node."""
        client = self.client()
        table = await client.table()
        data = _request(wire.Flush())
        await client.call_each([(target, data) for target in table.targets.values()])

    async def close(self) -> None:
        """Ends this event loop's receiving."""
        inbox = self._inboxes.pop(asyncio.get_running_loop(), None)
        if inbox is None:
            return
        if inbox.pid != getpid():
            inbox.disown()
        await inbox.close()

    async def close_pools(self) -> None:
        """The name under which Channels' tests and users of other layers know `close`."""
        await self.close()

    # -- inside ---------------------------------------------------------------------------------------------

    def client(self) -> AsyncClient:
        return conf.get_async_client()

    async def home(self, channel: str) -> Target:
        """The node where a channel lives: the one that a process's channel names, else the owner of the name."""
        client = self.client()
        table = await client.table()
        if "!" not in channel:
            owner = table.owner(channel.encode())
            if owner is None:
                raise no_owner()
            return owner
        tag = wire.tag_of(channel)
        local = client.routing.local
        if not tag or tag == wire.channel_tag(local.name):
            return local
        for target in table.targets.values():
            if wire.channel_tag(target.name) == tag:
                return target
        raise Unavailable(f"the node where {channel} lives is no member")

    async def _ask(self, node: Target, request: wire.Request) -> wire.Reply:
        return await self.client().call_node(node, _request(request))

    def _inbox(self) -> "Inbox":
        loop = asyncio.get_running_loop()
        inbox = self._inboxes.get(loop)
        if inbox is not None and inbox.pid != getpid():
            inbox.disown()
            inbox = None
        if inbox is None:
            for other in left_behind(self._inboxes):
                self._inboxes.pop(other, None)
            inbox = self._inboxes[loop] = Inbox(self)
        return inbox


class Inbox:
    """What one event loop receives: a stream for each queue that somebody waits on.

    While it keeps anything that expires, it looks each second at what has, whatever else happens.
    """

    def __init__(self, layer: ClusterChannelLayer) -> None:
        self.layer = layer
        self.groups: dict[tuple[str, str], float] = {}  # until when, by the loop's clock
        self.pid = getpid()  # a forked child that goes on with this loop needs channels of its own
        self._places: Expiry[tuple[str, str]] = Expiry()
        self._expiry: Expiry[str] = Expiry()  # of buffers, by the first message of each
        self._sweep: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._buffers: dict[str, deque[tuple[float, bytes]]] = {}
        self._waiting: dict[str, deque[asyncio.Future[bytes]]] = {}
        self._streams: dict[str, Stream] = {}
        self._id = secrets.token_hex(6)

    async def prefix(self, prefix: str) -> str:
        client = self.layer.client()
        table = await client.table()
        if not table.local_name:
            raise Unavailable(f"this host's node doesn't answer at {client.routing.local.address}")
        return f"{prefix}{wire.channel_tag(table.local_name)}.{self._id}!"

    async def take(self, channel: str) -> bytes:
        payload = self._take_buffered(channel)
        if payload is not None:
            return payload
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting.setdefault(channel, deque()).append(future)
        queue = self.layer.non_local_name(channel)
        stream = self._streams.get(queue)
        if stream is None or stream.task.done():
            stream = self._streams[queue] = Stream(self, queue)
            stream.task.add_done_callback(partial(self._ended, queue, stream))
        stream.wanted.set()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.put(channel, future.result(), first=True)  # it came at the same moment: the next one gets it
            raise
        finally:
            self._stop_waiting(channel, future)

    def put(self, channel: str, payload: bytes, *, first: bool = False) -> None:
        """Hands a message to who waits for it, else keeps it for the next."""
        for future in self._waiting.get(channel, ()):
            if not future.done():
                future.set_result(payload)
                return
        now = self._loop.time()
        until = now + self.layer.expiry
        buffer = self._buffers.get(channel)
        if buffer is None:
            if len(self._buffers) >= MAX_BUFFERS:
                oldest = next(iter(self._buffers))
                conf.get_tally().channel_dropped += len(self._buffers[oldest])
                self._drop_buffer(oldest)
            buffer = self._buffers[channel] = deque(maxlen=self.layer.get_capacity(channel))
            self._expiry.set(channel, until, now)
            self._sweep_later()
        if len(buffer) == buffer.maxlen and until - buffer[0][0] < NEGLECTED:
            conf.get_tally().channel_dropped += 1
        buffer.appendleft((until, payload)) if first else buffer.append((until, payload))

    def join(self, group: str, channel: str) -> None:
        """Remembers the channel's place in a group, for a node that has forgotten it."""
        now = self._loop.time()
        until = now + self.layer.group_expiry
        if (group, channel) in self.groups or len(self.groups) < MAX_PLACES:
            self.groups[group, channel] = until
            self._places.set((group, channel), until, now)
            self._sweep_later()

    def leave(self, group: str, channel: str) -> None:
        if self.groups.pop((group, channel), None) is not None:
            self._places.discard((group, channel))

    def waits_for(self, queue: str) -> bool:
        """Whether somebody waits for a message of this queue."""
        # Nearly always the first says it: what a process waits for is of one queue.
        return any(
            self.layer.non_local_name(channel) == queue and any(not future.done() for future in waiting)
            for channel, waiting in self._waiting.items()
        )

    def groups_of(self, queue: str) -> list[wire.GroupAdd]:
        """The places in groups that the queue's channels have, to be taken anew."""
        now = self._loop.time()
        return [
            wire.GroupAdd(group, channel, until - now)
            for (group, channel), until in self.groups.items()
            if until > now and self.layer.non_local_name(channel) == queue
        ]

    def disown(self) -> None:
        """In a forked child: leaves the connections, and the messages, to the parent."""
        for stream in self._streams.values():
            stream.disown()

    async def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        tasks = [stream.task for stream in self._streams.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take_buffered(self, channel: str) -> bytes | None:
        buffer = self._buffers.get(channel)
        if buffer is None:
            return None
        taken = None
        while buffer and taken is None:
            until, payload = buffer.popleft()
            if until > self._loop.time():
                taken = payload
        if not buffer:
            self._drop_buffer(channel)
        return taken

    def _drop_buffer(self, channel: str) -> None:
        del self._buffers[channel]
        self._expiry.discard(channel)

    def _sweep_later(self, seconds: float = SWEEP_EVERY) -> None:
        if self._sweep is None:
            self._sweep = self._loop.call_later(seconds, self._free_expired)

    def _free_expired(self) -> None:
        """Frees some of what has expired, and comes back while there is anything that will."""
        now, left = self._loop.time(), SWEEP
        while left > 0 and (channel := self._expiry.pop(now)) is not None:
            buffer = self._buffers[channel]
            left -= 1
            while left > 0 and buffer and buffer[0][0] <= now:
                buffer.popleft()
                left -= 1
            if buffer:
                self._expiry.set(channel, buffer[0][0], now)
            else:
                del self._buffers[channel]
        while left > 0 and (place := self._places.pop(now)) is not None:
            left -= 1
            del self.groups[place]
        self._sweep = None
        if self._expiry or self._places:
            self._sweep_later(SWEEP_EVERY if left > 0 else SWEEP_ON)

    def _ended(self, queue: str, stream: "Stream", _: object) -> None:
        if self._streams.get(queue) is stream:
            del self._streams[queue]

    def _stop_waiting(self, channel: str, future: "asyncio.Future[bytes]") -> None:
        waiting = self._waiting.get(channel)
        if waiting is not None:
            waiting.remove(future)
            if not waiting:
                del self._waiting[channel]


class Stream:
    """Fetches one queue's messages, one after another, as long as somebody waits for any."""

    def __init__(self, inbox: Inbox, queue: str) -> None:
        self.wanted = asyncio.Event()
        self._inbox = inbox
        self._queue = queue
        # Nobody else can receive what a process's own channels have, so it may be fetched together.
        self._request = _request(wire.Receive(queue, WAIT, AT_ONCE if queue.endswith("!") else 1))
        self._connection: AsyncConnection | None = None
        self._node: Target | None = None
        self.task = asyncio.create_task(self._run(), name=f"receiving {queue}")
        silence_at_end(self.task)

    async def _run(self) -> None:
        pause = RETRY_AFTER[0]
        try:
            while await self._is_wanted():
                try:
                    connection = await self._connected()
                    reply = await connection.request(self._request)
                except ClusterStateError:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, RETRY_AFTER[1])
                    continue
                pause = RETRY_AFTER[0]
                if isinstance(reply, wire.Received) and reply.payload is not None:
                    self._inbox.put(reply.channel, reply.payload)
                    for channel, payload in reply.more:
                        self._inbox.put(channel, payload)
        finally:
            if self._connection is not None:
                self._connection.close()

    def disown(self) -> None:
        if self._connection is not None:
            disown(self._connection.fileno())
        self.task.cancel()

    async def _is_wanted(self) -> bool:
        """Nothing is fetched in advance, but who has just taken a message will soon want the next."""
        self.wanted.clear()
        if not self._inbox.waits_for(self._queue):
            try:
                async with asyncio.timeout(WAIT):
                    await self.wanted.wait()
            except TimeoutError:
                return self._inbox.waits_for(self._queue)
        return True

    async def _connected(self) -> AsyncConnection:
        """To the node where the queue lives now. There our places in groups are taken anew: it may have forgotten."""
        node = await self._inbox.layer.home(self._queue)
        if self._connection is None or self._connection.closed or node is not self._node:
            if self._connection is not None:
                self._connection.close()
            self._node = node
            self._connection = await connect(node.address, conf.get_settings().link_keys, 2 * WAIT, hello=node.hello)
            for place in self._inbox.groups_of(self._queue):
                await self._connection.request(_request(place))
        return self._connection


def _request(request: wire.Request) -> bytes:
    return frame(wire.encode(request))


def _encode(message: dict[str, Any]) -> bytes:
    if not isinstance(message, dict):
        raise TypeError(f"a channel message is a dict, not {type(message).__name__}")
    return to_msgpack(message)


def _decode(payload: bytes) -> dict[str, Any]:
    message: dict[str, Any] = msgspec.msgpack.decode(payload)
    return message
