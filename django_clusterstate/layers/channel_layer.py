"""`ClusterChannelLayer`: the API of a channel layer."""

import asyncio
import os
import re
import secrets
from typing import Any

import msgspec
from channels.exceptions import ChannelFull
from channels.layers import BaseChannelLayer

from .. import runtime
from ..client.aio import AsyncClient
from ..client.loops import ended_loops
from ..client.routing import Target
from ..exceptions import Unavailable
from ..msgpack_encoding import to_msgpack
from ..wire import messages as wire
from .receiving import Receiver


class ClusterChannelLayer(BaseChannelLayer):
    """`CHANNEL_LAYERS = {"default": {"BACKEND": "django_clusterstate.layers.ClusterChannelLayer"}}`

    `expiry` and `group_expiry` are seconds. `capacity` is messages in a channel, `channel_capacity` overrides it by
    patterns of channel names. All methods but `receive()`, `flush()` and `close()` raise `Unavailable` if a node
    doesn't reply in time.
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
        self._receivers: dict[asyncio.AbstractEventLoop, Receiver] = {}
        self._process_ids: dict[int, str] = {}  # by the system's number of the process

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Puts a message on a channel. Raises `ChannelFull` if the channel holds as many messages as its capacity,
        `Unavailable` if its node doesn't reply in time."""
        self.require_valid_channel_name(channel)
        request = wire.Send(channel, _encode(message), self.expiry, self.get_capacity(channel))
        data = wire.request_frame(request)
        client = self.client()
        if "!" in channel:
            reply = await client.call_node(client.routing.local, data)
        else:
            reply = await client.call(channel.encode(), data)
        if isinstance(reply, wire.FailedReply):
            raise ChannelFull

    async def receive(self, channel: str) -> dict[str, Any]:
        """Waits for the channel's next message without a time limit, also while the node is down.

        Raises `ValueError` for a channel that `new_channel()` made in another process.
        """
        self.require_valid_channel_name(channel)
        if wire.tag_of(channel) and not self._is_of_this_process(channel):
            raise ValueError(
                f"{channel} belongs to a different process: a channel made by new_channel() can be received from only "
                "in the process that made it. For a channel that several processes receive from, choose a name "
                "without '!'."
            )
        message: dict[str, Any] = msgspec.msgpack.decode(await self._receiver().receive(channel))
        return message

    async def new_channel(self, prefix: str = "specific.") -> str:
        client = self.client()
        node = (await client.table()).local_name
        if not node:
            raise Unavailable(f"this host's node at {client.routing.local.address} does not answer")
        if not prefix.endswith("."):
            prefix += "."  # separates the node's tag from the prefix
        process = f"{self.process_id()}{self._receiver().id}"
        return f"{prefix}{wire.channel_tag(node)}.{process}!{secrets.token_hex(6)}"

    async def group_add(self, group: str, channel: str) -> None:
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        self._receiver().join(group, channel, self.group_expiry)
        await self._call(await self.node_of(channel), wire.GroupAdd(group, channel, self.group_expiry))

    async def group_discard(self, group: str, channel: str) -> None:
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        self._receiver().memberships.discard(group, channel)
        await self._call(await self.node_of(channel), wire.GroupDiscard(group, channel))

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Puts a message on all channels of a group; channels that are full miss it. Raises `Unavailable` if this
        host's node doesn't reply in time."""
        self.require_valid_group_name(group)
        request = wire.GroupSend(group, _encode(message), self.expiry, self.capacity)
        await self._call(self.client().routing.local, request)

    async def flush(self) -> None:
        """Removes every channel and group, on every node."""
        client = self.client()
        table = await client.table()
        data = wire.request_frame(wire.Flush())
        await client.call_each([(target, data) for target in table.targets.values()])

    async def close(self) -> None:
        """Ends receiving in the running event loop, and drops the messages fetched for it."""
        receiver = self._receivers.pop(asyncio.get_running_loop(), None)
        if receiver is None:
            return
        if receiver.pid != os.getpid():
            receiver.abandon()
        await receiver.close()

    async def close_pools(self) -> None:
        """`close()` by the name that Channels' tests and `channels_redis` use."""
        await self.close()

    def client(self) -> AsyncClient:
        return runtime.get_async_client()

    async def node_of(self, channel: str) -> Target:
        """The node on which a channel lives: for a process channel the node in its name, otherwise the name's owner.

        Raises `Unavailable` if there is no such node.
        """
        client = self.client()
        table = await client.table()
        if "!" not in channel:
            return table.require_owner(channel.encode())
        tag = wire.tag_of(channel)
        local = client.routing.local
        if not tag or tag == wire.channel_tag(local.name):
            return local
        for target in table.targets.values():
            if wire.channel_tag(target.name) == tag:
                return target
        raise Unavailable(f"the node of the channel {channel} is not a member of the cluster")

    def process_id(self) -> str:
        """Identifies this process in the names of its channels. A forked child has its own, since it must not receive
        its parent's messages."""
        found = self._process_ids.get(os.getpid())
        if found is None:  # event loops in several threads get the one that is stored first
            found = self._process_ids.setdefault(os.getpid(), secrets.token_hex(4))
        return found

    def _is_of_this_process(self, channel: str) -> bool:
        return channel.partition("!")[0].rpartition(".")[2].startswith(self.process_id())

    async def _call(self, node: Target, request: wire.Request) -> wire.Reply:
        return await self.client().call_node(node, wire.request_frame(request))

    def _receiver(self) -> Receiver:
        """The receiver of the running event loop."""
        loop = asyncio.get_running_loop()
        receiver = self._receivers.get(loop)
        if receiver is not None and receiver.pid != os.getpid():
            receiver.abandon()
            receiver = None
        if receiver is None:
            for ended in ended_loops(self._receivers):
                self._receivers.pop(ended, None)
            receiver = self._receivers[loop] = Receiver(self, self.node_of)
        return receiver


def _encode(message: dict[str, Any]) -> bytes:
    if not isinstance(message, dict):
        raise TypeError(f"a channel message is a dict, not {type(message).__name__}")
    return to_msgpack(message)
