"""The base class of messages, and the types of their fields with the bounds that decoding enforces."""

from typing import Annotated

import msgspec
from msgspec import Meta

from ...core.cache import entry_keys
from ...core.event_counts import MAX_NAME
from ...core.limits.algorithms import Rule

MAX_KEY_BYTES = entry_keys.MAX_BYTES
MAX_KEYS = 1000  # in one request: they decode in 0.2 ms, but 30,000, for which a frame has room, in 15 ms

Key = Annotated[bytes, Meta(max_length=MAX_KEY_BYTES)]
Keys = Annotated[list[Key], Meta(max_length=MAX_KEYS)]
MoreKeys = Annotated[tuple[Key, ...], Meta(max_length=MAX_KEYS)]
NamespaceName = Annotated[bytes, Meta(max_length=256)]
ChannelName = Annotated[str, Meta(max_length=100)]
INT64 = range(-(2**63), 2**63)
Integer = Annotated[int, Meta(ge=INT64[0], le=INT64[-1])]
Value = bytes | Integer
Version = Annotated[int, Meta(ge=0, le=2**63 - 1)]  # 0: none
ScanCursor = tuple[float, Integer]
Seconds = Annotated[float, Meta(ge=0)]
Rules = Annotated[list[Rule], Meta(min_length=1, max_length=16)]
OptionalEventName = Annotated[str, Meta(max_length=MAX_NAME)]
Cost = Annotated[int, Meta(ge=0, le=2**31)]


class Message(msgspec.Struct, frozen=True, array_like=True, tag_field="kind", gc=False):  # no message is in a cycle
    """The base of all messages. Encoded as an array that begins with the tag; unknown items at the end are ignored."""
