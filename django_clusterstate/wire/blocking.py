"""One blocking connection to a node."""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Sequence

from msgspec import structs

from ..exceptions import ClusterStateError, ConnectionLost, ProtocolError, TimedOut, Unavailable, raised_by_signal
from .address import Address, UnixAddress
from .busy_polling import LOOK_FOR, BusyPoll, Idle, never
from .framing import HANDSHAKE_LIMIT, HEADER, MAX_FRAME, frame, size_at
from .handshake import DiallerHandshake, Hello, OtherNode
from .keys import LinkKey
from .messages import DECODE_ERRORS, Reply, decode_reply
from .noise import MAX_RECORD, RECORD_HEADER, TAG, Data, Opener, Sealer, record_size
from .other_protocols import too_long
from .unix_sockets import check_folder, check_unix_peer

_RECEIVE = MAX_RECORD  # bytes: so the longest record fits
_CLOSED = "the node closed the connection"
ANYONE = Hello()  # a requester that takes whichever node answers

# Seconds for what is still due when the time is over, though we haven't waited for it yet: it is we who come late, as
# among threads that compute, or after a stop. Also for the rest of an answer whose beginning came in time.
OVERTIME = 0.02


def _left(until: float) -> float:
    """Seconds, at least 0, until a moment of the monotonic clock."""
    return max(0.0, until - time.monotonic())


def _unavailable(error: OSError) -> Unavailable:
    if raised_by_signal(error):  # such as a time limit that is a TimeoutError: it is the caller's, and no node's
        raise error
    late = isinstance(error, BlockingIOError | TimeoutError)
    return Unavailable("no answer within the deadline" if late else str(error))


