"""A node's limits: a bounded map from keys to six numbers, with expiry and least-recently-used eviction.

Python objects around the numbers would take five times the memory, and be visited by the garbage collector again and
again; so a limit is a row of several arrays.

No operation sweeps: each costs O(1), amortized, however much the store holds. Times are seconds on the node's monotonic
clock; `now` never goes backwards.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from itertools import compress
from typing import Final

from mmh3 import hash as hash_of

from ..expiry import due_of
from ..rendezvous_hashing import SLOTS
from ..replication.slots import GROUPS, SlotSet
from ..replication.stores import portions
from ..replication.tombstones import Tombstones, Void
from ..replication.versions import NONE
from .algorithms import RULE_BYTES, LimitState, slot_of_state

# Bytes that a limit costs in addition to its key: the header of the key, its place in the index and the number there,
# and a row. Measured on CPython 3.11: 195 to 250, because tables double; a test holds it to 30 %.
ROW_OVERHEAD: Final = 222

# Of the index, by the slot of the key, since a dict that grows is copied in one go: one of a million keys in a tenth of
# a second. A power of two, and a multiple of GROUPS.
_SHARDS: Final = 256
_SLOT_MASK: Final = SLOTS - 1

_MAKE_ROOM: Final = 10  # due rows that are checked before a live one is evicted

# The rows that are heads of the lists in the order of use: of copies, and of the other states.
_LRU: Final = 0
_COPIES: Final = 1


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
        """Moves a row to the end of a list, from the list that it is in."""
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
    states go first, then copies of other nodes' states, in the order in which they came, then the least recently used
    ones. A copy that is used here counts as the node's own.

    `generation` is kept with each state that is written. When it has been changed since, the next reader of the state
    calls `is_valid(key, its generation)`, and an invalid state is absent.

    `on_write(key, now)` is called for each change that is made here, a delete of an absent key included, but not for an
    eviction. It returns the version of the change. Without versions, deletes aren't remembered.

    `entries`: states in memory, expired ones that aren't reclaimed yet included; `bytes`: their memory. `evictions`:
    live states lost to the bound of which this node `owns(key)`; `copies_evicted`: others. `expirations`: states that
    were expired or invalid when they were dropped. `created`: states under keys that had none.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        is_valid: Callable[[bytes, int], bool] = lambda *_: True,
        owns: Callable[[bytes], bool] = lambda _: True,
        on_write: Callable[[bytes, float], int] = lambda *_: NONE,
    ) -> None:
        self.generation = 0
        self.max_bytes = max_bytes
        self.entries = self.bytes = self.evictions = self.copies_evicted = self.expirations = self.created = 0
        self._is_valid = is_valid
        self._owns = owns
        self._on_write = on_write
        self._tombstones = Tombstones()
        self._void = Void(slot_of_state)
        self._index: tuple[dict[bytes, int], ...] = tuple({} for _ in range(_SHARDS))  # the rows of keys
        self._by_slot = array("I", [0]) * SLOTS  # the number of states in each slot
        self._keys: list[bytes] = []
        self._expires, self._first, self._second, self._third = array("d"), array("d"), array("d"), array("d")
        self._amount, self._count = array("d"), array("q")
        self._version, self._generation = array("q"), array("q")
        self._columns = (
            self._expires, self._first, self._second, self._third, self._amount, self._count,
            self._version, self._generation,
        )  # fmt: skip
        self._free: list[int] = []  # rows
        self._usage = _LinkedLists()  # all keys' rows, the least recently used first
        self._wheel = _LinkedLists()  # each key's row in a bucket that is due before the row expires, or soon after
        self._buckets: dict[float, int] = {}  # the head of each, by its due time
        self._due_heap: list[float] = []
        self._allocate(b"")  # _LRU
        self._allocate(b"")  # _COPIES

    def owned(self, owns: Iterable[int]) -> int:
        """The number of states in the slots whose flag isn't 0. Costs about a millisecond."""
        return sum(compress(self._by_slot, owns))

    def get(self, key: bytes, now: float) -> LimitState | None:
        """The state, now the most recently used; None when absent."""
        row = self._index[hash_of(key[:-RULE_BYTES]) % _SHARDS].get(key)
        if row is None:
            return None
        expires = self._expires[row]
        if expires <= now or (self._generation[row] != self.generation and not self._revalidate(row)):
            self.expirations += 1
            self._drop(row)
            return None
        self._usage.move_to_end(row, _LRU)
        return expires, self._first[row], self._second[row], self._third[row], self._amount[row], self._count[row]

    def set(self, key: bytes, state: LimitState, now: float) -> None:
        """Stores `state` until it expires. Its count fits a signed 64-bit integer."""
        self._write(key, state, self._on_write(key, now), _LRU, now)

    def delete(self, key: bytes, now: float) -> bool:
        """Drops a key. Returns False if it is absent."""
        version = self._on_write(key, now)
        if version:
            self._tombstones.add(key, version, now)
        row = self._find(key)
        if row is None:
            return False
        live = self._expires[row] > now and (self._generation[row] == self.generation or self._revalidate(row))
        if not live:
            self.expirations += 1
        self._drop(row)
        return live

    def expire(self, now: float, budget: int = 1000) -> int:
        """Checks rows that are due, at most `budget`, and reclaims the expired ones. Returns the number checked, or
        that of old deletes that are forgotten, if it is greater.

        A result equal to `budget` means: call again soon.
        """
        forgotten = self._tombstones.expire(now, budget)
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
        return max(budget - left, forgotten)

    # -- copies ---------------------------------------------------------------------------------------------

    @property
    def floor(self) -> int:
        """Deletes up to this version may be forgotten."""
        return self._tombstones.floor

    def version(self, key: bytes) -> int:
        """The version of a key's last change that is known, a delete included; 0 if none is."""
        row = self._counted(key)
        gone = self._tombstones.version(key)
        return gone if row is None else max(self._version[row], gone)

    def state(self, key: bytes, now: float) -> LimitState | None:
        """The state of a key, though it may be invalid here; None if it is absent."""
        row = self._counted(key)
        return None if row is None or self._expires[row] <= now else self._state(row)

    def put(self, key: bytes, state: LimitState | None, version: int, now: float) -> None:
        """Stores a change of another node; the state None is a delete."""
        if state is None:
            self.drop(key)
            self._tombstones.add(key, version, now)
        else:
            self._write(key, state, version, _COPIES, now)

    def confirm(self, key: bytes) -> None:
        """The state is as good as if it were written now."""
        row = self._counted(key)
        if row is not None:
            self._generation[row] = self.generation

    def drop(self, key: bytes) -> None:
        """Removes a state without a trace."""
        row = self._find(key)
        if row is not None:
            self._drop(row)

    def forget(self, slots: SlotSet) -> None:
        """States and deletes of these slots that are here now don't count any longer. They are dropped later."""
        self._void.add(slots, self.generation)
        self._tombstones.forget(lambda key: slot_of_state(key) in slots)

    def keys(self, slots: SlotSet) -> Iterator[list[bytes]]:
        """The keys of all states in these slots, in portions. States may come and go meanwhile."""
        for group in slots.groups:
            for shard in self._index[group::GROUPS]:
                yield from portions([*shard], lambda key: slot_of_state(key) in slots)

    def _counted(self, key: bytes) -> int | None:
        """The row of a key, though its state may have expired or be invalid; None if it is void."""
        row = self._find(key)
        return None if row is None or self._void.covers(key, self._generation[row]) else row

    # -- rows -----------------------------------------------------------------------------------------------

    def _shard(self, key: bytes) -> dict[bytes, int]:
        return self._index[hash_of(key[:-RULE_BYTES]) % _SHARDS]

    def _find(self, key: bytes) -> int | None:
        return self._shard(key).get(key)

    def _state(self, row: int) -> LimitState:
        return (
            self._expires[row], self._first[row], self._second[row], self._third[row],
            self._amount[row], self._count[row],
        )  # fmt: skip

    def _revalidate(self, row: int) -> bool:
        """Whether a state of an earlier generation is valid in this one. Called once for each generation."""
        valid = self._is_valid(self._keys[row], self._generation[row])
        if valid:
            self._generation[row] = self.generation
        return valid

    def _write(self, key: bytes, state: LimitState, version: int, head: int, now: float) -> None:
        slot = hash_of(key[:-RULE_BYTES]) & _SLOT_MASK
        shard = self._index[slot % _SHARDS]
        expires = state[0]
        row = shard.get(key)
        if row is None:
            if version:
                self._tombstones.discard(key)
            row = shard[key] = self._allocate(key)
            self._usage.append(row, head)
            self._wheel.append(row, self._bucket(expires, now))
            self._by_slot[slot] += 1
            self.created += 1
            self.entries += 1
            self.bytes += len(key) + ROW_OVERHEAD
        else:
            self._usage.move_to_end(row, head)
            if expires < self._expires[row]:
                self._move(row, expires, now)
            # A later time moves the row only when its bucket is due: most rows are hit again before that.
        (
            self._expires[row], self._first[row], self._second[row], self._third[row],
            self._amount[row], self._count[row],
        ) = state  # fmt: skip
        self._version[row] = version
        self._generation[row] = self.generation
        if self.bytes > self.max_bytes:
            self._make_room(now)

    def _make_room(self, now: float) -> None:
        while self.bytes > self.max_bytes:
            entries = self.entries
            self.expire(now, _MAKE_ROOM)
            if self.entries == entries:
                self._evict(now)

    def _evict(self, now: float) -> None:
        row = self._usage.first(_COPIES)
        if row == _COPIES:
            row = self._usage.first(_LRU)
        if self._expires[row] <= now:
            self.expirations += 1
        elif self._owns(self._keys[row]):
            self.evictions += 1
        else:
            self.copies_evicted += 1
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
        slot = hash_of(key[:-RULE_BYTES]) & _SLOT_MASK
        self._free.append(self._index[slot % _SHARDS].pop(key))
        self._by_slot[slot] -= 1
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
