"""Entries by key, of which the least recently used, or nearly, can be found.

Where an entry isn't in the processor's cache, the memory that is touched is most of what a read costs. To move one in
the order of use touches its neighbours. So time goes by moments of up to a second, and one that is read again in the
same moment stays in its place; Memcached does so for a minute (its ITEM_UPDATE_INTERVAL). All that were used in a
moment share its number, which saves each 32 bytes.

A dict that grows is copied as a whole, an ordered one of 700,000 entries for 75 ms. So many entries are kept in parts,
by the hash of the key, each in the order of use; and the oldest of a few parts' oldest is as good as the oldest of all.
Few are kept in one: the heads of many dicts are memory to be touched as well.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator
from operator import attrgetter
from typing import Final, Generic, Protocol, TypeVar

PARTS: Final = 64  # a power of two
# Entries. Below the one, a part's oldest would say little of the others'. To cross either takes a millisecond at most.
JOINED_BELOW: Final = 1024
DIVIDED_FROM: Final = 4096

# Parts, to find an entry that hasn't been used for long. An odd number, so that others meet in each round: groups that
# stay the same would lose as many entries each, whatever they gain, and drift apart in size.
LOOKED_AT: Final = 3

MOMENT: Final = 1.0  # seconds, at most
_MOMENTS: Final = 16  # that an unused entry lives for, at least, before it goes


class Used(Protocol):
    key: bytes
    used: float
    """The moment of its last use."""


E = TypeVar("E", bound=Used)


class Lru(Generic[E]):
    """A key is in `parts[hash(key) & mask]`, if it is anywhere.

    `moment`: when the current one began, in seconds of `now`, which never goes backwards; `lasts`: how long it does.
    """

    __slots__ = ("_count", "_hand", "_many", "_one", "lasts", "mask", "moment", "parts")

    def __init__(self) -> None:
        # The least recently used first. All are made beforehand: what there is when a node starts is frozen, so the
        # garbage collector never goes through them.
        self._one: list[OrderedDict[bytes, E]] = [OrderedDict()]
        self._many: list[OrderedDict[bytes, E]] = [OrderedDict() for _ in range(PARTS)]
        self.parts, self.mask = self._one, 0
        self.moment = -math.inf
        self.lasts = MOMENT
        self._hand = 0
        self._count = 0

    def at(self, now: float) -> float:
        """The moment that `now` belongs to: another one, when the last is over."""
        if now - self.moment >= self.lasts:
            self.moment, self.lasts = now, MOMENT
        return self.moment

    def add(self, entry: E) -> None:
        """A new one, used at the moment."""
        self._part(entry.key)[entry.key] = entry
        self._count += 1
        if self._count >= DIVIDED_FROM and not self.mask:
            self._move(self._many)

    def use(self, entry: E, now: float) -> None:
        """Makes it the most recently used one."""
        self._part(entry.key).move_to_end(entry.key)
        entry.used = self.at(now)

    def get(self, key: bytes) -> E | None:
        return self._part(key).get(key)

    def pop(self, key: bytes) -> E:
        entry = self._part(key).pop(key)
        self._popped()
        return entry

    def pop_oldest(self, now: float) -> E:
        """Removes one that has not been used for long, the oldest in LOOKED_AT parts. There must be one.

        Makes moments shorter where entries go early, so that one that is read again and again isn't among them.
        """
        oldest: E | None = None
        seen = 0
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
        assert oldest is not None
        place.popitem(last=False)
        self._popped()
        self.lasts = min(MOMENT, (now - oldest.used) / _MOMENTS)
        return oldest

    def _part(self, key: bytes) -> OrderedDict[bytes, E]:
        return self.parts[hash(key) & self.mask]

    def _popped(self) -> None:
        self._count -= 1
        if self._count < JOINED_BELOW and self.mask:
            self._move(self._one)

    def _move(self, parts: list[OrderedDict[bytes, E]]) -> None:
        """All entries, to one part or to many."""
        entries = [entry for part in self.parts for entry in part.values()]
        for part in self.parts:
            part.clear()
        self.parts, self.mask = parts, len(parts) - 1
        for entry in sorted(entries, key=attrgetter("used")):
            self._part(entry.key)[entry.key] = entry

    def __getitem__(self, key: bytes) -> E:
        return self._part(key)[key]

    def __contains__(self, key: bytes) -> bool:
        return key in self._part(key)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            yield from part
