"""What messages are made of: their base, and the types of their fields with the bounds that decoding holds them to."""

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ...core.event_counts import MAX_NAME
from ...core.limits.algorithms import Rule

MAX_KEY_BYTES = 1024

# All that decoding raises: the last two are not wrapped by msgspec.
DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# In one request. Decoding alone takes 0.2 ms for so many, and 15 ms for the 30,000 that a frame has room for.
MAX_KEYS = 1000

Key = Annotated[bytes, Meta(max_length=MAX_KEY_BYTES)]
Keys = Annotated[list[Key], Meta(max_length=MAX_KEYS)]
Namespace = Annotated[bytes, Meta(max_length=256)]
ChannelName = Annotated[str, Meta(max_length=100)]
Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Value = bytes | Integer
Cursor = tuple[float, Integer]
Seconds = Annotated[float, Meta(ge=0)]
Rules = Annotated[list[Rule], Meta(min_length=1, max_length=16)]
EventName = Annotated[str, Meta(max_length=MAX_NAME)]
Cost = Annotated[int, Meta(ge=0, le=2**31)]


# What msgspec encodes only if it is of this very class. A datetime is a date as well, so it comes first.
_REBUILT: tuple[Any, ...] = (datetime, date, time, timedelta, Decimal)


def without_subclass(value: Any) -> Any:
    """The same value as an instance of the class that msgspec knows: a template's `SafeString` as text, for example.

    msgspec calls this (as `enc_hook`) for what it doesn't know, so other values cost nothing. The methods are those of
    the base classes, since a subclass may have redefined its own. Raises `TypeError` for anything else.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, bytes):
        return bytes(memoryview(value))
    for base in _REBUILT:
        if isinstance(value, base):
            return base(*base.__reduce__(value)[1])
    kind = type(value)
    raise TypeError(f"{kind.__module__}.{kind.__qualname__} can't be encoded as msgpack")


class Message(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", gc=False):  # none is in a cycle
    """The base of all. Encoded as an array whose first item is the tag; unknown further items are ignored."""
