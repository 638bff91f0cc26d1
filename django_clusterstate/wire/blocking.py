"""One blocking connection to a node."""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Sequence

import msgspec

from ..exceptions import ProtocolError, Unavailable
from .address import Address, UnixAddress
from .framing import HEADER, MAX_FRAME, frame
from .handshake import RequesterHandshake
from .messages import Reply, decode_reply

_RECEIVE = 64 * 1024


def check_unix_peer(sock: socket.socket) -> bool:
    """Whether the other end of a unix socket runs as our user or as root."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return uid in (os.geteuid(), 0)


def _unavailable(error: OSError) -> Unavailable:
    return Unavailable("no answer within the deadline" if isinstance(error, BlockingIOError) else str(error))


class BlockingConnection:
    """Connected and authenticated once constructed; one request at a time.

    `deadline` is seconds for each call, and for the connecting. Any error closes the connection, so a late answer
    can't be taken for that to the next request.
    """

    __slots__ = ("_buffer", "_deadline", "_socket", "_view")

    def __init__(self, address: Address, keys: Sequence[bytes], deadline: float) -> None:
        self._deadline = deadline
        self._buffer = bytearray(_RECEIVE)
        self._view = memoryview(self._buffer)
        until = time.monotonic() + deadline
        try:
            self._socket = self._connect(address, deadline)
            self._shake_hands(() if isinstance(address, UnixAddress) else keys, until)
        except OSError as error:
            raise Unavailable(f"no node at {address}: {error}") from error
        except ProtocolError as error:
            raise ProtocolError(f"node at {address}: {error}") from error
        self._set_timeout(deadline)

    def _connect(self, address: Address, deadline: float) -> socket.socket:
        if not isinstance(address, UnixAddress):
            sock = socket.create_connection(address, deadline)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(deadline)
            try:
                sock.connect(address.path)
                if not check_unix_peer(sock):
                    raise PermissionError("the socket belongs to another user")
            except OSError:
                sock.close()
                raise
        # Timeouts by the kernel: Python's own cost a poll() before every send and receive.
        sock.settimeout(None)
        return sock

    def _set_timeout(self, seconds: float) -> None:
        whole = int(seconds)
        value = struct.pack("ll", whole, max(1, int((seconds - whole) * 1_000_000)))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def _shake_hands(self, keys: Sequence[bytes], until: float) -> None:
        handshake = RequesterHandshake(keys)
        try:
            self._wait_at_most(until)
            proof = handshake.receive_challenge(self._receive(until))
            self._socket.sendall(frame(proof))
            handshake.receive_welcome(self._receive(until))
        except BaseException:
            self.close()
            raise

    def send(self, request: bytes) -> None:
        """Sends one framed request. Raises `Unavailable`."""
        try:
            self._socket.sendall(request)
        except OSError as error:
            self.close()
            raise _unavailable(error) from error

    def receive(self, until: float | None = None) -> Reply:
        """The reply to it: within the deadline, or until a moment of the monotonic clock.

        Raises `Unavailable` when none comes in time, `ProtocolError` when it makes no sense.
        """
        try:
            if until is None:
                return decode_reply(self._receive(time.monotonic() + self._deadline))
            self._wait_at_most(until)
            reply = decode_reply(self._receive(until))
            self._set_timeout(self._deadline)
        except OSError as error:
            self.close()
            raise _unavailable(error) from error
        except (ProtocolError, msgspec.DecodeError) as error:
            self.close()
            raise ProtocolError(f"a reply that can't be read: {error}") from error
        except BaseException:
            self.close()  # a signal handler raised between the request and its reply
            raise
        return reply

    def _receive(self, until: float) -> memoryview:
        received = self._receive_some(self._view)
        while received < HEADER:
            self._wait_at_most(until)
            received += self._receive_some(self._view[received:])
        size = HEADER + int.from_bytes(self._view[:HEADER], "big")
        if size == received:  # nearly always: the whole reply in one piece
            return self._view[HEADER:size]
        return self._receive_rest(size, received, until)

    def _receive_rest(self, size: int, received: int, until: float) -> memoryview:
        if size > HEADER + MAX_FRAME or received > size:
            raise ProtocolError(f"{received} bytes came where a frame of {size} was due")
        whole = self._view
        if size > len(whole):
            whole = memoryview(bytearray(size))
            whole[:received] = self._view[:received]
        while received < size:
            self._wait_at_most(until)
            received += self._receive_some(whole[received:size])
        self._set_timeout(self._deadline)
        return whole[HEADER:size]

    def _receive_some(self, into: memoryview) -> int:
        count = self._socket.recv_into(into)
        if not count:
            raise ConnectionResetError("the node closed the connection")
        return count

    def _wait_at_most(self, until: float) -> None:
        remaining = until - time.monotonic()
        if remaining <= 0:
            raise BlockingIOError
        self._set_timeout(remaining)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()
