"""The most frequent keys of a stream, in bounded memory, over the last minutes.

Space-Saving: Metwally, Agrawal and El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data Streams"
(2005). A new key takes over the count of the one that is dropped for it. Here half of the keys are dropped at once,
which costs O(log capacity) for each key, amortized.
"""

from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K")


class KeyCount(NamedTuple, Generic[K]):
    """How often a key occurred: `times` at most, `times - error` at least."""

    key: K
    times: int
    error: int


def merged(counts: Iterable[KeyCount[K]]) -> list[KeyCount[K]]:
    """One count for each key from several counts of the same keys, the most frequent first."""
    sums: dict[K, KeyCount[K]] = {}
    for key, times, error in counts:
        total = sums.get(key, KeyCount(key, 0, 0))
        sums[key] = KeyCount(key, total.times + times, total.error + error)
    return sorted(sums.values(), key=lambda count: count.times, reverse=True)


class SpaceSaving(Generic[K]):
    """Counts of at most `2 * capacity` keys. A key that makes up more than 1 / capacity of the stream is among them."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._counts: dict[K, list[int]] = {}  # [times, error]
        self._floor = 0  # the most that a key that isn't counted can have occurred

    @property
    def keys(self) -> Iterable[K]:
        return self._counts.keys()

    def add(self, key: K, times: int = 1) -> None:
        found = self._counts.get(key)
        if found is not None:
            found[0] += times
            return
        if len(self._counts) >= 2 * self._capacity:
            self._drop_half()
        self._counts[key] = [self._floor + times, self._floor]

    def _drop_half(self) -> None:
        ranked = sorted(self._counts.items(), key=lambda item: item[1][0], reverse=True)
        self._counts = dict(ranked[: self._capacity])
        self._floor = ranked[self._capacity][1][0]

    def count(self, key: K) -> KeyCount[K]:
        """The count of a key. One that was dropped may have occurred as often as any other dropped key."""
        times, error = self._counts.get(key, (self._floor, self._floor))
        return KeyCount(key, times, error)


class TopKeys(Generic[K]):
    """The most frequent keys since the last `rotate()` but one."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._current: SpaceSaving[K] = SpaceSaving(capacity)
        self._previous: SpaceSaving[K] = SpaceSaving(capacity)

    def add(self, key: K, times: int = 1) -> None:
        self._current.add(key, times)

    def rotate(self) -> None:
        """Forgets the keys that were added before the last rotation."""
        self._previous, self._current = self._current, SpaceSaving(self._capacity)

    def top(self, number: int) -> list[KeyCount[K]]:
        """At most `number` keys, the most frequent first."""
        keys = dict.fromkeys((*self._current.keys, *self._previous.keys))
        return merged(period.count(key) for key in keys for period in (self._current, self._previous))[:number]
