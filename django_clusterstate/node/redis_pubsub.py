"""`RedisPubSubChannelLayer` for the heartbeats: made like new when it falls silent.

It keeps its connection to Redis for as long as TCP does. After a cut of the network TCP tries again after longer and
longer pauses, so that a node would be deaf for as long again as the cut lasted. But a node that hears hears its own
heartbeats too, and so notices.
"""

import asyncio
from typing import Any, Protocol

from .heartbeat import ChannelGone, ChannelLayer

GRACE = 0.2  # seconds to read what came while this process itself was stopped


class Flushable(ChannelLayer, Protocol):
    """`flush()` drops what this process has of the layer, connections included, and nothing of any other's."""

    async def flush(self) -> None: ...


class PubSubLayer:
    """The layer, with a channel that is gone after `silence` seconds without a message."""

    def __init__(self, layer: Flushable, silence: float) -> None:
        self._layer = layer
        self._silence = silence
        self.send = layer.send
        self.group_add = layer.group_add
        self.group_discard = layer.group_discard
        self.group_send = layer.group_send

    async def new_channel(self, prefix: str = "specific.") -> str:
        await self._layer.flush()
        return await self._layer.new_channel(prefix)

    async def receive(self, channel: str) -> dict[str, Any]:
        message = asyncio.ensure_future(self._layer.receive(channel))
        try:
            for patience in (self._silence, GRACE):
                await asyncio.wait({message}, timeout=patience)
                if message.done():
                    return message.result()
        finally:
            message.cancel()
        raise ChannelGone(f"not even our own heartbeats come back, for {self._silence:g} s")
