"""The keys of cache entries, `b"namespace\\0rest"`, and of what is kept beside an entry.

An auxiliary key has a zero byte where no user's key begins, and then the slot of its entry: so both have one owner.
"""

import hashlib
from typing import Final

from ..rendezvous_hashing import slot_of

MAX_BYTES: Final = 1024  # of a key
DOUBLE: Final = b"\0\0"  # in each auxiliary key, and hardly any other


def auxiliary_key(key: bytes, kind: bytes) -> bytes:
    """The key of what is kept beside the entry `key`, in its namespace: `kind` is `b"lease"`, say."""
    namespace, _, rest = key.partition(b"\0")
    prefix = b"%b\0\0%b%b\0" % (namespace, slot_of(key).to_bytes(2, "big"), kind)
    if len(prefix) + len(rest) > MAX_BYTES:
        rest = hashlib.blake2b(rest, digest_size=32).digest()
    return prefix + rest


def slot_of_entry(key: bytes) -> int:
    """The slot of an entry, or of the entry that an auxiliary key belongs to."""
    mark = key.find(DOUBLE)
    if mark >= 0 and mark == key.find(b"\0"):
        return int.from_bytes(key[mark + 2 : mark + 4], "big")
    return slot_of(key)
