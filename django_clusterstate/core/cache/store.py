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

from .lru import Lru
from .timer_wheel import Bucket, Space, due_of

__all__ = ["ENTRY_OVERHEAD", "CacheStore", "Cursor"]

V = TypeVar("V")
Cursor = tuple[float, int]  # of a bucket: its due time and serial

# Bytes an entry costs besides key and value: its slot in the ordered dict and that dict's list node, the
# _Entry with its numbers, its place in a bucket, the header of the key. Measured on CPython 3.11: 250 to 310 while
# a store fills, since tables double; a test holds it to 30 %. In one that has long been full 325 to 400.
ENTRY_OVERHEAD: Final = 320

# A full bucket has another beside it, due at the same time, so that `scan` can go by buckets and yet never looks at
# many keys at once. CPython gives a dict of 342 keys a table twice as large as one of 341.
_BUCKET_KEYS: Final = 340
_BUCKETS_PASSED: Final = 1000  # by one `scan`: those of other namespaces and nearly empty ones are cheap, not free

# One large value needs the room of thousands of small entries, which take milliseconds to evict. So a large store
# keeps some room free, and makes it again a few entries at a time. _AT_ONCE take a tenth of a millisecond.
_LARGE: Final = 32 * 1024 * 1024  # bytes
_RESERVE: Final = 2 * 1024 * 1024  # bytes: the two largest values that a node takes, but at most the part
_RESERVE_PART: Final = 16  # of the bound
_AT_ONCE: Final = 50


class _Entry(msgspec.Struct, Generic[V], gc=False):
    # With `gc` all would be visited again and again, a million for a quarter of a second. They are in no cycle.
    # The very object that the ordered dict holds: a caller's equal copy in another bucket would stay in memory.
    key: bytes
    value: V
    size: int
    expires: float
    bucket: Bucket
    space: Space
    stamp: int
    used: float


def _always(key: bytes, stamp: int) -> bool:
    return True


