"""A node's limits: a bounded map from keys to six numbers, with expiry and least-recently-used eviction.

Python objects around the numbers would take five times the memory, and be visited by the garbage collector again and
again; so a limit is a row of several arrays.

No operation sweeps: each costs O(1), amortized, however much the store holds. Times are seconds on the node's monotonic
clock; `now` never goes backwards.
"""

from array import array
from heapq import heappop, heappush
from typing import Final

from ..expiry import due_of
from .algorithms import LimitState

# Bytes that a limit costs in addition to its key: the header of the key, its place in the index and the number there,
# and a row. Measured on CPython 3.11: 185 to 235, because tables double; a test holds it to 30 %.
ROW_OVERHEAD: Final = 206

# Of the index, since a dict that grows is copied in one go: one of a million keys in a tenth of a second.
_SHARDS: Final = 256

_MAKE_ROOM: Final = 10  # due rows that are checked before a live one is evicted

_LRU: Final = 0  # the row that is the head of the list in the order of use


class _LinkedLists:
    """Circular doubly linked lists of rows. A row that is in none is linked to itself: the head of an empty list."""

    def __init__(self) -> None:
        self._before = array("I")
        self._after = array("I")

    def add_row(self) -> None:
        row = len(self._after)
        self._before.append(row)
        self._after.append(row)

    def first(self, head: int) -> int:
        """The row that has been in the list for longest; the head itself if the list is empty."""
        return self._after[head]

    def append(self, row: int, head: int) -> None:
        """Appends a row that is in no list."""
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

    def move_to_end(self, row: int, head: int) -> None:
        """Moves a row to the end of the list that it is in."""
        before, after = self._before, self._after
        last = before[head]
        if last != row:
            previous, following = before[row], after[row]
            after[previous] = following
            before[following] = previous
            after[last] = before[head] = row
            before[row] = last
            after[row] = head


class LimitStore:
    """States under keys, each until it expires, within `max_bytes`.

    Each counts as its key's length and ROW_OVERHEAD, so `max_bytes` is real memory. Over the bound, some of the expired
    states go first, then the least recently used ones.

    `entries`: states in memory, expired ones that aren't reclaimed yet included; `bytes`: their memory. `evictions`:
    live states lost to the bound. `expirations`: expired states that were dropped. `created`: states under keys that
    had none.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.entries = self.bytes = self.evictions = self.expirations = self.created = 0
        self._index: tuple[dict[bytes, int], ...] = tuple({} for _ in range(_SHARDS))  # the rows of keys
        self._keys: list[bytes] = []
        self._expires, self._first, self._second, self._third = array("d"), array("d"), array("d"), array("d")
        self._amount, self._count = array("d"), array("q")
        self._columns = (self._expires, self._first, self._second, self._third, self._amount, self._count)
        self._free: list[int] = []  # rows
        self._usage = _LinkedLists()  # all keys' rows, the least recently used first
        self._wheel = _LinkedLists()  # each key's row in a bucket that is due before the row expires, or soon after
        self._buckets: dict[float, int] = {}  # the head of each, by its due time
        self._due_heap: list[float] = []
        self._allocate(b"")  # _LRU

    def get(self, key: bytes, now: float) -> LimitState | None:
        """The state, now the most recently used; None when absent."""
        row = self._index[hash(key) % _SHARDS].get(key)
        if row is None:
            return None
        expires = self._expires[row]
        if expires <= now:
            self.expirations += 1
            self._drop(row)
            return None
        self._usage.move_to_end(row, _LRU)
        return expires, self._first[row], self._second[row], self._third[row], self._amount[row], self._count[row]

    def set(self, key: bytes, state: LimitState, now: float) -> None:
        """Stores `state` until it expires. Its count fits a signed 64-bit integer."""
        shard = self._index[hash(key) % _SHARDS]
        expires = state[0]
        row = shard.get(key)
        if row is None:
            row = shard[key] = self._allocate(key)
            self._usage.append(row, _LRU)
            self._wheel.append(row, self._bucket(expires, now))
            self.created += 1
            self.entries += 1
            self.bytes += len(key) + ROW_OVERHEAD
        else:
            self._usage.move_to_end(row, _LRU)
            if expires < self._expires[row]:
                self._move(row, expires, now)
            # A later time moves the row only when its bucket is due: most rows are hit again before that.
        (
            self._expires[row], self._first[row], self._second[row], self._third[row],
            self._amount[row], self._count[row],
        ) = state  # fmt: skip
        if self.bytes > self.max_bytes:
            self._make_room(now)

    def delete(self, key: bytes, now: float) -> bool:
        """Drops a key. Returns False if it is absent."""
        row = self._index[hash(key) % _SHARDS].get(key)
        if row is None:
            return False
        live = self._expires[row] > now
        if not live:
            self.expirations += 1
        self._drop(row)
        return live

    def expire(self, now: float, budget: int = 1000) -> int:
        """Checks rows that are due, at most `budget`, and reclaims the expired ones. Returns the number checked.

        A result equal to `budget` means: call again soon.
        """
        left = budget
        while self._due_heap and self._due_heap[0] <= now:
            head = self._buckets[self._due_heap[0]]
            while (row := self._wheel.first(head)) != head:
                if left <= 0:
                    return budget
                left -= 1
                if self._expires[row] <= now:
                    self.expirations += 1
                    self._drop(row)
                else:
                    self._move(row, self._expires[row], now)
            del self._buckets[heappop(self._due_heap)]
            self._free.append(head)
        return budget - left

    def _make_room(self, now: float) -> None:
        while self.bytes > self.max_bytes:
            entries = self.entries
            self.expire(now, _MAKE_ROOM)
            if self.entries == entries:
                row = self._usage.first(_LRU)
                if self._expires[row] <= now:
                    self.expirations += 1
                else:
                    self.evictions += 1
                self._drop(row)

    def _allocate(self, key: bytes) -> int:
        """A row that is in no list."""
        if self._free:
            row = self._free.pop()
            self._keys[row] = key
            return row
        self._keys.append(key)
        for column in self._columns:
            column.append(0)
        self._usage.add_row()
        self._wheel.add_row()
        return len(self._keys) - 1

    def _drop(self, row: int) -> None:
        key = self._keys[row]
        # The int object that the index held is used again, which saves making another one.
        self._free.append(self._index[hash(key) % _SHARDS].pop(key))
        self._keys[row] = b""
        self._usage.remove(row)
        self._wheel.remove(row)
        self.entries -= 1
        self.bytes -= len(key) + ROW_OVERHEAD

    def _move(self, row: int, expires: float, now: float) -> None:
        self._wheel.remove(row)
        self._wheel.append(row, self._bucket(expires, now))

    def _bucket(self, expires: float, now: float) -> int:
        """The head of the bucket for rows that expire then."""
        due = due_of(expires, now)
        head = self._buckets.get(due)
        if head is None:
            head = self._buckets[due] = self._allocate(b"")
            heappush(self._due_heap, due)
        return head
