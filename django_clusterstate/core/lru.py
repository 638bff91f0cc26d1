"""A dict in the order of use, as `OrderedDict` is one, that never pauses.

A dict is copied in one go when it grows. For a million keys that takes a tenth of a second, for an `OrderedDict` more:
so long nobody else would be answered. Here each operation costs O(1), and the worst of them a tenth of a millisecond.
"""

from array import array
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

__all__ = ["PARTS", "Lru", "Rings"]

V = TypeVar("V")

PARTS: Final = 256  # of an index: those of a million keys have 4,000 each, and grow one at a time

_HEAD: Final = 0


class Rings:
    """Rows in rings. A row is a number; one that is in no ring stands alone, which makes it the head of an empty one.

    Two arrays of 4-byte numbers: a ring of Python objects would take fifteen times as much.
    """

    __slots__ = ("_after", "_before")

    def __init__(self) -> None:
        self._before = array("I")
        self._after = array("I")

    def add_row(self) -> None:
        row = len(self._after)
        self._before.append(row)
        self._after.append(row)

    def first(self, head: int) -> int:
        """The row that has been in the ring for longest; the head itself if there is none."""
        return self._after[head]

    def append(self, row: int, head: int) -> None:
        """To the end of a ring, for a row that stands alone."""
        before, after = self._before, self._after
        last = before[head]
        after[last] = before[head] = row
        before[row] = last
        after[row] = head

    def remove(self, row: int) -> None:
        before, after = self._before, self._after
        previous, following = before[row], after[row]
        after[previous] = following
        before[following] = previous
        before[row] = after[row] = row

    def renew(self, row: int, head: int) -> None:
        """To the end of the ring that it is in."""
        before, after = self._before, self._after
        last = before[head]
        if last != row:
            previous, following = before[row], after[row]
            after[previous] = following
            before[following] = previous
            after[last] = before[head] = row
            before[row] = last
            after[row] = head


class Lru(Rings, Generic[V]):
    """Values under keys, the least recently used first. Its methods are those of `OrderedDict`, as far as needed."""

    __slots__ = ("_free", "_index", "_keys", "_values")

    def __init__(self) -> None:
        super().__init__()
        self.add_row()
        self._index: tuple[dict[bytes, int], ...] = tuple({} for _ in range(PARTS))  # the row of each key
        self._keys: list[bytes] = [b""]  # by row; the first is the head of the order
        self._values: list[V | None] = [None]
        self._free: list[int] = []  # rows

    def __len__(self) -> int:
        return len(self._keys) - 1 - len(self._free)

    def __contains__(self, key: bytes) -> bool:
        return key in self._index[hash(key) % PARTS]

    def __iter__(self) -> Iterator[bytes]:
        row = self.first(_HEAD)
        while row != _HEAD:
            yield self._keys[row]
            row = self.first(row)

    def get(self, key: bytes) -> V | None:
        row = self._index[hash(key) % PARTS].get(key)
        return None if row is None else self._values[row]

    def __setitem__(self, key: bytes, value: V) -> None:
        """For a key that isn't there."""
        if self._free:
            row = self._free.pop()
            self._keys[row], self._values[row] = key, value
        else:
            row = len(self._keys)
            self._keys.append(key)
            self._values.append(value)
            self.add_row()
        self._index[hash(key) % PARTS][key] = row
        self.append(row, _HEAD)

    def use(self, key: bytes) -> V | None:
        """As `get`, and it is the most recently used from now on."""
        row = self._index[hash(key) % PARTS].get(key)
        if row is None:
            return None
        before, after = self._before, self._after
        last = before[_HEAD]
        if last != row:  # as `Rings.renew`, without the call: this is what most calls of a cache come to
            previous, following = before[row], after[row]
            after[previous] = following
            before[following] = previous
            after[last] = before[_HEAD] = row
            before[row] = last
            after[row] = _HEAD
        return self._values[row]

    def pop(self, key: bytes) -> V:
        """Raises `KeyError`."""
        row = self._index[hash(key) % PARTS].pop(key)
        value = self._values[row]
        assert value is not None
        self._keys[row], self._values[row] = b"", None
        self.remove(row)
        self._free.append(row)
        return value

    def pop_first(self) -> V:
        """That of the least recently used key; not of an empty one."""
        return self.pop(self._keys[self.first(_HEAD)])
