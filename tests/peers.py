"""A node that misbehaves on purpose: a small server in a thread, which follows a script for each connection."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable

from django_clusterstate.wire.address import TcpAddress
from django_clusterstate.wire.derived_keys import derive_link_keys
from django_clusterstate.wire.framing import HEADER, frame
from django_clusterstate.wire.handshake import NodeHandshake, Verdict
from django_clusterstate.wire.messages import DoneReply, encode
from django_clusterstate.wire.noise import Opener, Sealer, record_size

Script = Callable[[socket.socket], object]

KEYS = derive_link_keys(["the secret of all false nodes"], "tests")
SECONDS = 60.0  # a script that runs on for longer never ends


class ScriptedNode:
    """Listens while its context is entered. Each connection gets a thread, and is closed when `script` returns."""

    def __init__(self, script: Script) -> None:
        self.accepted = 0
        self._changed = threading.Condition()
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def address(self) -> TcpAddress:
        return TcpAddress(*self._listener.getsockname())

    def until_accepted(self, count: int, seconds: float = 30) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.accepted >= count, seconds)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                with self._changed:
                    self.accepted += 1
                    self._changed.notify_all()
                self._sockets.append(sock)
                self._threads.append(threading.Thread(target=self._follow, args=[sock], daemon=True))
                self._threads[-1].start()

    def _follow(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            self._script(sock)

    def __enter__(self) -> "ScriptedNode":
        self._threads[0].start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        _wake(self._listener)
        self._threads[0].join(SECONDS)
        for sock in self._sockets:
            _wake(sock)
        for thread in self._threads:
            thread.join(SECONDS)
        self._listener.close()
        assert not any(thread.is_alive() for thread in self._threads), "a script still waits"


def _wake(sock: socket.socket) -> None:
    """Ends the waiting of the thread that uses it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def read_frame(sock: socket.socket) -> bytes:
    """Raises `ConnectionResetError` when the other side has gone."""
    size = int.from_bytes(_read_exactly(sock, HEADER), "big")
    return _read_exactly(sock, size)


def _read_exactly(sock: socket.socket, size: int) -> bytes:
    data = sock.recv(size, socket.MSG_WAITALL) if size else b""
    if len(data) < size:
        raise ConnectionResetError
    return data


class SealedSocket:
    """A node's end of a sealed connection. `raw` is the socket below it."""

    def __init__(self, raw: socket.socket, sealer: Sealer, opener: Opener) -> None:
        self.raw = raw
        self.seal = sealer.seal
        self._opener = opener

    def sendall(self, data: bytes) -> None:
        self.raw.sendall(self.seal(data))

    def read_frame(self) -> bytes:
        """Raises `ConnectionResetError` when the other side has gone."""
        plain = self._read_record()
        size = HEADER + int.from_bytes(plain[:HEADER], "big")
        while len(plain) < size:
            plain += self._read_record()
        assert len(plain) == size
        return plain[HEADER:]

    def _read_record(self) -> bytes:
        return self._opener.open(_read_exactly(self.raw, record_size(_read_exactly(self.raw, HEADER))))


class AnyNode(NodeHandshake):
    """Says that it is whichever node is meant."""

    def _verdict(self) -> Verdict:
        return Verdict(True, self.hello.expected_name, self._boot or self.hello.expected_boot)


def shake_hands(sock: socket.socket, boot: bytes = b"") -> SealedSocket:
    handshake = AnyNode(KEYS, "", boot)
    sock.sendall(frame(handshake.challenge))
    sock.sendall(frame(handshake.receive(read_frame(sock))))
    assert handshake.session is not None
    return SealedSocket(sock, *handshake.session)


def wait_for_the_end(sock: socket.socket) -> None:
    """Until the other side closes; what it says is ignored."""
    while sock.recv(65536):
        pass


def dribble(sock: socket.socket, data: bytes | bytearray, seconds: float) -> None:
    """Byte by byte, with so many seconds after each."""
    for byte in data:
        sock.sendall(bytes([byte]))
        time.sleep(seconds)


def answering(reply: Callable[[int], bytes] | None = None) -> Script:
    """A node that answers the n-th request of a connection with `reply(n)`, or with `DoneReply(n)`."""

    def script(sock: socket.socket) -> None:
        sealed = shake_hands(sock)
        number = 0
        while True:
            sealed.read_frame()
            number += 1
            sealed.sendall(reply(number) if reply is not None else frame(encode(DoneReply(number))))

    return script


def take_time(seconds: float) -> None:
    """What a slow peer does before it goes on."""
    time.sleep(seconds)


async def keep_busy(seconds: float) -> None:
    """Each turn of the loop takes so long."""
    while True:
        take_time(seconds)
        await asyncio.sleep(0)
