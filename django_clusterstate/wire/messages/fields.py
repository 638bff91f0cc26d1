"""What messages are made of: their base, and the types of their fields with the bounds that decoding holds them to."""

from typing import Annotated

import msgspec
from msgspec import Meta

from ...core.events import MAX_NAME
from ...core.limiter import Rule

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


class Message(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", gc=False):  # none is in a cycle
    """The base of all. Encoded as an array whose first item is the tag; unknown further items are ignored."""
