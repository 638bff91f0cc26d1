"""The sockets of a node: who may connect, how much they may send, and the way of a request to its reply."""

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

from ..exceptions import ProtocolError
from ..wire.address import Address, UnixAddress
from ..wire.folders import check_unix_peer
from ..wire.framing import HANDSHAKE_LIMIT, MAX_FRAME, Deframer, frame
from ..wire.handshake import NodeHandshake
from ..wire.messages import DECODE_ERRORS, Deliver, Reply, decode_request, encode
from .channels import NODES_OWN
from .coalescing import REST, Coalescer
from .config import NodeError
from .handler import Handler
from .socketfile import SocketFile

MAX_CONNECTIONS = 4096
MAX_STRANGERS = 256  # connections that haven't proved themselves yet: as many as may dial at once after a restart
AUTHENTICATE_WITHIN = 5.0  # seconds
MAX_OUTPUT = 8 * 1024 * 1024  # bytes of replies that wait for the other side to read; meanwhile it isn't served
READ_WITHIN = 5.0  # seconds that it has for that
READ_AT_ONCE = 256 * 1024  # bytes of a peer's link
WRITE_AT_ONCE = 64 * 1024  # bytes of replies joined for one write
NOT_READ = "a requester doesn't read its replies"
BACKLOG = 1024  # connections that the kernel keeps until we accept them


class Server:
    """Listens, and serves `handler` to whoever is entitled.

    `report` is told, in words, of each connection that was turned away for cause.
    """

    def __init__(self, handler: Handler, keys: Sequence[bytes], report: Callable[[str], None]) -> None:
        self.handler = handler
        self.keys = keys
        self.boot = handler.membership.me.boot
        self.report = report
        self.connections: set[Connection] = set()
        self.strangers: dict[Connection, None] = {}  # the oldest first
        self.coalescer: Coalescer | None = None
        self._servers: list[asyncio.Server] = []
        self._socket_file: SocketFile | None = None

    async def listen(self, address: Address) -> None:
        """Raises `NodeError` when the address can't be had."""
        loop = asyncio.get_running_loop()
        self.coalescer = self.coalescer or Coalescer(min(REST, self.handler.membership.timings.heartbeat / 2))
        try:
            if isinstance(address, UnixAddress):
                self._socket_file = SocketFile(address, BACKLOG)
                server = await loop.create_unix_server(
                    lambda: Connection(self, ()), sock=self._socket_file.socket, backlog=BACKLOG
                )
            else:
                server = await loop.create_server(
                    lambda: Connection(self, self.keys),
                    address.host or None,
                    address.port,
                    reuse_address=True,
                    backlog=BACKLOG,
                )
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            what = "is taken: another node or program listens there" if taken else f"can't be had: {error}"
            raise NodeError(f"{address} {what}. Choose another with --bind or --socket.") from error
        self._servers.append(server)

    def close(self) -> None:
        if self._socket_file is not None:
            self._socket_file.remove()  # first: a node that starts takes the path as soon as nobody answers there
        for server in self._servers:
            server.close()
        for connection in [*self.connections, *self.strangers]:
            connection.abort()
        if self.coalescer is not None:
            self.coalescer.close()


