"""One node's cache: a bounded map with ttl and least-recently-used eviction.

No operation sweeps: each costs O(1), amortized, however much the store holds. Times are seconds on the node's
monotonic clock; `now` never goes backwards.
"""

import math
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import msgspec

from ..expiry import due_of
from .lru import Lru
from .namespaces import Bucket, Cursor, Namespace, Namespaces

V = TypeVar("V")

# Bytes that an entry costs in addition to key and value: its slot in the ordered dict and that dict's list node, the
# _Entry with its numbers, its place in a bucket, the header of the key. Measured on CPython 3.11: 250 to 310 while
# a store fills, because tables double; a test holds it to 30 %. In one that has long been full 325 to 400.
ENTRY_OVERHEAD: Final = 320

# One large value needs the room of thousands of small entries, which take milliseconds to evict. So a large store
# keeps a reserve free, and frees it again a few entries at a time. _AT_ONCE take a tenth of a millisecond.
_LARGE: Final = 32 * 1024 * 1024  # bytes
_RESERVE: Final = 2 * 1024 * 1024  # bytes: the two largest values that a node takes, but at most this part of the bound
_RESERVE_PART: Final = 16
_AT_ONCE: Final = 50


class _Entry(msgspec.Struct, Generic[V], gc=False):
    # Without gc=False the collector would visit all again and again, a million in 0.25 s. They are in no cycle.
    # The key is the very object that the ordered dict holds: an equal copy in a bucket would stay in memory.
    key: bytes
    value: V
    size: int
    expires: float
    bucket: Bucket
    namespace: Namespace
    generation: int
    used: float


