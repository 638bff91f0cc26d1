"""Sources of the addresses of a node's first peers. None of them ever removes a member."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from ..exceptions import Unavailable
from ..wire.address import TcpAddress
from ..wire.resolver import Resolver

DNS_EVERY = 5.0
LIST_EVERY = 30.0
RETRY_AFTER = 2.0  # seconds, while a name of a list isn't resolved
LOOKUP_TIMEOUT = 1.0  # seconds that the other addresses of a list wait for a name
DNS_TIMEOUT = 8.0  # seconds; most resolvers try twice, for five seconds each


class Discovery(Protocol):
    """A source of addresses, queried every `interval` seconds for as long as the node runs."""

    problem: str  # the part of the last query that failed although others gave addresses; empty if none did

    @property
    def interval(self) -> float: ...

    async def addresses(self) -> Sequence[str]:
        """The addresses (IP address and port) of nodes that may run, this one included. May raise any error."""

    async def withdraw(self) -> None:
        """Removes the address of this node, which leaves."""


class ListDiscovery:
    """A fixed list of addresses. Names among them are resolved for each query, so DNS never delays a link."""

    def __init__(self, addresses: Sequence[TcpAddress], names: Resolver | None = None) -> None:
        self.listed = tuple(addresses)
        self.problem = ""
        self._names = names or Resolver()

    @property
    def interval(self) -> float:
        return RETRY_AFTER if self.problem else LIST_EVERY

    async def addresses(self) -> Sequence[str]:
        answers = await asyncio.gather(*(self._resolved(address) for address in self.listed))
        self.problem = "; ".join(dict.fromkeys(answer for answer in answers if isinstance(answer, str)))
        return [str(address) for answer in answers if not isinstance(answer, str) for address in answer]

    async def _resolved(self, address: TcpAddress) -> list[TcpAddress] | str:
        try:
            return await self._names.resolve_now(address, LOOKUP_TIMEOUT)
        except Unavailable as error:
            return str(error)

    async def withdraw(self) -> None:
        pass


class DnsDiscovery:
    """All A and AAAA records of a name: a headless service in Kubernetes, a container network's alias."""

    interval = DNS_EVERY
    problem = ""

    def __init__(self, name: TcpAddress, names: Resolver | None = None) -> None:
        self.name = name
        self._names = names or Resolver()

    async def addresses(self) -> Sequence[str]:
        return sorted(str(address) for address in await self._names.resolve_now(self.name, DNS_TIMEOUT))

    async def withdraw(self) -> None:
        pass
