"""When keys expire, in the buckets of a timer wheel. Pure; times are monotonic seconds."""

import math
from collections.abc import Hashable
from heapq import heappop, heappush
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

# A bucket of the timer wheel is a second wide, or 1/64 to 1/128 of the ttl if that is more. So there are never more
# than about 130 due times per doubling of the ttl (2,500 for ttls from a second to a year), and the memory of an
# expired entry is held at most 1.6 % of its ttl longer. Readers never see it: they compare the exact time.
_BUCKET_BITS: Final = 7

_NEVER: Final = 2.0**1000  # later times count as none, so that rounding one up always gives a float


def due_of(expires: float, now: float) -> float:
    """When the bucket of an entry that expires at `expires` is due: then or soon after, as a whole number; or never."""
    if expires >= _NEVER:
        return math.inf
    shift = int(expires - now).bit_length() - _BUCKET_BITS
    if shift <= 0:
        return int(expires) + 1
    return ((int(expires) >> shift) + 1) << shift


class Expiry(Generic[K]):
    """Keys, each with a time, in the buckets of a timer wheel.

    A key is due at most `resolution` seconds after its time, or 1.6 % of the seconds until then if that is more. Each
    operation costs O(1), amortized.
    """

    def __init__(self, resolution: float = 1.0) -> None:
        self._per_second = 1 / resolution
        self._due: dict[K, float] = {}
        self._buckets: dict[float, dict[K, None]] = {}  # by due time; an empty one stays until that
        self._heap: list[float] = []  # due times

    def __len__(self) -> int:
        return len(self._due)

    def set(self, key: K, expires: float, now: float) -> None:
        """Sets the time at which the key expires, in place of the one that was set before."""
        due = due_of(expires * self._per_second, now * self._per_second) / self._per_second
        before = self._due.get(key)
        if before == due:
            return
        if before is not None:
            del self._buckets[before][key]
        self._due[key] = due
        bucket = self._buckets.get(due)
        if bucket is None:
            bucket = self._buckets[due] = {}
            heappush(self._heap, due)
        bucket[key] = None

    def discard(self, key: K) -> None:
        """Forgets a key, if it is known."""
        due = self._due.pop(key, None)
        if due is not None:
            del self._buckets[due][key]

    def pop(self, now: float) -> K | None:
        """Forgets a key that is due, and returns it; None if none is due."""
        while self._heap and self._heap[0] <= now:
            bucket = self._buckets[self._heap[0]]
            if bucket:
                key, _ = bucket.popitem()
                del self._due[key]
                return key
            del self._buckets[heappop(self._heap)]
        return None
