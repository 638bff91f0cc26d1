"""What nodes send each other about copies (`core.replication`), as msgpack within `Replicate`."""

from typing import Any

import msgspec

from ...core.replication.messages import Message as CopiesMessage
from ...core.replication.slots import SlotSet


def _encode_slots(value: Any) -> bytes:
    if isinstance(value, SlotSet):
        return value.to_bytes()
    raise TypeError(f"{type(value).__qualname__} cannot be encoded as msgpack")


def _decode_slots(kind: type, value: Any) -> Any:
    if kind is not SlotSet or not isinstance(value, bytes):
        raise TypeError(f"{kind.__qualname__} cannot be decoded from {type(value).__qualname__}")
    return SlotSet.from_bytes(value)


encode_copies = msgspec.msgpack.Encoder(enc_hook=_encode_slots).encode
_decode = msgspec.msgpack.Decoder(CopiesMessage, dec_hook=_decode_slots).decode


def decode_copies(data: bytes) -> CopiesMessage:
    """The message in a `Replicate`. Raises one of `DECODE_ERRORS`."""
    message: CopiesMessage = _decode(data)
    return message
