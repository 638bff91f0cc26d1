"""Other protocols are recognized and named."""

import socket
import struct

import pytest

from django_clusterstate.exceptions import ProtocolError
from django_clusterstate.wire.aio import connect
from django_clusterstate.wire.blocking import BlockingConnection
from django_clusterstate.wire.framing import HANDSHAKE_LIMIT, MAX_FRAME, Deframer
from django_clusterstate.wire.other_protocols import recognize
from tests.peers import KEYS, ScriptedNode, wait_for_the_end

KNOWN = {
    b"GET / HTTP/1.1\r\n": "an HTTP request",
    b"HEAD /health HTTP/1.0\r\n": "an HTTP request",
    b"POST / HTTP/1.1\r\n": "an HTTP request",
    b"OPTIONS * HTTP/1.1\r\n": "an HTTP request",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": "an HTTP request",
    b"HTTP/1.1 400 Bad Request\r\n": "an HTTP response",
    b"\x16\x03\x01\x02\x00\x01\x00": "a TLS hello",
    b"\x15\x03\x03\x00\x02\x02\x46": "a TLS record",
    b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n": "a header of the PROXY protocol",
    b"\r\n\r\n\x00\r\nQUIT\n": "a header of the PROXY protocol",
    b"SSH-2.0-OpenSSH_9.2\r\n": "an SSH banner",
    b"+PONG\r\n": "the Redis protocol",
    b"*1\r\n$4\r\nPING\r\n": "the Redis protocol",
    b"-ERR unknown command\r\n": "the Redis protocol",
}


@pytest.mark.parametrize("said", KNOWN)
def test_protocol_is_recognized_by_its_first_bytes_however_they_arrive(said: bytes) -> None:
    for limit in (HANDSHAKE_LIMIT, MAX_FRAME):
        deframer = Deframer(limit)
        for byte in said[:3]:
            assert deframer.feed(bytes([byte])) == []
        with pytest.raises(ProtocolError, match=f"it sent {KNOWN[said]}, but this port speaks only"):
            deframer.feed(said[3:])


@pytest.mark.parametrize("said", [b"\xff\xff\xff\xff", b"\0\0\0\5", b"get ", b"HTML", b"\x16\x04\x01\x02", b""])
def test_other_bytes_are_not_recognized(said: bytes) -> None:
    assert recognize(said) == ""


def test_no_valid_length_is_recognized_as_another_protocol() -> None:
    assert not [size for size in range(0, MAX_FRAME + 1, 499) if recognize(struct.pack(">I", size))]


@pytest.mark.parametrize("said", KNOWN)
async def test_dialer_reports_the_protocol_of_another_program(said: bytes) -> None:
    def script(sock: socket.socket) -> None:
        sock.sendall(said)
        wait_for_the_end(sock)

    with ScriptedNode(script) as node:
        with pytest.raises(ProtocolError, match=f"it sent {KNOWN[said]}"):
            BlockingConnection(node.address, KEYS, 5)
        with pytest.raises(ProtocolError, match=f"it sent {KNOWN[said]}"):
            await connect(node.address, KEYS, 5)
