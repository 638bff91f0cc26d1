"""A node's limits: a bounded map from keys to six numbers, with expiry and least-recently-used eviction.

What `store` is for values, for numbers only. Python objects around them would take five times the memory, and be
visited by the garbage collector again and again; so a limit is a row of several arrays.

No operation sweeps: each costs O(1), amortised, whatever the ledger holds. Times are seconds on the node's monotonic
clock; `now` never goes backwards.
"""

import math
from array import array
from heapq import heappop, heappush
from typing import Final

__all__ = ["ROW_OVERHEAD", "LimitState", "LimitStore"]

LimitState = tuple[float, float, float, float, float, int]  # when it ends, three instants, an amount, a count

# Bytes a limit costs besides its key: the header of the key, its place in the index and the number there, and a row.
# Measured on CPython 3.11: 185 to 235, since tables double; a test holds it to 30 %.
ROW_OVERHEAD: Final = 206

# The index is in so many parts, since a dict that grows is copied in one go: of a million keys for a tenth of a second.
_PARTS: Final = 256

# A bucket is a second wide, or 1/64 to 1/128 of the ttl if that is more. So there are never more than about 130 per
# doubling of the ttl, and a dead row is held at most 1.6 % of its ttl longer. Readers never see it.
_BUCKET_BITS: Final = 7

_MAKE_ROOM: Final = 10  # due rows looked at for room before a live one goes

_HEAD: Final = 0  # the row that begins the order of use


class _Rings:
    """Rows in rings. A row that is in none stands alone, which makes it the head of an empty ring."""

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


class LimitStore:
    """States under keys, each until it ends, within `max_bytes`.

    Each counts as its key's length and ROW_OVERHEAD, so `max_bytes` is real memory. Over the bound, some of those whose
    time is over go first, then the least recently used.

    `entries`: states in memory, dead ones that aren't reclaimed yet included; `bytes`: what they take. `evictions`:
    live ones lost to the bound. `expirations`: those dropped because their time was over. `made`: states under keys
    that had none.
    """

    __slots__ = (
        "_amount",
        "_buckets",
        "_count",
        "_dues",
        "_expires",
        "_first",
        "_free",
        "_index",
        "_keys",
        "_second",
        "_third",
        "_timed",
        "_used",
        "bytes",
        "entries",
        "evictions",
        "expirations",
        "made",
        "max_bytes",
    )

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.entries = self.bytes = self.evictions = self.expirations = self.made = 0
        self._index: tuple[dict[bytes, int], ...] = tuple({} for _ in range(_PARTS))  # the rows of keys
        self._keys: list[bytes] = []
        self._expires, self._first, self._second, self._third = array("d"), array("d"), array("d"), array("d")
        self._amount, self._count = array("d"), array("q")
        self._free: list[int] = []  # rows
        self._used = _Rings()  # all keys' rows, the least recently used first
        self._timed = _Rings()  # each key's row is in a bucket that is due before the row is, or soon after
        self._buckets: dict[float, int] = {}  # the head of each, by its due time
        self._dues: list[float] = []  # a heap
        self._row(b"")  # _HEAD

    def get(self, key: bytes, now: float) -> LimitState | None:
        """The state, now the most recently used; None when absent."""
        row = self._index[hash(key) % _PARTS].get(key)
        if row is None:
            return None
        expires = self._expires[row]
        if expires <= now:
            self.expirations += 1
            self._drop(row)
            return None
        self._used.renew(row, _HEAD)
        return expires, self._first[row], self._second[row], self._third[row], self._amount[row], self._count[row]

    def set(self, key: bytes, state: LimitState, now: float) -> None:
        """Store `state` until it ends. Its count is of 63 bits and a sign."""
        part = self._index[hash(key) % _PARTS]
        expires = state[0]
        row = part.get(key)
        if row is None:
            row = part[key] = self._row(key)
            self._used.append(row, _HEAD)
            self._timed.append(row, self._bucket(expires, now))
            self.made += 1
            self.entries += 1
            self.bytes += len(key) + ROW_OVERHEAD
        else:
            self._used.renew(row, _HEAD)
            if expires < self._expires[row]:
                self._move(row, expires, now)
            # Else it stays where it is, and moves on when that bucket is due: most are hit again before.
        (
            self._expires[row], self._first[row], self._second[row], self._third[row],
            self._amount[row], self._count[row],
        ) = state  # fmt: skip
        if self.bytes > self.max_bytes:
            self._make_room(now)

    def delete(self, key: bytes, now: float) -> bool:
        """Drop a key; False when absent."""
        row = self._index[hash(key) % _PARTS].get(key)
        if row is None:
            return False
        lives = self._expires[row] > now
        self.expirations += not lives
        self._drop(row)
        return lives

    def expire(self, now: float, budget: int = 1000) -> int:
        """Look at rows that are due, at most `budget`, and reclaim those whose time is over; the number looked at.

        A result equal to `budget` means: call again soon.
        """
        left = budget
        while self._dues and self._dues[0] <= now:
            head = self._buckets[self._dues[0]]
            while (row := self._timed.first(head)) != head:
                if left <= 0:
                    return budget
                left -= 1
                if self._expires[row] <= now:
                    self.expirations += 1
                    self._drop(row)
                else:
                    self._move(row, self._expires[row], now)
            del self._buckets[heappop(self._dues)]
            self._free.append(head)
        return budget - left

    def _make_room(self, now: float) -> None:
        while self.bytes > self.max_bytes:
            entries = self.entries
            self.expire(now, _MAKE_ROOM)
            if self.entries == entries:
                row = self._used.first(_HEAD)
                if self._expires[row] <= now:
                    self.expirations += 1
                else:
                    self.evictions += 1
                self._drop(row)

    def _row(self, key: bytes) -> int:
        """A row that stands alone in both kinds of rings."""
        if self._free:
            row = self._free.pop()
            self._keys[row] = key
            return row
        self._keys.append(key)
        self._expires.append(0.0)
        self._first.append(0.0)
        self._second.append(0.0)
        self._third.append(0.0)
        self._amount.append(0.0)
        self._count.append(0)
        self._used.add_row()
        self._timed.add_row()
        return len(self._keys) - 1

    def _drop(self, row: int) -> None:
        key = self._keys[row]
        # The number that the index held, so that no other object is made to stand in the list.
        self._free.append(self._index[hash(key) % _PARTS].pop(key))
        self._keys[row] = b""
        self._used.remove(row)
        self._timed.remove(row)
        self.entries -= 1
        self.bytes -= len(key) + ROW_OVERHEAD

    def _move(self, row: int, expires: float, now: float) -> None:
        self._timed.remove(row)
        self._timed.append(row, self._bucket(expires, now))

    def _bucket(self, expires: float, now: float) -> int:
        """The head of the bucket for rows of that time."""
        due = expires
        if expires != math.inf:
            shift = int(expires - now).bit_length() - _BUCKET_BITS
            due = int(expires) + 1 if shift <= 0 else ((int(expires) >> shift) + 1) << shift
        head = self._buckets.get(due)
        if head is None:
            head = self._buckets[due] = self._row(b"")
            heappush(self._dues, due)
        return head
