"""The metrics of a node by HTTP, for whoever may reach the address. Knows nothing of their format."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import cast

from ..wire.address import TcpAddress
from .config import NodeError

PATH = "/metrics"
MAX_SCRAPERS = 16  # connections at a time
SCRAPE_WITHIN = 5.0  # seconds from its opening that a connection has for all
MAX_HEAD = 16 * 1024  # bytes of a request
SPACING = 0.05  # seconds between two answers, each of which takes the loop 0.4 to 0.7 ms

Render = Callable[[str], tuple[bytes, str]]  # an Accept header -> a body and its content type


@asynccontextmanager
async def scraped(address: TcpAddress, render: Render) -> AsyncIterator[TcpAddress]:
    """Answers scrapers while its context is entered; yields where. Raises `NodeError` when the address can't be had."""
    scrapes = _Scrapes(render)
    try:
        server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(scrapes), address.host, address.port, reuse_address=True
        )
    except OSError as error:
        raise NodeError(
            f"metrics can't be served at {address}: {error}. Choose another with --metrics-port or --metrics-address."
        ) from error
    try:
        yield TcpAddress(*server.sockets[0].getsockname()[:2])
    finally:
        server.close()
        scrapes.close()


class _Scrapes:
    """What all connections share. Many scrapers at once take turns, and the node's work goes on between."""

    def __init__(self, render: Render) -> None:
        self.render = render
        self._connections: dict[_Connection, None] = {}  # the oldest first
        self._waiting: dict[_Connection, None] = {}  # those whose request is complete, in their order
        self._loop = asyncio.get_running_loop()
        self._next = 0.0  # when the next answer may be made
        self._timer: asyncio.TimerHandle | None = None

    def admit(self, connection: "_Connection") -> bool:
        """Whether there is room. A connection that hasn't sent its request gives way to a new one."""
        if len(self._connections) >= MAX_SCRAPERS:
            silent = next((one for one in self._connections if one not in self._waiting), None)
            if silent is None:
                return False
            self.leave(silent)
            silent.abort()
        self._connections[connection] = None
        return True

    def ask(self, connection: "_Connection") -> None:
        self._waiting[connection] = None
        if self._timer is None:
            self._answer_next()

    def leave(self, connection: "_Connection") -> None:
        """The connection is closed, and takes no turn from the others."""
        self._connections.pop(connection, None)
        self._waiting.pop(connection, None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self._connections):
            connection.abort()

    def _answer_next(self) -> None:
        self._timer = None
        connection = None
        if self._waiting and self._loop.time() >= self._next:
            connection = next(iter(self._waiting))
            del self._waiting[connection]
            self._next = self._loop.time() + SPACING
        if self._waiting:
            self._timer = self._loop.call_at(self._next, self._answer_next)
        if connection is not None:
            connection.answer()


class _Connection(asyncio.Protocol):
    """One request and its answer, and no more.

    It is read from to the end, or else a connection that its scraper closes while it waits wouldn't be noticed.
    """

    def __init__(self, scrapes: _Scrapes) -> None:
        self._scrapes = scrapes
        self._head = bytearray()
        self._asked = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._scrapes.admit(self):
            self._timer = asyncio.get_running_loop().call_later(SCRAPE_WITHIN, self.abort)
        else:
            self.abort()

    def data_received(self, data: bytes) -> None:
        self._head += data
        if len(self._head) > MAX_HEAD:
            self.abort()
        elif not self._asked and b"\r\n\r\n" in self._head:
            self._asked = True
            self._scrapes.ask(self)

    def answer(self) -> None:
        self._transport.write(_response(self._head.decode("latin-1"), self._scrapes.render))
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._scrapes.leave(self)
        if self._timer is not None:
            self._timer.cancel()

    def abort(self) -> None:
        self._transport.abort()


def _response(head: str, render: Render) -> bytes:
    first, *lines = head.split("\r\n")
    method, _, rest = first.partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    if method not in ("GET", "HEAD"):
        return _message(HTTPStatus.METHOD_NOT_ALLOWED, b"", "text/plain")
    if path.rstrip("/") != PATH:
        return _message(HTTPStatus.NOT_FOUND, b"The metrics are at /metrics.\n", "text/plain")
    accept = ",".join(line.partition(":")[2].strip() for line in lines if line.lower().startswith("accept:"))
    body, content_type = render(accept)
    whole = _message(HTTPStatus.OK, body, content_type)
    return whole if method == "GET" else whole[: -len(body)]


def _message(status: HTTPStatus, body: bytes, content_type: str) -> bytes:
    head = (
        f"HTTP/1.1 {status} {status.phrase}\r\n"
        f"Content-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + body
