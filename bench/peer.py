"""The floor: what two Python processes need to hand each other a hundred bytes and back, and nothing else.

As a program, `python -m bench.peer unix PATH` or `python -m bench.peer tcp PORT`: a plain blocking loop that sends back
what it receives, for one connection after the other.
"""

import socket
import sys

PING = b"p" * 100
_RECEIVE = 4096


def serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        if connection.family == socket.AF_INET:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            while data := connection.recv(_RECEIVE):
                connection.sendall(data)


class Pinger:
    """One connection to such a peer."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        if isinstance(address, str):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(address)
        else:
            self._socket = socket.create_connection(address)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ping(self, data: bytes) -> bytes:
        self._socket.sendall(data)
        return self._socket.recv(_RECEIVE)

    def close(self) -> None:
        self._socket.close()


def main(kind: str, where: str) -> None:
    if kind == "unix":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(where)
        listener.listen()
    else:
        listener = socket.create_server(("127.0.0.1", int(where)))
    serve(listener)


if __name__ == "__main__":
    main(*sys.argv[1:])
