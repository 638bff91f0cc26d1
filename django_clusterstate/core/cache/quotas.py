"""The stores of a node's cache: one for each namespace with a quota, and one that all others share."""

from collections.abc import Iterable, Mapping
from itertools import compress
from typing import TypeAlias

from .store import CacheStore

Value: TypeAlias = bytes | int


class CacheStores:
    """Each namespace in `own` has the store given there; all others share one. All have the same `by_slot`.

    `get(key, now)` is that of the key's store. `all`: the stores, the shared one first.
    """

    def __init__(self, shared: CacheStore[Value], own: Mapping[bytes, CacheStore[Value]]) -> None:
        self._shared = shared
        self._own = own
        self.all = [shared, *own.values()]
        self.get = self._get if own else shared.get  # a read takes no time to find the only store

    def of(self, key: bytes) -> CacheStore[Value]:
        """The store of a key, of a prefix that includes the zero byte, or of a namespace."""
        return self._own.get(key.partition(b"\0")[0], self._shared) if self._own else self._shared

    def _get(self, key: bytes, now: float) -> Value | None:
        return self.of(key).get(key, now)

    def clear_all(self, now: float) -> None:
        for store in self.all:
            store.clear_all(now)

    @property
    def generation(self) -> int:
        """That of each store."""
        return self._shared.generation

    @generation.setter
    def generation(self, generation: int) -> None:
        for store in self.all:
            store.generation = generation

    def expire(self, now: float, budget: int) -> int:
        left = budget
        for store in self.all:
            left -= store.expire(now, left)
        return budget - left

    def owned(self, owns: Iterable[int]) -> int:
        """The number of entries in the slots whose flag isn't 0. Costs about a millisecond."""
        return sum(compress(self._shared.by_slot, owns))

    @property
    def entries(self) -> int:
        return sum(store.entries for store in self.all)

    @property
    def bytes(self) -> int:
        return sum(store.bytes for store in self.all)

    @property
    def evictions(self) -> int:
        return sum(store.evictions for store in self.all)

    @property
    def copies_evicted(self) -> int:
        return sum(store.copies_evicted for store in self.all)
