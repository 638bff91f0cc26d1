"""msgpack encoding of users' values, for channel messages and for the cache's serializer "msgpack"."""

from collections.abc import Callable
from typing import Any

import msgspec
from django.utils.functional import Promise

from .wire import messages as wire


def _plain(value: Any) -> Any:
    """A lazy translation as text, an instance of a subclass of a built-in type as that type."""
    return str(value) if isinstance(value, Promise) else wire.without_subclass(value)


# Raises `TypeError` for a value that msgpack has no form for, `OverflowError` for an integer beyond 64 bits.
to_msgpack: Callable[[Any], bytes] = msgspec.msgpack.Encoder(enc_hook=_plain).encode
