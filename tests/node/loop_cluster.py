"""Real nodes with real sockets, all in one event loop: a cluster that starts in a second and needs no process."""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from django_clusterstate.core.membership.heartbeat import MemberState
from django_clusterstate.core.membership.members import Timings
from django_clusterstate.core.rendezvous_hashing import Rendezvous
from django_clusterstate.node.config import NodeConfig
from django_clusterstate.node.node import Node
from django_clusterstate.wire import messages as wire
from django_clusterstate.wire.address import TcpAddress, UnixAddress
from django_clusterstate.wire.aio import AsyncConnection, connect
from django_clusterstate.wire.derived_keys import derive_heartbeat_keys, derive_link_keys
from testproject.processes import free_port

SECRET = "the secret of all nodes in this loop"
LINK_KEYS = derive_link_keys([SECRET], "default")
HEARTBEAT_KEYS = derive_heartbeat_keys([SECRET], "default")
TIMINGS = Timings(0.1, 5.0, 10.0)  # a node that is killed refuses connections, so it is down at once
SECONDS = 60.0


class Addresses:
    """Discovery: the nodes that have been started."""

    interval = 0.1
    problem = ""
    configured: Sequence[TcpAddress] = ()

    def __init__(self) -> None:
        self.all: dict[str, str] = {}

    async def addresses(self) -> list[str]:
        return list(self.all.values())

    async def withdraw(self) -> None: ...


class LoopCluster:
    """Nodes by name. Use it with `async with`: at the end, what is left is cancelled."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.nodes: dict[str, Node] = {}
        self._folder = folder
        self._config = config
        self._addresses = Addresses()
        self._stops: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._connections: dict[str, AsyncConnection] = {}
        # Tests need their memory back.
        self._unfrozen = mock.patch("django_clusterstate.node.node._freeze_garbage_collector")

    async def __aenter__(self) -> "LoopCluster":
        self._unfrozen.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for name in list(self._tasks):
            await self.kill(name)
        self._unfrozen.stop()

    # -- nodes ----------------------------------------------------------------------------------------------

    async def start(self, *names: str) -> None:
        """Starts nodes, and waits until all are one cluster in which each key has its backup."""
        for name in names:
            self.launch(name)
        await self.synced()

    def launch(self, name: str) -> None:
        address = TcpAddress("127.0.0.1", free_port())
        self._addresses.all[name] = str(address)
        config = NodeConfig(
            name, "default", address, address, UnixAddress(str(self._folder / f"{name}.sock")),
            LINK_KEYS, HEARTBEAT_KEYS, TIMINGS, **{"deadline": SECONDS, "drain": SECONDS, **self._config},
        )  # fmt: skip
        self.nodes[name] = Node(config, os.urandom(16), None, self._addresses, lambda _: None)
        self._stops[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self.nodes[name].run(self._stops[name]))

    async def leave(self, name: str) -> None:
        """Ends a node in an orderly way, as SIGTERM does."""
        self._stops[name].set()
        await asyncio.wait_for(self._tasks[name], SECONDS)
        self._forget(name)

    async def kill(self, name: str) -> None:
        """Ends a node at once, as SIGKILL does: its connections are closed, and nothing is said."""
        self._tasks[name].cancel()
        await asyncio.wait([self._tasks[name]])
        self._forget(name)

    def _forget(self, name: str) -> None:
        connection = self._connections.pop(name, None)
        if connection is not None:
            connection.close()
        for known in (self.nodes, self._stops, self._tasks, self._addresses.all):
            known.pop(name, None)

    # -- what they say --------------------------------------------------------------------------------------

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                while not condition():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{what}: not within {SECONDS:g} s; {self.describe()}") from None

    async def synced(self, *names: str) -> None:
        """Waits until these nodes, or all, are one cluster in which each key has its backup."""
        wanted = set(names or self.nodes)
        await self.until(lambda: all(self._is_synced(self.nodes[name], wanted) for name in wanted), "synced")

    def _is_synced(self, node: Node, wanted: set[str]) -> bool:
        members = {member.name for member in node.membership.view.members}
        return node.membership.state is MemberState.ALIVE and members == wanted and node.handler.copies.status().synced

    def describe(self) -> str:
        return "; ".join(
            f"{name} {node.membership.state} sees {[member.name for member in node.membership.view.members]}, "
            f"{node.membership.wait_reason(node._clock())}, {node.handler.copies.status()}"
            for name, node in self.nodes.items()
        )

    def owners(self, key: bytes) -> list[str]:
        """The names of the owner of a key, and of the next ones."""
        return Rendezvous(dict.fromkeys(self.nodes, 1.0)).ranking(key)

    async def ask(self, name: str, request: wire.Request) -> Any:
        """The reply of a node to a requester, which asks again while the node says that it executes nothing, as it does
        after the loop has stood still."""
        until = time.monotonic() + SECONDS
        while isinstance(reply := await self._ask(name, request), wire.UnavailableReply) and not reply.sent:
            assert time.monotonic() < until, self.describe()
            await asyncio.sleep(0.01)
        return reply

    async def _ask(self, name: str, request: wire.Request) -> Any:
        connection = self._connections.get(name)
        if connection is None or connection.closed:
            address = self.nodes[name].config.socket
            connection = self._connections[name] = await connect(address, (), SECONDS)
        return await connection.request(wire.request_frame(request))

    async def call(self, key: bytes, request: wire.Request) -> Any:
        """The reply of the owner of a key."""
        return await self.ask(self.owners(key)[0], request)

    async def set_all(self, values: dict[bytes, bytes], ttl: float | None = None) -> None:
        for key, value in values.items():
            assert (await self.call(key, wire.Set([(key, value)], ttl))).flags == [True]

    async def get_all(self, keys: Sequence[bytes]) -> dict[bytes, bytes | int]:
        """The values of the keys that are present."""
        replies = {key: (await self.call(key, wire.Get([key]))).values[0] for key in keys}
        return {key: value for key, value in replies.items() if value is not None}
