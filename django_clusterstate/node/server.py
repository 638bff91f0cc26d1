"""The sockets of a node: which connections it accepts, how much they may send, and how a request gets its reply."""

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

from ..exceptions import ProtocolError
from ..wire.address import Address, TcpAddress, UnixAddress
from ..wire.derived_keys import LinkKey
from ..wire.framing import HANDSHAKE_LIMIT, MAX_FRAME, MAX_REQUEST, Deframer, frame
from ..wire.handshake import Hello, NodeHandshake, Role
from ..wire.messages import (
    DECODE_ERRORS,
    REPLY_TOO_LONG,
    Deliver,
    Execute,
    FailedReply,
    Forward,
    Replicate,
    Reply,
    decode_request,
    encode,
)
from ..wire.noise import Opener, Sealer
from ..wire.unix_sockets import check_unix_peer
from .channels.queues import NODE_GROUPS
from .coalescing import MAX_DELAY, Coalescer
from .config import NodeError
from .connection_slots import ConnectionSlots, Source, SourceKind, source_of
from .handler import Handler
from .late_replies import LateReplies
from .log import RateLimitedLog
from .socket_file import SocketFile

MAX_CONNECTIONS = 5120
FOR_NODES = 3328  # connections of nodes: three for each of as many peers as a node keeps links to, and some more
FOR_LOCAL = 512  # connections that processes of this host keep when other hosts need more
MAX_UNAUTHENTICATED = 256  # connections before the end of their handshake: as many as may dial at once after a restart
UNAUTHENTICATED_FOR_LOCAL = 32
HANDSHAKE_TIMEOUT = 5.0  # seconds
MAX_OUTPUT = 8 * 1024 * 1024  # bytes of unread replies: a connection with more isn't served
READ_TIMEOUT = 5.0  # seconds within which a connection that isn't served must read its replies
READ_AT_ONCE = 256 * 1024  # bytes of a peer's link
WRITE_AT_ONCE = 64 * 1024  # bytes of replies joined for one write
NOT_READ = f"it has not read its replies for {READ_TIMEOUT:g} s"
NODES_ONLY = frozenset((Deliver, Forward, Replicate, Execute))  # messages that no requester may send
LONGER = frozenset((Replicate, Execute))  # those that contain a value or request of any length
BACKLOG = 1024  # connections that the kernel keeps until they are accepted
# Messages leave at once. A host that was lost without closing its connections is probed after half a minute of silence,
# and its connections are closed half a minute later; otherwise they would keep their slots forever.
TCP_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


class Server:
    """Listens, and passes requests of authenticated connections to `handler`.

    `log` takes a line for each connection that was closed for a reason. `on_dialed(hello)` is called when another node
    has completed a handshake with this one.
    """

    def __init__(
        self, handler: Handler, keys: Sequence[LinkKey], log: RateLimitedLog, on_dialed: Callable[[Hello], None]
    ) -> None:
        self.handler = handler
        self.keys = keys
        self.me = handler.membership.me
        self.log = log
        self.on_dialed = on_dialed
        self.connections: ConnectionSlots[Connection] = ConnectionSlots(MAX_CONNECTIONS, FOR_NODES, FOR_LOCAL)
        self.unauthenticated: ConnectionSlots[Connection] = ConnectionSlots(
            MAX_UNAUTHENTICATED, MAX_UNAUTHENTICATED, UNAUTHENTICATED_FOR_LOCAL
        )
        self.coalescer = Coalescer(min(MAX_DELAY, handler.membership.timings.heartbeat / 2))
        self._servers: list[asyncio.Server] = []
        self._socket_file: SocketFile | None = None

    async def listen(self, address: Address) -> None:
        """Starts to listen at an address. Raises `NodeError` if that fails."""
        loop = asyncio.get_running_loop()
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
            what = "is taken: another node or program listens there" if taken else f"cannot be used: {error}"
            raise NodeError(f"{address} {what}. Choose another with --bind or --socket.") from error
        self._servers.append(server)

    def admit(self, connection: "Connection", source: Source) -> None:
        """Gives an authenticated connection a slot; when none is free, closes another for it."""
        self.unauthenticated.discard(connection)
        evicted = self.connections.enter(connection, source)
        stats = self.handler.stats
        stats.connections = len(self.connections)
        if evicted is None:
            return
        holder = source if evicted is connection else evicted.source
        self.log.write(
            f"all {self.connections.most:,} connections are in use, most of them by {holder}: each new connection "
            "closes one of these, preferably an idle one; check what runs there, and how many processes and threads "
            "connect to this node"
        )
        if evicted is connection:
            evicted._reject("")
        else:
            stats.connections_evicted += 1
            evicted.abort()

    def close(self) -> None:
        if self._socket_file is not None:
            self._socket_file.remove()  # first: a node that starts takes the path as soon as no node answers there
        for server in self._servers:
            server.close()
        for connection in [*self.connections, *self.unauthenticated]:
            connection.abort()
        self.coalescer.close()


