"""One blocking connection to a node."""

import contextlib
import socket
import struct
import time
from collections.abc import Sequence

from ..exceptions import ClusterStateError, ProtocolError, Unavailable
from .address import Address, UnixAddress
from .folders import check_folder, check_unix_peer
from .framing import HEADER, MAX_FRAME, frame, size_at
from .handshake import RequesterHandshake
from .messages import DECODE_ERRORS, Reply, decode_reply
from .polling import LOOK_FOR, BusyPoll, Idle, never

_RECEIVE = 64 * 1024
_CLOSED = "the node closed the connection"

# Seconds for what is still due when the time is over, though we haven't waited for it yet: it is we who come late, as
# among threads that compute, or after a stop. Also for the rest of an answer whose beginning came in time.
OVERTIME = 0.02


def _left(until: float) -> float:
    """Seconds, at least 0, until a moment of the monotonic clock."""
    return max(0.0, until - time.monotonic())


def _unavailable(error: OSError) -> Unavailable:
    late = isinstance(error, BlockingIOError | TimeoutError)
    return Unavailable("no answer within the deadline" if late else str(error))


class BlockingConnection:
    """Connected and authenticated once constructed; one request at a time.

    `deadline` is seconds for each call. The connecting may take as long, or until a moment of the monotonic clock.
    `idle` says whether a processor is: then calls look for their answers before they sleep.
    Any error closes the connection, so a late answer can't be taken for that to the next request.
    """

    __slots__ = ("_deadline", "_polling", "_socket", "_timeout", "_view")

    def __init__(
        self,
        address: Address,
        keys: Sequence[bytes],
        deadline: float,
        until: float | None = None,
        idle: Idle = never,
    ) -> None:
        self._deadline = deadline
        self._timeout = 0.0
        self._view = memoryview(bytearray(_RECEIVE))
        self._polling = BusyPoll(idle)
        now = time.monotonic()
        if until is None:
            until = now + deadline
        try:
            self._connect(address, _left(until) or OVERTIME)
            self._shake_hands(() if isinstance(address, UnixAddress) else keys, until)
        except OSError as error:
            raise Unavailable(f"no node at {address}: {_unavailable(error)}") from error
        except ProtocolError as error:
            raise ProtocolError(f"node at {address}: {error}") from error
        self._set_timeout(deadline)

    def _connect(self, address: Address, seconds: float) -> None:
        if not isinstance(address, UnixAddress):
            self._socket = socket.create_connection(address, seconds)
            self._socket.settimeout(None)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return
        check_folder(address.path)
        self._socket = socket.socket(socket.AF_UNIX)
        self._set_timeout(seconds)  # so that a node with many to accept is waited for
        try:
            self._socket.connect(address.path)
            if not check_unix_peer(self._socket):
                raise PermissionError("the socket belongs to another user")
        except OSError:
            self.close()
            raise

    def _set_timeout(self, seconds: float) -> None:
        # Timeouts by the kernel: Python's own cost a poll() before every send and receive.
        self._timeout = seconds
        whole = int(seconds)
        value = struct.pack("ll", whole, max(1, int((seconds - whole) * 1_000_000)))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def _shake_hands(self, keys: Sequence[bytes], until: float) -> None:
        handshake = RequesterHandshake(keys)
        try:
            proof = handshake.receive_challenge(self._receive_frame(until))
            self._socket.sendall(frame(proof))
            handshake.receive_welcome(self._receive_frame(until))
        except BaseException:
            if handshake.farewell:
                self._socket.sendall(frame(handshake.farewell))
            self.close()
            raise

    def call(self, request: bytes) -> Reply:
        """Sends one framed request and brings its reply, within the deadline. Raises as `send` and `receive`."""
        start = time.monotonic()
        looking = self._polling.due(start)  # asked before the node has something to do
        view = self._view
        try:
            if (count := self._socket.send(request)) < len(request):
                self._send_rest(request, count, start + self._deadline)
            received = self._look() if looking else self._socket.recv_into(view)
            if received == HEADER + size_at(view)[0]:  # nearly always: the whole in one piece
                reply = decode_reply(view[HEADER:received])
            else:
                reply = decode_reply(self._receive_rest(received, start + self._deadline))
            if self._timeout != self._deadline:
                self._set_timeout(self._deadline)
        except (OSError, ProtocolError, *DECODE_ERRORS) as error:
            raise self._broken(error) from error
        except BaseException:
            self.close()  # a signal handler raised between the request and its reply
            raise
        return reply

    def send(self, request: bytes) -> None:
        """Sends one framed request, within the deadline. Raises `Unavailable`."""
        until = time.monotonic() + self._deadline
        try:
            self._send_rest(request, self._socket.send(request), until)
        except OSError as error:
            raise self._broken(error) from error

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

    def _broken(self, error: Exception) -> ClusterStateError:
        """Closes, so that no late answer can be taken for that to the next request. Returns what is to be raised."""
        self.close()
        if isinstance(error, OSError):
            return _unavailable(error)
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

    def _send_rest(self, request: bytes, sent: int, until: float) -> None:
        while sent < len(request):
            if not (left := _left(until)):
                raise BlockingIOError  # as the kernel says it
            self._set_timeout(left)
            sent += self._socket.send(memoryview(request)[sent:])

    def _receive_frame(self, until: float, overtime: float = OVERTIME) -> memoryview:
        return self._receive_rest(self._receive_more(self._view, until, overtime), until)

    def _receive_rest(self, received: int, until: float) -> memoryview:
        """The payload of the frame whose first bytes have been received."""
        if not received:
            raise ConnectionResetError(_CLOSED)
        whole = self._view
        while received < HEADER:
            received += self._receive_more(whole[received:], until)
        size = HEADER + size_at(whole)[0]
        if size > HEADER + MAX_FRAME or received > size:
            raise ProtocolError(f"{received} bytes came where a frame of {size} was due")
        if size > len(whole):
            whole = memoryview(bytearray(size))
            whole[:received] = self._view[:received]
        while received < size:
            received += self._receive_more(whole[received:size], until)
        return whole[HEADER:size]

    def _receive_more(self, into: memoryview, until: float, overtime: float = 0.0) -> int:
        if seconds := _left(until) or overtime:
            self._set_timeout(seconds)
        # What has come is taken, however late we come ourselves.
        count = self._socket.recv_into(into, 0, 0 if seconds else socket.MSG_DONTWAIT)
        if not count:
            raise ConnectionResetError(_CLOSED)
        return count

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()
