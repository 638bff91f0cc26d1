"""The embedded channel layer: channel messages over the cluster's own nodes, with nothing else to run.

A process's channels (`specific.…!…`) and its places in groups live on this host's node; any other channel lives on the
node that owns its name. A message to a group goes to every node once, over their links. At most once, as the
channel-layer specification allows: a node that is killed loses the messages that wait on it.
"""

import asyncio
import logging
import os
import re
import secrets
from collections import deque
from functools import partial
from os import getpid
from typing import Any

import msgspec
from channels.exceptions import ChannelFull
from channels.layers import BaseChannelLayer

from . import runtime
from .client.aio import AsyncClient
from .client.channel_buffers import Buffers, Memberships
from .client.forks import replace_inherited
from .client.loops import ended_loops, suppress_destroyed_warning
from .client.routing import Target, no_owner
from .encoding import to_msgpack
from .exceptions import ClusterStateError, Unavailable
from .wire import messages as wire
from .wire.aio import AsyncConnection, connect
from .wire.framing import frame

WAIT = 2.0  # seconds that the node holds one request to receive; then the layer looks around, and asks again
AT_ONCE = 50  # messages fetched together
RETRY_AFTER = (0.05, 1.0)  # seconds between attempts to reach a node that is gone, from the first to the last
SILENT_FOR = 5.0  # seconds that nothing can be received, until it is logged
SWEEP = 1000  # of what has expired, freed at once: half a millisecond
SWEEP_EVERY, SWEEP_ON = 1.0, 0.01  # seconds until the next look, and until the next portion

logger = logging.getLogger("django_clusterstate.client")


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
        self._process = 0, ""

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
        if isinstance(reply, wire.FailedReply):
            raise ChannelFull

    async def receive(self, channel: str) -> dict[str, Any]:
        """Waits for the channel's next message, however long; a node that is gone is waited for as well."""
        self.require_valid_channel_name(channel)
        if wire.tag_of(channel) and not self._is_ours(channel):
            raise ValueError(
                f"{channel} is a channel of another process: what new_channel() makes can be received from only in the "
                "process that made it. For a channel that other processes receive from, choose a name without '!'."
            )
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
        self._inbox().groups.leave(group, channel)
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
        return runtime.get_async_client()

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

    def process(self) -> str:
        """What the names of this process's channels say of it. A forked child has another: it mustn't receive what is
        its parent's."""
        pid = os.getpid()
        if self._process[0] != pid:
            self._process = pid, secrets.token_hex(4)
        return self._process[1]

    def _is_ours(self, channel: str) -> bool:
        return channel.partition("!")[0].rpartition(".")[2].startswith(self.process())

    async def _ask(self, node: Target, request: wire.Request) -> wire.Reply:
        return await self.client().call_node(node, _request(request))

    def _inbox(self) -> "Inbox":
        loop = asyncio.get_running_loop()
        inbox = self._inboxes.get(loop)
        if inbox is not None and inbox.pid != getpid():
            inbox.disown()
            inbox = None
        if inbox is None:
            for other in ended_loops(self._inboxes):
                self._inboxes.pop(other, None)
            inbox = self._inboxes[loop] = Inbox(self)
        return inbox


