"""`RedisPubSubChannelLayer` for the heartbeats: reconnected when it falls silent.

It keeps its connection to Redis for as long as TCP does. After a network failure TCP retries with growing pauses, so a
node would receive nothing for as long again as the failure lasted. A node whose layer works receives its own
heartbeats, so it notices.
"""

import asyncio
from typing import Any, Protocol

from .heartbeat import ChannelGone, ChannelLayer

GRACE = 0.2  # seconds to read the messages that came while this process itself was stopped


class Flushable(ChannelLayer, Protocol):
    """`flush()` drops the state of this process in the layer, connections included, and that of no other process."""

    async def flush(self) -> None: ...


class PubSubLayer:
    """Wraps a layer, and treats its channel as lost after `silence` seconds without a message."""

    def __init__(self, layer: Flushable, silence: float) -> None:
        self._layer = layer
        self._silence = silence
        self.send = layer.send
        self.group_add = layer.group_add
        self.group_send = layer.group_send

    async def new_channel(self, prefix: str = "specific.") -> str:
        await self._layer.flush()
        return await self._layer.new_channel(prefix)

    async def receive(self, channel: str) -> dict[str, Any]:
        message = asyncio.ensure_future(self._layer.receive(channel))
        try:
            for timeout in (self._silence, GRACE):
                await asyncio.wait({message}, timeout=timeout)
                if message.done():
                    return message.result()
        finally:
            message.cancel()
        raise ChannelGone(f"no heartbeat received for {self._silence:g} s, not even this node's own")
