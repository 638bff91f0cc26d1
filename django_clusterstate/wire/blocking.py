"""One blocking connection to a node."""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Sequence

from msgspec import structs

from ..exceptions import (
    ClusterStateError,
    ConnectionLost,
    ProtocolError,
    Refused,
    TimedOut,
    Unreachable,
    raised_by_signal,
)
from .address import Address, UnixAddress
from .busy_polling import POLL_FOR, BusyPoll, IsIdle, never
from .derived_keys import LinkKey
from .framing import HANDSHAKE_LIMIT, HEADER, MAX_FRAME, frame, size_at
from .handshake import DialerHandshake, Hello
from .messages import DECODE_ERRORS, Reply, decode_reply
from .noise import MAX_MESSAGE, TAG, Data, Opener, Sealer, record_size
from .other_protocols import frame_too_long
from .unix_sockets import check_directory, check_unix_peer

_RECEIVE = HEADER + MAX_MESSAGE  # bytes: so the longest record fits
_CLOSED = "the node closed the connection"
ANY_NODE = Hello()  # of a requester that accepts whichever node answers
_LATE = "no answer within the deadline"

# Grace period in seconds for a reply that this process has not waited for yet when the deadline is over: then the
# process is late, not the node, as among threads that compute or after SIGSTOP. Also for the rest of a reply that began
# in time.
GRACE = 0.02


def _left(until: float) -> float:
    """Seconds, at least 0, until a moment of the monotonic clock."""
    return max(0.0, until - time.monotonic())


def cannot_connect(error: OSError) -> Unreachable:
    """The error to raise where no connection could be made. It doesn't name the address, which its caller knows."""
    refused = isinstance(error, ConnectionRefusedError | FileNotFoundError)
    late = isinstance(error, BlockingIOError | TimeoutError)
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    kind = Refused if refused else Unreachable
    return kind(f"cannot connect: {_LATE if late else reason}")