class Connection(asyncio.Protocol):
    """A connection of a requester or peer. `keys` empty: over the unix socket, where the kernel names the other end."""

    def __init__(self, server: Server, keys: Sequence[LinkKey]) -> None:
        self._server = server
        self._handler = server.handler
        self._trusted = not keys
        self._keys = keys
        self._handshake: NodeHandshake | None = None
        self._sealer: Sealer | None = None
        self._opener: Opener | None = None
        self.peer = b""  # the boot ID of the node at the other end; empty: a requester
        self._deframer = Deframer(HANDSHAKE_LIMIT)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unserved: deque[bytes] = deque()
        self._late = LateReplies(self._frame, self._send_late)
        self._paused = False  # by the transport: too many replies are unread
        self.source = Source(SourceKind.REMOTE, "")
        self.used = True  # since it was last considered for eviction
        self._had_heartbeat = False  # as its last message
        self._coalesced = -1  # the number of its socket while that is read together with others

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        server = self._server
        sock = self._transport.get_extra_info("socket")
        if self._trusted and not check_unix_peer(sock):
            self._reject("a process running as a different user; nodes and requesters must run as the same user")
            return
        if not self._trusted:
            for level, option, value in TCP_OPTIONS:
                sock.setsockopt(level, option, value)
        self.source = source_of(sock)
        # Until the handshake is complete: of the host that holds most, the oldest connection goes, so those that don't
        # authenticate can't keep others out.
        self.used = False
        if (evicted := server.unauthenticated.enter(self, self.source)) is not None:
            evicted._reject("")
            if evicted is self:
                return
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT, self._reject, "")
        # Backpressure: from this size on asyncio calls `pause_writing`.
        self._transport.set_write_buffer_limits(high=MAX_OUTPUT)
        peer = self._transport.get_extra_info("peername")
        dialed_from = str(TcpAddress(peer[0], peer[1])) if isinstance(peer, tuple) else ""  # empty: the unix socket
        self._handshake = NodeHandshake(self._keys, server.me.name, server.me.boot, dialed_from)
        self._transport.write(frame(self._handshake.challenge))

    def data_received(self, data: bytes) -> None:
        try:
            if self._handshake is not None:
                self._receive_handshake(self._handshake, data)
                return
            self.used = True
            payloads = self._deframer.feed(data if self._opener is None else self._opener.feed(data))
            if len(payloads) == 1 and not self._held_up:  # nearly always
                if (answer := self._answer(payloads[0])) and self._transport is not None:
                    self._transport.write(answer if self._sealer is None else self._sealer.seal(answer))
            else:
                self._unserved.extend(payloads)
                self._serve()
        except (ProtocolError, *DECODE_ERRORS) as error:
            self._reject(str(error))
        except Exception as error:  # a bug, which must end one connection and nothing else
            self._reject(f"its request failed: {error!r}; please report this error")

    def _serve(self) -> None:
        """Answers the received requests until this connection is held up."""
        out: list[bytes] = []
        size = 0
        while self._unserved and not self._held_up and self._transport is not None:
            if answer := self._answer(self._unserved.popleft()):
                out.append(answer)
                size += len(answer)
            if size > WRITE_AT_ONCE:
                self._write(b"".join(out))  # may pause this connection
                out, size = [], 0
        if out:
            self._write(out[0] if len(out) == 1 else b"".join(out))

    @property
    def _held_up(self) -> bool:
        """Whether no request is served now."""
        return self._paused or self._late.full

    def _write(self, answers: bytes) -> None:
        """Frames that are sent together are sealed together: one by one would cost four times as much."""
        if self._transport is not None:
            self._transport.write(answers if self._sealer is None else self._sealer.seal(answers))

    def _answer(self, payload: bytes) -> bytes:
        """The frame of the reply; empty when there is none now."""
        request = decode_request(payload)
        if not self.peer and type(request) in NODES_ONLY:
            raise ProtocolError(f"a requester sent {type(request).__name__}, which only nodes may send")
        if len(payload) > MAX_REQUEST and type(request) not in LONGER:
            raise ProtocolError(f"a node sent {type(request).__name__} of {len(payload):,} bytes, more than it may")
        reply = self._handler.handle(request, self)
        if reply is not None:
            if not self._late and not isinstance(reply, asyncio.Future):
                return self._frame(reply)
            self._late.add(reply)
            if self._late.full and self._transport is not None:
                self._read_directly()
                self._transport.pause_reading()
            return b""
        if isinstance(request, Deliver) and request.group.startswith(NODE_GROUPS):
            if self._had_heartbeat:  # two, so this is a peer's link; one alone may say that it leaves
                self._read_coalesced()
            self._had_heartbeat = True
        else:
            self._had_heartbeat = False
            self._read_directly()  # messages that follow one of a user mustn't wait
        return b""

    def _send_late(self, answers: bytes, was_full: bool) -> None:
        self._write(answers)
        if was_full:
            self._go_on()

    def _go_on(self) -> None:
        """Serves what has been received while the connection was held up, and reads on."""
        if not self._held_up:
            self.data_received(b"")
        if not self._held_up and self._transport is not None:
            self._transport.resume_reading()

    def _read_coalesced(self) -> None:
        if self._coalesced < 0 and self._transport is not None:
            self._transport.pause_reading()
            self._coalesced = self._transport.get_extra_info("socket").fileno()
            self._server.coalescer.add(self._coalesced, self._read)

    def _read_directly(self) -> None:
        if self._coalesced < 0:
            return
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
            self._read_directly()  # so that the transport notices that it is closed

    def _receive_handshake(self, handshake: NodeHandshake, data: bytes) -> None:
        payloads = self._deframer.feed(data)
        if not payloads:
            return
        if len(payloads) > 1 or self._deframer.pending:
            raise ProtocolError("it sent more than the handshake's offers before they were answered")
        answer = frame(handshake.receive(payloads[0]), HANDSHAKE_LIMIT)
        if not handshake.refused:
            self._admit(handshake, answer)
        elif self._transport is not None:
            self._transport.write(answer)
            if not handshake.outdated:  # that is expected after each restart
                self._note_rejected(handshake.refused)
            self._transport.close()  # once the answer has been sent

    def _admit(self, handshake: NodeHandshake, answer: bytes) -> None:
        server, hello = self._server, handshake.hello
        self._handshake = None
        self.used = True
        if self._timer is not None:
            self._timer.cancel()
        if hello.role is Role.NODE:
            self.peer = hello.boot
            self.source = Source(SourceKind.NODE, self.source.name)
        server.admit(self, self.source)
        if self._transport is None:
            return  # there was no slot, so it was closed
        self._transport.write(answer)
        if handshake.session is not None:
            self._sealer, self._opener = handshake.session
        # So that any value or message that a requester sends fits in a reply, and in what one node sends another.
        self._deframer.limit = MAX_FRAME if self.peer else MAX_REQUEST
        if self.peer:
            server.on_dialed(hello)

    def push(self, reply: Reply) -> None:
        """Sends a reply later than its request was handled, before those that wait for another node."""
        if self._paused:
            self._handler.undelivered(reply)
            self._reject(NOT_READ)
        elif self._transport is None:
            self._handler.undelivered(reply)
        else:
            self._write(self._frame(reply))

    def _frame(self, reply: Reply) -> bytes:
        """The frame of a reply; of an error if it is too long. That is a bug, since each reply is bounded where it is
        made, but the connection stays open: otherwise the replies behind it would be lost as well."""
        try:
            return frame(encode(reply), MAX_FRAME)
        except ValueError as error:
            self._server.log.write(f"reply {type(reply).__name__} not sent, the requester gets an error: {error}")
            return frame(encode(FailedReply(self._handler.epoch, REPLY_TOO_LONG)))

    def pause_writing(self) -> None:
        """Backpressure: stops reading while more than `MAX_OUTPUT` of replies is unread by the other side."""
        self._paused = True
        self._read_directly()
        if self._transport is not None:
            self._transport.pause_reading()
            self._timer = asyncio.get_running_loop().call_later(READ_TIMEOUT, self._reject, NOT_READ)

    def resume_writing(self) -> None:
        self._paused = False
        if self._timer is not None:
            self._timer.cancel()
        self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        self._read_directly()
        server = self._server
        server.unauthenticated.discard(self)
        server.connections.discard(self)
        self._handler.stats.connections = len(server.connections)
        self._handler.close(self)

    def _reject(self, why: str) -> None:
        """Closes the connection at once. The reason is logged unless it is empty."""
        self._note_rejected(why)
        self.abort()

    def _note_rejected(self, why: str) -> None:
        self._handler.stats.refused += 1
        if why:
            peer = self._transport.get_extra_info("peername") if self._transport else None
            host = peer[0] if isinstance(peer, tuple) else "the unix socket"
            self._server.log.write(f"connection from {host} closed: {why}")

    def abort(self) -> None:
        """Closes at once; `connection_lost` follows."""
        self._server.unauthenticated.discard(self)
        transport, self._transport = self._transport, None
        self._read_directly()
        if transport is not None:
            transport.abort()