class CacheStore(Generic[V]):
    """Values under keys `b"namespace\\0rest"`, for a time, within `max_bytes`.

    `size_of(value)` gives the bytes a value takes in memory (for bytes: `sys.getsizeof`), and must not change while it
    is stored. Each entry counts as the length of its key, the size of its value, and ENTRY_OVERHEAD; so `max_bytes` is
    real memory, provided namespaces are few (a namespace itself isn't counted).

    Over the bound, absent entries are reclaimed first (cleared, then due ones), then the least recently used present
    ones are evicted, or nearly: see `lru`. A store of _LARGE bytes or more keeps a reserve free: a write that needs it
    gets it at once, and `expire` and the next writes, _AT_ONCE entries at a time, free it again.

    A cleared or expired entry is absent at once, but counts in `entries` and `bytes` until it is reclaimed: by
    `expire`, by the bound, or by the next operation on its key.

    `generation` is kept with each value that is written. When it has been changed since, the next reader of the entry
    calls `is_valid(key, its generation)`, and an invalid entry is absent.

    `bytes`: memory of the entries. `evictions`: live entries lost to the bound. `expirations`: entries that were
    expired or invalid when they were dropped.
    """

    def __init__(
        self, max_bytes: int, *, size_of: Callable[[V], int], is_valid: Callable[[bytes, int], bool] = lambda *_: True
    ) -> None:
        self.generation = 0
        self.max_bytes = max_bytes
        self.bytes = 0
        self.evictions = 0
        self.expirations = 0
        self._size_of = size_of
        self._is_valid = is_valid
        reserve = min(_RESERVE, max_bytes // _RESERVE_PART) if max_bytes >= _LARGE else 0
        self._target = max_bytes - reserve  # bytes
        self._entries: Lru[_Entry[V]] = Lru()
        self._namespaces = Namespaces()

    @property
    def entries(self) -> int:
        """The number of entries in memory, including absent ones that aren't reclaimed yet."""
        return len(self._entries)

    def get(self, key: bytes, now: float) -> V | None:
        """The value, now the most recently used; None when absent."""
        entries = self._entries
        shard = entries.shards[hash(key) & entries.mask]  # Lru.get() and Lru.use() inlined: they are most of a read
        entry = shard.get(key)
        if entry is None:
            return None
        if (
            entry.expires <= now
            or entry.namespace.cleared
            or (entry.generation != self.generation and not self._revalidate(entry))
        ):
            self._drop_absent(entry)
            return None
        used = entries.coarse_now
        if now - used >= entries.resolution:
            used = entries.coarse(now)
        if entry.used != used:
            shard.move_to_end(key)
            entry.used = used
        return entry.value

    def peek(self, key: bytes, now: float) -> tuple[V, float | None] | None:
        """The value and its remaining ttl in seconds (None: it doesn't expire), which doesn't count as a use; None if
        absent."""
        entry = self._live(key, now)
        if entry is None:
            return None
        return entry.value, None if entry.expires == math.inf else entry.expires - now

    def set(self, key: bytes, value: V, ttl: float | None, now: float) -> bool:
        """Stores `value` for `ttl` seconds (None: it doesn't expire; <= 0: deletes the key).

        Returns False if the value alone exceeds the bound, or would keep the reserve in use: then an older value is
        dropped, so that no stale value is read.
        """
        size = self._size(key, value)
        entry = self._entries.get(key)
        if entry is not None and (entry.expires <= now or entry.namespace.cleared):
            self._drop_absent(entry)
            entry = None
        if size > self._target or (ttl is not None and ttl <= 0):
            if entry is not None:
                self._drop(entry)
            return size <= self._target
        expires = math.inf if ttl is None else now + ttl
        if entry is None:
            self._insert(key, value, size, expires, now)
        else:
            self._overwrite(entry, value, size, now)
            self._reschedule(entry, expires, now)
        if self.bytes > self._target:
            self._make_room(now)
        return True

    def add(self, key: bytes, value: V, ttl: float | None, now: float) -> bool:
        """Stores `value` for `ttl` seconds (None: it doesn't expire) if the key is absent. Returns False if it is
        present, or the value alone exceeds the bound."""
        return self._live(key, now) is None and self.set(key, value, ttl, now)

    def replace(self, key: bytes, value: V, now: float) -> bool:
        """Gives a present key another value for the rest of its ttl. Returns False if the key is absent, or the value
        alone exceeds the bound: then the key is deleted."""
        entry = self._live(key, now)
        if entry is None:
            return False
        size = self._size(key, value)
        if size > self._target:
            self._drop(entry)
            return False
        self._overwrite(entry, value, size, now)
        if self.bytes > self._target:
            self._make_room(now)
        return True

    def touch(self, key: bytes, ttl: float | None, now: float) -> bool:
        """Gives a present key a new ttl in seconds (None: it doesn't expire; <= 0: deletes the key), and makes it the
        most recently used one. Returns False if the key is absent."""
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
        """Drops a key. Returns False if it is absent."""
        entry = self._live(key, now)
        if entry is None:
            return False
        self._drop(entry)
        return True

    def clear(self, namespace: bytes, now: float) -> None:
        """Makes every entry of `namespace` absent, in O(1); `expire` and the bound reclaim the memory."""
        self._namespaces.clear(namespace)

    def clear_all(self, now: float) -> None:
        """Makes every entry absent, in O(namespaces); `expire` and the bound reclaim the memory."""
        self._namespaces.clear_all()

    def scan(self, prefix: bytes, cursor: Cursor | None, now: float) -> tuple[list[bytes], Cursor | None]:
        """Some of the present keys that begin with `prefix`, namespace and zero byte included, and the cursor to go on
        with; None when those were the last. Begin with None.

        Each call reads 340 keys at most (`namespaces.BUCKET_KEYS`). All together find each key that is present from the
        first call to the last, unless its ttl is shortened meanwhile; one whose ttl is renewed may be found twice.
        """
        namespace = self._namespaces.get(prefix)
        if namespace is None:
            return [], None
        buckets, cursor = self._namespaces.scan(namespace, cursor)
        keys = (key for bucket in buckets for key in bucket.keys)
        return [key for key in keys if key.startswith(prefix) and self._is_live(self._entries[key], now)], cursor

    def expire(self, now: float, budget: int = 1000) -> int:
        """Reclaims cleared entries and those whose bucket is due, then frees the reserve; at most `budget` entries.
        Returns the number reclaimed.

        Costs O(that number), however long ago the last call was. A result equal to `budget` means: call again soon.
        """
        reclaimed = self._reclaim(now, budget)
        while reclaimed < budget and self.bytes > self._target:
            self._evict(now)
            reclaimed += 1
        return reclaimed

    def _size(self, key: bytes, value: V) -> int:
        return len(key) + self._size_of(value) + ENTRY_OVERHEAD

    def _live(self, key: bytes, now: float) -> _Entry[V] | None:
        """The entry of a present key; None if it is absent. An expired, cleared or invalid entry is dropped."""
        entry = self._entries.get(key)
        if entry is not None and not self._is_live(entry, now):
            self._drop_absent(entry)
            return None
        return entry

    def _is_live(self, entry: _Entry[V], now: float) -> bool:
        if entry.expires <= now or entry.namespace.cleared:
            return False
        return entry.generation == self.generation or self._revalidate(entry)

    def _revalidate(self, entry: _Entry[V]) -> bool:
        """Whether an entry of an earlier generation is valid in this one. Called once for each generation."""
        valid = self._is_valid(entry.key, entry.generation)
        if valid:
            entry.generation = self.generation
        return valid

    def _insert(self, key: bytes, value: V, size: int, expires: float, now: float) -> None:
        namespace = self._namespaces.get_or_create(key)
        bucket = self._namespaces.add(namespace, key, due_of(expires, now))
        used = self._entries.coarse(now)
        self._entries.add(_Entry(key, value, size, expires, bucket, namespace, self.generation, used))
        self.bytes += size

    def _overwrite(self, entry: _Entry[V], value: V, size: int, now: float) -> None:
        self._entries.use(entry, now)
        self.bytes += size - entry.size
        entry.value = value
        entry.size = size
        entry.generation = self.generation

    def _reschedule(self, entry: _Entry[V], expires: float, now: float) -> None:
        entry.expires = expires
        old, due = entry.bucket, due_of(expires, now)
        if due != old.due:
            # Added before it is removed, or a namespace whose only entry this is would be dropped.
            entry.bucket = self._namespaces.add(entry.namespace, entry.key, due)
            self._namespaces.remove(old, entry.key)

    def _make_room(self, now: float) -> None:
        """Reclaims until the bound holds, and some more if the reserve is in use. Ends before the entry just stored,
        which is the last used and fits alone: almost surely where only a few shards are compared."""
        left = _AT_ONCE
        while self.bytes > (self._target if left > 0 else self.max_bytes):
            left -= 1
            if not self._reclaim(now, 1):
                self._evict(now)

    def _reclaim(self, now: float, budget: int) -> int:
        """Drops absent entries, at most `budget`, and returns how many it dropped."""
        left = budget
        while left > 0 and (bucket := self._namespaces.first_reclaimable(now)) is not None:
            count = min(left, len(bucket.keys))
            left -= count
            if not bucket.namespace.cleared:
                self.expirations += count
            for _ in range(count):
                self.bytes -= self._entries.pop(bucket.keys.popitem()[0]).size
            if not bucket.keys:
                self._namespaces.drop(bucket)
        return budget - left

    def _evict(self, now: float) -> None:
        entry = self._entries.pop_oldest(now)
        if entry.expires <= now:
            self.expirations += 1
        else:
            self.evictions += 1
        self._forget(entry)

    def _drop_absent(self, entry: _Entry[V]) -> None:
        if not entry.namespace.cleared:
            self.expirations += 1
        self._drop(entry)

    def _drop(self, entry: _Entry[V]) -> None:
        self._entries.pop(entry.key)
        self._forget(entry)

    def _forget(self, entry: _Entry[V]) -> None:
        self.bytes -= entry.size
        self._namespaces.remove(entry.bucket, entry.key)
