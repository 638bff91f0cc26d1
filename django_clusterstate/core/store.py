"""One node's memory: a bounded map with ttl and least-recently-used eviction.

No operation sweeps: each costs O(1), amortised, whatever the store holds. Times are seconds on the node's
monotonic clock; `now` never goes backwards.
"""

import math
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import msgspec

__all__ = ["ENTRY_OVERHEAD", "Store"]

V = TypeVar("V")

# Bytes an entry costs besides key and value: its slot in the ordered dict and that dict's list node, the
# _Entry with its numbers, its place in a bucket, the header of the key. Measured on CPython 3.11: 260 to 340,
# since tables double; a test holds it to 30 %.
ENTRY_OVERHEAD: Final = 320

# A bucket of the timer wheel is a second wide, or 1/64 to 1/128 of its entries' ttl if that is more. So there
# are never more than about 130 per doubling of the ttl (2,500 for ttls from a second to a year), and a dead
# entry's memory is held at most 1.6 % of its ttl longer. Readers never see it: `get` compares the exact time.
_BUCKET_BITS: Final = 7


class _Space:
    """A namespace from its first entry to its last, or to clear(). Entries refer to it, so that one flag here
    makes all of them absent."""

    __slots__ = ("buckets", "cleared", "name", "serial")

    def __init__(self, name: bytes, serial: int) -> None:
        self.name = name
        self.serial = serial
        self.cleared = False
        # By due time. Ordered, since a plain dict can't give its first item in O(1) once others before it are
        # deleted.
        self.buckets: OrderedDict[float, _Bucket] = OrderedDict()


class _Bucket:
    """Keys of one namespace that are dead at `due`: a whole second, or infinity. Never empty for longer than
    a call."""

    __slots__ = ("due", "keys", "space")

    def __init__(self, space: _Space, due: float) -> None:
        self.space = space
        self.due = due
        self.keys: set[bytes] = set()


class _Entry(msgspec.Struct, Generic[V], gc=False):
    # Without `gc=False` the garbage collector visits all entries again and again, a million for a quarter of a second.
    # They are in no cycle: buckets hold keys, and values are bytes and numbers.

    # The very object that the ordered dict holds: moving to another bucket with a caller's equal copy would keep both
    # in memory.
    key: bytes
    value: V
    size: int
    expires: float
    bucket: _Bucket
    space: _Space
    stamp: int


def _always(key: bytes, stamp: int) -> bool:
    return True


