"""The cache of a node in which some namespaces have quotas."""

from collections.abc import Mapping

from ..core.cache.namespaces import Cursor
from ..core.cache.store import CacheStore
from ..wire.messages import Value


class QuotaStore:
    """Has the interface of `CacheStore`. Each namespace in `own` has the store given there; all others share one."""

    def __init__(self, shared: CacheStore[Value], own: Mapping[bytes, CacheStore[Value]]) -> None:
        self._shared = shared
        self._own = own
        self._all = [shared, *own.values()]

    def _of(self, key: bytes) -> CacheStore[Value]:
        return self._own.get(key.partition(b"\0")[0], self._shared)

    def get(self, key: bytes, now: float) -> Value | None:
        return self._of(key).get(key, now)

    def peek(self, key: bytes, now: float) -> tuple[Value, float | None] | None:
        return self._of(key).peek(key, now)

    def set(self, key: bytes, value: Value, ttl: float | None, now: float) -> bool:
        return self._of(key).set(key, value, ttl, now)

    def add(self, key: bytes, value: Value, ttl: float | None, now: float) -> bool:
        return self._of(key).add(key, value, ttl, now)

    def replace(self, key: bytes, value: Value, now: float) -> bool:
        return self._of(key).replace(key, value, now)

    def touch(self, key: bytes, ttl: float | None, now: float) -> bool:
        return self._of(key).touch(key, ttl, now)

    def delete(self, key: bytes, now: float) -> bool:
        return self._of(key).delete(key, now)

    def scan(self, prefix: bytes, cursor: Cursor | None, now: float) -> tuple[list[bytes], Cursor | None]:
        return self._of(prefix).scan(prefix, cursor, now)

    def clear(self, namespace: bytes, now: float) -> None:
        self._of(namespace).clear(namespace, now)

    def clear_all(self, now: float) -> None:
        for store in self._all:
            store.clear_all(now)

    def expire(self, now: float, budget: int) -> int:
        left = budget
        for store in self._all:
            left -= store.expire(now, left)
        return budget - left

    @property
    def generation(self) -> int:
        return self._shared.generation

    @generation.setter
    def generation(self, generation: int) -> None:
        for store in self._all:
            store.generation = generation

    @property
    def entries(self) -> int:
        return sum(store.entries for store in self._all)

    @property
    def bytes(self) -> int:
        return sum(store.bytes for store in self._all)

    @property
    def evictions(self) -> int:
        return sum(store.evictions for store in self._all)
