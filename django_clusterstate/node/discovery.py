"""Where a node looks for its first peers. None of it ever removes a member."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from ..wire.address import TcpAddress

DNS_EVERY = 5.0
LIST_EVERY = 30.0

Resolver = Callable[[str, int], Awaitable[list[str]]]


class Discovery(Protocol):
    """A source of addresses, asked every `interval` seconds for as long as the node runs."""

    @property
    def interval(self) -> float: ...

    async def addresses(self) -> Sequence[str]:
        """The addresses (`host:port`) of nodes that may be there, our own perhaps among them. May raise."""

    async def withdraw(self) -> None:
        """We are leaving: others need not look for us any more."""


class ListDiscovery:
    """A fixed list of addresses."""

    interval = LIST_EVERY

    def __init__(self, addresses: Sequence[TcpAddress]) -> None:
        self._addresses = [str(address) for address in addresses]

    async def addresses(self) -> Sequence[str]:
        return self._addresses

    async def withdraw(self) -> None:
        pass


async def resolve(name: str, port: int) -> list[str]:
    """All addresses that the system's resolver knows for a name. Raises `OSError`."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return sorted({str(info[4][0]) for info in found})


class DnsDiscovery:
    """All A and AAAA records of a name: a headless service in Kubernetes, a container network's alias."""

    interval = DNS_EVERY

    def __init__(self, name: TcpAddress, resolver: Resolver = resolve) -> None:
        self._name = name
        self._resolver = resolver

    async def addresses(self) -> Sequence[str]:
        hosts = await self._resolver(self._name.host, self._name.port)
        return [str(TcpAddress(host, self._name.port)) for host in hosts]

    async def withdraw(self) -> None:
        pass
