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
        for connection in list(scrapes.connections):
            connection.abort()


class _Scrapes:
    """What all connections share."""

    def __init__(self, render: Render) -> None:
        self.render = render
        self.connections: set[_Connection] = set()
        self._next = 0.0

    def turn(self, now: float) -> float:
        """When the next answer may be made: many scrapers at once take turns, and the node's work goes on between."""
        turn = max(now, self._next)
        self._next = turn + SPACING
        return turn


class _Connection(asyncio.Protocol):
    """One request and its answer, and no more."""

    def __init__(self, scrapes: _Scrapes) -> None:
        self._scrapes = scrapes
        self._head = bytearray()
        self._timers: list[asyncio.TimerHandle] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._scrapes.connections) >= MAX_SCRAPERS:
            self.abort()
            return
        self._scrapes.connections.add(self)
        self._timers.append(asyncio.get_running_loop().call_later(SCRAPE_WITHIN, self.abort))

    def data_received(self, data: bytes) -> None:
        self._head += data
        if b"\r\n\r\n" in self._head:
            self._transport.pause_reading()
            loop = asyncio.get_running_loop()
            self._timers.append(loop.call_at(self._scrapes.turn(loop.time()), self._answer))
        elif len(self._head) > MAX_HEAD:
            self.abort()

    def _answer(self) -> None:
        self._transport.write(_response(self._head.decode("latin-1"), self._scrapes.render))
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._scrapes.connections.discard(self)
        for timer in self._timers:
            timer.cancel()

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
