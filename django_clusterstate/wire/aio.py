"""One asyncio connection to a node: many requests at once, answered in order."""

import asyncio
import contextlib
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

from msgspec import structs

from ..exceptions import ConnectionLost, ProtocolError, TimedOut, Unavailable, Unreachable
from .address import Address, UnixAddress
from .blocking import ANY_NODE, GRACE, cannot_connect
from .busy_polling import POLL_FOR, BusyPoll, IsIdle, never
from .derived_keys import LinkKey
from .framing import HANDSHAKE_LIMIT, MAX_FRAME, Deframer, frame
from .handshake import DialerHandshake, Hello, OtherNode, Verdict
from .messages import DECODE_ERRORS, AckReply, Reply, decode_reply
from .noise import Opener, Sealer
from .unix_sockets import check_directory, check_unix_peer

MAX_OUTPUT = 8 * 1024 * 1024  # bytes that wait to be sent, above which messages without a reply are dropped
TICKS, SHORTEST_TICK = 8, 0.005  # of a timeout: how many, and seconds of each at least


class AsyncConnection(asyncio.Protocol):
    """A connection made by `connect()`. It belongs to the event loop that made it.

    `deadline`: seconds for each request. A request without a reply in time closes the connection, and all requests
    behind it fail, so a late reply can't be taken for another's.

    `on_ack(reply)` is called with each `AckReply`. These acknowledge messages without a reply, and aren't in order with
    the replies to requests.
    """

    def __init__(
        self,
        keys: Sequence[LinkKey],
        deadline: float,
        on_close: Callable[[], None] | None = None,
        hello: Hello = ANY_NODE,
        is_idle: IsIdle = never,
    ) -> None:
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._deadline = deadline
        self._on_close = on_close
        self.verdict = Verdict(accepted=False)  # of the node, once the connection is ready
        self._handshake: DialerHandshake | None = DialerHandshake(keys, hello)
        self._sealer: Sealer | None = None
        self._opener: Opener | None = None
        self._challenged = False
        self.ready: asyncio.Future[None] = self._loop.create_future()  # done once the handshake is over
        self._deframer = Deframer(HANDSHAKE_LIMIT)
        self._waiting: deque[tuple[asyncio.Future[Reply], float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._polling = BusyPoll(is_idle)
        self._poll_until = 0.0  # 0: the loop isn't kept from sleeping
        self.on_ack: Callable[[AckReply], None] | None = None

    # -- requests -------------------------------------------------------------------------------------------

    def request(self, data: bytes) -> "asyncio.Future[Reply]":
        """Sends one framed request. The future's result is the reply.

        Its exception is `TimedOut`, `ConnectionLost`, `Unreachable` if the request was not sent, or `ProtocolError` if
        a reply can't be read.
        """
        future: asyncio.Future[Reply] = self._loop.create_future()
        if self.closed or self._transport is None:
            future.set_exception(Unreachable("the connection is closed"))
            return future
        now = time.monotonic()
        if self._polling.should_poll(now) and not self._poll_until:  # before the node keeps a processor busy
            self._poll_until = now + POLL_FOR
            self._loop.call_soon(self._busy_poll)
        try:
            self._transport.write(data if self._sealer is None else self._sealer.seal(data))
        except OSError as error:
            future.set_exception(Unreachable(str(error)))
            return future
        self._waiting.append((future, now + self._deadline))
        if self._timer is None:
            self._timer = self._loop.call_later(self._deadline, self._check_deadlines)
        return future

    def cast(self, data: bytes) -> bool:
        """Sends one framed message that has no reply. False when the connection is closed, or too slow."""
        if self.closed or self._transport is None:
            return False
        if self._transport.get_write_buffer_size() + len(data) > MAX_OUTPUT:
            return False
        self.send(data)
        return True

    def send(self, data: bytes) -> None:
        """Sends one framed message that has no reply, however much waits to be sent."""
        if not self.closed and self._transport is not None:
            self._transport.write(data if self._sealer is None else self._sealer.seal(data))

    def set_option(self, level: int, option: int, value: int) -> None:
        """Sets an option of the socket."""
        if self._transport is not None:
            self._transport.get_extra_info("socket").setsockopt(level, option, value)

    def fileno(self) -> int:
        return -1 if self._transport is None else int(self._transport.get_extra_info("socket").fileno())

    def close(self) -> None:
        self._fail(ConnectionLost("the connection was closed"))

    def _busy_poll(self) -> None:
        """Keeps the loop from sleeping for a moment, until the reply comes: see `busy_polling`. Other tasks run on."""
        if not self._waiting:
            self._polling.succeeded()
        elif time.monotonic() < self._poll_until:
            self._loop.call_soon(self._busy_poll)
            return
        else:
            self._polling.failed()
        self._poll_until = 0.0

    def _check_deadlines(self) -> None:
        # One timer a connection, not one a call: the oldest request is always the first in the queue.
        self._timer = None
        if not self._waiting:
            return
        remaining = self._waiting[0][1] - time.monotonic()
        if remaining <= 0:
            self._fail(TimedOut("no answer within the deadline"))
        else:
            self._timer = self._loop.call_later(remaining, self._check_deadlines)

    # -- asyncio.Protocol -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            if self._handshake is not None:
                self._complete_handshake(self._handshake, data)
                return
            for payload in self._deframer.feed(data if self._opener is None else self._opener.feed(data)):
                reply = decode_reply(payload)  # first: if it can't be read, all waiting requests fail
                if self.on_ack is not None and isinstance(reply, AckReply):
                    self.on_ack(reply)
                    continue
                future, _ = self._waiting.popleft()
                if not future.done():  # it may have been cancelled
                    future.set_result(reply)
        except (ProtocolError, IndexError, *DECODE_ERRORS) as error:
            if self.ready.done() and not isinstance(error, OtherNode):
                error = ProtocolError(f"a reply that cannot be read: {error}")
            self._fail(error if isinstance(error, ProtocolError) else ProtocolError(str(error)))

    def _complete_handshake(self, handshake: DialerHandshake, data: bytes) -> None:
        assert self._transport is not None
        payloads = self._deframer.feed(data)
        if not payloads:
            return
        if len(payloads) > 1 or self._deframer.pending:
            raise ProtocolError("received more than one handshake message")
        if not self._challenged:
            self._challenged = True
            try:
                offers = handshake.receive_challenge(payloads[0])
            except ProtocolError:
                if handshake.last_message:
                    self._transport.write(frame(handshake.last_message))
                raise
            self._transport.write(frame(offers, HANDSHAKE_LIMIT))
            return
        handshake.receive_answer(payloads[0])
        self.verdict = handshake.verdict
        if handshake.session is not None:
            self._sealer, self._opener = handshake.session
        self._handshake = None
        self._deframer.limit = MAX_FRAME
        if not self.ready.done():
            self.ready.set_result(None)

    def eof_received(self) -> None:
        # asyncio calls `connection_lost` one iteration later, which may be after the deadline if the loop was busy.
        self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionLost("the node closed the connection"))

    def _fail(self, error: Exception) -> None:
        if self.closed:
            return
        self.closed = True
        if self._loop.is_closed():
            return  # no task can be waiting
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        if not self.ready.done():
            self.ready.set_exception(error)
            self.ready.exception()  # marks it as retrieved, since no task may be waiting for it
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(error)
        if self._on_close is not None:
            self._on_close()


@contextlib.asynccontextmanager
async def timeout_in_ticks(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout()` for a busy loop: it counts ticks, and a tick counts once however late the loop handles it.

    So an operation that takes several iterations of the loop, such as connecting, succeeds even if each iteration is
    slow. If no seconds are left, there is a grace period of `GRACE`.
    """
    if seconds <= 0:
        seconds = GRACE
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


async def connect(
    address: Address,
    keys: Sequence[LinkKey],
    deadline: float,
    on_close: Callable[[], None] | None = None,
    hello: Hello = ANY_NODE,
    is_idle: IsIdle = never,
) -> AsyncConnection:
    """Connects to a node and completes the handshake, within `deadline` seconds.

    `hello` describes this side and names the node that is meant. `is_idle` says whether a processor is idle: then the
    connection busy-polls for replies. `on_close` is called when the connection ends. Raises `Unreachable`, `Refused`,
    `ProtocolError`, `DialedItself`, `OtherNode` or `OtherInstance`.
    """
    hello = structs.replace(hello, dialed=str(address))
    loop = asyncio.get_running_loop()
    connection: AsyncConnection | None = None
    try:
        async with timeout_in_ticks(deadline):
            if isinstance(address, UnixAddress):
                check_directory(address.path)
                transport, connection = await loop.create_unix_connection(
                    lambda: AsyncConnection((), deadline, on_close, is_idle=is_idle), address.path
                )
                if not check_unix_peer(transport.get_extra_info("socket")):
                    raise PermissionError("the socket belongs to a different user")
            else:
                _, connection = await loop.create_connection(
                    lambda: AsyncConnection(keys, deadline, on_close, hello, is_idle), address.host, address.port
                )
                connection.set_option(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await connection.ready
    except Unavailable as error:
        raise Unreachable(f"cannot connect: {error}") from error
    except OSError as error:
        if connection is not None:
            connection.close()
        raise cannot_connect(error) from error
    except BaseException:
        if connection is not None:
            connection.close()
        raise
    return connection
