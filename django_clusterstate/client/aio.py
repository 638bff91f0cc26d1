"""The asyncio client: one pipelined connection for each node and event loop."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

from ..exceptions import ClusterStateError, Refused, TimedOut, Unavailable, Unreachable
from ..wire.aio import AsyncConnection, timeout_in_ticks
from ..wire.handshake import OtherInstance
from ..wire.messages import Reply, UnavailableReply
from .dialing import Dialer
from .forks import replace_inherited
from .loops import PerLoop, suppress_destroyed_warning
from .operations import arun, refresh_view
from .retries import may_send_again
from .routing import Routing, RoutingTable, Target


class LoopConnections:
    """The connections of one event loop, by node: those that are open, and those that are being made."""

    def __init__(self) -> None:
        self.open: dict[Target, AsyncConnection] = {}
        self.dialing: dict[Target, asyncio.Task[AsyncConnection]] = {}

    async def close(self) -> None:
        for dial in self.dialing.values():
            dial.cancel()
        for connection in list(self.open.values()):
            connection.close()
        await asyncio.sleep(0)  # lets the transports finish

    def close_one(self, target: Target) -> None:
        connection = self.open.pop(target, None)
        if connection is not None:
            connection.close()

    def abandon(self) -> None:
        """Leaves the connections to the parent's event loop, of which a forked child has a copy."""
        for connection in self.open.values():
            replace_inherited(connection.fileno())
        self.open.clear()
        self.dialing.clear()


class AsyncClient:
    """Asynchronous `Client`. One serves all event loops of a process."""

    def __init__(self, routing: Routing, dialer: Dialer, clock: Callable[[], float] = time.monotonic) -> None:
        self.routing = routing
        self._dialer = dialer
        self._deadline = dialer.deadline
        self._clock = clock
        self._loops = PerLoop(LoopConnections, LoopConnections.close)
        routing.attach(self)

    # -- operations -----------------------------------------------------------------------------------------

    async def call(self, key: bytes, request: bytes) -> Reply:
        """Asynchronous `Client.call()`."""
        try:
            return await self.call_node((await self.table()).require_owner(key), request)
        except OtherInstance:  # the owner was restarted, so the view is requested first
            return await self.call_node((await self.table()).require_owner(key), request)

    async def call_node(self, target: Target, request: bytes) -> Reply:
        """Asynchronous `Client.call_node()`."""
        self.routing.reset_if_forked()
        now = self._clock()
        deadline = self._deadline * target.check(now) if target.failures else self._deadline
        try:
            connections = self._loops.get(asyncio.get_running_loop())
            connection = connections.open.get(target) if connections is not None else None
            if connection is None or connection.closed:
                reply = await self._call_on_new_connection(target, request, now + deadline)
            else:
                try:
                    reply = await connection.request(request)
                except TimedOut:
                    raise
                except Unavailable as error:  # the node may have been restarted
                    reply = await self._call_on_new_connection(target, request, now + deadline, error)
        except ClusterStateError as error:
            raise self.routing.failed(target, error, now, self._clock()) from error
        self.routing.answered(target, reply.epoch, now, self._clock())
        if type(reply) is UnavailableReply:
            raise self.routing.owner_unavailable(target, reply)
        return reply

    async def call_each(
        self, requests: Sequence[tuple[Target, bytes]], until: float | None = None
    ) -> list[Reply | ClusterStateError]:
        """Asynchronous `Client.call_each()`.

        `until` is a time of the running loop's clock, for callers that wait for less than the deadline. A request
        without a reply by then results in `Unavailable`, and does not count as a failure of its node.
        """
        if len(requests) == 1:
            return [await self._call_or_error(*requests[0], until)]
        return await asyncio.gather(*(self._call_or_error(target, request, until) for target, request in requests))

    async def table(self, until: float | None = None) -> RoutingTable:
        """Asynchronous `Client.table()`.

        `until` is a time of the running loop's clock, at which the old table is returned if there is no new one; if the
        old one is empty, the view is requested twice by then.
        """
        if self._clock() >= self.routing.refresh_at:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._refresh()
                    if until is not None and not self.routing.table.targets:
                        await self._refresh()
        return self.routing.table

    async def close(self) -> None:
        """Closes the connections of the running loop; the client can be used again."""
        self.routing.reset_if_forked()
        await self._loops.close()

    # -- called by the routing ------------------------------------------------------------------------------

    def retire(self, target: Target) -> None:
        """Closes the connections to a node that is no longer needed. May be called from any thread."""
        for loop, connections in list(self._loops.items()):
            if target in connections.open:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    # By the deadline, all requests on the connection have a reply or have failed.
                    loop.call_soon_threadsafe(loop.call_later, self._deadline, connections.close_one, target)

    def abandon(self) -> None:
        """Leaves all connections to the parent process, in a forked child."""
        for connections in self._loops.values():
            connections.abandon()

    # -- connections ----------------------------------------------------------------------------------------

    async def _refresh(self) -> None:
        await arun(refresh_view(self.routing, self._deadline, self._clock), self)

    async def _call_on_new_connection(
        self, target: Target, request: bytes, until: float, lost: ClusterStateError | None = None
    ) -> Reply:
        """Sends a request on a new connection; after it was `lost` on another one only if it may be sent again."""
        try:
            async with timeout_in_ticks(until - self._clock()):
                connection = await self._dial(target)
        except (Unavailable, TimeoutError) as error:
            if lost is not None:
                raise lost from error
            if isinstance(error, Refused):
                raise
            raise Unreachable(str(error) or "no answer within the deadline") from error
        if lost is not None and not may_send_again(request, lost):
            raise lost
        try:
            async with timeout_in_ticks(until - self._clock()):
                return await connection.request(request)
        except TimeoutError as error:
            raise TimedOut("no answer within the deadline") from error

    async def _dial(self, target: Target) -> AsyncConnection:
        """Makes a connection. Tasks that need it at the same time share it."""
        loop = asyncio.get_running_loop()
        connections = self._loops.get(loop) or await self._loops.start()
        dial = connections.dialing.get(target)
        if dial is None:
            dial = loop.create_task(self._dialer.dial_async(target))
            suppress_destroyed_warning(dial)
            connections.dialing[target] = dial
            dial.add_done_callback(lambda dial: self._dialed(connections, target, dial))
        return await asyncio.shield(dial)

    def _dialed(self, connections: LoopConnections, target: Target, dial: "asyncio.Task[AsyncConnection]") -> None:
        if connections.dialing.get(target) is not dial:
            return  # it was begun by the process that this one is a fork of
        del connections.dialing[target]
        if not dial.cancelled() and dial.exception() is None:
            connections.open[target] = dial.result()
            if not self.routing.uses(target):  # retired meanwhile, or before by another task or thread
                self.retire(target)

    async def _call_or_error(self, target: Target, request: bytes, until: float | None) -> Reply | ClusterStateError:
        try:
            if until is None:
                return await self.call_node(target, request)
            async with asyncio.timeout_at(until):
                return await self.call_node(target, request)
        except TimeoutError:
            return Unavailable(f"{target}: no answer in time")
        except ClusterStateError as error:
            return error


def from_now(seconds: float | None) -> float | None:
    """The running loop's time `seconds` from now; None for None."""
    return None if seconds is None else asyncio.get_running_loop().time() + seconds
