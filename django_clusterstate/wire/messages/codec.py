"""Messages to bytes and back, as msgpack."""

from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from ..framing import frame
from .fields import MAX_KEY_BYTES, Message
from .replies import Reply
from .requests import Get, Request

# All that decoding raises: msgspec doesn't wrap the last two.
DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# Classes that msgspec encodes, but not their subclasses. A datetime is a date as well, so it comes first.
_BASES: tuple[Any, ...] = (datetime, date, time, timedelta, Decimal)


def without_subclass(value: Any) -> Any:
    """The same value as an instance of the class that msgspec can encode: a template's `SafeString` as `str`.

    For `enc_hook`: msgspec calls it only for values that it can't encode, so other values cost nothing. Raises
    `TypeError` for a value of any other class.
    """
    # The methods of the base classes, since a subclass may override its own.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, bytes):
        return bytes(memoryview(value))
    for base in _BASES:
        if isinstance(value, base):
            return base(*base.__reduce__(value)[1])
    kind = type(value)
    raise TypeError(f"{kind.__module__}.{kind.__qualname__} cannot be encoded as msgpack")


encode: Callable[[Message], bytes] = msgspec.msgpack.Encoder(enc_hook=without_subclass).encode
decode_request: Callable[[bytes], Request] = msgspec.msgpack.Decoder(Request).decode
decode_reply: Callable[[memoryview | bytes], Reply] = msgspec.msgpack.Decoder(Reply).decode


def request_frame(request: Request) -> bytes:
    """The frame of a request. Raises `ValueError` if it is longer than a request may be."""
    return frame(encode(request))


# The first bytes of a frame with a `Get` of one key, by the length of the key: building them is half of the work.
_GET_PREFIXES = [request_frame(Get([bytes(size)])).removesuffix(bytes(size)) for size in range(MAX_KEY_BYTES + 1)]


def get_frame(key: bytes) -> bytes:
    """`request_frame(Get([key]))`, faster. The key has at most `MAX_KEY_BYTES` bytes."""
    return _GET_PREFIXES[len(key)] + key
