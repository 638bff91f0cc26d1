"""The most frequent keys of a stream, in bounded memory, over the last minutes.

After Metwally, Agrawal and El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data Streams" (2005):
a key that comes in takes over the count of what was dropped for it. Here half of the keys are dropped at once, which
costs O(log capacity) a key, amortised.
"""

from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K")


class KeyCount(NamedTuple, Generic[K]):
    """A key and how often it came: `times` at most, `times - error` at least."""

    key: K
    times: int
    error: int


def merged(counted: Iterable[KeyCount[K]]) -> list[KeyCount[K]]:
    """What several counted of the same keys, as one: the most frequent first."""
    sums: dict[K, tuple[int, int]] = {}
    for key, times, error in counted:
        all_times, all_errors = sums.get(key, (0, 0))
        sums[key] = (all_times + times, all_errors + error)
    whole = (KeyCount(key, *of) for key, of in sums.items())
    return sorted(whole, key=lambda one: one.times, reverse=True)


class Sketch(Generic[K]):
    """Counts of at most `2 * capacity` keys. A key that makes up more than 1 / capacity of the stream is in it."""

    __slots__ = ("_capacity", "_counts", "_floor")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._counts: dict[K, list[int]] = {}  # [count, error]
        self._floor = 0  # a key that isn't here came so often at most

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

    def keys(self) -> Iterable[K]:
        return self._counts.keys()

    def of(self, key: K) -> KeyCount[K]:
        """A key that isn't kept may have come as often as any that was dropped."""
        times, error = self._counts.get(key, (self._floor, self._floor))
        return KeyCount(key, times, error)


class TopKeys(Generic[K]):
    """The most frequent keys since the last `turn()` but one: of one to two such spans."""

    __slots__ = ("_before", "_capacity", "_now")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._now: Sketch[K] = Sketch(capacity)
        self._before: Sketch[K] = Sketch(capacity)

    def add(self, key: K, times: int = 1) -> None:
        self._now.add(key, times)

    def turn(self) -> None:
        """Forgets what came before the last turn."""
        self._before, self._now = self._now, Sketch(self._capacity)

    def most(self, number: int) -> list[KeyCount[K]]:
        """The first so many, the most frequent first."""
        keys = dict.fromkeys((*self._now.keys(), *self._before.keys()))
        return merged(span.of(key) for key in keys for span in (self._now, self._before))[:number]
