"""The layers that heartbeats take: the embedded one, those of channels_redis, and one that misbehaves on purpose."""

import asyncio
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django_clusterstate.layers import ClusterChannelLayer
from testproject.processes import Process, free_port

EMBEDDED = "embedded"
LAYERS = (EMBEDDED, "channels_redis.core.RedisChannelLayer", "channels_redis.pubsub.RedisPubSubChannelLayer")
UNRULY = "tests.layers.UnrulyChannelLayer"
SETTINGS = "tests.node_settings"


@dataclass(frozen=True, slots=True)
class Layer:
    """What a node needs in its environment to use it, and its server if it has one."""

    env: dict[str, str]
    redis: "Redis | None"


def layer_env(layer: str, redis: str = "") -> dict[str, str]:
    return {"DJANGO_SETTINGS_MODULE": SETTINGS, "TEST_LAYER": layer, "TEST_REDIS": redis}


class Redis:
    """A redis-server, here or by a command on another host."""

    def __init__(self, folder: Path, address: str = "", on_host: Sequence[str] = ()) -> None:
        self.address = address or f"127.0.0.1:{free_port()}"
        host, _, port = self.address.rpartition(":")
        program = shutil.which("redis-server")
        assert program is not None
        self._command = [*on_host, program, "--port", port, "--bind", host, "--protected-mode", "no"]
        self._command += ["--save", "", "--dir", str(folder)]
        self._log = folder / "redis.log"
        self.start()

    def start(self) -> None:
        self.process = Process(self._command, self._log, os.environ)


class UnrulyChannelLayer(ClusterChannelLayer):
    """The embedded layer, but what is sent to a group comes late, out of order, and sometimes twice."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._under_way: set[asyncio.Task[None]] = set()

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        for _ in range(random.choice((1, 1, 2))):
            # A heartbeat comes each half second: what is late by more is overtaken.
            delay = random.choice((random.uniform(0, 0.2), random.uniform(0.3, 1.0)))
            task = asyncio.create_task(self._send_late(group, message, delay))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _send_late(self, group: str, message: dict[str, Any], delay: float) -> None:
        await asyncio.sleep(delay)
        await super().group_send(group, message)
