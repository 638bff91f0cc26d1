"""The asyncio face of a requester: one pipelined connection for each node and event loop."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from os import getpid

from ..exceptions import ClusterStateError, NoCluster, Refused, TimedOut, Unavailable, Unreachable
from ..wire.address import Address
from ..wire.aio import AsyncConnection, connect, timeout_in_ticks
from ..wire.busy_polling import Processors
from ..wire.handshake import OtherStart
from ..wire.keys import LinkKey
from ..wire.messages import Reply, ViewReply
from ..wire.resolver import Resolver
from .forks import PerProcess, replace_inherited
from .loops import PerLoop, suppress_destroyed_warning
from .retries import may_be_executed, may_send_again
from .routing import (
    GET_VIEW,
    PendingStats,
    Routing,
    RoutingTable,
    Target,
    also_ask,
    named,
)

logger = logging.getLogger("django_clusterstate.client")


Lost = tuple[AsyncConnection, ClusterStateError]  # a connection, and how it failed


class LoopConnections:
    """The connections of one event loop, by node: those that are open, and those that are being made."""

    def __init__(self) -> None:
        self.open: dict[Target, AsyncConnection] = {}
        self.dialling: dict[Target, asyncio.Task[AsyncConnection]] = {}

    async def close(self) -> None:
        for dial in self.dialling.values():
            dial.cancel()
        for connection in list(self.open.values()):
            connection.close()
        await asyncio.sleep(0)  # lets the transports finish

    def abandon(self) -> None:
        """Leaves the connections to the parent's event loop, of which a forked child has a copy."""
        for connection in self.open.values():
            replace_inherited(connection.fileno())
        self.open.clear()
        self.dialling.clear()


