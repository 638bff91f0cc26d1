"""A node's metrics over HTTP, for any client that may reach the address. Knows nothing of their format.

`prometheus_client`'s own server isn't used: it starts a thread for each connection, without a bound, and threads that
compute delay the event loop. The architecture page has figures.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus

from ..wire.address import TcpAddress
from .config import NodeError

PATH = "/metrics"
MAX_CONNECTIONS = 16  # at a time
TIMEOUT = 5.0  # seconds that a connection has for everything
MAX_HEAD = 16 * 1024  # bytes of a request
SPACING = 0.05  # seconds between two replies, each of which takes the event loop 0.4 to 0.7 ms

Render = Callable[[str], tuple[bytes, str]]  # an Accept header -> a body and its content type


@asynccontextmanager
async def serve_metrics(address: TcpAddress, render: Render) -> AsyncIterator[TcpAddress]:
    """Serves while its context is entered; yields the address. Raises `NodeError` when it can't listen there."""
    metrics = _Server(render)
    try:
        server = await asyncio.start_server(
            metrics.connected, address.host, address.port, limit=MAX_HEAD, reuse_address=True
        )
    except OSError as error:
        raise NodeError(
            f"metrics cannot be served at {address}: {error}. Choose another with --metrics-port or --metrics-address."
        ) from error
    try:
        yield TcpAddress(*server.sockets[0].getsockname()[:2])
    finally:
        server.close()
        metrics.close()


class _Server:
    """One request and one reply for each connection. Many clients take turns, and the node's work goes on between."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._connections: dict[asyncio.StreamWriter, bool] = {}  # whether its request is complete; the oldest first
        self._turn = asyncio.Lock()
        self._next = 0.0  # when the next reply may be made

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._admit(writer):
                async with asyncio.timeout(TIMEOUT):
                    writer.write(await self._reply(reader, writer))
                    writer.close()
                    await writer.wait_closed()
        except (OSError, EOFError, asyncio.LimitOverrunError, TimeoutError):
            pass  # too late, too long, or closed by the client
        finally:
            self._connections.pop(writer, None)
            writer.transport.abort()

    def close(self) -> None:
        for writer in self._connections:
            writer.transport.abort()

    def _admit(self, writer: asyncio.StreamWriter) -> bool:
        """Returns whether there is room for a connection. One that hasn't sent its request is closed for a new one."""
        if len(self._connections) >= MAX_CONNECTIONS:
            silent = next((other for other, complete in self._connections.items() if not complete), None)
            if silent is None:
                return False
            del self._connections[silent]
            silent.transport.abort()
        self._connections[writer] = False
        return True

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """The reply; empty when the client hung up, or sent more than its request, before its turn."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, _, rest = head.partition(" ")
        if method not in ("GET", "HEAD"):
            return _message(HTTPStatus.METHOD_NOT_ALLOWED, b"", "text/plain")
        if rest.partition(" ")[0].partition("?")[0].rstrip("/") != PATH:
            return _message(HTTPStatus.NOT_FOUND, b"The metrics are at /metrics.\n", "text/plain")
        self._connections[writer] = True
        more = asyncio.create_task(reader.read(1))
        more.add_done_callback(partial(self._ended_early, writer))
        try:
            async with self._turn:
                await asyncio.wait({more}, timeout=self._next - asyncio.get_running_loop().time())
                if more.done():
                    return b""
                self._next = asyncio.get_running_loop().time() + SPACING
        finally:
            more.cancel()
        lines = head.split("\r\n")[1:]
        accept = ",".join(line.partition(":")[2].strip() for line in lines if line.lower().startswith("accept:"))
        body, content_type = self._render(accept)
        return _message(HTTPStatus.OK, body, content_type, with_body=method == "GET")

    def _ended_early(self, writer: asyncio.StreamWriter, more: asyncio.Task[bytes]) -> None:
        """Frees the room of a connection at once, though its turn is still to come."""
        if not more.cancelled():
            more.exception()  # a reset is expected, so asyncio must not log it
            self._connections.pop(writer, None)


def _message(status: HTTPStatus, body: bytes, content_type: str, *, with_body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {status} {status.phrase}\r\n"
        f"Content-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (body if with_body else b"")