class BlockingConnection:
    """A connection that is open and authenticated once it is constructed. It carries one request at a time.

    `deadline`: seconds for each call. Connecting may take as long, or until `until` on the monotonic clock.
    `is_idle` says whether a processor is idle: then calls busy-poll for their replies before they sleep.
    `hello` names the expected node. Raises `Unreachable`, `Refused`, `ProtocolError`, `OtherNode` or `OtherInstance`.
    Any error closes the connection, so a late reply can't be taken for that to the next request.
    """

    __slots__ = (
        "_cooperative", "_deadline", "_opener", "_polling", "_sealer", "_socket", "_timeout", "_view",
        "idle_since",
    )  # fmt: skip

    def __init__(
        self,
        address: Address,
        keys: Sequence[LinkKey],
        deadline: float,
        until: float | None = None,
        is_idle: IsIdle = never,
        hello: Hello = ANY_NODE,
    ) -> None:
        self._deadline = deadline
        self._timeout = 0.0
        self.idle_since = 0.0  # set by the pool that keeps it
        self._view = memoryview(bytearray(_RECEIVE))
        self._polling = BusyPoll(is_idle)
        self._sealer: Sealer | None = None  # None: a unix socket, or the handshake isn't over
        self._opener: Opener | None = None
        now = time.monotonic()
        if until is None:
            until = now + deadline
        try:
            self._connect(address, _left(until) or GRACE)
            unix = isinstance(address, UnixAddress)
            self._complete_handshake(() if unix else keys, structs.replace(hello, dialed=str(address)), until)
        except OSError as error:
            if raised_by_signal(error):
                raise
            raise cannot_connect(error) from error
        self._set_timeout(deadline)

    def _connect(self, address: Address, seconds: float) -> None:
        if not isinstance(address, UnixAddress):
            self._socket = socket.create_connection(address, seconds)
            self._detect_green_threads()
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return
        check_directory(address.path)
        self._socket = socket.socket(socket.AF_UNIX)
        self._detect_green_threads()
        self._set_timeout(seconds)  # connect() blocks while the node has a full accept queue
        try:
            self._socket.connect(address.path)
            if not check_unix_peer(self._socket):
                raise PermissionError("the socket belongs to a different user")
        except OSError:
            self.close()
            raise

    def _detect_green_threads(self) -> None:
        self._socket.settimeout(None)  # socket.setdefaulttimeout() may have set one
        # The patched sockets of gevent and eventlet never block: they wait in an event loop while other greenlets run,
        # and busy polling would keep those from running.
        self._cooperative = not os.get_blocking(self._socket.fileno())
        if self._cooperative:
            self._polling = BusyPoll(never)

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

    def _complete_handshake(self, keys: Sequence[LinkKey], hello: Hello, until: float) -> None:
        handshake = DialerHandshake(keys, hello)
        try:
            offers = handshake.receive_challenge(self._receive_frame(until, limit=HANDSHAKE_LIMIT))
            self._socket.sendall(frame(offers, HANDSHAKE_LIMIT))
            handshake.receive_answer(self._receive_frame(until, limit=HANDSHAKE_LIMIT))
            if handshake.session is not None:
                self._sealer, self._opener = handshake.session
        except BaseException:
            with contextlib.suppress(OSError):
                if handshake.last_message:
                    self._socket.sendall(frame(handshake.last_message))
            self.close()
            raise

    def call(self, request: bytes) -> Reply:
        """Sends one framed request and returns its reply, within the deadline.

        Raises `TimedOut`, `ConnectionLost`, `Unreachable` if the request was not sent whole, and `ProtocolError` if the
        reply can't be read.
        """
        start = time.monotonic()
        polls = self._polling.should_poll(start)  # before the node begins to work, which keeps a processor busy
        view = self._view
        sent = False
        try:
            data = request if self._sealer is None else self._sealer.seal(request)
            if (count := self._socket.send(data)) < len(data):
                self._send_rest(data, count, start + self._deadline)
            sent = True
            received = self._busy_poll() if polls else self._socket.recv_into(view)
            if received != HEADER + size_at(view)[0]:  # rare: the reply doesn't come in one piece
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
        """Sends one framed request, within the deadline. Raises `TimedOut`, or `Unreachable` if not sent whole."""
        until = time.monotonic() + self._deadline
        try:
            data = request if self._sealer is None else self._sealer.seal(request)
            self._send_rest(data, self._socket.send(data), until)
        except OSError as error:
            raise self._broken(error, sent=False) from error

    def receive(self, until: float, grace: float = GRACE) -> Reply:
        """Waits until `until`, in monotonic seconds, for the reply to the sent request, and returns the reply.

        `grace`: seconds to wait after that moment; 0 if the caller has waited for the reply until then. Raises
        `TimedOut`, `ConnectionLost`, or `ProtocolError` if the reply can't be read.
        """
        try:
            reply = decode_reply(self._receive_frame(until, grace))
            self._set_timeout(self._deadline)
        except (OSError, ProtocolError, *DECODE_ERRORS) as error:
            raise self._broken(error) from error
        except BaseException:
            self.close()
            raise
        return reply

    def _broken(self, error: Exception, sent: bool = True) -> ClusterStateError:
        """Closes the connection, so that a late reply can't be taken for the next one. Returns the error to raise.

        A request that was not `sent` whole can't have been executed.
        """
        self.close()
        if raised_by_signal(error):  # as a time limit that is a TimeoutError
            raise error
        if isinstance(error, BlockingIOError | TimeoutError):
            return TimedOut(_LATE)
        if isinstance(error, OSError):
            return ConnectionLost(str(error)) if sent else Unreachable(str(error))
        return ProtocolError(f"a reply that cannot be read: {error}")

    def _busy_poll(self) -> int:
        """Receives, and polls for a moment before it sleeps: see `busy_polling`."""
        until = time.monotonic() + POLL_FOR
        while True:
            try:
                received = self._socket.recv_into(self._view, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if time.monotonic() >= until:
                    break
            else:
                self._polling.succeeded()
                return received
        self._polling.failed()
        return self._socket.recv_into(self._view)

    def _send_rest(self, data: Data, sent: int, until: float) -> None:
        while sent < len(data):
            if not (left := _left(until)):
                raise BlockingIOError  # as the kernel does after SO_SNDTIMEO
            self._set_timeout(left)
            sent += self._socket.send(memoryview(data)[sent:])

    def _receive_frame(self, until: float, grace: float = GRACE, limit: int = MAX_FRAME) -> memoryview:
        return self._receive_rest(self._receive_more(self._view, until, grace), until, limit)

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
            raise ProtocolError(frame_too_long(bytes(whole[:HEADER]), size - HEADER, limit))
        if received > size:
            raise ProtocolError(f"received {received} bytes for a frame of {size}")
        if size > len(whole):
            whole = memoryview(bytearray(size))
            whole[:received] = self._view[:received]
        while received < size:
            received += self._receive_more(whole[received:size], until)
        return whole[HEADER:size]

    def _receive_record(self, received: int, until: float) -> memoryview:
        """The sealed bytes of the record whose first bytes have been received."""
        view = self._view
        while received < HEADER:
            received += self._receive_more(view[received:HEADER], until)
        size = HEADER + record_size(view)
        if received > size:
            raise ProtocolError(f"received {received} bytes for an encrypted record of {size}")
        while received < size:
            received += self._receive_more(view[received:size], until)
        return view[HEADER:size]

    def _open_rest(self, plain: bytes, until: float) -> memoryview:
        """The payload of the frame that begins with the plain bytes of its first record."""
        assert self._opener is not None
        if len(plain) < HEADER:
            raise ProtocolError("an encrypted record ends within the length of a frame")
        size = HEADER + size_at(plain)[0]
        if size > HEADER + MAX_FRAME or len(plain) > size:
            raise ProtocolError(f"received {len(plain)} bytes for a frame of {size}")
        if len(plain) == size:
            return memoryview(plain)[HEADER:]
        whole = memoryview(bytearray(size))
        filled = len(plain)
        whole[:filled] = plain
        while filled < size:
            record = self._receive_record(0, until)
            if filled + len(record) - TAG > size:
                raise ProtocolError(f"received more than the rest of a frame of {size} bytes")
            filled += self._opener.open_into(record, whole[filled : filled + len(record) - TAG])
        return whole[HEADER:]

    def _receive_more(self, into: memoryview, until: float, grace: float = 0.0) -> int:
        # Bytes that have arrived are read, however late this process is itself.
        seconds = _left(until) or grace
        if seconds or self._cooperative:
            self._set_timeout(seconds)
            count = self._socket.recv_into(into)
        else:
            count = self._socket.recv_into(into, 0, socket.MSG_DONTWAIT)
        if not count:
            raise ConnectionResetError(_CLOSED)
        return count

    def is_stale(self) -> bool:
        """Whether the connection can't be used again: the node has closed it since its last reply, or sent unrequested
        data. Closes it in that case."""
        try:
            if self._cooperative:
                self._set_timeout(0.0)
                self._socket.recv(1, socket.MSG_PEEK)
            else:
                self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
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