class Connection(asyncio.Protocol):
    """One requester or peer. `keys` empty: a unix socket, whose other end the kernel names."""

    def __init__(self, server: Server, keys: Sequence[bytes]) -> None:
        self._server = server
        self._handler = server.handler
        self._trusted = not keys
        self._handshake: NodeHandshake | None = NodeHandshake(keys, server.boot)
        self._deframer = Deframer(HANDSHAKE_LIMIT)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unserved: deque[bytes] = deque()
        self._paused = False
        self._had_heartbeat = False  # and nothing of users since
        self._coalesced = -1  # the number of our socket while it is read together with others

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        server = self._server
        if len(server.connections) >= MAX_CONNECTIONS:
            self._turn_away("")
            return
        sock = self._transport.get_extra_info("socket")
        if self._trusted and not check_unix_peer(sock):
            self._turn_away("a process of another user tried our socket")
            return
        if not self._trusted:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(server.strangers) >= MAX_STRANGERS:
            # Who has said nothing for longest goes: silent strangers can't keep those out who have something to say.
            next(iter(server.strangers))._turn_away("")
        server.strangers[self] = None
        self._timer = asyncio.get_running_loop().call_later(AUTHENTICATE_WITHIN, self._turn_away, "")
        # From this size on `pause_writing` is called.
        self._transport.set_write_buffer_limits(high=MAX_OUTPUT)
        assert self._handshake is not None
        self._transport.write(frame(self._handshake.challenge()))

    def data_received(self, data: bytes) -> None:
        try:
            payloads = self._deframer.feed(data)
            if len(payloads) == 1 and not self._paused:  # nearly always
                if (answer := self._answer(payloads[0])) and self._transport is not None:
                    self._transport.write(answer)
            else:
                self._unserved.extend(payloads)
                self._serve()
        except (ProtocolError, *DECODE_ERRORS) as error:
            # To the peer's address, once: it is either a stranger or a bug, and both want to be seen.
            self._turn_away(str(error))
        except Exception as error:  # a bug of ours, which must end one connection and nothing else
            self._turn_away(f"what it asked for can't be answered: {error!r}")

    def _serve(self) -> None:
        """Answers what has come, as far as the other side reads the answers."""
        out: list[bytes] = []
        size = 0
        while self._unserved and not self._paused and self._transport is not None:
            if answer := self._answer(self._unserved.popleft()):
                out.append(answer)
                size += len(answer)
            if size > WRITE_AT_ONCE:
                self._transport.write(b"".join(out))  # may pause us
                out, size = [], 0
        if out and self._transport is not None:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _answer(self, payload: bytes) -> bytes:
        """The frame to send; empty when nothing is due now."""
        if self._handshake is not None:
            return frame(self._shake_hands(payload))
        request = decode_request(payload)
        reply = self._handler.handle(request, self)
        if reply is not None:
            return frame(encode(reply), MAX_FRAME)
        if isinstance(request, Deliver) and request.group.startswith(NODES_OWN):
            if self._had_heartbeat:  # two, so this is a peer's link; one alone may say that it leaves
                self._read_with_others()
            self._had_heartbeat = True
        else:
            self._had_heartbeat = False
            self._read_alone()  # what follows a user's message mustn't wait
        return b""

    def _read_with_others(self) -> None:
        coalescer = self._server.coalescer
        if self._coalesced < 0 and coalescer is not None and self._transport is not None:
            self._transport.pause_reading()
            self._coalesced = self._transport.get_extra_info("socket").fileno()
            coalescer.add(self._coalesced, self._read)

    def _read_alone(self) -> None:
        if self._coalesced < 0:
            return
        if self._server.coalescer is not None:
            self._server.coalescer.remove(self._coalesced, self._read)
        self._coalesced = -1
        if self._transport is not None:
            self._transport.resume_reading()

    def _read(self) -> None:
        try:
            data = os.read(self._coalesced, READ_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.data_received(data)
        else:
            self._read_alone()  # so that the transport finds out for itself that it is closed

    def _shake_hands(self, payload: bytes) -> bytes:
        assert self._handshake is not None
        welcome = self._handshake.receive(payload)
        self._handshake = None
        self._deframer.limit = MAX_FRAME
        self._server.strangers.pop(self, None)
        self._server.connections.add(self)
        self._handler.stats.connections = len(self._server.connections)
        if self._timer is not None:
            self._timer.cancel()
        return welcome

    def push(self, reply: Reply) -> None:
        """Sends a reply that was not due at once."""
        if self._paused:
            self._turn_away(NOT_READ)
        elif self._transport is not None:
            self._transport.write(frame(encode(reply), MAX_FRAME))

    def pause_writing(self) -> None:
        """More than `MAX_OUTPUT` waits: until the other side has read some of it, nothing more is read from it."""
        self._paused = True
        self._read_alone()
        if self._transport is not None:
            self._transport.pause_reading()
            self._timer = asyncio.get_running_loop().call_later(READ_WITHIN, self._turn_away, NOT_READ)

    def resume_writing(self) -> None:
        self._paused = False
        if self._timer is not None:
            self._timer.cancel()
        self.data_received(b"")
        if self._transport is not None and not self._paused:
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        self._read_alone()
        self._server.strangers.pop(self, None)
        if self in self._server.connections:
            self._server.connections.discard(self)
            self._handler.stats.connections = len(self._server.connections)
            self._handler.close(self)

    def _turn_away(self, why: str) -> None:
        self._handler.stats.refused += 1
        if why:
            peer = self._transport.get_extra_info("peername") if self._transport else None
            self._server.report(f"closed a connection from {_readable(peer)}: {why}")
        self.abort()

    def abort(self) -> None:
        """Closes at once; `connection_lost` follows."""
        self._server.strangers.pop(self, None)
        transport, self._transport = self._transport, None
        self._read_alone()
        if transport is not None:
            transport.abort()


def _readable(peer: object) -> str:
    return str(peer[0]) if isinstance(peer, tuple) else "the unix socket"