class Store(Generic[V]):
    """Values under keys `b"namespace\\0rest"`, for a time, within `max_bytes`.

    `size_of(value)` gives the bytes a value takes in memory (for bytes: `sys.getsizeof`), and must not change
    while it is stored. Each entry counts as its key's length, that, and ENTRY_OVERHEAD; so `max_bytes` is
    real memory, provided namespaces are few (a namespace itself isn't counted).

    Over the bound, dead entries go first (cleared, then due ones), then the least recently used live ones. A
    cleared or expired entry is absent at once, but counts in `entries` and `bytes` until it is reclaimed: by
    `expire`, by the bound, or by the next operation on its key.

    `stamp` is noted with each value that is written; when it has been changed since, `still_good(key, the stamp noted)`
    is asked before the value is given out, and an entry that isn't good any more is absent.

    `bytes`: what the entries take. `evictions`: live entries lost to the bound. `expirations`: entries
    dropped because their time was over.
    """

    __slots__ = (
        "_cleared",
        "_due",
        "_entries",
        "_serial",
        "_size_of",
        "_spaces",
        "_still_good",
        "bytes",
        "evictions",
        "expirations",
        "max_bytes",
        "stamp",
    )

    def __init__(
        self,
        max_bytes: int,
        *,
        size_of: Callable[[V], int],
        still_good: Callable[[bytes, int], bool] = _always,
    ) -> None:
        self.stamp = 0
        self._still_good = still_good
        self.max_bytes = max_bytes
        self.bytes = 0
        self.evictions = 0
        self.expirations = 0
        self._size_of = size_of
        self._entries: OrderedDict[bytes, _Entry[V]] = OrderedDict()  # least recently used first
        self._spaces: dict[bytes, _Space] = {}
        self._cleared: OrderedDict[int, _Space] = OrderedDict()  # by serial; each still holds entries
        # All buckets by (due, serial of the space). A sorted list, not a heap, because buckets also go before
        # they are due; they are few enough for the insert's memmove to take under a microsecond.
        self._due: list[tuple[float, int, _Bucket]] = []
        self._serial = 0

    @property
    def entries(self) -> int:
        """Entries in memory, dead ones that aren't reclaimed yet included."""
        return len(self._entries)

    def get(self, key: bytes, now: float) -> V | None:
        """The value, now the most recently used; None when absent."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires <= now or entry.space.cleared or (entry.stamp != self.stamp and self._is_stale(entry)):
            self._drop_dead(entry)
            return None
        self._entries.move_to_end(key)
        return entry.value

    def peek(self, key: bytes, now: float) -> tuple[V, float | None] | None:
        """The value and its remaining ttl in seconds (None: for ever), leaving the LRU order alone; None when
        absent."""
        entry = self._live(key, now)
        if entry is None:
            return None
        return entry.value, None if entry.expires == math.inf else entry.expires - now

    def set(self, key: bytes, value: V, ttl: float | None, now: float) -> bool:
        """Store `value` for `ttl` seconds (None: for ever; <= 0: delete the key).

        False when the value alone exceeds the bound; an older value is dropped then, so that nobody reads a
        stale one.
        """
        size = len(key) + self._size_of(value) + ENTRY_OVERHEAD
        entry = self._entries.get(key)
        if entry is not None and (entry.expires <= now or entry.space.cleared):
            self._drop_dead(entry)
            entry = None
        if size > self.max_bytes or (ttl is not None and ttl <= 0):
            if entry is not None:
                self._drop(entry)
            return size <= self.max_bytes
        expires = math.inf if ttl is None else now + ttl
        if entry is None:
            bucket = self._bucket(self._space(key), expires, now)
            bucket.keys.add(key)
            self._entries[key] = _Entry(key, value, size, expires, bucket, bucket.space, self.stamp)
            self.bytes += size
        else:
            self._entries.move_to_end(key)
            self._assign(entry, value, size)
            self._reschedule(entry, expires, now)
        if self.bytes > self.max_bytes:
            self._make_room(now)
        return True

    def add(self, key: bytes, value: V, ttl: float | None, now: float) -> bool:
        """As `set`, if the key is absent; False when it isn't, or the value alone exceeds the bound."""
        return self._live(key, now) is None and self.set(key, value, ttl, now)

    def replace(self, key: bytes, value: V, now: float) -> bool:
        """Give a present key another value for the rest of its ttl; False when absent, or as in `set`."""
        entry = self._live(key, now)
        if entry is None:
            return False
        size = len(key) + self._size_of(value) + ENTRY_OVERHEAD
        if size > self.max_bytes:
            self._drop(entry)
            return False
        self._entries.move_to_end(key)
        self._assign(entry, value, size)
        if self.bytes > self.max_bytes:
            self._make_room(now)
        return True

    def touch(self, key: bytes, ttl: float | None, now: float) -> bool:
        """Give a present key another ttl, as in `set`, and make it the most recently used; False when
        absent."""
        entry = self._live(key, now)
        if entry is None:
            return False
        if ttl is not None and ttl <= 0:
            self._drop(entry)
            return True
        self._entries.move_to_end(key)
        self._reschedule(entry, math.inf if ttl is None else now + ttl, now)
        return True

    def delete(self, key: bytes, now: float) -> bool:
        """Drop a key; False when absent."""
        entry = self._live(key, now)
        if entry is None:
            return False
        self._drop(entry)
        return True

    def clear(self, namespace: bytes, now: float) -> None:
        """Make every entry of `namespace` absent, in O(1); `expire` and the bound reclaim the memory."""
        space = self._spaces.pop(namespace, None)
        if space is not None:
            space.cleared = True
            self._cleared[space.serial] = space

    def expire(self, now: float, budget: int = 1000) -> int:
        """Reclaim cleared entries and those whose bucket is due, at most `budget`; the number reclaimed.

        Costs O(that number), however long the last call was ago. A result equal to `budget` means: call again
        soon.
        """
        entries = self._entries
        left = budget
        while left > 0 and (bucket := self._dead_bucket(now)) is not None:
            keys = bucket.keys
            count = min(left, len(keys))
            left -= count
            if not bucket.space.cleared:
                self.expirations += count
            for _ in range(count):
                self.bytes -= entries.pop(keys.pop()).size
            if not keys:
                self._close(bucket)
        return budget - left if budget > 0 else 0

    def _live(self, key: bytes, now: float) -> _Entry[V] | None:
        entry = self._entries.get(key)
        if entry is not None and (
            entry.expires <= now or entry.space.cleared or (entry.stamp != self.stamp and self._is_stale(entry))
        ):
            self._drop_dead(entry)
            return None
        return entry

    def _is_stale(self, entry: _Entry[V]) -> bool:
        """Asks once for each stamp whether an entry from before it is still good."""
        if not self._still_good(entry.key, entry.stamp):
            return True
        entry.stamp = self.stamp
        return False

    def _assign(self, entry: _Entry[V], value: V, size: int) -> None:
        self.bytes += size - entry.size
        entry.value = value
        entry.size = size
        entry.stamp = self.stamp

    def _drop(self, entry: _Entry[V]) -> None:
        del self._entries[entry.key]
        self._forget(entry)

    def _drop_dead(self, entry: _Entry[V]) -> None:
        if not entry.space.cleared:
            self.expirations += 1
        self._drop(entry)

    def _forget(self, entry: _Entry[V]) -> None:
        self.bytes -= entry.size
        self._leave(entry.bucket, entry.key)

    def _make_room(self, now: float) -> None:
        """Reclaim until the bound holds. Ends before the entry just stored: it's last in LRU order, and fits
        alone."""
        while self.bytes > self.max_bytes:
            if self.expire(now, 1):
                continue
            _, entry = self._entries.popitem(last=False)
            if entry.expires <= now:
                self.expirations += 1
            else:
                self.evictions += 1
            self._forget(entry)

    # Spaces and buckets. Each space holds a bucket and each bucket a key, between calls: what is empty is
    # dropped at once, so neither outlives the entries. An entry is in one bucket only, and buckets belong to
    # one space, which is how a cleared space's entries are found again without a second index.

    def _space(self, key: bytes) -> _Space:
        name = key.partition(b"\0")[0]
        space = self._spaces.get(name)
        if space is None:
            self._serial += 1
            space = self._spaces[name] = _Space(name, self._serial)
        return space

    def _bucket(self, space: _Space, expires: float, now: float) -> _Bucket:
        due = expires
        if expires != math.inf:
            shift = int(expires - now).bit_length() - _BUCKET_BITS
            due = int(expires) + 1 if shift <= 0 else ((int(expires) >> shift) + 1) << shift
        bucket = space.buckets.get(due)
        if bucket is None:
            bucket = space.buckets[due] = _Bucket(space, due)
            insort(self._due, (due, space.serial, bucket))
        return bucket

    def _reschedule(self, entry: _Entry[V], expires: float, now: float) -> None:
        entry.expires = expires
        old, new = entry.bucket, self._bucket(entry.space, expires, now)
        if new is not old:
            # Enter before leaving, or a space whose only entry this is would be dropped.
            new.keys.add(entry.key)
            entry.bucket = new
            self._leave(old, entry.key)

    def _leave(self, bucket: _Bucket, key: bytes) -> None:
        bucket.keys.remove(key)
        if not bucket.keys:
            self._close(bucket)

    def _close(self, bucket: _Bucket) -> None:
        space = bucket.space
        # A pair sorts before the triple it begins, and no two triples begin alike.
        del self._due[bisect_left(self._due, (bucket.due, space.serial))]
        del space.buckets[bucket.due]
        if not space.buckets:
            if space.cleared:
                del self._cleared[space.serial]
            else:
                del self._spaces[space.name]

    def _dead_bucket(self, now: float) -> _Bucket | None:
        if self._cleared:
            space = next(iter(self._cleared.values()))
            return next(iter(space.buckets.values()))
        if self._due and self._due[0][0] <= now:
            return self._due[0][2]
        return None
