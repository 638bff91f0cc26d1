"""Frames: a length of four bytes, big-endian, followed by as many bytes of payload. Pure: bytes in, frames out."""

import struct

from ..exceptions import ProtocolError
from .other_protocols import frame_too_long

HEADER = 4
MAX_FRAME = 1024 * 1024 + 4096  # a value of 1 MiB, with its key and the message around it
MAX_REQUEST = MAX_FRAME - 512  # room for the fields that a node adds: a name, an epoch
HANDSHAKE_LIMIT = 8192  # bytes of four offers with the longest names: all that is buffered of an unauthenticated peer

_LENGTH = struct.Struct(">I")
pack_size = _LENGTH.pack  # (size of a payload) -> its header
size_at = _LENGTH.unpack_from  # (buffer, offset of a header) -> (size of the payload,)


def frame(payload: bytes, limit: int = MAX_REQUEST) -> bytes:
    """The payload with its header. Raises `ValueError` if it is longer than `limit`."""
    size = len(payload)
    if size > limit:
        raise ValueError(f"a message of {size:,} bytes is longer than the limit of {limit:,}")
    return pack_size(size) + payload


class Deframer:
    """Splits a byte stream into payloads of at most `limit` bytes each. Buffers at most one incomplete frame."""

    __slots__ = ("_rest", "limit")

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self.limit = limit
        self._rest = b""

    @property
    def pending(self) -> bool:
        """Whether an incomplete frame is buffered."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that these bytes complete. Raises `ProtocolError` as soon as a header announces more bytes than
        the limit."""
        if self._rest:
            data = self._rest + data
        elif len(data) > HEADER and size_at(data)[0] == len(data) - HEADER <= self.limit:
            return [data[HEADER:]]  # nearly always: one whole frame
        payloads = []
        start, end = 0, len(data)
        while end - start >= HEADER:
            size = size_at(data, start)[0]
            if size > self.limit:
                raise ProtocolError(frame_too_long(data[start : start + HEADER], size, self.limit))
            stop = start + HEADER + size
            if stop > end:
                break
            payloads.append(data[start + HEADER : stop])
            start = stop
        self._rest = data[start:]
        return payloads