class AsyncClient(PerProcess):
    """Sends framed requests to the owners of their keys. One for all event loops of a process.

    The arguments are those of `Client`, with which it shares what `untold` counts.
    """

    def __init__(
        self,
        local: Address,
        keys: Sequence[LinkKey],
        deadline: float,
        clock: Callable[[], float] = time.monotonic,
        untold: PendingStats | None = None,
    ) -> None:
        self.routing = Routing(local, untold)
        self._keys = keys
        self._deadline = deadline
        self._clock = clock
        self._processors = Processors()
        self._names = Resolver()
        self._loops = PerLoop(LoopConnections, LoopConnections.close)
        super().__init__()

    # -- operations -----------------------------------------------------------------------------------------

    async def call(self, key: bytes, request: bytes) -> Reply:
        """As `Client.call`."""
        now = self._clock()
        if now >= self.routing.refresh_at:
            await self._refresh(now)
            now = self._clock()
        owner = self.routing.table.owner(key)
        if owner is None:
            raise NoCluster()
        try:
            return await self.call_node(owner, request, now)
        except OtherStart:
            return await self._call_new_owner(key, request)

    async def _call_new_owner(self, key: bytes, request: bytes) -> Reply:
        """As `Client._call_new_owner`."""
        now = self._clock()
        if now >= self.routing.refresh_at:
            await self._refresh(now)
        owner = self.routing.table.owner(key)
        if owner is None:
            raise NoCluster()
        return await self.call_node(owner, request)

    async def call_node(self, target: Target, request: bytes, now: float | None = None) -> Reply:
        """As `Client.call_node`."""
        if getpid() != self.pid:
            self.reset_after_fork()
        if now is None:
            now = self._clock()
        deadline = self._deadline * target.check(now) if target.failures else self._deadline
        try:
            connections = self._loops.get(asyncio.get_running_loop())
            connection = connections.open.get(target) if connections is not None else None
            if connection is None or connection.closed:
                reply = await self._call_afresh(target, request, now + deadline)
            else:
                try:
                    reply = await connection.request(request)
                except TimedOut:
                    raise
                except Unavailable as error:  # the node may have been restarted
                    reply = await self._call_afresh(target, request, now + deadline, (connection, error))
        except OtherStart:
            self.routing.restarted(now)
            raise
        except ClusterStateError as error:
            self.routing.waits.append(self._clock() - now)
            failure = named(target, error)
            if self.routing.failed(target, now, str(error)):
                logger.warning("%s; it is left alone until it answers again", failure)
            elif not target.is_open:
                logger.debug("%s; the next request tries it again", failure)
            raise failure from error
        self.routing.waits.append(self._clock() - now)
        if target.failures and target.answered():
            logger.info("%s answers again", target)
        if reply.epoch != self.routing.epoch:
            self.routing.noticed(reply.epoch, now)
        return reply

    async def call_each(
        self, requests: Sequence[tuple[Target, bytes]], until: float | None = None
    ) -> list[Reply | ClusterStateError]:
        """As `Client.call_each`. For who waits less long than the deadline: what hasn't come by `until`, a time of the
        running loop's clock, is `Unavailable`, and no node is blamed for it."""
        now = self._clock()
        if len(requests) == 1:
            return [await self._call_or_error(*requests[0], now, until)]
        return await asyncio.gather(*(self._call_or_error(target, request, now, until) for target, request in requests))

    async def table(self, until: float | None = None) -> RoutingTable:
        """As `Client.table`. The last view if no other comes by `until`; meanwhile a process without any asks twice."""
        now = self._clock()
        if now >= self.routing.refresh_at:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._refresh(now)
                    if until is not None and not self.routing.table.targets:
                        await self._refresh(self._clock())
        return self.routing.table

    async def close(self) -> None:
        """Closes the connections of the running loop; the client can be used again."""
        if getpid() != self.pid:
            self.reset_after_fork()
        await self._loops.close()

    def _reset(self) -> None:
        for connections in self._loops.values():
            connections.abandon()
        self.routing.count_anew()

    # -- connections ----------------------------------------------------------------------------------------

    async def _call_afresh(self, target: Target, request: bytes, until: float, lost: Lost | None = None) -> Reply:
        """By a new connection. After one that was `lost` only what can't so be executed twice."""
        sent = False
        try:
            async with timeout_in_ticks(until - self._clock()):
                connection = await self._dial(target)
                if lost is not None and not may_send_again(request, lost[1], lost[0].node_boot, connection.node_boot):
                    raise lost[1]
                sent = True
                return await connection.request(request)
        except TimeoutError as error:
            if lost is not None and not sent:
                raise lost[1] from error
            raise (TimedOut if sent else Unreachable)("no answer within the deadline") from error
        except Unavailable as error:
            if lost is None or sent or error is lost[1] or isinstance(error, Refused):
                raise
            raise lost[1] from error

    async def _dial(self, target: Target) -> AsyncConnection:
        """A new connection; those who want it at the same time share one dial."""
        loop = asyncio.get_running_loop()
        connections = self._loops.get(loop)
        if connections is None:
            connections = await self._loops.start()
        dial = connections.dialling.get(target)
        if dial is None:
            dial = loop.create_task(self._connect(target))
            suppress_destroyed_warning(dial)
            connections.dialling[target] = dial
            dial.add_done_callback(lambda dial: _dialled(connections, target, dial))
        return await asyncio.shield(dial)

    async def _connect(self, target: Target) -> AsyncConnection:
        *others, last = await self._names.resolve_async(target.address, self._deadline)
        is_idle = self._processors.idle
        for address in others:  # of a name with several; each has its part of the time
            try:
                async with timeout_in_ticks(self._deadline / (len(others) + 1)):
                    return await connect(address, self._keys, self._deadline, hello=target.hello, is_idle=is_idle)
            except (Unavailable, TimeoutError) as error:
                logger.debug("%s; its next address is tried", error)
        return await connect(last, self._keys, self._deadline, hello=target.hello, is_idle=is_idle)

    async def _call_or_error(
        self, target: Target, request: bytes, now: float, until: float | None
    ) -> Reply | ClusterStateError:
        try:
            if until is None:
                return await self.call_node(target, request, now)
            async with asyncio.timeout_at(until):
                return await self.call_node(target, request, now)
        except TimeoutError:
            return Unavailable(f"{target}: no answer in time")
        except ClusterStateError as error:
            return error

    # -- the view -------------------------------------------------------------------------------------------

    async def _refresh(self, now: float) -> None:
        """Asks for the view until a node has answered that serves itself. When none does, the old view stays."""
        request, counted = self.routing.view_request()
        sources, told = self.routing.sources(now), False
        try:
            for source in sources:  # which grows while it is gone through
                viewed: Reply | None = None
                try:
                    viewed = await self.call_node(source, GET_VIEW if told else request)
                except ClusterStateError as error:
                    told |= may_be_executed(error)  # what may have been counted isn't told again
                if isinstance(viewed, ViewReply):
                    told = True
                    learned = self.routing.learn(viewed, source, now)
                    for target in learned.unused:
                        self._forget(target)
                    if learned.taken:
                        return
                    also_ask(sources, learned)
                if self._clock() - now >= self._deadline:
                    return  # a caller waits
        finally:
            if not told:
                self.routing.untold.put_back(counted)

    def _forget(self, target: Target) -> None:
        """Closes this loop's connection to a node that is gone; the other loops' close when it goes."""
        connections = self._loops.get(asyncio.get_running_loop())
        if connections is not None and (connection := connections.open.pop(target, None)) is not None:
            connection.close()


def from_now(seconds: float | None) -> float | None:
    """That time of the running loop's clock, as `until` has it."""
    return None if seconds is None else asyncio.get_running_loop().time() + seconds


def _dialled(connections: LoopConnections, target: Target, dial: "asyncio.Task[AsyncConnection]") -> None:
    if connections.dialling.get(target) is not dial:
        return  # it was begun by the process that this one is a fork of
    del connections.dialling[target]
    if not dial.cancelled() and dial.exception() is None:
        connections.open[target] = dial.result()
