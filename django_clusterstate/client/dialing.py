"""Connecting to nodes, for both clients: to each address of a host name in turn, within a deadline."""

import time
from collections.abc import Sequence

from ..exceptions import Unavailable
from ..wire.aio import AsyncConnection, connect, timeout_in_ticks
from ..wire.blocking import BlockingConnection
from ..wire.busy_polling import make_is_idle
from ..wire.derived_keys import LinkKey
from ..wire.resolver import Resolver
from .log import logger
from .routing import Target


class Dialer:
    """Makes the connections of a process to nodes. One serves both clients.

    `keys` prove this process to the nodes. `deadline`: seconds for each operation. `busy_poll`: whether to poll for
    replies before sleeping, see `wire.busy_polling`.
    """

    def __init__(self, keys: Sequence[LinkKey], deadline: float, *, busy_poll: bool = True) -> None:
        self.deadline = deadline
        self._keys = keys
        self._is_idle = make_is_idle(busy_poll=busy_poll)
        self._resolver = Resolver()

    def dial(self, target: Target, until: float) -> BlockingConnection:
        """Connects to a node, until a time of the monotonic clock. Raises `Unavailable` or `ProtocolError`."""
        *others, last = self._resolver.resolve(target.address, until - time.monotonic())
        keys, is_idle, hello = self._keys, self._is_idle, target.hello
        for index, address in enumerate(others):  # of a host name with several: each gets its part of the time
            now = time.monotonic()
            try:
                part = now + (until - now) / (len(others) + 1 - index)
                return BlockingConnection(address, keys, self.deadline, part, is_idle, hello)
            except Unavailable as error:
                logger.debug("%s; trying next address", error)
        return BlockingConnection(last, keys, self.deadline, until, is_idle, hello)

    async def dial_async(self, target: Target) -> AsyncConnection:
        """Asynchronous `dial()`, within the deadline."""
        *others, last = await self._resolver.resolve_async(target.address, self.deadline)
        for address in others:  # of a host name with several: each gets its part of the time
            try:
                async with timeout_in_ticks(self.deadline / (len(others) + 1)):
                    return await connect(address, self._keys, self.deadline, hello=target.hello, is_idle=self._is_idle)
            except (Unavailable, TimeoutError) as error:
                logger.debug("%s; trying next address", error)
        return await connect(last, self._keys, self.deadline, hello=target.hello, is_idle=self._is_idle)
