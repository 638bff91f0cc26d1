"""Frames: a length of four bytes, big-endian, and as many bytes. Pure: bytes in, frames out."""

import struct

from ..exceptions import ProtocolError
from .other_protocols import too_long

HEADER = 4
MAX_FRAME = 1024 * 1024 + 4096  # a value of 1 MiB, with its key and the message around it
MAX_REQUEST = MAX_FRAME - 512  # a node passes a request on, or answers it, with another name or an epoch more
HANDSHAKE_LIMIT = 8192  # bytes: four offers with the longest names. A stranger can't make us hold more

_LENGTH = struct.Struct(">I")
_pack = _LENGTH.pack
size_at = _LENGTH.unpack_from  # a buffer, and where the header begins in it: `(size,)` of the payload after it


def frame(payload: bytes, limit: int = MAX_REQUEST) -> bytes:
    """The payload with its length before it. Raises `ValueError` when it is longer than it may be."""
    size = len(payload)
    if size > limit:
        raise ValueError(f"a message of {size:,} bytes is longer than it may be ({limit:,})")
    return _pack(size) + payload


class Deframer:
    """Cuts a stream of bytes into payloads. Holds at most one frame of `limit` bytes and what came with it."""

    __slots__ = ("_rest", "limit")

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self.limit = limit
        self._rest = b""

    @property
    def pending(self) -> bool:
        """Whether the beginning of a frame waits for its rest."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that are complete now. Raises `ProtocolError` on a length above the limit, before its
        bytes are waited for."""
        if self._rest:
            data = self._rest + data
        elif len(data) > HEADER and size_at(data)[0] == len(data) - HEADER <= self.limit:
            return [data[HEADER:]]  # nearly always: one whole frame
        payloads = []
        start, end = 0, len(data)
        while end - start >= HEADER:
            size = size_at(data, start)[0]
            if size > self.limit:
                raise ProtocolError(too_long(data[start : start + HEADER], size, self.limit))
            stop = start + HEADER + size
            if stop > end:
                break
            payloads.append(data[start + HEADER : stop])
            start = stop
        self._rest = data[start:]
        return payloads
