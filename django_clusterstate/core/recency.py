"""Entries by key, of which the least recently used, or nearly, can be found.

Where an entry isn't in the processor's cache, the memory that is touched is most of what a read costs. To move one in
the order of use touches its neighbours. So one that is read again within a second stays in its place; Memcached does
the same for a minute (its ITEM_UPDATE_INTERVAL).

A dict that grows is copied as a whole, an ordered one of 700,000 entries for 75 ms. So many entries are kept in parts,
by the hash of the key, each in the order of use; and the oldest of a few parts' oldest is as good as the oldest of all.
Few are kept in one, since the heads of many dicts are memory to be touched as well.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar

UNDIVIDED: Final = 4096  # entries; to divide as many takes a millisecond, once
PARTS: Final = 64  # a power of two
LOOKED_AT: Final = 8  # parts, to find an entry that hasn't been used for long
LAG: Final = 1.0  # seconds, at most
_LAG_PART: Final = 16  # of the age at which entries go


class Used(Protocol):
    key: bytes
    used: float
    """When it was made the most recently used one."""


E = TypeVar("E", bound=Used)


class Recency(Generic[E]):
    """A key is in `parts[hash(key) & mask]`, if it is anywhere.

    An entry that was made the most recently used one less than `lag` seconds ago needn't be made it again when it is
    read: a second, or less where entries go early.
    """

    __slots__ = ("_hand", "lag", "mask", "parts")

    def __init__(self) -> None:
        self.parts: list[OrderedDict[bytes, E]] = [OrderedDict()]  # the least recently used first
        self.mask = 0
        self.lag = LAG
        self._hand = 0

    def add(self, entry: E) -> None:
        """A new one, used now."""
        self._part(entry.key)[entry.key] = entry
        if not self.mask and len(self.parts[0]) > UNDIVIDED:
            self._divide()

    def use(self, entry: E, now: float) -> None:
        """Makes it the most recently used one."""
        self._part(entry.key).move_to_end(entry.key)
        entry.used = now

    def get(self, key: bytes) -> E | None:
        return self._part(key).get(key)

    def __getitem__(self, key: bytes) -> E:
        return self._part(key)[key]

    def pop(self, key: bytes) -> E:
        return self._part(key).pop(key)

    def pop_oldest(self, now: float) -> E:
        """Removes one that has not been used for long, of those in LOOKED_AT parts. There must be one."""
        oldest: E | None = None
        place, seen = self.parts[0], 0
        for _ in self.parts:
            self._hand = (self._hand + 1) & self.mask
            part = self.parts[self._hand]
            if not part:
                continue
            head = next(iter(part.values()))
            if oldest is None or head.used < oldest.used:
                oldest, place = head, part
            seen += 1
            if seen == LOOKED_AT:
                break
        place.popitem(last=False)
        assert oldest is not None
        self.lag = min(LAG, (now - oldest.used) / _LAG_PART)
        return oldest

    def _part(self, key: bytes) -> OrderedDict[bytes, E]:
        return self.parts[hash(key) & self.mask]

    def _divide(self) -> None:
        parts: list[OrderedDict[bytes, E]] = [OrderedDict() for _ in range(PARTS)]
        for key, entry in self.parts[0].items():
            parts[hash(key) & (PARTS - 1)][key] = entry
        self.parts, self.mask = parts, PARTS - 1

    def __contains__(self, key: bytes) -> bool:
        return key in self._part(key)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            yield from part
