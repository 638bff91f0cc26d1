"""The entries of a store in the order in which they are evicted."""

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

    def __init__(self) -> None:
        self.used: Lru[E] = Lru()
        self.copies: Lru[E] = Lru()

    def __len__(self) -> int:
        return self.used.count + self.copies.count

    def get(self, key: bytes) -> E | None:
        used = self.used
        entry = used.shards[hash_of(key) & used.mask].get(key)  # Lru.get() inlined: writes take a third longer with it
        return self.copies.get(key) if entry is None and self.copies.count else entry

    def __getitem__(self, key: bytes) -> E:
        return self.used[key] if key in self.used else self.copies[key]

    def coarse(self, now: float, copied: bool) -> float:
        """The time of use of an entry that is used, or copied, at `now`."""
        return self._lru(copied).coarse(now)

    def add(self, entry: E) -> None:
        self._lru(entry.copied).add(entry)

    def use(self, entry: E, now: float, copied: bool = False) -> None:
        """Makes an entry the most recently used one, or the last that was copied."""
        if entry.copied is copied:
            self._lru(copied).use(entry, now)
            return
        self.pop(entry)
        entry.copied, entry.used = copied, self.coarse(now, copied)
        self.add(entry)

    def pop(self, entry: E) -> None:
        self._lru(entry.copied).pop(entry.key)

    def pop_oldest(self, now: float) -> E:
        """Removes and returns the entry that is evicted next. There must be one."""
        return self._lru(self.copies.count > 0).pop_oldest(now)

    def keys(self, slots: SlotSet) -> Iterator[list[bytes]]:
        """The keys in these slots, in portions, nearly in this order. Entries may come and go meanwhile."""
        yield from self.copies.keys(slots)
        yield from self.used.keys(slots)

    def _lru(self, copied: bool) -> Lru[E]:
        return self.copies if copied else self.used
