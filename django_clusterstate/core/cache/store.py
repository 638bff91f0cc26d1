"""One node's cache: a bounded map with ttl and least-recently-used eviction.

No operation sweeps: each costs O(1), amortized, however much the store holds. Times are seconds on the node's
monotonic clock; `now` never goes backwards.
"""

import math
from array import array
from collections.abc import Callable, Iterator
from typing import Final, Generic, TypeVar

from mmh3 import hash as hash_of

from ..expiry import due_of
from ..replication.slots import SlotSet
from ..replication.tombstones import Tombstones, Void
from ..replication.versions import NONE
from .entry_keys import slot_of_entry
from .eviction import EvictionOrder
from .namespaces import Cursor, Entry, Namespaces

V = TypeVar("V")

# Bytes that an entry costs in addition to key and value: its slot in the ordered dict and that dict's list node, the
# Entry with its numbers, its place in a bucket, the header of the key. Measured on CPython 3.11, with versions:
# 300 to 350 while a store fills, because tables double; a test holds it to 30 %. In one that has long been full 420.
ENTRY_OVERHEAD: Final = 360

# One large value needs the room of thousands of small entries, which take milliseconds to evict. So a large store
# keeps a reserve free, and frees it again a few entries at a time. _AT_ONCE take a tenth of a millisecond.
_LARGE: Final = 32 * 1024 * 1024  # bytes
_RESERVE: Final = 2 * 1024 * 1024  # bytes: the two largest values that a node takes, but at most this part of the bound
_RESERVE_PART: Final = 16
_AT_ONCE: Final = 50


