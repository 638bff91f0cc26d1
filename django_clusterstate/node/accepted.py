"""What a node sets on the sockets of those who connect, and what it knows by them of the other side."""

import socket
import struct

from .connection_slots import Kind, Source, network_of

# A host that is gone without a word would hold its places for ever: it is asked after half a minute of silence, and
# given up half a minute later, when it hasn't answered three times.
_TCP_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


def set_options(sock: socket.socket) -> None:
    """Of a TCP socket: messages leave at once, and the other host's end is noticed."""
    for level, option, value in _TCP_OPTIONS:
        sock.setsockopt(level, option, value)


def source_of(sock: socket.socket) -> Source:
    """The other host by its network, or a process of this host by its id."""
    if sock.family == socket.AF_UNIX:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return Source(Kind.LOCAL, str(struct.unpack("3i", credentials)[0]))
    try:
        return Source(Kind.REMOTE, network_of(sock.getpeername()[0]))
    except OSError:  # it is closed already
        return Source(Kind.REMOTE, "")