class BlockingConnection:
    """Connected and authenticated once constructed; one request at a time.

    `hello` says which node is meant. `deadline` is seconds for each call. The connecting may take as long, or until a
    moment of the monotonic clock.
    `idle` says whether a processor is: then calls look for their answers before they sleep.
    Any error closes the connection, so a late answer can't be taken for that to the next request.
    """

    __slots__ = (
        "_cooperative", "_deadline", "_opener", "_polling", "_sealer", "_socket", "_timeout", "_view",
        "idle_since", "node_boot",
    )  # fmt: skip

    def __init__(
        self,
        address: Address,
        keys: Sequence[LinkKey],
        deadline: float,
        until: float | None = None,
        idle: Idle = never,
        hello: Hello = ANYONE,
    ) -> None:
        self._deadline = deadline
        self._timeout = 0.0
        self.idle_since = 0.0  # for whoever keeps it
        self.node_boot = b""  # names the start of the node that answers; empty if it doesn't say
        self._view = memoryview(bytearray(_RECEIVE))
        self._polling = BusyPoll(idle)
        self._sealer: Sealer | None = None  # None: a unix socket, or the handshake isn't over
        self._opener: Opener | None = None
        now = time.monotonic()
        if until is None:
            until = now + deadline
        try:
            self._connect(address, _left(until) or OVERTIME)
            unix = isinstance(address, UnixAddress)
            self._shake_hands(() if unix else keys, structs.replace(hello, dialled=str(address)), until)
        except OSError as error:
            raise Unavailable(f"no node at {address}: {_unavailable(error)}") from error
        except OtherNode:
            raise
        except ProtocolError as error:
            raise ProtocolError(f"node at {address}: {error}") from error
        self._set_timeout(deadline)

    def _connect(self, address: Address, seconds: float) -> None:
        if not isinstance(address, UnixAddress):
            self._socket = socket.create_connection(address, seconds)
            self._see_how_it_waits()
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return
        check_folder(address.path)
        self._socket = socket.socket(socket.AF_UNIX)
        self._see_how_it_waits()
        self._set_timeout(seconds)  # so that a node with many to accept is waited for
        try:
            self._socket.connect(address.path)
            if not check_unix_peer(self._socket):
                raise PermissionError("the socket belongs to another user")
        except OSError:
            self.close()
            raise

    def _see_how_it_waits(self) -> None:
        self._socket.settimeout(None)  # a default timeout may be set
        # The patched sockets of gevent and eventlet never block: they wait in an event loop, while other greenlets run.
        self._cooperative = not os.get_blocking(self._socket.fileno())
        if self._cooperative:
            self._polling = BusyPoll(never)  # nothing else would run meanwhile

    def _set_timeout(self, seconds: float) -> None:
        self._timeout = seconds
        if self._cooperative:
            self._socket.settimeout(seconds)
            return
        # Timeouts by the kernel: Python's own cost a poll() before every send and receive.
        whole = int(seconds)
        value = struct.pack("ll", whole, max(1, int((seconds - whole) * 1_000_000)))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def _shake_hands(self, keys: Sequence[LinkKey], hello: Hello, until: float) -> None:
        handshake = DiallerHandshake(keys, hello)
        try:
            offers = handshake.receive_challenge(self._receive_frame(until, limit=HANDSHAKE_LIMIT))
            self._socket.sendall(frame(offers, HANDSHAKE_LIMIT))
            handshake.receive_answer(self._receive_frame(until, limit=HANDSHAKE_LIMIT))
            self.node_boot = handshake.verdict.boot
            if handshake.session is not None:
                self._sealer, self._opener = handshake.session
        except BaseException:
            with contextlib.suppress(OSError):
                if handshake.farewell:
                    self._socket.sendall(frame(handshake.farewell))
            self.close()
            raise

    def call(self, request: bytes) -> Reply:
        """Sends one framed request and brings its reply, within the deadline. Raises as `send` and `receive`."""
        start = time.monotonic()
        looking = self._polling.due(start)  # asked before the node has something to do
        view = self._view
        sent = False
        try:
            data = request if self._sealer is None else self._sealer.seal(request)
            if (count := self._socket.send(data)) < len(data):
                self._send_rest(data, count, start + self._deadline)
            sent = True
            received = self._look() if looking else self._socket.recv_into(view)
            if received != HEADER + size_at(view)[0]:  # hardly ever: it doesn't come in one piece
                reply = decode_reply(self._receive_rest(received, start + self._deadline))
            elif self._opener is None:
                reply = decode_reply(view[HEADER:received])
            else:
                plain = self._opener.open(view[HEADER:received])
                if HEADER < len(plain) == HEADER + size_at(plain)[0]:
                    reply = decode_reply(plain[HEADER:])
                else:
                    reply = decode_reply(self._open_rest(plain, start + self._deadline))
            if self._timeout != self._deadline:
                self._set_timeout(self._deadline)
        except (OSError, ProtocolError, *DECODE_ERRORS) as error:
            raise self._broken(error, sent) from error
        except BaseException:
            self.close()  # a signal handler raised between the request and its reply
            raise
        return reply

    def send(self, request: bytes) -> None:
        """Sends one framed request, within the deadline. Raises `Unavailable`."""
        until = time.monotonic() + self._deadline
        try:
            data = request if self._sealer is None else self._sealer.seal(request)
            self._send_rest(data, self._socket.send(data), until)
        except OSError as error:
            raise self._broken(error, sent=False) from error

    def receive(self, until: float, overtime: float = OVERTIME) -> Reply:
        """The reply to it, until a moment of the monotonic clock. `overtime`: 0 for who has waited for it until then.

        Raises `Unavailable` when none comes in time, `ProtocolError` when it makes no sense.
        """
        try:
            reply = decode_reply(self._receive_frame(until, overtime))
            self._set_timeout(self._deadline)
        except (OSError, ProtocolError, *DECODE_ERRORS) as error:
            raise self._broken(error) from error
        except BaseException:
            self.close()
            raise
        return reply

    def _broken(self, error: Exception, sent: bool = True) -> ClusterStateError:
        """Closes, so that no late answer can be taken for that to the next request. Returns what is to be raised.

        A request that wasn't `sent` whole can't have been executed.
        """
        self.close()
        if isinstance(error, BlockingIOError | TimeoutError):
            return TimedOut(str(_unavailable(error)))
        if isinstance(error, OSError):
            return ConnectionLost(str(error)) if sent else Unavailable(str(error))
        return ProtocolError(f"a reply that can't be read: {error}")

    def _look(self) -> int:
        """Receives, but looks for the answer for a moment before it sleeps: see `polling`."""
        until = time.monotonic() + LOOK_FOR
        while True:
            try:
                received = self._socket.recv_into(self._view, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if time.monotonic() >= until:
                    break
            else:
                self._polling.found()
                return received
        self._polling.missed()
        return self._socket.recv_into(self._view)

    def _send_rest(self, data: Data, sent: int, until: float) -> None:
        while sent < len(data):
            if not (left := _left(until)):
                raise BlockingIOError  # as the kernel says it
            self._set_timeout(left)
            sent += self._socket.send(memoryview(data)[sent:])

    def _receive_frame(self, until: float, overtime: float = OVERTIME, limit: int = MAX_FRAME) -> memoryview:
        return self._receive_rest(self._receive_more(self._view, until, overtime), until, limit)

    def _receive_rest(self, received: int, until: float, limit: int = MAX_FRAME) -> memoryview:
        """The payload of the frame whose first bytes have been received, plain or sealed."""
        if not received:
            raise ConnectionResetError(_CLOSED)
        if self._opener is not None:
            return self._open_rest(self._opener.open(self._receive_record(received, until)), until)
        whole = self._view
        while received < HEADER:
            received += self._receive_more(whole[received:], until)
        size = HEADER + size_at(whole)[0]
        if size > HEADER + limit:
            raise ProtocolError(too_long(bytes(whole[:HEADER]), size - HEADER, limit))
        if received > size:
            raise ProtocolError(f"{received} bytes came where a frame of {size} was due")
        if size > len(whole):
            whole = memoryview(bytearray(size))
            whole[:received] = self._view[:received]
        while received < size:
            received += self._receive_more(whole[received:size], until)
        return whole[HEADER:size]

    def _receive_record(self, received: int, until: float) -> memoryview:
        """The sealed bytes of the record whose first bytes have been received."""
        view = self._view
        while received < RECORD_HEADER:
            received += self._receive_more(view[received:RECORD_HEADER], until)
        size = RECORD_HEADER + record_size(view)
        if received > size:
            raise ProtocolError(f"{received} bytes came where a sealed record of {size} was due")
        while received < size:
            received += self._receive_more(view[received:size], until)
        return view[RECORD_HEADER:size]

    def _open_rest(self, plain: bytes, until: float) -> memoryview:
        """The payload of the frame that begins with the plain bytes of its first record."""
        assert self._opener is not None
        if len(plain) < HEADER:
            raise ProtocolError("a sealed record ends within the length of a frame")
        size = HEADER + size_at(plain)[0]
        if size > HEADER + MAX_FRAME or len(plain) > size:
            raise ProtocolError(f"{len(plain)} bytes came where a frame of {size} was due")
        if len(plain) == size:
            return memoryview(plain)[HEADER:]
        whole = memoryview(bytearray(size))
        filled = len(plain)
        whole[:filled] = plain
        while filled < size:
            record = self._receive_record(0, until)
            if filled + len(record) - TAG > size:
                raise ProtocolError(f"more came than the rest of a frame of {size} bytes")
            filled += self._opener.open_into(record, whole[filled : filled + len(record) - TAG])
        return whole[HEADER:]

    def _receive_more(self, into: memoryview, until: float, overtime: float = 0.0) -> int:
        # What has come is taken, however late we come ourselves.
        if (seconds := _left(until) or overtime) or self._cooperative:
            self._set_timeout(seconds)
        count = self._socket.recv_into(into, 0, 0 if seconds or self._cooperative else socket.MSG_DONTWAIT)
        if not count:
            raise ConnectionResetError(_CLOSED)
        return count

    def has_ended(self) -> bool:
        """Whether the node has closed it since the last answer, or said something unasked. Then it is closed here."""
        try:
            if self._cooperative:
                self._set_timeout(0.0)
            self._socket.recv(1, socket.MSG_PEEK | (0 if self._cooperative else socket.MSG_DONTWAIT))
        except BlockingIOError:
            if self._cooperative:
                self._set_timeout(self._deadline)
            return False
        except OSError:
            pass
        self.close()
        return True

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()
