"""What expires when, so that whoever frees it looks at nothing else. Pure; times are monotonic seconds."""

from collections.abc import Hashable
from heapq import heappop, heappush
from typing import Generic, TypeVar

from .cache.timer_wheel import due_of

K = TypeVar("K", bound=Hashable)


class Expiry(Generic[K]):
    """Keys, each with a time, in the buckets of a timer wheel.

    A key is due at most `resolution` seconds after its time, or 1.6 % of the seconds until then if that is more. Each
    operation costs O(1), amortised.
    """

    __slots__ = ("_buckets", "_due", "_dues", "_per_second")

    def __init__(self, resolution: float = 1.0) -> None:
        self._per_second = 1 / resolution
        self._due: dict[K, float] = {}
        self._buckets: dict[float, dict[K, None]] = {}  # by due time; an empty one stays until that
        self._dues: list[float] = []  # a heap

    def __len__(self) -> int:
        return len(self._due)

    def set(self, key: K, expires: float, now: float) -> None:
        """From now on the key's time is this one."""
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
            heappush(self._dues, due)
        bucket[key] = None

    def discard(self, key: K) -> None:
        due = self._due.pop(key, None)
        if due is not None:
            del self._buckets[due][key]

    def pop(self, now: float) -> K | None:
        """A key that is due, which is forgotten by this; None if there is none."""
        while self._dues and self._dues[0] <= now:
            bucket = self._buckets[self._dues[0]]
            if bucket:
                key, _ = bucket.popitem()
                del self._due[key]
                return key
            del self._buckets[heappop(self._dues)]
        return None