class CacheStore(Generic[V]):
    """Values under keys `b"namespace\\0rest"`, for a time, within `max_bytes`.

    `size_of(value)` gives the bytes a value takes in memory (for bytes: `sys.getsizeof`), and must not change while it
    is stored. Each entry counts as the length of its key, the size of its value, and ENTRY_OVERHEAD; so `max_bytes` is
    real memory, provided namespaces are few (a namespace itself isn't counted).

    Over the bound, absent entries are reclaimed first (cleared, then due ones), then copies of other nodes' entries are
    evicted, in the order in which they came, then the least recently used of the others, or nearly: see `lru`. A copy
    that is used here counts as the node's own. A store of _LARGE bytes or more keeps a reserve free: a write that needs
    it gets it at once, and `expire` and the next writes, _AT_ONCE entries at a time, free it again.

    A cleared or expired entry is absent at once, but counts in `entries` and `bytes` until it is reclaimed: by
    `expire`, by the bound, or by the next operation on its key.

    `generation` is kept with each value that is written. When it has been changed since, the next reader of the entry
    calls `is_valid(key, its generation)`, and an invalid entry is absent.

    `on_write(key, now)` is called for each change that is made here, a delete of an absent key included, but not for an
    eviction. It returns the version of the change. Without versions, deletes and clears aren't remembered.

    `bytes`: memory of the entries. `by_slot`: the number of entries in each slot, which stores may share. `evictions`:
    live entries lost to the bound of which this node `owns(key)`; `copies_evicted`: others. `expirations`: entries that
    were expired or invalid when they were dropped.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        size_of: Callable[[V], int],
        is_valid: Callable[[bytes, int], bool] = lambda *_: True,
        owns: Callable[[bytes], bool] = lambda _: True,
        on_write: Callable[[bytes, float], int] = lambda *_: NONE,
        by_slot: "array[int] | None" = None,
    ) -> None:
        self.generation = 0
        self.max_bytes = max_bytes
        self.bytes = 0
        self.evictions = self.copies_evicted = 0
        self.expirations = 0
        self._size_of = size_of
        self._is_valid = is_valid
        self._owns = owns
        self._on_write = on_write
        reserve = min(_RESERVE, max_bytes // _RESERVE_PART) if max_bytes >= _LARGE else 0
        self._target = max_bytes - reserve  # bytes
        self._entries: EvictionOrder[Entry[V]] = EvictionOrder(by_slot)
        self._used = self._entries.used
        self.by_slot = self._used.by_slot
        self._namespaces = Namespaces()
        self._tombstones = Tombstones()
        self._void = Void(slot_of_entry)

    @property
    def entries(self) -> int:
        """The number of entries in memory, including absent ones that aren't reclaimed yet."""
        return len(self._entries)

    def get(self, key: bytes, now: float) -> V | None:
        """The value, now the most recently used; None when absent."""
        used_here = self._used
        # Lru.get() and Lru.use() inlined: they are most of a read.
        shard = used_here.shards[hash_of(key) & used_here.mask]
        entry = shard.get(key)
        if entry is None:
            return self._get_copy(key, now) if self._entries.copies.count else None
        if (
            entry.expires <= now
            or (entry.namespace.cleared and not self._namespaces.survives(entry))
            or (entry.generation != self.generation and not self._revalidate(entry))
        ):
            self._drop_absent(entry)
            return None
        used = used_here.coarse_now
        if now - used >= used_here.resolution:
            used = used_here.coarse(now)
        if entry.used != used:
            shard.move_to_end(key)
            entry.used = used
        return entry.value

    def peek(self, key: bytes, now: float) -> tuple[V, float | None] | None:
        """The value and its remaining ttl in seconds (None: it doesn't expire), which doesn't count as a use; None if
        absent."""
        entry = self._live(key, now)
        return None if entry is None else _state(entry, now)

    def set(self, key: bytes, value: V, ttl: float | None, now: float) -> bool:
        """Stores `value` for `ttl` seconds (None: it doesn't expire; <= 0: deletes the key).

        Returns False if the value alone exceeds the bound, or would keep the reserve in use: then an older value is
        dropped, so that no stale value is read.
        """
        size = self._size(key, value)
        if size > self._target or (ttl is not None and ttl <= 0):
            self.delete(key, now)
            return size <= self._target
        self._write(key, value, size, math.inf if ttl is None else now + ttl, self._on_write(key, now), now)
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
            self.delete(key, now)
            return False
        self._overwrite(entry, value, size, self._on_write(key, now), now)
        self._make_room(now)
        return True

    def touch(self, key: bytes, ttl: float | None, now: float) -> bool:
        """Gives a present key a new ttl in seconds (None: it doesn't expire; <= 0: deletes the key), and makes it the
        most recently used one. Returns False if the key is absent."""
        entry = self._live(key, now)
        if entry is None:
            return False
        if ttl is not None and ttl <= 0:
            return self.delete(key, now)
        self._entries.use(entry, now)
        entry.version = self._on_write(key, now)
        self._reschedule(entry, math.inf if ttl is None else now + ttl, now)
        return True

    def delete(self, key: bytes, now: float) -> bool:
        """Drops a key. Returns False if it is absent."""
        version = self._on_write(key, now)
        if version:
            self._tombstones.add(key, version, now)
        entry = self._live(key, now)
        if entry is None:
            return False
        self._drop(entry)
        return True

    def clear(self, namespace: bytes, now: float, version: int | None = None) -> None:
        """Makes every entry of `namespace` up to `version` absent, or all, in O(1); `expire` and the bound reclaim the
        memory."""
        self._namespaces.clear(namespace, math.inf if version is None else version)

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
        Returns the number reclaimed, or that of old deletes that are forgotten, if it is greater.

        Costs O(that number), however long ago the last call was. A result equal to `budget` means: call again soon.
        """
        forgotten = self._tombstones.expire(now, budget)
        reclaimed = self._reclaim(now, budget)
        while reclaimed < budget and self.bytes > self._target:
            self._evict(now)
            reclaimed += 1
        return max(reclaimed, forgotten)

    def _size(self, key: bytes, value: V) -> int:
        return len(key) + self._size_of(value) + ENTRY_OVERHEAD

    # -- copies ---------------------------------------------------------------------------------------------

    @property
    def floor(self) -> int:
        """Deletes and clears up to this version may be forgotten."""
        return max(self._tombstones.floor, self._namespaces.floor)

    def version(self, key: bytes) -> int:
        """The version of a key's last change that is known, a delete or clear included; 0 if none is."""
        entry = self._counted(key)
        gone = max(self._tombstones.version(key), self._namespaces.version(key))
        return gone if entry is None else max(entry.version, gone)

    def state(self, key: bytes, now: float) -> tuple[V, float | None] | None:
        """The value and the remaining ttl of an entry, though it may be invalid here; None if it is absent."""
        entry = self._counted(key)
        return None if entry is None or entry.expires <= now else _state(entry, now)

    def put(self, key: bytes, value: V | None, ttl: float | None, version: int, now: float) -> None:
        """Stores a change of another node; the value None is a delete."""
        size = 0 if value is None else self._size(key, value)
        if value is None or size > self._target:
            self.drop(key)
            self._tombstones.add(key, version, now)
        else:
            self._write(key, value, size, math.inf if ttl is None else now + ttl, version, now, copied=True)

    def confirm(self, key: bytes) -> None:
        """The entry is as good as if it were written now."""
        entry = self._counted(key)
        if entry is not None:
            entry.generation = self.generation

    def drop(self, key: bytes) -> None:
        """Removes an entry without a trace."""
        entry = self._entries.get(key)
        if entry is not None:
            self._drop(entry)

    def forget(self, slots: SlotSet) -> None:
        """Entries and deletes of these slots that are here now don't count any longer. They are dropped later."""
        self._void.add(slots, self.generation)
        self._tombstones.forget(lambda key: slot_of_entry(key) in slots)

    def keys(self, slots: SlotSet) -> Iterator[list[bytes]]:
        """The keys of all entries in these slots, in portions. Entries may come and go meanwhile."""
        return self._entries.keys(slots)

    def _counted(self, key: bytes) -> Entry[V] | None:
        """The entry of a key, though it may have expired or be invalid; None if it is void or cleared."""
        entry = self._entries.get(key)
        if entry is None or self._void.covers(key, entry.generation):
            return None
        return None if entry.namespace.cleared and not self._namespaces.survives(entry) else entry

    # -- entries --------------------------------------------------------------------------------------------

    def _live(self, key: bytes, now: float) -> Entry[V] | None:
        """The entry of a present key; None if it is absent. An expired, cleared or invalid entry is dropped."""
        entry = self._entries.get(key)
        if entry is not None and not self._is_live(entry, now):
            self._drop_absent(entry)
            return None
        return entry

    def _is_live(self, entry: Entry[V], now: float) -> bool:
        if entry.expires <= now or (entry.namespace.cleared and not self._namespaces.survives(entry)):
            return False
        return entry.generation == self.generation or self._revalidate(entry)

    def _revalidate(self, entry: Entry[V]) -> bool:
        """Whether an entry of an earlier generation is valid in this one. Called once for each generation."""
        valid = self._is_valid(entry.key, entry.generation)
        if valid:
            entry.generation = self.generation
        return valid

    def _get_copy(self, key: bytes, now: float) -> V | None:
        """The value of a copy, which is used here from now on; None when absent."""
        entry = self._live(key, now)
        if entry is None:
            return None
        self._entries.use(entry, now)
        return entry.value

    def _write(
        self, key: bytes, value: V, size: int, expires: float, version: int, now: float, copied: bool = False
    ) -> None:
        entry = self._entries.get(key)
        if entry is not None and (entry.expires <= now or entry.namespace.cleared):
            self._drop_absent(entry)
            entry = None
        if entry is None:
            self._insert(key, value, size, expires, version, now, copied)
            if version:
                self._tombstones.discard(key)
        else:
            self._overwrite(entry, value, size, version, now, copied)
            self._reschedule(entry, expires, now)
        if self.bytes > self._target:
            self._make_room(now)

    def _insert(self, key: bytes, value: V, size: int, expires: float, version: int, now: float, copied: bool) -> None:
        namespace = self._namespaces.get_or_create(key)
        bucket = self._namespaces.add(namespace, key, due_of(expires, now))
        entry = Entry(key, value, size, expires, bucket, namespace, self.generation, now, version, copied)
        self._entries.add(entry, now)
        self.bytes += size

    def _overwrite(self, entry: Entry[V], value: V, size: int, version: int, now: float, copied: bool = False) -> None:
        self._entries.use(entry, now, copied)
        self.bytes += size - entry.size
        entry.value = value
        entry.size = size
        entry.generation = self.generation
        entry.version = version

    def _reschedule(self, entry: Entry[V], expires: float, now: float) -> None:
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
                entry = self._entries[bucket.keys.popitem()[0]]
                if bucket.namespace.cleared and self._namespaces.is_newer(entry):
                    self._namespaces.refile(entry)
                else:
                    self._entries.pop(entry)
                    self.bytes -= entry.size
            if not bucket.keys:
                self._namespaces.drop(bucket)
        return budget - left

    def _evict(self, now: float) -> None:
        entry = self._entries.pop_oldest(now)
        if entry.expires <= now:
            self.expirations += 1
        elif self._owns(entry.key):
            self.evictions += 1
        else:
            self.copies_evicted += 1
        self._forget(entry)

    def _drop_absent(self, entry: Entry[V]) -> None:
        if not entry.namespace.cleared:
            self.expirations += 1
        self._drop(entry)

    def _drop(self, entry: Entry[V]) -> None:
        self._entries.pop(entry)
        self._forget(entry)

    def _forget(self, entry: Entry[V]) -> None:
        self.bytes -= entry.size
        self._namespaces.remove(entry.bucket, entry.key)


def _state(entry: Entry[V], now: float) -> tuple[V, float | None]:
    return entry.value, None if entry.expires == math.inf else entry.expires - now
