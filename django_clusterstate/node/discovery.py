"""Sources of the addresses of a node's first peers. None of them ever removes a member."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from ..exceptions import Unavailable
from ..wire.address import TcpAddress
from ..wire.resolver import Resolver

LIST_EVERY, DNS_EVERY = 30.0, 5.0  # seconds
RETRY_AFTER = 2.0  # seconds, while a name isn't resolved
LIST_TIMEOUT = 1.0  # seconds that the other addresses of a list wait for a name
DNS_TIMEOUT = 8.0  # seconds; most resolvers try twice, for five seconds each


class Discovery(Protocol):
    """A source of addresses, queried every `interval` seconds for as long as the node runs."""

    problem: str  # the part of the last query that failed although others gave addresses; empty if none did
    configured: Sequence[TcpAddress]  # the addresses and names in the setting

    @property
    def interval(self) -> float: ...

    async def addresses(self) -> Sequence[str]:
        """The addresses (IP address and port) of nodes that may run, this one included. May raise any error."""

    async def withdraw(self) -> None:
        """Removes the address of this node, which leaves."""


class ConfiguredDiscovery:
    """Addresses and names from the setting: a list of nodes, or one name with an A or AAAA record for each node (a
    headless service in Kubernetes, a container network's alias). Names are resolved for each query."""

    def __init__(self, configured: Sequence[TcpAddress], every: float, timeout: float) -> None:
        self.configured = configured
        self.problem = ""
        self._every = every
        self._timeout = timeout
        self._names = Resolver()

    @property
    def interval(self) -> float:
        return RETRY_AFTER if self.problem else self._every

    async def addresses(self) -> Sequence[str]:
        answers = await asyncio.gather(*(self._resolved(address) for address in self.configured))
        self.problem = "; ".join(dict.fromkeys(answer for answer in answers if isinstance(answer, str)))
        return [str(address) for answer in answers if not isinstance(answer, str) for address in answer]

    async def _resolved(self, address: TcpAddress) -> list[TcpAddress] | str:
        try:
            return await self._names.resolve_now(address, self._timeout)
        except Unavailable as error:
            return str(error)

    async def withdraw(self) -> None:
        pass
