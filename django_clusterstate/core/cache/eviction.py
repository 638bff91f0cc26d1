"""The entries of a store in the order in which they are evicted."""

from array import array
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from mmh3 import hash as hash_of

from ..replication.slots import SlotSet
from .lru import Lru, Used


class Evictable(Used, Protocol):
    copied: bool


E = TypeVar("E", bound=Evictable)


class EvictionOrder(Generic[E]):
    """Copies go first, in the order in which they came, which is that of the writes at their owner; then the entries
    that are used here, the least recently used first, or nearly: see `lru`. Otherwise a node would keep no copy for
    long, whatever is used at its owner.
    """

    def __init__(self, by_slot: "array[int] | None" = None) -> None:
        self.used: Lru[E] = Lru(by_slot)
        self.copies: Lru[E] = Lru(self.used.by_slot)

    def __len__(self) -> int:
        return self.used.count + self.copies.count

    def get(self, key: bytes) -> E | None:
        used = self.used
        entry = used.shards[hash_of(key) & used.mask].get(key)  # Lru.get() inlined: writes take a third longer with it
        return self.copies.get(key) if entry is None and self.copies.count else entry

    def __getitem__(self, key: bytes) -> E:
        return self.used[key] if key in self.used else self.copies[key]

    def add(self, entry: E, now: float) -> None:
        """Adds a new entry as the most recently used one, or the last that was copied."""
        lru = self.copies if entry.copied else self.used
        entry.used = lru.coarse(now)
        lru.add(entry)

    def use(self, entry: E, now: float, copied: bool = False) -> None:
        """Makes an entry the most recently used one, or the last that was copied."""
        if entry.copied is copied:
            (self.copies if copied else self.used).use(entry, now)
            return
        self.pop(entry)
        entry.copied = copied
        self.add(entry, now)

    def pop(self, entry: E) -> None:
        (self.copies if entry.copied else self.used).pop(entry.key)

    def pop_oldest(self, now: float) -> E:
        """Removes and returns the entry that is evicted next. There must be one."""
        return (self.copies if self.copies.count else self.used).pop_oldest(now)

    def keys(self, slots: SlotSet) -> Iterator[list[bytes]]:
        """The keys in these slots, in portions. Entries may come and go meanwhile."""
        yield from self.copies.keys(slots)
        yield from self.used.keys(slots)
