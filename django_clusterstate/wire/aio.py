"""One asyncio connection to a node: many requests at once, answered in order."""

import asyncio
import contextlib
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

from msgspec import structs

from ..exceptions import ConnectionLost, ProtocolError, TimedOut, Unavailable
from .address import Address, UnixAddress
from .blocking import ANYONE, OVERTIME
from .busy_polling import LOOK_FOR, BusyPoll, Idle, never
from .framing import HANDSHAKE_LIMIT, MAX_FRAME, Deframer, frame
from .handshake import DiallerHandshake, Hello, OtherNode, Verdict
from .keys import LinkKey
from .messages import DECODE_ERRORS, Reply, decode_reply
from .noise import Opener, Sealer
from .unix_sockets import check_folder, check_unix_peer

MAX_OUTPUT = 8 * 1024 * 1024
TICKS, SHORTEST_TICK = 8, 0.005  # seconds


class AsyncConnection(asyncio.Protocol):
    """Made by `connect()`. Belongs to the event loop that made it.

    `deadline` is seconds for each call. A call that gets no answer in time closes the connection, with all that
    wait behind it, so a late answer can't be taken for another's.
    """

    def __init__(
        self,
        keys: Sequence[LinkKey],
        deadline: float,
        on_close: Callable[[], None] | None = None,
        hello: Hello = ANYONE,
        idle: Idle = never,
    ) -> None:
        self.closed = False
        self.node_boot = b""  # names the start of the node that answers; empty if it doesn't say
        self._loop = asyncio.get_running_loop()
        self._deadline = deadline
        self._on_close = on_close
        self.verdict = Verdict(accepted=False)  # what the node says of itself, once the connection is ready
        self._handshake: DiallerHandshake | None = DiallerHandshake(keys, hello)
        self._sealer: Sealer | None = None
        self._opener: Opener | None = None
        self._challenged = False
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._deframer = Deframer(HANDSHAKE_LIMIT)
        self._waiting: deque[tuple[asyncio.Future[Reply], float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._polling = BusyPoll(idle)
        self._awake_until = 0.0  # while the loop is kept awake

    # -- requests -------------------------------------------------------------------------------------------

    def request(self, data: bytes) -> "asyncio.Future[Reply]":
        """Sends one framed request; the future brings its reply, or `Unavailable` or `ProtocolError`."""
        future: asyncio.Future[Reply] = self._loop.create_future()
        if self.closed or self._transport is None:
            future.set_exception(Unavailable("the connection is closed"))
            return future
        now = time.monotonic()
        if self._polling.due(now) and not self._awake_until:  # before the node has something to do
            self._awake_until = now + LOOK_FOR
            self._loop.call_soon(self._stay_awake)
        try:
            self._transport.write(data if self._sealer is None else self._sealer.seal(data))
        except OSError as error:
            future.set_exception(Unavailable(str(error)))
            return future
        self._waiting.append((future, self._loop.time() + self._deadline))
        if self._timer is None:
            self._timer = self._loop.call_later(self._deadline, self._check_deadlines)
        return future

    def cast(self, data: bytes) -> bool:
        """Sends one framed message that has no reply. False when the connection is closed, or too slow."""
        if self.closed or self._transport is None:
            return False
        if self._transport.get_write_buffer_size() + len(data) > MAX_OUTPUT:
            return False
        self._transport.write(data if self._sealer is None else self._sealer.seal(data))
        return True

    def set_option(self, level: int, option: int, value: int) -> None:
        """Sets an option of the socket."""
        if self._transport is not None:
            self._transport.get_extra_info("socket").setsockopt(level, option, value)

    def fileno(self) -> int:
        return -1 if self._transport is None else int(self._transport.get_extra_info("socket").fileno())

    def close(self) -> None:
        self._fail(ConnectionLost("the connection was closed"))

    def _stay_awake(self) -> None:
        """Keeps the loop from sleeping while an answer is looked for: see `polling`. All else in it takes its turn."""
        if not self._waiting:
            self._polling.found()
        elif time.monotonic() < self._awake_until:
            self._loop.call_soon(self._stay_awake)
            return
        else:
            self._polling.missed()
        self._awake_until = 0.0

    def _check_deadlines(self) -> None:
        # One timer a connection, not one a call: the oldest request is always the first in the queue.
        self._timer = None
        if not self._waiting:
            return
        remaining = self._waiting[0][1] - self._loop.time()
        if remaining <= 0:
            self._fail(_too_late())
        else:
            self._timer = self._loop.call_later(remaining, self._check_deadlines)

    # -- asyncio.Protocol -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            if self._handshake is not None:
                self._shake_hands(data)
                return
            for payload in self._deframer.feed(data if self._opener is None else self._opener.feed(data)):
                reply = decode_reply(payload)  # before the future is taken: if it can't be read, all that wait fail
                future, _ = self._waiting.popleft()
                if not future.done():  # it may have been cancelled
                    future.set_result(reply)
        except (ProtocolError, IndexError, *DECODE_ERRORS) as error:
            if self._ready.done() and not isinstance(error, OtherNode):
                error = ProtocolError(f"a reply that can't be read: {error}")
            self._fail(error if isinstance(error, ProtocolError) else ProtocolError(str(error)))

    def _shake_hands(self, data: bytes) -> None:
        for payload in self._deframer.feed(data):
            if self._handshake is None:
                raise ProtocolError("more came than the answer that ends the handshake")
            self._take_step(self._handshake, payload)
        if self._handshake is None and self._deframer.pending:
            raise ProtocolError("more came than the answer that ends the handshake")

    def _take_step(self, handshake: DiallerHandshake, payload: bytes) -> None:
        assert self._transport is not None
        if not self._challenged:
            self._challenged = True
            try:
                offers = handshake.receive_challenge(payload)
            except ProtocolError:
                if handshake.farewell:
                    self._transport.write(frame(handshake.farewell))
                raise
            self._transport.write(frame(offers, HANDSHAKE_LIMIT))
            return
        handshake.receive_answer(payload)
        self.verdict = handshake.verdict
        self.node_boot = handshake.verdict.boot
        if handshake.session is not None:
            self._sealer, self._opener = handshake.session
        self._handshake = None
        self._deframer.limit = MAX_FRAME
        if not self._ready.done():
            self._ready.set_result(None)

    def eof_received(self) -> None:
        # `connection_lost` comes a turn of the loop later: after the deadline's timer if the loop was busy until then.
        self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionLost("the node closed the connection"))

    def _fail(self, error: Exception) -> None:
        if self.closed:
            return
        self.closed = True
        if self._loop.is_closed():
            return  # nobody waits any more
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # nobody need be waiting for it
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(error)
        if self._on_close is not None:
            self._on_close()

    async def ready(self) -> None:
        await self._ready


@contextlib.asynccontextmanager
async def patient_timeout(seconds: float) -> AsyncIterator[None]:
    """As `asyncio.timeout`, but told in ticks, of which each counts as one however late the loop comes round to it.

    So what takes several turns of the loop, as a dial does, can be done though each of them takes long. Who comes when
    no seconds are left has `OVERTIME`.
    """
    if seconds <= 0:
        seconds = OVERTIME
    loop = asyncio.get_running_loop()
    ticks = max(1, min(TICKS, int(seconds / SHORTEST_TICK)))
    async with asyncio.timeout(None) as timeout:
        handle: asyncio.TimerHandle

        def tick(left: int) -> None:
            nonlocal handle
            if left:
                handle = loop.call_later(seconds / ticks, tick, left - 1)
            else:
                timeout.reschedule(loop.time())

        tick(ticks)
        try:
            yield
        finally:
            handle.cancel()


def _too_late() -> TimedOut:
    error = TimedOut("no answer within the deadline")
    error.__cause__ = TimeoutError()
    return error


async def connect(
    address: Address,
    keys: Sequence[LinkKey],
    deadline: float,
    on_close: Callable[[], None] | None = None,
    hello: Hello = ANYONE,
    idle: Idle = never,
) -> AsyncConnection:
    """Dials a node and shakes hands, within the deadline. `hello` says who we are and which node is meant; `idle` says
    whether a processor is: then the loop is kept awake for answers.

    Raises `Unavailable` when nobody answers, `OtherNode` when it isn't the node that is meant, `ProtocolError` when the
    other side isn't one of ours. The `__cause__` of the first and the last says more.
    """
    hello = structs.replace(hello, dialled=str(address))
    loop = asyncio.get_running_loop()
    connection: AsyncConnection | None = None
    try:
        async with patient_timeout(deadline):
            if isinstance(address, UnixAddress):
                check_folder(address.path)
                transport, connection = await loop.create_unix_connection(
                    lambda: AsyncConnection((), deadline, on_close, idle=idle), address.path
                )
                if not check_unix_peer(transport.get_extra_info("socket")):
                    raise PermissionError("the socket belongs to another user")
            else:
                _, connection = await loop.create_connection(
                    lambda: AsyncConnection(keys, deadline, on_close, hello, idle), address.host, address.port
                )
                connection.set_option(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await connection.ready()
    except OtherNode:
        raise
    except ProtocolError as error:
        raise ProtocolError(f"node at {address}: {error}") from error
    except Unavailable as error:
        raise Unavailable(f"no node at {address}: {error}") from error
    except (OSError, TimeoutError) as error:
        if connection is not None:
            connection.close()
        raise Unavailable(f"no node at {address}: {str(error) or 'no answer within the deadline'}") from error
    except BaseException:
        if connection is not None:
            connection.close()
        raise
    return connection
