"""The entries of a node's cache as replication sees them."""

from collections.abc import Iterator
from itertools import chain
from typing import Final

from ..replication.messages import Record
from ..replication.slots import SlotSet
from .entry_keys import MAX_BYTES, slot_of_entry
from .quotas import CacheStores

_INT64: Final = range(-(2**63), 2**63)


class CacheCopies:
    """The `Store` of all the stores of a cache. A record's value is that of the entry."""

    merges = False

    def __init__(self, kind: int, stores: CacheStores) -> None:
        self.kind = kind
        self._stores = stores

    @property
    def generation(self) -> int:
        return self._stores.generation

    @generation.setter
    def generation(self, generation: int) -> None:
        self._stores.generation = generation

    @property
    def floor(self) -> int:
        return max(store.floor for store in self._stores.all)

    def slot(self, key: bytes) -> int:
        return slot_of_entry(key)

    def version(self, key: bytes) -> int:
        return self._stores.of(key).version(key)

    def record(self, key: bytes, now: float) -> Record:
        store = self._stores.of(key)
        state = store.state(key, now)
        version = store.version(key)
        return Record(self.kind, key, version) if state is None else Record(self.kind, key, version, *state)

    def check(self, record: Record) -> None:
        if len(record.key) > MAX_BYTES:
            raise ValueError(f"the key of a copied entry has {len(record.key)} bytes, more than {MAX_BYTES}")
        value, ttl = record.value, record.ttl
        if not (value is None or type(value) is bytes or (type(value) is int and value in _INT64)):
            raise ValueError(f"the value of a copied entry is neither bytes nor a 64-bit integer: {value!r:.60}")
        if ttl is not None and not ttl > 0:
            raise ValueError(f"the ttl of a copied entry is {ttl}, not greater than 0")

    def put(self, record: Record, now: float) -> None:
        self._stores.of(record.key).put(record.key, record.value, record.ttl, record.version, now)

    def confirm(self, key: bytes) -> None:
        self._stores.of(key).confirm(key)

    def merged(self, record: Record, now: float) -> Record | None:
        return None

    def drop(self, key: bytes) -> None:
        self._stores.of(key).drop(key)

    def forget(self, slots: SlotSet) -> None:
        for store in self._stores.all:
            store.forget(slots)

    def keys(self, slots: SlotSet) -> Iterator[list[bytes]]:
        return chain.from_iterable(store.keys(slots) for store in self._stores.all)

    def clear(self, namespace: bytes, version: int, now: float) -> None:
        self._stores.of(namespace).clear(namespace, now, version)
