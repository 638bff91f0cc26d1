"""Entries by key, of which the least recently used one, or nearly, can be found.

Times of use are read from a coarse clock: an entry that is read again before the clock moves on stays in its place
(Memcached does so for a minute, its ITEM_UPDATE_INTERVAL). To move an entry touches its neighbors, and where they
aren't in the processor's cache, that is most of what a read costs. Entries with one time of use also share that number,
which saves each 32 bytes.

A dict that grows is copied in one go, an ordered one of 700,000 entries in 75 ms. A large map is therefore kept in
shards, by the hash that also gives the slot of the key, each in the order of use; the oldest of a few shards' oldest
entries is nearly the oldest of all. A small map is one dict, where the order is exact and an eviction compares nothing.
"""

import math
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from operator import attrgetter
from typing import Final, Generic, Protocol, TypeVar

from mmh3 import hash as hash_of

from ..rendezvous_hashing import SLOTS, slot_of
from ..replication.slots import GROUPS, SlotSet
from ..replication.stores import portions
from .entry_keys import DOUBLE, slot_of_entry

SHARDS: Final = GROUPS
_SLOT_MASK: Final = SLOTS - 1
# Entries. With fewer than 1024, the oldest of one shard says little about the others. Either step takes a millisecond.
MERGE_BELOW: Final = 1024
SPLIT_FROM: Final = 4096

# Shards compared for an eviction. An odd number, so that each round compares other groups: fixed groups would lose as
# many entries each, whatever they gain, and drift apart in size.
COMPARED: Final = 3

RESOLUTION: Final = 1.0  # seconds of the coarse clock, at most
_LIFETIME_PART: Final = 16  # the resolution is at most this part of the age at which entries are evicted


class Used(Protocol):
    key: bytes
    used: float
    """The coarse time of its last use."""


E = TypeVar("E", bound=Used)


class Lru(Generic[E]):
    """A map from keys to entries, in the order of use. A present key is in `shards[hash_of(key) & mask]`.

    `coarse_now`: the time of the coarse clock, in seconds of `now`, which never goes backwards. `resolution`: the
    seconds after which the coarse clock advances. `by_slot`: the number of entries in each slot, which maps may share.
    """

    def __init__(self, by_slot: "array[int] | None" = None) -> None:
        self.by_slot = array("I", [0]) * SLOTS if by_slot is None else by_slot
        # The least recently used first. All are created here: objects that exist when a node starts are frozen, so the
        # garbage collector never visits them.
        self._one: list[OrderedDict[bytes, E]] = [OrderedDict()]
        self._many: list[OrderedDict[bytes, E]] = [OrderedDict() for _ in range(SHARDS)]
        self.shards, self.mask = self._one, 0
        # The keys that may not be in the shard of their slot, by the group of that.
        self._doubles: list[dict[bytes, None]] = [{} for _ in range(GROUPS)]
        self.coarse_now = -math.inf
        self.resolution = RESOLUTION
        self._hand = 0
        self.count = 0

    def coarse(self, now: float) -> float:
        """The coarse time of `now`."""
        if now - self.coarse_now >= self.resolution:
            self.coarse_now, self.resolution = now, RESOLUTION
        return self.coarse_now

    def add(self, entry: E) -> None:
        """Adds a new entry as the most recently used one."""
        key = entry.key
        slot = hash_of(key) & _SLOT_MASK
        self.shards[slot & self.mask][key] = entry
        if DOUBLE in key:
            slot = slot_of_entry(key)
            self._doubles[slot % GROUPS][key] = None
        self.by_slot[slot] += 1
        self.count += 1
        if self.count >= SPLIT_FROM and not self.mask:
            self._move_to(self._many)

    def use(self, entry: E, now: float) -> None:
        """Makes an entry the most recently used one."""
        self.shards[hash_of(entry.key) & self.mask].move_to_end(entry.key)
        entry.used = self.coarse(now)

    def get(self, key: bytes) -> E | None:
        return self.shards[hash_of(key) & self.mask].get(key)

    def pop(self, key: bytes) -> E:
        slot = hash_of(key) & _SLOT_MASK
        entry = self.shards[slot & self.mask].pop(key)
        if DOUBLE in key:
            slot = slot_of_entry(key)
            del self._doubles[slot % GROUPS][key]
        self.by_slot[slot] -= 1
        self.count -= 1
        if self.count < MERGE_BELOW and self.mask:
            self._move_to(self._one)
        return entry

    def pop_oldest(self, now: float) -> E:
        """Removes and returns the least recently used entry of COMPARED shards. There must be one.

        Refines the coarse clock if entries are evicted early, so that an entry that is read often isn't evicted.
        """
        oldest: E | None = None
        compared = 0
        for _ in self.shards:
            self._hand = (self._hand + 1) & self.mask
            shard = self.shards[self._hand]
            if not shard:
                continue
            entry = next(iter(shard.values()))
            if oldest is None or entry.used < oldest.used:
                oldest = entry
            compared += 1
            if compared == COMPARED:
                break
        assert oldest is not None
        self.resolution = min(RESOLUTION, (now - oldest.used) / _LIFETIME_PART)
        return self.pop(oldest.key)

    def keys(self, slots: SlotSet) -> Iterator[list[bytes]]:
        """The keys in these slots, in portions, those of a shard in the order in which they came. Entries may come and
        go meanwhile."""
        # In the order of use, a shard of 16,000 entries would take eight milliseconds, not one.
        if not self.mask:
            yield from portions([*dict.keys(self.shards[0])], lambda key: slot_of_entry(key) in slots)
            return
        for group in slots.groups:
            yield from portions(
                [*dict.keys(self.shards[group])], lambda key: DOUBLE not in key and slot_of(key) in slots
            )
            yield from portions([*self._doubles[group]], lambda key: slot_of_entry(key) in slots)

    def _move_to(self, shards: list[OrderedDict[bytes, E]]) -> None:
        """Moves all entries to one shard or to many."""
        entries = [entry for shard in self.shards for entry in shard.values()]
        for shard in self.shards:
            shard.clear()
        self.shards, self.mask = shards, len(shards) - 1
        for entry in sorted(entries, key=attrgetter("used")):
            self.shards[hash_of(entry.key) & self.mask][entry.key] = entry

    def __getitem__(self, key: bytes) -> E:
        return self.shards[hash_of(key) & self.mask][key]

    def __contains__(self, key: bytes) -> bool:
        return key in self.shards[hash_of(key) & self.mask]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[bytes]:
        for shard in self.shards:
            yield from shard