class Inbox:
    """What one event loop receives: a stream for each queue that somebody waits on.

    While it keeps anything that expires, it looks each second at what has, whatever else happens.
    """

    def __init__(self, layer: ClusterChannelLayer) -> None:
        self.layer = layer
        self.pid = getpid()  # a forked child that goes on with this loop needs channels of its own
        self.buffers = Buffers()
        self.groups = Memberships()
        self._sweep: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, deque[asyncio.Future[bytes]]] = {}
        self._streams: dict[str, Stream] = {}
        self._id = secrets.token_hex(4)  # of this loop, since what it fetches no other loop can have

    async def prefix(self, prefix: str) -> str:
        client = self.layer.client()
        table = await client.table()
        if not table.local_name:
            raise Unavailable(f"this host's node doesn't answer at {client.routing.local.address}")
        dot = "" if prefix.endswith(".") else "."  # else the node couldn't be told from the prefix
        return f"{prefix}{dot}{wire.channel_tag(table.local_name)}.{self.layer.process()}{self._id}!"

    async def take(self, channel: str) -> bytes:
        payload = self.buffers.take(channel, self._loop.time())
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
        expiry, capacity = self.layer.expiry, self.layer.get_capacity(channel)
        dropped = self.buffers.dropped
        self.buffers.put(channel, payload, expiry, capacity, self._loop.time(), first=first)
        if self.buffers.dropped != dropped:
            runtime.get_stats().channel_dropped += self.buffers.dropped - dropped
        self._sweep_later()

    def join(self, group: str, channel: str) -> None:
        self.groups.join(group, channel, self.layer.group_expiry, self._loop.time())
        self._sweep_later()

    def waits_for(self, queue: str) -> bool:
        """Whether somebody waits for a message of this queue."""
        # Nearly always the first says it: what a process waits for is of one queue.
        return any(
            self.layer.non_local_name(channel) == queue and any(not future.done() for future in waiting)
            for channel, waiting in self._waiting.items()
        )

    def groups_of(self, queue: str) -> list[wire.GroupAdd]:
        """The places in groups that the queue's channels have, to be taken anew."""
        return [
            wire.GroupAdd(group, channel, left)
            for group, channel, left in self.groups.left(self._loop.time())
            if self.layer.non_local_name(channel) == queue
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

    def _sweep_later(self, seconds: float = SWEEP_EVERY) -> None:
        if self._sweep is None:
            self._sweep = self._loop.call_later(seconds, self._free_expired)

    def _free_expired(self) -> None:
        """Frees some of what has expired, and comes back while there is anything that will."""
        now = self._loop.time()
        looked = self.buffers.free(now, SWEEP)
        looked += self.groups.free(now, SWEEP - looked)
        self._sweep = None
        if self.buffers or self.groups:
            self._sweep_later(SWEEP_EVERY if looked < SWEEP else SWEEP_ON)

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
        self._failing_since: float | None = None
        self._told = False
        self.task = asyncio.create_task(self._run(), name=f"receiving {queue}")
        suppress_destroyed_warning(self.task)

    async def _run(self) -> None:
        pause = RETRY_AFTER[0]
        try:
            while await self._is_wanted():
                try:
                    connection = await self._connected()
                    reply = await connection.request(self._request)
                except ClusterStateError as error:
                    self._failed(error)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, RETRY_AFTER[1])
                    continue
                pause = RETRY_AFTER[0]
                self._worked()
                if isinstance(reply, wire.ReceiveReply) and reply.payload is not None:
                    self._inbox.put(reply.channel, reply.payload)
                    for channel, payload in reply.more:
                        self._inbox.put(channel, payload)
        finally:
            if self._connection is not None:
                self._connection.close()

    def disown(self) -> None:
        """In a forked child: leaves the connection to the parent."""
        if self._connection is not None:
            replace_inherited(self._connection.fileno())
        self.task.cancel()

    def _failed(self, error: ClusterStateError) -> None:
        """Says that nothing is received, once it has been so for a while: a restart of the node is no news."""
        now = asyncio.get_running_loop().time()
        if self._failing_since is None:
            self._failing_since = now
        elif not self._told and now - self._failing_since > SILENT_FOR:
            self._told = True
            logger.warning("messages of %s can't be received: %s. It is tried again each second", self._queue, error)

    def _worked(self) -> None:
        if self._told:
            logger.warning("messages of %s are received again", self._queue)
        self._failing_since, self._told = None, False

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
            self._connection = await connect(node.address, runtime.get_settings().link_keys, 2 * WAIT, hello=node.hello)
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
