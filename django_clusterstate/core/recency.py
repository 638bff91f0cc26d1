"""Entries by key, of which the least recently used, or nearly, can be found.

Where an entry isn't in the processor's cache, the memory that is touched is most of what a read costs. To move one in
the order of use touches its neighbours. So time goes by moments of up to a second, and one that is read again in the
same moment stays in its place; Memcached does so for a minute (its ITEM_UPDATE_INTERVAL). All that were used in a
moment share its number, which is memory saved as well.

A dict that grows is copied as a whole, an ordered one of 700,000 entries for 75 ms. So many entries are kept in parts,
by the hash of the key, each in the order of use; and the older of two parts' oldest is as good as the oldest of all.
Few are kept in one, since the heads of many dicts are memory to be touched as well.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar

UNDIVIDED: Final = 4096  # entries; to divide as many takes a millisecond, once
PARTS: Final = 64  # a power of two
LOOKED_AT: Final = (
    2  # parts, to find an entry that has not been used for long; with one, parts would drift apart in size
)
MOMENT: Final = 1.0  # seconds, at most
_MOMENTS: Final = 16  # that an unused entry lives for, at least, before it goes


class Used(Protocol):
    key: bytes
    used: float
    """The moment of its last use."""


E = TypeVar("E", bound=Used)


class Recency(Generic[E]):
    """A key is in `parts[hash(key) & mask]`, if it is anywhere.

    `moment`: when the current one began, in seconds of `now`, which never goes backwards; `lasts`: how long it does.
    """

    __slots__ = ("_hand", "_many", "lasts", "mask", "moment", "parts")

    def __init__(self) -> None:
        self.parts: list[OrderedDict[bytes, E]] = [OrderedDict()]  # the least recently used first
        # Made beforehand: what there is when a node starts is frozen, so the garbage collector doesn't go through them.
        self._many: list[OrderedDict[bytes, E]] = [OrderedDict() for _ in range(PARTS)]
        self.mask = 0
        self.moment = -math.inf
        self.lasts = MOMENT
        self._hand = 0

    def add(self, entry: E) -> None:
        """A new one, used at the moment."""
        self._part(entry.key)[entry.key] = entry
        if not self.mask and len(self.parts[0]) > UNDIVIDED:
            self._divide()

    def at(self, now: float) -> float:
        """The moment."""
        if now - self.moment >= self.lasts:
            self.moment = now
        return self.moment

    def use(self, entry: E, now: float) -> None:
        """Makes it the most recently used one."""
        self._part(entry.key).move_to_end(entry.key)
        entry.used = self.at(now)

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
        self.lasts = min(MOMENT, (now - oldest.used) / _MOMENTS)
        return oldest

    def _part(self, key: bytes) -> OrderedDict[bytes, E]:
        return self.parts[hash(key) & self.mask]

    def _divide(self) -> None:
        for key, entry in self.parts[0].items():
            self._many[hash(key) & (PARTS - 1)][key] = entry
        self.parts, self.mask = self._many, PARTS - 1

    def __contains__(self, key: bytes) -> bool:
        return key in self._part(key)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            yield from part
