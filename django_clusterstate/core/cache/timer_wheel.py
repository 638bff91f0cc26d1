"""A timer wheel's buckets: keys of one namespace that are due at the same time."""

import math
from collections import OrderedDict
from typing import Final

# A bucket of the timer wheel is a second wide, or 1/64 to 1/128 of its entries' ttl if that is more. So there are never
# more than about 130 due times per doubling of the ttl (2,500 for ttls from a second to a year), and a dead entry's
# memory is held at most 1.6 % of its ttl longer. Readers never see it: `get` compares the exact time.
_BUCKET_BITS: Final = 7

_FOR_EVER: Final = 2.0**1000  # later due times count as none, so that rounding one up always gives a float


class Space:
    """A namespace from its first entry to its last, or to clear(), where one flag makes all its entries absent."""

    __slots__ = ("buckets", "cleared", "filling", "name", "serial", "spare")

    def __init__(self, name: bytes, serial: int) -> None:
        self.name = name
        self.serial = serial
        self.cleared = False
        # By serial. Ordered, since a plain dict can't give its first item in O(1) once others before it are deleted.
        self.buckets: OrderedDict[int, Bucket] = OrderedDict()
        # By due time: the bucket that takes new keys, and others that were full and aren't any more. Those are filled
        # again before another is opened, so there are no more than the keys at their most have needed.
        self.filling: dict[float, Bucket] = {}
        self.spare: dict[float, dict[int, Bucket]] = {}


class Bucket:
    """Keys of one namespace that are dead at `due`: a whole second, or infinity. Never empty for longer than a call."""

    __slots__ = ("due", "keys", "serial", "space")

    def __init__(self, space: Space, due: float, serial: int) -> None:
        self.space = space
        self.due = due
        self.serial = serial
        # A set, but that the garbage collector would go through a million keys in sets for 40 ms. It leaves dicts of
        # plain values alone.
        self.keys: dict[bytes, None] = {}


def due_of(expires: float, now: float) -> float:
    """When the bucket of an entry that expires then is due."""
    if expires >= _FOR_EVER:
        return math.inf
    shift = int(expires - now).bit_length() - _BUCKET_BITS
    return int(expires) + 1 if shift <= 0 else ((int(expires) >> shift) + 1) << shift
