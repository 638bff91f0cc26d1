"""The layer that is made like new when it falls silent. With Redis, and real cuts: tests/faults/test_partitions.py."""

import asyncio
from typing import Any

import pytest

from django_clusterstate.node.heartbeat import ChannelGone
from django_clusterstate.node.redis_pubsub import PubSubLayer


class Layer:
    """What the real one does with its channels: a flush forgets them."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def flush(self) -> None:
        self.did.append("flush")

    async def new_channel(self, prefix: str = "specific.") -> str:
        self.did.append("new_channel")
        return f"{prefix}x"

    async def receive(self, channel: str) -> dict[str, Any]:
        return await self.messages.get()

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        self.did.append("send")

    async def group_add(self, group: str, channel: str) -> None:
        self.did.append("group_add")

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        self.did.append("group_send")


async def test_channel_is_gone_after_silence_and_the_next_one_is_of_a_layer_like_new() -> None:
    inner = Layer()
    layer = PubSubLayer(inner, 0.05)
    channel = await layer.new_channel()
    await inner.messages.put({"n": 1})
    assert await layer.receive(channel) == {"n": 1}
    with pytest.raises(ChannelGone, match=r"no heartbeat received for 0\.05 s, not even this node.s own"):
        await layer.receive(channel)
    await layer.new_channel()
    assert inner.did == ["flush", "new_channel"] * 2


async def test_the_rest_is_the_layers_own() -> None:
    inner = Layer()
    layer = PubSubLayer(inner, 1.0)
    await layer.send("c", {})
    await layer.group_add("g", "c")
    await layer.group_send("g", {})
    assert inner.did == ["send", "group_add", "group_send"]
