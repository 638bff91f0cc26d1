"""Entries by key, of which the least recently used can be found.

A dict that grows is copied as a whole, an ordered one of 700,000 entries for 75 ms. So large ones are kept in parts, by
the hash of the key, each in the order of use; and the oldest of a few parts' oldest is as good as the oldest of all.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar

PARTS: Final = 64
LOOKED_AT: Final = 8  # parts, to find an entry that hasn't been used for long


class Used(Protocol):
    used: float
    """When it was used last."""


E = TypeVar("E", bound=Used)


class Recency(Generic[E]):
    """`parts` is 1, where the order is exact, or a power of two."""

    __slots__ = ("_hand", "mask", "parts")

    def __init__(self, parts: int) -> None:
        self.parts: list[OrderedDict[bytes, E]] = [OrderedDict() for _ in range(parts)]
        self.mask = parts - 1
        self._hand = 0

    def of(self, key: bytes) -> OrderedDict[bytes, E]:
        """The part where a key is, if it is anywhere: the least recently used first."""
        return self.parts[hash(key) & self.mask]

    def pop_oldest(self) -> E:
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
        return oldest

    def __getitem__(self, key: bytes) -> E:
        return self.of(key)[key]

    def __contains__(self, key: bytes) -> bool:
        return key in self.of(key)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            yield from part

    def pop(self, key: bytes) -> E:
        return self.of(key).pop(key)