class CacheStore(Generic[V]):
    """Values under keys `b"namespace\\0rest"`, for a time, within `max_bytes`.

    `size_of(value)` gives the bytes a value takes in memory (for bytes: `sys.getsizeof`), and must not change while it
    is stored. Each entry counts as its key's length, that, and ENTRY_OVERHEAD; so `max_bytes` is real memory, provided
    namespaces are few (a namespace itself isn't counted).

    Over the bound, dead entries go first (cleared, then due ones), then the least recently used live ones, or nearly:
    see `recency`. A store of _LARGE bytes or more keeps _RESERVE bytes free: a write that needs them gets them at
    once, and they are made free again by `expire` and, _AT_ONCE entries at a time, by the next writes.

    A cleared or expired entry is absent at once, but counts in `entries` and `bytes` until it is reclaimed: by
    `expire`, by the bound, or by the next operation on its key.

    `stamp` is noted with each value that is written; when it has been changed since, `still_good(key, the stamp noted)`
    is asked before the value is given out, and an entry that isn't good any more is absent.

    `bytes`: what the entries take. `evictions`: live entries lost to the bound. `expirations`: entries whose time was
    over when they were dropped.
    """

    __slots__ = (
        "_cleared",
        "_due",
        "_entries",
        "_full",
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
        self._full = max_bytes - min(_RESERVE, max_bytes // _RESERVE_PART) * (max_bytes >= _LARGE)  # bytes
        self._entries: Lru[_Entry[V]] = Lru()
        self._spaces: dict[bytes, Space] = {}
        self._cleared: OrderedDict[int, Space] = OrderedDict()  # by serial; each still holds entries
        # All buckets by (due, serial). A sorted list, not a heap, because buckets also go before they are due; they
        # are few enough for the insert's memmove to take a microsecond or two, once in _BUCKET_KEYS keys.
        self._due: list[tuple[float, int, Bucket]] = []
        self._serial = 0

    @property
    def entries(self) -> int:
        """Entries in memory, dead ones that aren't reclaimed yet included."""
        return len(self._entries)

    def get(self, key: bytes, now: float) -> V | None:
        """The value, now the most recently used; None when absent."""
        entries = self._entries
        part = entries.parts[hash(key) & entries.mask]  # written out, as what follows: it is most of a read
        entry = part.get(key)
        if entry is None:
            return None
        if entry.expires <= now or entry.space.cleared or (entry.stamp != self.stamp and self._is_stale(entry)):
            self._drop_dead(entry)
            return None
        moment = entries.moment
        if now - moment >= entries.lasts:
            moment = entries.at(now)
        if entry.used != moment:
            part.move_to_end(key)
            entry.used = moment
        return entry.value

    def peek(self, key: bytes, now: float) -> tuple[V, float | None] | None:
        """The value and its remaining ttl in seconds (None: for ever), leaving the LRU order alone; None if absent."""
        entry = self._live(key, now)
        if entry is None:
            return None
        return entry.value, None if entry.expires == math.inf else entry.expires - now

    def set(self, key: bytes, value: V, ttl: float | None, now: float) -> bool:
        """Store `value` for `ttl` seconds (None: for ever; <= 0: delete the key).

        False when the value alone exceeds the bound, or would keep the reserve in use; an older value is dropped then,
        so that nobody reads a stale one.
        """
        size = len(key) + self._size_of(value) + ENTRY_OVERHEAD
        entry = self._entries.get(key)
        if entry is not None and (entry.expires <= now or entry.space.cleared):
            self._drop_dead(entry)
            entry = None
        if size > self._full or (ttl is not None and ttl <= 0):
            if entry is not None:
                self._drop(entry)
            return size <= self._full
        expires = math.inf if ttl is None else now + ttl
        if entry is None:
            bucket = self._bucket(self._space(key), due_of(expires, now))
            bucket.keys[key] = None
            moment = self._entries.at(now)
            self._entries.add(_Entry(key, value, size, expires, bucket, bucket.space, self.stamp, moment))
            self.bytes += size
        else:
            self._entries.use(entry, now)
            self._assign(entry, value, size)
            self._reschedule(entry, expires, now)
        if self.bytes > self._full:
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
        if size > self._full:
            self._drop(entry)
            return False
        self._entries.use(entry, now)
        self._assign(entry, value, size)
        if self.bytes > self._full:
            self._make_room(now)
        return True

    def touch(self, key: bytes, ttl: float | None, now: float) -> bool:
        """Give a present key another ttl, as in `set`, and make it the most recently used; False when absent."""
        entry = self._live(key, now)
        if entry is None:
            return False
        if ttl is not None and ttl <= 0:
            self._drop(entry)
            return True
        self._entries.use(entry, now)
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

    def clear_all(self, now: float) -> None:
        """As `clear`, each namespace."""
        for namespace in list(self._spaces):
            self.clear(namespace, now)

    def scan(self, prefix: bytes, cursor: Cursor | None, now: float) -> tuple[list[bytes], Cursor | None]:
        """Some of the present keys that begin with `prefix`, namespace and zero byte included, and the cursor to go on
        with; None when those were the last. Begin with None.

        Each call looks at _BUCKET_KEYS keys at most. All together find each key that is present from the first call
        to the last, unless its ttl is shortened meanwhile; one whose ttl is renewed may be found twice.
        """
        space = self._spaces.get(prefix.partition(b"\0")[0])
        if space is None:
            return [], None
        start = bisect_left(self._due, (cursor[0], cursor[1] + 1)) if cursor is not None else 0
        found: list[bytes] = []
        looked_at = 0
        for due, serial, bucket in self._due[start : start + _BUCKETS_PASSED]:
            if bucket.space is space:
                if looked_at + len(bucket.keys) > _BUCKET_KEYS:
                    return found, cursor
                looked_at += len(bucket.keys)
                found += [key for key in bucket.keys if key.startswith(prefix) and self._is_live(key, now)]
            cursor = float(due), serial
        return found, cursor if start + _BUCKETS_PASSED < len(self._due) else None

    def expire(self, now: float, budget: int = 1000) -> int:
        """Reclaim cleared entries and those whose bucket is due, then what the reserve needs; at most `budget`, and the
        number reclaimed.

        Costs O(that number), however long the last call was ago. A result equal to `budget` means: call again soon.
        """
        reclaimed = self._reclaim(now, budget)
        while reclaimed < budget and self.bytes > self._full:
            self._evict(now)
            reclaimed += 1
        return reclaimed

    def _reclaim(self, now: float, budget: int) -> int:
        entries = self._entries
        left = budget
        while left > 0 and (bucket := self._dead_bucket(now)) is not None:
            keys = bucket.keys
            count = min(left, len(keys))
            left -= count
            if not bucket.space.cleared:
                self.expirations += count
            for _ in range(count):
                self.bytes -= entries.pop(keys.popitem()[0]).size
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

    def _is_live(self, key: bytes, now: float) -> bool:
        entry = self._entries[key]
        return entry.expires > now and (entry.stamp == self.stamp or not self._is_stale(entry))

    def _is_stale(self, entry: _Entry[V]) -> bool:
        # Asks once for each stamp whether an entry from before it is still good.
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
        self._entries.pop(entry.key)
        self._forget(entry)

    def _drop_dead(self, entry: _Entry[V]) -> None:
        if not entry.space.cleared:
            self.expirations += 1
        self._drop(entry)

    def _forget(self, entry: _Entry[V]) -> None:
        self.bytes -= entry.size
        self._leave(entry.bucket, entry.key)

    def _make_room(self, now: float) -> None:
        """Reclaim until the bound holds, and some more where the reserve is in use. Ends before the entry just stored,
        which is the last used and fits alone: all but surely where the oldest is looked for in a few parts only."""
        left = _AT_ONCE
        while self.bytes > (self.max_bytes if left <= 0 else self._full):
            left -= 1
            if not self._reclaim(now, 1):
                self._evict(now)

    def _evict(self, now: float) -> None:
        entry = self._entries.pop_oldest(now)
        if entry.expires <= now:
            self.expirations += 1
        else:
            self.evictions += 1
        self._forget(entry)

    # Spaces and buckets. Each space holds a bucket and each bucket a key, between calls: what is empty is dropped at
    # once, so neither outlives the entries. An entry is in one bucket only, and buckets belong to one space, which is
    # how a cleared space's entries are found again without a second index.

    def _space(self, key: bytes) -> Space:
        name = key.partition(b"\0")[0]
        space = self._spaces.get(name)
        if space is None:
            self._serial += 1
            space = self._spaces[name] = Space(name, self._serial)
        return space

    def _bucket(self, space: Space, due: float) -> Bucket:
        """One with room for a key."""
        bucket = space.filling.get(due)
        if bucket is None or len(bucket.keys) >= _BUCKET_KEYS:
            spare = space.spare.get(due)
            bucket = space.filling[due] = spare.popitem()[1] if spare else self._open(space, due)
        return bucket

    def _open(self, space: Space, due: float) -> Bucket:
        self._serial += 1
        bucket = space.buckets[self._serial] = Bucket(space, due, self._serial)
        insort(self._due, (due, self._serial, bucket))
        return bucket

    def _reschedule(self, entry: _Entry[V], expires: float, now: float) -> None:
        entry.expires = expires
        old, due = entry.bucket, due_of(expires, now)
        if due != old.due:
            # Enter before leaving, or a space whose only entry this is would be dropped.
            entry.bucket = self._bucket(entry.space, due)
            entry.bucket.keys[entry.key] = None
            self._leave(old, entry.key)

    def _leave(self, bucket: Bucket, key: bytes) -> None:
        del bucket.keys[key]
        if not bucket.keys:
            self._close(bucket)
        elif len(bucket.keys) == _BUCKET_KEYS - 1 and bucket.space.filling.get(bucket.due) is not bucket:
            bucket.space.spare.setdefault(bucket.due, {})[bucket.serial] = bucket

    def _close(self, bucket: Bucket) -> None:
        space, due = bucket.space, bucket.due
        # A pair sorts before the triple it begins, and no two triples begin alike.
        del self._due[bisect_left(self._due, (due, bucket.serial))]
        del space.buckets[bucket.serial]
        if space.filling.get(due) is bucket:
            del space.filling[due]
        if (spare := space.spare.get(due)) is not None:
            spare.pop(bucket.serial, None)
            if not spare:
                del space.spare[due]
        if not space.buckets:
            if space.cleared:
                del self._cleared[space.serial]
            else:
                del self._spaces[space.name]

    def _dead_bucket(self, now: float) -> Bucket | None:
        if self._cleared:
            space = next(iter(self._cleared.values()))
            return next(iter(space.buckets.values()))
        if self._due and self._due[0][0] <= now:
            return self._due[0][2]
        return None
