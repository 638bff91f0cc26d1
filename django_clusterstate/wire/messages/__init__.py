"""Every message between a requester and a node, and between nodes.

A connection carries requests one way and one reply for each the other way, in the same order; `Deliver` and `Forward`
have no reply, and the replies to `Receive` come when there is something to receive. Each reply carries the epoch of
the answering node's view, by which a requester notices that its own is old.

Keys are `namespace`, a zero byte, and the rest. Values are opaque to the node, except integers, which it can add to.
Durations are seconds; no timestamp crosses the wire, since hosts' clocks differ.
"""

from collections.abc import Callable

import msgspec

from ..framing import frame
from .fields import DECODE_ERRORS, MAX_KEY_BYTES, MAX_KEYS, Message, Value, without_subclass
from .replies import (
    CHANNEL_FULL,
    NOT_AN_INTEGER,
    REPLY_TOO_LONG,
    DecisionsReply,
    DoneReply,
    EntryReply,
    EventNamesReply,
    EventReply,
    FailedReply,
    FlagsReply,
    LimitsReply,
    NumberReply,
    PongReply,
    ReceiveReply,
    Reply,
    ReportReply,
    ScanReply,
    StatusReply,
    TtlValuesReply,
    ValuesReply,
    ViewReply,
)
from .requests import (
    Clear,
    Delete,
    Deliver,
    FindLimits,
    Flush,
    Forward,
    Get,
    GetEntry,
    GetEvents,
    GetReport,
    GetStatus,
    GetView,
    GetWithTtl,
    GroupAdd,
    GroupDiscard,
    GroupSend,
    Hit,
    Incr,
    Peek,
    Ping,
    Receive,
    Refund,
    Request,
    Reset,
    Scan,
    Send,
    Set,
    Touch,
    Track,
    channel_tag,
    tag_of,
)

__all__ = [
    "CHANNEL_FULL",
    "DECODE_ERRORS",
    "MAX_KEYS",
    "MAX_KEY_BYTES",
    "NOT_AN_INTEGER",
    "REPLY_TOO_LONG",
    "Clear",
    "DecisionsReply",
    "Delete",
    "Deliver",
    "DoneReply",
    "EntryReply",
    "EventNamesReply",
    "EventReply",
    "FailedReply",
    "FindLimits",
    "FlagsReply",
    "Flush",
    "Forward",
    "Get",
    "GetEntry",
    "GetEvents",
    "GetReport",
    "GetStatus",
    "GetView",
    "GetWithTtl",
    "GroupAdd",
    "GroupDiscard",
    "GroupSend",
    "Hit",
    "Incr",
    "LimitsReply",
    "Message",
    "NumberReply",
    "Peek",
    "Ping",
    "PongReply",
    "Receive",
    "ReceiveReply",
    "Refund",
    "Reply",
    "ReportReply",
    "Request",
    "Reset",
    "Scan",
    "ScanReply",
    "Send",
    "Set",
    "StatusReply",
    "Touch",
    "Track",
    "TtlValuesReply",
    "Value",
    "ValuesReply",
    "ViewReply",
    "channel_tag",
    "decode_reply",
    "decode_request",
    "encode",
    "get_frame",
    "tag_of",
    "without_subclass",
]

encode: Callable[[Message], bytes] = msgspec.msgpack.Encoder(enc_hook=without_subclass).encode
# What frames of a `Get` of one key begin with, by the length of the key: made only once, they are half of the work.
_GET_BEGINS = [frame(encode(Get([bytes(size)])))[: -size or None] for size in range(MAX_KEY_BYTES + 1)]


def get_frame(key: bytes) -> bytes:
    """`frame(encode(Get([key])))`, for a key that isn't longer than it may be."""
    return _GET_BEGINS[len(key)] + key


decode_request: Callable[[bytes], Request] = msgspec.msgpack.Decoder(Request).decode
decode_reply: Callable[[memoryview | bytes], Reply] = msgspec.msgpack.Decoder(Reply).decode
